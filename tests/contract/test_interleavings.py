"""Two things that happen at the worst moment for each other: each test makes them do so."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from brokerfl.broker import blobs
from brokerfl.broker.data import add_data
from brokerfl.broker.outbox import Outboxes, Outgoing, Reply, Settled, publish
from brokerfl.client import ClientApp, payloads, upload
from brokerfl.common import Context, ErrorCode, Message, Metadata, RecordSet
from brokerfl.wire.frame import MANIFEST
from brokerfl.wire.manifest import Manifest
from brokerfl.wire.message import encode_message
from brokerfl.wire.payload import Payload
from brokerfl.wire.record import encode_content
from tests.apps import Bench, driving, echo_app, eventually, number, number_in
from tests.conftest import Backend
from tests.stage import (
    CHUNK,
    Late,
    beat,
    before_windows,
    by_hand,
    chunks_in,
    compare,
    cut_node,
    deliver_again,
    dropped,
    held_chunks,
    held_replies,
    hold_reply,
    in_inbox,
    judge_with,
    kill,
    layer,
    model,
    next_work,
    push,
    push_numbers,
    read_inbox,
    refuse_reply,
    release,
    remove_chunks,
    resumed,
    serving,
    silent,
    start,
    warm_up,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


# Connections.


def test_a_loss_is_seen_although_all_have_new_sockets(backend: Backend) -> None:
    """Redis forgets the first push, and is back before anything else was asked: the message is pushed again."""
    if not backend.is_real:
        pytest.skip("fakeredis has no connections to cut")
    with serving(backend, echo_app(), workers=2):
        pass  # it is known, and away
    with driving(backend) as driver:
        node, keys, run = silent(backend, "berlin"), driver.connection.keys, driver.run.run_id
        message_id = push(driver, node, number(1))
        backend.admin.delete(keys.ledger(run), keys.inbox(node, run), keys.outbox(node, run))
        backend.admin.client_kill_filter(_type="normal", skipme=True)
        assert list(driver.replies([message_id], timeout=1.0)) == []
        assert in_inbox(backend, driver, node) == [message_id]


def test_the_hold_of_a_reply_begins_anew_after_an_outage(backend: Backend) -> None:
    """Redis was away for longer than a large reply is held: it may ask for it only now."""
    with by_hand(backend, echo_app(), None) as node:
        old = time.monotonic() - 2 * payloads.KEEP_REPLY
        node.turn(0.01)
        hold_reply(node, 7, model(layer(1)), since=old)
        cut_node(node)
        node.turn(0.01)
        assert 7 in held_replies(node)
        hold_reply(node, 7, model(layer(1)), since=old)
        node.turn(0.01)
        assert held_replies(node) == set()


def test_chunks_are_let_go_during_a_long_upload(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that takes longer than chunks are held does not hold all of them."""
    monkeypatch.setattr(blobs, "KEEP_UPLOADED", -1.0)
    with driving(backend) as driver:
        driver.connection.persists = True
        push(driver, silent(backend), model(layer(1, 40 * CHUNK)))
        assert len(chunks_in(backend)) == 41
        assert held_chunks(driver) <= 1


def test_chunks_are_held_until_a_lost_connection_is_seen_to(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may have forgotten them: a beat between the loss and the comparison does not let them go."""
    with driving(backend) as driver:
        driver.connection.persists = True
        push(driver, silent(backend), model(layer(1, 4 * CHUNK)))
        monkeypatch.setattr(blobs, "KEEP_UPLOADED", -1.0)
        driver.connection.losses += 1
        beat(driver)
        assert held_chunks(driver) > 0
        compare(driver)
        beat(driver)
        assert held_chunks(driver) == 0


# The ClientApp.


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_no_exception_is_error_2_too(backend: Backend, workers: int) -> None:
    """An app that lets out asyncio's CancelledError neither ends the node nor leaves its run to nobody."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if number_in(message) == 1:
            raise asyncio.CancelledError
        return message.create_reply(message.content)

    with driving(backend) as driver, serving(backend, app, workers=workers) as node:
        for value in (1, 2):
            [reply] = driver.replies(push_numbers(driver, node, value), timeout=20)
            assert reply.has_error() == (value == 1)
            assert not reply.has_error() or reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION


# Entries of one message.


def test_an_entry_that_comes_while_its_message_is_given_up_counts(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis forgot a message that is queued; it is pushed again just when the node finds that nobody wants it."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, driver, bench)
        [message_id] = push_numbers(driver, node, 1)
        inbox = driver.connection.keys.inbox(node.node_id, driver.run.run_id)

        def judge(work: Any) -> bool:
            judge_with(node, monkeypatch, lambda work: True)
            backend.admin.xack(inbox, "brokerfl", *work.entries)
            backend.admin.xdel(inbox, *work.entries)
            deliver_again(driver, message_id)
            read_inbox(node, 1)
            assert len(work.entries) == 2
            return False

        judge_with(node, monkeypatch, judge)
        node.turn(1.0)
        assert bench.executed[driver.run.run_id] == [0]
        node.turn(1.0)
        assert [number_in(reply) for reply in driver.replies([message_id], timeout=10)] == [2]
        assert backend.admin.xlen(inbox) == 0


def test_an_entry_that_comes_while_its_reply_finds_no_outbox_counts(backend: Backend) -> None:
    """Redis forgot outbox and message; both came again just after the reply was refused."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, driver, bench)
        [message_id] = push_numbers(driver, node, 1)
        [delivery] = read_inbox(node, 1)
        work = next_work(node)
        work.entries.append("9-9")
        refuse_reply(node, work, [delivery.entry_id])
        release(node, work)
        again = next_work(node)
        assert (again.message_id, again.entries, again.fields) == (message_id, ["9-9"], work.fields)
        release(node, again)


def test_a_cancel_sees_what_another_thread_has_read(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that was read and is not in the ledger yet wins over the Error of a cancel."""
    read = Outboxes.read

    def read_and_cancel(
        outboxes: Outboxes,
        node_ids: Iterable[int],
        take: Callable[[Iterable[Reply]], None],
        settled: Iterable[Settled] = (),
    ) -> bool:
        found: list[Reply] = []
        is_deleted = read(outboxes, node_ids, found.extend, settled)
        if found:
            monkeypatch.setattr(Outboxes, "read", read)
            canceller = threading.Thread(target=driver.cancel_messages, args=(ids,))
            canceller.start()
            canceller.join()
        take(found)
        return is_deleted

    with driving(backend) as driver, serving(backend, echo_app()) as node:
        monkeypatch.setattr(Outboxes, "read", read_and_cancel)
        ids = push_numbers(driver, node, 5)
        assert [number_in(reply) for reply in driver.replies(ids, timeout=20)] == [5]
        assert dropped(driver) == 0


# Chunks.


def test_a_comparison_does_not_deliver_what_is_being_uploaded(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that Redis lost is adopted; a connection breaks before its content is there: it waits for that."""
    late, content = Late(backend), model(layer(1))
    former = start(backend)
    message_id = push(former, late.node_id, content)
    kill(former)
    remove_chunks(backend)
    backend.admin.xtrim(former.connection.keys.inbox(late.node_id, former.run.run_id), maxlen=0, approximate=False)
    seen: list[list[str]] = []

    def compare_first() -> None:
        compare(driver)
        seen.append(in_inbox(backend, driver, late.node_id))

    before_windows(monkeypatch, compare_first)
    with resumed(backend, former) as driver:
        assert push(driver, late.node_id, content) == message_id
        assert len(seen) > 1
        assert not any(seen)
        assert in_inbox(backend, driver, late.node_id) == [message_id]


class Room:
    """A Redis that has room for so many chunks of replies, and is asked by one node."""

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
        self.chunks = chunks
        self.stream = ""
        self._admin = backend.admin
        monkeypatch.setattr(upload, "HOLD", 0.0)
        monkeypatch.setattr(upload, "add_data", self.add_data)

    def add_data(self, connection: Any, node_id: int, run_id: int, chunks: list[memoryview]) -> list[str | None] | None:
        """As a full Redis: what has no room is refused."""
        self.stream = connection.keys.data(node_id, run_id)
        fitting = chunks[: max(0, self.chunks - self.used())]
        added: list[str | None] | None = add_data(connection, node_id, run_id, fitting) if fitting else []
        return None if added is None else [*added, *[None] * (len(chunks) - len(fitting))]

    def used(self) -> int:
        """How many there are."""
        return int(self._admin.xlen(self.stream))


def test_an_upload_that_does_not_fit_makes_room_for_others(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is full in mid-upload: what is there of the reply goes, until there is room for all of it."""
    with driving(backend) as driver:
        node, run = silent(backend), driver.run.run_id
        push(driver, node, number(1))
        content, room = Payload(encode_content(model(layer(1, 10 * CHUNK)))), Room(backend, monkeypatch, 7)
        left = []

        def is_wanted() -> bool:
            left.append(room.used())
            if len(left) == 2:
                room.chunks = 100
            return True

        manifest = payloads.Payloads(backend.by_hand(), node).upload(run, "m", "1", content, is_wanted)
        assert left == [0, 0]
        assert manifest is not None
        assert len(manifest.entries) == room.used() == 11


def test_an_upload_that_nobody_wants_any_more_ends(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is full, and the message was cancelled: the node gives up, and leaves nothing."""
    with driving(backend) as driver, serving(backend, large_app()) as node:
        room = Room(backend, monkeypatch, 7)
        [message_id] = push_numbers(driver, node, 1)
        eventually(lambda: room.stream)
        driver.cancel_messages([message_id])
        [cancelled] = driver.replies([message_id])
        assert cancelled.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        room.chunks = 0
        ids = push_numbers(driver, node, 2, kind="evaluate")
        assert [number_in(reply) for reply in driver.replies(ids, timeout=20)] == [2]
        assert room.used() == 0


def large_app() -> ClientApp:
    """Trains to a large reply, and evaluates to a small one."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_reply(model(layer(1, 10 * CHUNK)))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return message.create_reply(message.content)

    return app


@pytest.mark.parametrize("is_busy", [False, True])
def test_chunks_of_a_reply_that_never_came_go_with_the_next(backend: Backend, is_busy: bool) -> None:
    """A node that died in an upload left chunks: they go when its next reply is settled, if it owes nothing else."""
    with driving(backend) as driver:
        node, run, keys = silent(backend), driver.run.run_id, driver.connection.keys
        ids = [push(driver, node, number(n)) for n in range(1 + is_busy)]
        orphan = Payload(encode_content(model(layer(2, 3 * CHUNK))))
        add_data(backend.by_hand(), node, run, [orphan.chunk(index) for index in range(len(orphan))])
        answer(backend, driver, node, ids[0], model(layer(1)))
        [reply] = driver.replies(ids[:1], timeout=10)
        assert reply.content == model(layer(1))
        driver.settle(reply)
        assert backend.admin.xlen(keys.data(node, run)) == (len(orphan) if is_busy else 0)


def answer(backend: Backend, driver: Any, node: int, message_id: str, content: RecordSet) -> None:
    """What a node does with a large reply."""
    run, body = driver.run.run_id, Payload(encode_content(content))
    entries = add_data(backend.by_hand(), node, run, [body.chunk(index) for index in range(len(body))])
    assert entries is not None
    manifest = Manifest(body.manifest.sizes, body.manifest.digests, tuple(map(str, entries)))
    head = encode_message(message_id, Metadata(run, "", node, 1, message_id, "1", 60.0, "train"))
    [inbox_entry] = [
        entry.decode()
        for entry, fields in backend.admin.xrange(driver.connection.keys.inbox(node, run))
        if fields[b"i"].decode() == message_id
    ]
    publish(backend.by_hand(), node, [Outgoing(run, (inbox_entry,), {**head, MANIFEST: manifest.encoded})])
