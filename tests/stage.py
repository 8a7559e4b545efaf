"""The stage of the tests: runs, nodes and models, and the only place that reaches into a Driver or a Node.

What a test does to the inside of either goes through the functions at the end. They say what the test needs, not where
it is kept.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brokerfl.broker.connection import Pipeline
from brokerfl.broker.contact import READ_ON, contact, open_streams, ring_doorbell
from brokerfl.broker.fence import Transaction
from brokerfl.broker.inbox import Delivery
from brokerfl.broker.keys import Keys
from brokerfl.broker.nodes import Registration
from brokerfl.broker.outbox import Reply
from brokerfl.client import ClientApp, activity, intake, publisher, stuck, wanted
from brokerfl.client.journal import Journal
from brokerfl.client.node import Node
from brokerfl.client.publisher import Publisher
from brokerfl.client.wanted import Wanted
from brokerfl.client.worklist import Work
from brokerfl.common import Array, Message, ParametersRecord, RecordSet, RedisOutOfMemory
from brokerfl.server import Driver
from brokerfl.server.book import Applied
from brokerfl.server.recorder import Recorder
from brokerfl.server.tape import Tape
from brokerfl.server.upload import Uploader
from brokerfl.wire.frame import Fields, size_of
from brokerfl.wire.payload import EncodedContent, Payload
from brokerfl.wire.record import encode_content
from tests import conftest
from tests.apps import Bench, Seen, eventually, number, number_in
from tests.conftest import Backend

# Runs.


def start(backend: Backend, **options: Any) -> Driver:
    """A Driver of a new run."""
    return Driver(backend.connect(), "server:app", **options)


def kill(driver: Driver) -> None:
    """What kill -9 leaves behind: a lease that nobody renews, and no thread."""
    driver._hold._heartbeat.stop()
    driver._hold._ticks.stop()


def tape_of(driver: Recorder) -> Tape:
    """What a run is recorded on."""
    return driver._tape


def close_tape(driver: Recorder) -> None:
    """What the end of a process does to a recording: the file is closed, as far as it was written."""
    driver._tape._held.close()
    driver._tape._file.close()


def after_sync(driver: Recorder, look: Callable[[], None]) -> None:
    """Look at a recording each time that it was synced."""
    sync = driver._tape.sync

    def both() -> None:
        sync()
        look()

    driver._tape.sync = both  # type: ignore[method-assign]


def tell(driver: Driver, told: bytes) -> None:
    """A heartbeat that says this of the run."""
    driver._hold.owner.renew(driver._hold.footprint, told)


def tell_again(driver: Driver) -> None:
    """What the last heartbeat said once more, when the run may be over."""
    driver._hold.owner._tell()


def calls_in_progress(driver: Driver) -> int:
    """How many calls of the app wait or push."""
    return len(driver._hold.progress._activities)


@contextmanager
def resumed(backend: Backend, former: Driver, **options: Any) -> Iterator[Driver]:
    """The Driver of another process that takes the run up; the run ends with the block."""
    driver = Driver(backend.connect(), "", None, resume=former.run.run_id, takeover=True, **options)
    try:
        yield driver
    finally:
        driver.end()


def in_ledger(backend: Backend, driver: Driver) -> set[str]:
    """The ids of the messages that Redis says are open or not settled."""
    return {key.decode() for key in backend.admin.hkeys(driver.connection.keys.ledger(driver.run.run_id))}


def in_inbox(backend: Backend, driver: Driver, node: int) -> list[str]:
    """The ids of the messages in a node's inbox."""
    inbox = driver.connection.keys.inbox(node, driver.run.run_id)
    return [fields[b"i"].decode() for _, fields in backend.admin.xrange(inbox)]


class Streams:
    """The three streams between a run and a node, seen from outside."""

    def __init__(self, backend: Backend, driver: Driver, node: Node) -> None:
        self._admin, self._connection = backend.admin, driver.connection
        self._node_id, self._run_id = node.node_id, driver.run.run_id
        self.inbox, self.outbox, self.data = driver.connection.keys.of_node_and_run(node.node_id, driver.run.run_id)

    def entry(self, stream: str) -> tuple[str, dict[bytes, bytes]]:
        """The only entry of a stream."""
        [(entry_id, fields)] = self._admin.xrange(stream)
        return entry_id.decode(), fields

    def again(self, fields: dict[bytes, bytes]) -> None:
        """Put an entry into the inbox a second time, as a ServerApp does that found it in neither stream."""
        self._admin.xadd(self.inbox, fields)
        ring_doorbell(self._connection, self._node_id, f"{READ_ON} {self._run_id}")

    def lengths(self) -> tuple[int, int, int]:
        """How many entries inbox, outbox and data stream have."""
        return self._admin.xlen(self.inbox), self._admin.xlen(self.outbox), self._admin.xlen(self.data)

    def forget_replies(self) -> None:
        """Lose what the node wrote: the replies and their payloads."""
        for stream in (self.outbox, self.data):
            self._admin.xtrim(stream, maxlen=0)


def first_contact(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, frame: bytes = b"frame") -> None:
    """What a run and its echo do at the first contact of a node."""
    open_streams(pipe, keys, node_id, run_id, 60.0)
    contact(pipe, keys, node_id, run_id, frame, 60.0)


# Messages.


def push(driver: Driver, node: int, content: RecordSet, group: str = "1", kind: str = "train", **options: Any) -> str:
    """Push one message; return its id."""
    [message_id] = driver.push_messages([driver.create_message(content, kind, node, group, **options)])
    assert message_id
    return message_id


def push_numbers(driver: Driver, node: Node, *values: int, kind: str = "train") -> list[str]:
    """Push one message for each value; return their ids."""
    return driver.push_messages([driver.create_message(number(n), kind, node.node_id, "1") for n in values])


def numbers(driver: Driver, ids: list[str], timeout: float = 20.0) -> list[int]:
    """What the replies hold, in the order of their arrival."""
    return [number_in(reply) for reply in driver.replies(ids, timeout=timeout)]


def ask(driver: Driver, node: Node, size: int = 0) -> str:
    """Push one message to a `Counter`, whose reply shall have a payload of ``size`` bytes; return its id."""
    return push(driver, node.node_id, number(size))


def send(driver: Driver, node: Node, size: int = 0, kind: str = "train", group: str = "1") -> Message:
    """As `ask`; return the reply."""
    [reply] = driver.send_and_receive([driver.create_message(number(size), kind, node.node_id, group)])
    return reply


def to_all(
    driver: Driver, nodes: list[int], content: RecordSet, group: str = "1", kind: str = "train"
) -> list[Message]:
    """Broadcast one record; return the replies."""
    return driver.send_and_receive([driver.create_message(content, kind, node, group) for node in nodes])


def reason_of(reply: Message, code: int) -> str:
    """The reason of an Error reply with this code."""
    assert reply.has_error(), f"{reply!r} is no Error reply"
    assert reply.error.code == code, reply.error
    return reply.error.reason or ""


# Nodes.

#: The name of a node where a test needs only one.
NAME = "berlin"


def silent(backend: Backend, name: str = "silent") -> int:
    """A node that registers and reads nothing."""
    registration = Registration(backend.connect(), name, lease=600.0)
    registration.register()
    return registration.node_id


def new_node(
    backend: Backend,
    app: ClientApp,
    folder: Path | None = None,
    *,
    name: str = NAME,
    workers: int = 1,
    lease: float = 15.0,
    on_ready: Callable[[], None] = lambda: None,
    **options: Any,
) -> Node:
    """A named node with its journal in ``folder``."""
    journal, connection = Journal(folder), backend.connect()
    registration = Registration(connection, name, lease=lease, home=journal.home)
    return Node(app, connection, registration, on_ready=on_ready, journal=journal, workers=workers, **options)


@contextmanager
def serving(backend: Backend, app: ClientApp, folder: Path | None = None, **options: Any) -> Iterator[Node]:
    """A `new_node` that serves in a thread until the block ends, and must not fail."""
    ready, failures = threading.Event(), []
    node = new_node(backend, app, folder, on_ready=ready.set, **options)

    def serve() -> None:
        try:
            node.serve()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(20)
        yield node
    finally:
        node.stop()
        thread.join()
    assert failures == []


@contextmanager
def by_hand(backend: Backend, app: ClientApp, folder: Path | None, **options: Any) -> Iterator[Node]:
    """A node that has turns only when the test makes them; killed at the end of the block. Its workers do not work."""
    node = new_node(backend, app, folder, **options)
    node.register()
    try:
        yield node
    finally:
        drop_finished(node)  # a process that was killed publishes no more
        node._journal.close()


def turns(node: Node, until: int, bench: Bench) -> None:
    """Let the node work until that many messages were executed."""
    eventually(lambda: (sum(map(len, bench.executed.values())) >= until or node.turn(0.1), until)[0] is True)


def warm_up(node: Node, driver: Driver, bench: Bench) -> None:
    """Let a node execute something, so that it knows the run, and think that it was quick, so that it reads many."""
    ids = push_numbers(driver, node, 0)
    turns(node, 1, bench)
    assert numbers(driver, ids) == [1]
    node._service.pace = 1e-6


class Late:
    """A node that is known to a run and begins to serve when it is told to: until then its messages wait."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        registration = Registration(backend.connect(), NAME, lease=600.0)
        registration.register()
        registration.leave()
        self.node_id = registration.node_id
        self.seen = Seen()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """It serves until the block ends."""
        with serving(self._backend, self.seen.app) as node:
            assert node.node_id == self.node_id
            yield


# Models, in chunks so small that a few thousand bytes make many: see the fixture `small_chunks`.

#: Most bytes of a content that its message carries itself, and bytes of a chunk.
INLINE, CHUNK = 512, 1024

#: Bytes of a layer that takes five chunks, the last of them not full.
LAYER = 4 * CHUNK + 100


def layer(seed: int, size: int = LAYER) -> "np.ndarray[Any, Any]":
    """An array of random bytes."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def model(*arrays: "np.ndarray[Any, Any]") -> RecordSet:
    """A RecordSet with some layers."""
    return RecordSet({"p": ParametersRecord({str(i): Array(array) for i, array in enumerate(arrays)})})


def layers_in(content: RecordSet) -> list[bytes]:
    """The bytes of all layers."""
    return [bytes(array.data) for array in content.parameters_records["p"].values()]


def chunks_of(driver: Driver, *contents: RecordSet) -> set[str]:
    """The keys of the chunks that these contents make when this Driver uploads them."""
    keys, run, uploader = driver.connection.keys, driver.run.run_id, uploader_of(driver)
    made = [Payload(encode_content(content), uploader).manifest for content in contents]
    return {keys.blob(run, chunk) for manifest in made for chunk in manifest.chunks}


def uploader_of(driver: Driver) -> int:
    """The number that is in the names of the chunks that it uploads."""
    return driver._hold.owner.fence.counter


def chunks_in(backend: Backend) -> set[str]:
    """The keys of the chunks that Redis has."""
    prefix = conftest.PREFIX  # which an option may have changed since
    return {key.decode() for key in backend.admin.scan_iter(f"{prefix}:blob:*", count=1000)}


def remove_chunks(backend: Backend) -> None:
    """Redis loses all chunks of broadcasts."""
    backend.admin.unlink(*chunks_in(backend))


# Inside a Driver: what it keeps.


def driver_of(grid: Any) -> Driver:
    """The Driver under a grid of Flower's."""
    return grid._driver


def dropped(driver: Driver) -> int:
    """How many replies fitted nothing open."""
    return driver._hold.book.answers.dropped


def taken(driver: Driver) -> int:
    """How many replies were given out."""
    return driver._hold.book.answers.takes


def unsettled(driver: Driver) -> int:
    """How many messages no commit has taken out."""
    return len(driver._hold.book)


def is_unsettled(driver: Driver, message_id: str) -> bool:
    """Whether no commit has taken this message out."""
    return message_id in driver._hold.book


def owing(driver: Driver) -> list[int]:
    """The nodes that owe the run a reply."""
    return driver._hold.book.owing()


def fields_of(driver: Driver, message_id: str) -> Fields:
    """What was pushed."""
    message = driver._hold.book._index.find(message_id)
    assert message is not None
    assert message.fields is not None
    return message.fields


def content_of(driver: Driver, message_id: str) -> bytes:
    """The name of a message's content: equal contents have one."""
    message = driver._hold.book._index.find(message_id)
    assert message is not None
    return message.entry.digest


def spares_of(driver: Driver, message_id: str) -> set[str]:
    """Where the copies of a large reply are that are kept beside the one that counts."""
    message = driver._hold.book._index.find(message_id)
    assert message is not None
    return {outbox_entry for outbox_entry, _, _ in message.spares}


def seconds_between_sweeps(driver: Driver) -> float:
    """How often it looks for replies that nobody rang for."""
    return driver._hold.waits._pace


def held_bytes(driver: Driver) -> int:
    """How many bytes of replies are in memory, for the app to take."""
    messages = driver._hold.book._index.messages.values()
    held = [message.reply for message in messages if isinstance(message.reply, dict)]
    assert driver._hold.book._index.held == sum(map(size_of, held))
    return sum(map(size_of, held))


def to_be_deleted(driver: Driver) -> set[str]:
    """Where the replies are that go with the next transaction, for they fitted nothing."""
    return {outbox_entry for _, outbox_entry, _ in driver._hold.waits._receiver._dropped}


def held_chunks(driver: Driver) -> int:
    """How many chunks are in memory, for a Redis that forgets them."""
    return len(driver._hold.blobs._held)


def known_chunks(driver: Driver) -> set[bytes]:
    """The chunks of all contents that the run has in Redis."""
    return set(driver._hold.blobs.chunks())


def needs(driver: Driver) -> list[int]:
    """How many messages and states need each content that the run has in Redis."""
    book = driver._hold.book
    return [book._needs.get(each, 0) + (each == book.kept.state_key) for each in driver._hold.blobs.contents]


def is_stale(driver: Driver) -> bool:
    """Whether its next step compares with Redis."""
    return driver._hold.session.is_stale


# Inside a Driver: what the test makes it do or believe.


def close_run(driver: Driver) -> None:
    """Begin to end the run, and die before the rest is deleted."""
    kill(driver)
    hold = driver._hold
    hold.session.transact(lambda: hold.session.transactions.close(hold.footprint()))


def before_deletion(driver: Driver, monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
    """Call ``hook`` between the two transactions that end its run."""
    transactions = driver._hold.session.transactions
    delete = transactions.delete

    def hooked(*remains: Any) -> Transaction:
        hook()
        return delete(*remains)

    monkeypatch.setattr(transactions, "delete", hooked)


def distrust(driver: Driver) -> None:
    """Redis showed that it forgot: the next step compares with it."""
    driver._hold.session.distrust()


@contextmanager
def locked(driver: Driver) -> Iterator[None]:
    """Another thread holds the locks of a Driver, as one may at any moment."""
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with driver._hold.session.writing, driver._hold.book.lock, driver._hold.pusher._pushing:
            held.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        go.set()
        thread.join()


def cut(driver: Driver) -> None:
    """A connection broke, and Redis answers again: the next step compares with it and restores what it lacks."""
    driver._hold.session.reconnect(ConnectionError("cut"))


def compare(driver: Driver) -> None:
    """Compare with Redis now."""
    driver._hold.session.reconcile(always=True)


def transact(driver: Driver) -> None:
    """Make a transaction that writes nothing of its own."""
    driver._hold.session.transact(lambda: Transaction("nothing"))


def beat(driver: Driver) -> None:
    """What its heartbeat does now and then."""
    driver._hold._renew()


def tell_late(driver: Driver, values: dict[str, float]) -> None:
    """Write numbers that were on their way when its run ended."""
    driver._hold.session.diary.tell("1", values)
    driver._hold.session.diary.write()


def cancel_answered(driver: Driver) -> list[object]:
    """Commit that what was cancelled leaves; return the events in that commit."""
    found: list[object] = []
    events = driver._hold.owner.events
    assert events is not None
    events.add = lambda pipe, pages: found.extend(pages)  # type: ignore[method-assign]
    cancelled = driver._hold.book.unwanted()
    assert cancelled
    driver._hold.committer._execute(cancelled=cancelled)
    del events.add
    return found


def cut_fence(driver: Driver) -> None:
    """The connection of its transactions broke, and it has not noticed."""
    driver._hold.owner.fence._socket.disconnect()


def unaware(driver: Driver) -> None:
    """As if it had not noticed that its run is over; and a sweep is due."""
    driver._hold.session._over = None
    sweep_soon(driver)


def is_collecting(driver: Driver) -> bool:
    """Whether a thread waits for what comes next."""
    return driver._hold.waits._leader is not None


def sweep_soon(driver: Driver) -> None:
    """A sweep is due."""
    driver._hold.waits._swept = 0.0


def contact_soon(driver: Driver) -> None:
    """Nodes that owe a reply are to be contacted again, with the sweep that is due."""
    driver._hold.verdicts._rings._next = dict.fromkeys(owing(driver), (0.0, 2.0))
    sweep_soon(driver)


def read_outbox(driver: Driver, *nodes: int) -> None:
    """Take in what is new in the outboxes of these nodes, and do nothing else."""
    driver._hold.waits._receiver.read(nodes)


def read_anew(driver: Driver) -> None:
    """Read all outboxes from their beginning, as after a lost connection."""
    driver._hold.waits._receiver.reset()


def hold_read(driver: Driver, node: int) -> Callable[[], None]:
    """Read a node's outbox, and return what takes in the answer, which is late."""
    receiver = driver._hold.waits._receiver
    generation = receiver._outboxes.generation
    replies: list[Reply] = []
    receiver._outboxes.read([node], replies.extend)
    return lambda: receiver._match(replies, generation)


def before_lost_is_looked_for(driver: Driver, monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
    """Call ``hook`` in the next comparison, after the cursors were forgotten and before the outboxes are read."""
    look = driver._hold.blobs.look

    def hooked() -> None:
        look()
        hook()

    monkeypatch.setattr(driver._hold.blobs, "look", hooked)


def read_nothing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reads find no reply, as if none had arrived, until it passes a verdict."""
    outboxes, transactions = driver._hold.waits._receiver._outboxes, driver._hold.waits._verdicts._transactions
    read, verdict = outboxes.read, transactions.verdict

    def hooked(parcels: Any) -> Any:
        monkeypatch.setattr(outboxes, "read", read)
        return verdict(parcels)

    monkeypatch.setattr(outboxes, "read", lambda *_: True)
    monkeypatch.setattr(transactions, "verdict", hooked)


def note_contact(driver: Driver, node: int) -> None:
    """It believes that this node holds keys of the run."""
    driver._hold.book.contacts.reached.add(node)


def deliver_again(driver: Driver, message_id: str) -> None:
    """It finds that Redis forgot an open message, and puts it into the inbox again."""
    message = driver._hold.book._index.find(message_id)
    assert message is not None
    message.inbox_entries = ()
    driver._hold.committer._follow_up(Applied([message.parcel(message.fields or {})], [], []))


def let_go(driver: Driver) -> None:
    """Let go of the chunks that were held long enough."""
    driver._hold.blobs.release()


def renew_lifetimes(driver: Driver) -> None:
    """Renew the lifetimes of all keys of the run, as the heartbeat does."""
    driver._hold.owner.renew_lifetimes(driver._hold.footprint())


def before_transactions(driver: Driver, monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
    """Call ``hook`` before each of its transactions that writes; what it raises is what the transaction meets."""
    fence = driver._hold.owner.fence
    execute = fence._execute

    def hooked(*args: Any, **options: Any) -> object:
        hook()
        return execute(*args, **options)

    monkeypatch.setattr(fence, "_execute", hooked)


@contextmanager
def after_commit(driver: Driver, error: BaseException) -> Iterator[None]:
    """Until the block ends, Redis executes its commits, and ``error`` is what it meets instead of their answers."""
    fence = driver._hold.owner.fence
    execute = fence.execute

    def broken(transaction: Transaction, **options: Any) -> list[Any]:
        answers = execute(transaction, **options)
        if transaction.name == "commit":
            raise error
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fence, "execute", broken)
        yield


def fill(driver: Driver, monkeypatch: pytest.MonkeyPatch, executions: int = 0) -> None:
    """After some more transactions Redis refuses those of this Driver; what frees memory it still executes."""
    left = [executions]

    def full() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RedisOutOfMemory("full")

    before_transactions(driver, monkeypatch, full)


def after_uploads(driver: Driver, monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
    """Call ``hook`` whenever a content has been uploaded, and the message that names it has not been pushed."""
    uploader = driver._hold.committer._uploader
    upload = uploader.upload

    def hooked(content: EncodedContent, **options: Any) -> None:
        upload(content, **options)
        hook()

    monkeypatch.setattr(uploader, "upload", hooked)


def before_windows(monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
    """Call ``hook`` before each window of chunks that any Driver uploads."""
    upload_window = Uploader._upload_window

    def hooked(uploader: Uploader, payload: Payload, window: list[int]) -> None:
        hook()
        upload_window(uploader, payload, window)

    monkeypatch.setattr(Uploader, "_upload_window", hooked)


def manifests_written(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> list[set[bytes]]:
    """The names of the contents whose manifests each transaction writes from now on."""
    write, written = driver._hold.blobs._write, []

    def spy(pipe: Pipeline, manifests: Any) -> None:
        written.append(set(manifests))
        write(pipe, manifests)

    monkeypatch.setattr(driver._hold.blobs, "_write", spy)
    return written


# Inside a Node: what it keeps.

#: Most messages of one run that it reads at once.
MOST_READ = intake.MOST_READ


def identity(node: Node) -> bytes:
    """Of the Redis data set that it serves."""
    return node._identity


def saved_state(node: Node, run_id: int) -> Fields | None:
    """The state of a run in its journal."""
    return node._journal.state_of(run_id)


def saved_reply(node: Node, run_id: int, message_id: str) -> Fields | None:
    """The reply to a message in its journal."""
    return node._journal.reply_to(run_id, message_id)


def answered_runs(node: Node) -> set[int]:
    """The runs of which its journal has replies."""
    return set(map(int, node._journal._answered.runs))


def execute(journal: Journal, statement: str) -> None:
    """Let its database execute a statement."""
    journal._open_db.execute(statement)


def absent_runs(node: Node) -> set[int]:
    """The runs that its journal knows and that Redis does not have."""
    return node._journal.absent()


def commits(node: Node) -> list[str]:
    """Each transaction of its journal from now on."""
    heard: list[str] = []
    database: sqlite3.Connection = node._journal._open_db
    database.set_trace_callback(lambda text: heard.append(text) if text == "COMMIT" else None)
    return heard


def known_runs(node: Node) -> set[int]:
    """The runs that it serves."""
    return {*node._service.executor._runs}


def kept_contexts(node: Node) -> set[int]:
    """The runs of which it has a Context in memory."""
    return {*node._service.executor._runner._contexts}


def kept_contents(node: Node) -> dict[int, int]:
    """Bytes that it keeps of what the last message of each run brought; who brought something last is last."""
    return {run_id: sum(map(len, pieces.values())) for run_id, pieces in list(node._payloads._received.items())}


def held_replies(node: Node) -> set[int]:
    """The runs of which it holds the last large reply in memory."""
    return {*node._payloads._held}


def can_send_again(node: Node, run_id: int, message_id: str) -> bool:
    """Whether the large reply to this message is in memory as it was sent."""
    return node._payloads.held(run_id, message_id) is not None


def bytes_in_hand(node: Node) -> int:
    """How many bytes the messages have that the node has read and not published yet."""
    held = node._worklist._in_hand.values()
    assert node._worklist.size == sum(size_of(work.fields) for work in held)
    return node._worklist.size


def read_ahead(node: Node) -> int:
    """How many messages of a run it would read at once."""
    return node._intake.ahead()


def has_queued(node: Node) -> bool:
    """Whether it has read messages that it does not execute yet."""
    return bool(node._worklist)


def waiting_runs(node: Node) -> set[int]:
    """The runs that wait for their turn."""
    return {*node._worklist._waiting}


def served_runs(node: Node) -> set[int]:
    """The runs that its workers serve just now."""
    return {*node._worklist._served}


def begins_nothing(node: Node) -> bool:
    """Whether it has heard that it is to stop."""
    return node._worklist._closed


def last_in_hand(node: Node) -> Work:
    """What it read last."""
    return list(node._worklist._in_hand.values())[-1]


def is_wanted(node: Node, work: Work) -> bool:
    """Whether it would still execute this."""
    return node._service._wanted.was_wanted(work)


# Inside a Node: what the test makes it do or believe.

#: What a worker asks Redis for each message: an owner and a name, for `monkeypatch.setattr`.
QUESTIONS = {"lease": (Node, "_is_current"), "is_wanted": (Wanted, "was_wanted"), "publish": (publisher, "publish")}


def publisher_of(node: Node) -> Publisher:
    """Its publisher, whose thread a world of one thread does without."""
    return node._service.publisher


def fail_node(node: Node, error: BaseException) -> None:
    """What its publisher's thread does that meets something it cannot wait out."""
    node._stop.fail(error)


def cut_node(node: Node) -> None:
    """A connection of it broke, and Redis answers again: its loop sees to it in the next turn."""
    node._connection.losses += 1


def heartbeat(node: Node) -> None:
    """What its heartbeat does now and then."""
    node._beat()


def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what makes seconds pass for what nodes know of their executions, and for nothing else."""
    passed = 0.0

    class Later:
        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + passed

    def go_on(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    for module in (activity, stuck, wanted):
        monkeypatch.setattr(module, "time", Later)
    return go_on


def hang(node: Node, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Its loop stands still until the event is set."""
    hangs, go = threading.Event(), threading.Event()

    def turn(block: float) -> None:
        hangs.set()
        go.wait(50)

    monkeypatch.setattr(node, "_turn", turn)
    node._ring()  # it may be reading
    assert hangs.wait(20)
    return go


def thaw(node: Node) -> None:
    """It was frozen for so long that its lease may have lapsed."""
    node._registration.renewed_at = float("-inf")


def renews(node: Node) -> bool:
    """Whether it still has its lease, which is renewed."""
    return node._registration.renew()


def limit_messages(node: Node, size: int) -> None:
    """It takes messages of at most so many bytes."""
    node._payloads.limit = size


def forget_received(node: Node) -> None:
    """As a node that has seen no model yet."""
    node._payloads._received.clear()


def forget_payloads(node: Node) -> None:
    """As a node that has neither received nor sent anything large."""
    node._payloads.clear()


def hold_reply(node: Node, run_id: int, content: RecordSet, since: float) -> None:
    """It holds a large reply to a message "m" of this run, since a local monotonic time."""
    node._payloads._held[run_id] = ("m", "1", Payload(encode_content(content)), since)


def tidy_soon(node: Node, replies: int) -> None:
    """Its journal, which is tidied every thousand replies, is tidied with one of the next ``replies``."""
    node._journal._answered._new = 1000 - replies


def publish_in_flight(node: Node) -> AbstractContextManager[Any]:
    """Until the block ends a publish is in flight: what is finished gathers."""
    return node._service.publisher._publishing


def note_finished(node: Node) -> None:
    """Note in the journal what is finished and not published."""
    node._service.publisher.commit()


def drop_finished(node: Node) -> None:
    """Lose what is finished and not published, as a process that is killed."""
    node._service.publisher._executed.clear()


def await_delivery(node: Node, block: float) -> list[Delivery]:
    """What its loop waits for when it has nothing to do."""
    return node._inboxes.read(1, block)


def read_inbox(node: Node, count: int) -> list[Delivery]:
    """Let it read and queue at most so many messages; return them."""
    deliveries = node._inboxes.read(count, 1.0)
    node._queue(deliveries)
    return deliveries


def drain(node: Node) -> None:
    """Let it read and queue what was delivered to it before."""
    node._queue(node._inboxes.drain())


def next_work(node: Node) -> Work:
    """Take the message whose turn it is, as a worker."""
    return node._worklist.next()


def release(node: Node, work: Work) -> None:
    """Let go of the run of what `next_work` returned."""
    node._worklist.release(work)


def refuse_reply(node: Node, work: Work, entries: Iterable[str]) -> None:
    """The reply to a message found no outbox: its run seems to be over. These of its entries were settled."""
    node._worklist.give_up(work, tuple(entries))


def judge_with(node: Node, monkeypatch: pytest.MonkeyPatch, judge: Callable[[Work], bool]) -> None:
    """From now on ``judge`` says what is still to be executed."""
    monkeypatch.setattr(node._service._wanted, "was_wanted", judge)


def claim_as(registration: Registration, token: str) -> None:
    """Let a node claim its id with this token, as another process."""
    registration._token = token


def tick(driver: Driver) -> None:
    """What the thread does that says what the run waits for."""
    driver._hold._ticks._beat()


def look_at_gate(node: Node) -> None:
    """Do what the node does each second about the runs that its site withholds."""
    node._site.watch()
