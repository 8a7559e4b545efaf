"""Signed and sealed runs on a server: what others do to them in Redis is an Error that says so.

A node executes only what its run's owner signed for it, a run counts only what its nodes signed, and the run ends right
otherwise. What each changed byte does is in tests/unit/test_guards.py.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from brokerfl.broker.contact import ring_doorbell
from brokerfl.broker.keys import Keys
from brokerfl.broker.nodes import Registration
from brokerfl.client import ClientApp
from brokerfl.client.dead import dead_messages
from brokerfl.client.node import Node
from brokerfl.common import Context, ErrorCode, FrameError, Message, RecordSet
from brokerfl.server import Driver
from brokerfl.wire.frame import HEAD, ID, MANIFEST, SEALED, SIGNATURE
from brokerfl.wire.guard import UNPROTECTED
from brokerfl.wire.message import decode_message
from brokerfl.wire.run import decode_entry, encode_entry
from tests.apps import Seen, driving, echo_app, eventually, number, number_in
from tests.conftest import Backend
from tests.parties import Parties, new_identity, public_of
from tests.stage import (
    kill,
    known_runs,
    layer,
    layers_in,
    model,
    push,
    reason_of,
    resumed,
    serving,
    start,
    to_all,
)

#: Neither changes anything here.
WITHOUT = ("fakeredis", "redis-tls")

pytestmark = pytest.mark.usefixtures("small_chunks")

LARGE = model(layer(1))


class Scene:
    """A node that serves when it is told to: until then its messages wait, and can be changed."""

    def __init__(self, backend: Backend, *, seals: bool) -> None:
        self.backend, self.parties = backend, Parties("a", "b", seals=seals)
        for name in self.parties.nodes:
            registration = Registration(backend.connect(), name, lease=600.0)
            registration.register()
            registration.leave()
        self.a, self.b = map(self.parties.id_of, "ab")
        self.seen = {name: Seen() for name in "ab"}

    @contextmanager
    def serving(self, name: str = "a", **options: Any) -> Iterator[Node]:
        options = {"protection": self.parties.of_node(name), **options}
        with serving(self.backend, self.seen[name].app, name=name, **options) as node:
            yield node

    @property
    def contents(self) -> list[RecordSet]:
        """What node a was given."""
        return self.seen["a"].contents

    def replies(self, driver: Driver, *ids: str) -> list[Message]:
        """The replies to these messages, in their order."""
        found = {reply.metadata.reply_to_message: reply for reply in driver.replies(ids, timeout=30)}
        return [found[each] for each in ids]

    def ends_right(self, driver: Driver) -> None:
        """The run goes on with what comes next: a node that serves is given it, and its reply counts."""
        calls = len(self.contents)
        for content in (number(1), LARGE):
            [reply] = to_all(driver, [self.a], content, f"after {content.by_kind().keys()} {calls}")
            calls += 1
            assert number_in(reply) == calls


@pytest.fixture
def scene(request: pytest.FixtureRequest, backend: Backend) -> Scene:
    """With sealed runs; `both` has runs that are only signed, too."""
    return Scene(backend, seals=getattr(request, "param", True))


both = pytest.mark.parametrize("scene", [False, True], ids=["signed", "sealed"], indirect=True)


def flipped(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def change_entry(backend: Backend, stream: str, field: bytes, change: Callable[[bytes], bytes] = flipped) -> None:
    """Change a field of the only entry of a stream."""
    [(entry, fields)] = backend.admin.xrange(stream)
    backend.admin.xdel(stream, entry)
    backend.admin.xadd(stream, {**fields, field: change(fields[field])})


@pytest.mark.parametrize("seals", [False, True], ids=["signed", "sealed"])
def test_protected_runs_end_right(backend: Backend, seals: bool, sent: list[str]) -> None:
    """Small and large contents and their replies; a broadcast to three nodes is stored once."""
    parties = Parties("a", "b", "c", seals=seals)
    with parties.serving(backend) as serving_nodes, parties.driving(backend, run_config={"lr": 0.1}) as driver:
        nodes = [node.node_id for node in serving_nodes.values()]
        assert [number_in(reply) for reply in to_all(driver, nodes, number(7), "1")] == [7] * 3
        replies = to_all(driver, nodes, LARGE, "2")
        assert [layers_in(reply.content) for reply in replies] == [layers_in(LARGE)] * 3
        assert len(sent) == len(set(sent)) == 6  # a description and five chunks of a layer
        to_all(driver, nodes, model(layer(1), layer(2)), "2", "evaluate")
        assert len(sent) == len(set(sent)) == 12  # another description, and one more layer


CHANGED_MESSAGES = {
    "header": (number(1), HEAD, "signature|header"),
    "content": (number(1), b"content", "signature"),
    "manifest": (LARGE, MANIFEST, "signature"),
    "signature": (LARGE, SIGNATURE, "signature"),
}


@both
@pytest.mark.parametrize("what", CHANGED_MESSAGES)
def test_a_changed_message_is_error_3(scene: Scene, what: str) -> None:
    """The reason says that its signature is wrong, and nothing is executed."""
    content, field, reason = CHANGED_MESSAGES[what]
    if field == b"content":
        field = SEALED if scene.parties.seals else b"c"
    with scene.parties.driving(scene.backend) as driver:
        message_id = push(driver, scene.a, content)
        change_entry(scene.backend, driver.connection.keys.inbox(scene.a, driver.run.run_id), field)
        with scene.serving():
            [reply] = scene.replies(driver, message_id)
            assert re.search(reason, reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE))
            assert scene.contents == []
            scene.ends_right(driver)


@both
def test_a_changed_chunk_is_error_3(scene: Scene) -> None:
    """Its sha256, which is in the signed manifest, is another one."""
    with scene.parties.driving(scene.backend) as driver:
        message_id = push(driver, scene.a, LARGE)
        blob = next(key for key in sorted(scene.backend.admin.keys("*:blob:*")))
        scene.backend.admin.set(blob, flipped(scene.backend.admin.get(blob)), keepttl=True)
        with scene.serving():
            [reply] = scene.replies(driver, message_id)
            assert "does not have the sha256" in reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
            assert scene.contents == []
            [reply] = to_all(driver, [scene.a], model(layer(3, 700)), "2")
            assert number_in(reply) == 1


@pytest.mark.parametrize("at", [40, -1], ids=["frame", "wrapped key"])
def test_a_changed_frame_is_error_3(scene: Scene, at: int) -> None:
    """A node executes nothing of a run whose frame, or key, is not as its owner made it, until it is again."""
    with scene.parties.driving(scene.backend, name="a run with a long name, to have a byte in") as driver:
        message_id, keys = push(driver, scene.a, number(1)), driver.connection.keys
        [(field, frame)] = scene.backend.admin.hgetall(keys.node_runs(scene.a)).items()
        scene.backend.admin.hset(keys.node_runs(scene.a), field, flipped(frame, at))
        with scene.serving() as node:
            [reply] = scene.replies(driver, message_id)
            assert "cannot read the run's frame" in reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
            assert scene.contents == []
            scene.backend.admin.hset(keys.node_runs(scene.a), field, frame)
            ring_doorbell(driver.connection, scene.a, str(driver.run.run_id))
            eventually(lambda: known_runs(node) == {driver.run.run_id})
            scene.ends_right(driver)


@both
@pytest.mark.parametrize(
    ("field", "large"), [(HEAD, False), (b"content", False), (b"content", True), (SIGNATURE, True)]
)
def test_a_changed_reply_is_error_4(scene: Scene, field: bytes, large: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The reason says that its signature is wrong, and the log whose it was."""
    parties = scene.parties
    with (
        parties.driving(scene.backend) as driver,
        serving(scene.backend, echo_app(), name="a", protection=parties.of_node("a")),
    ):
        message_id = push(driver, scene.a, LARGE if large else number(5))
        outbox = driver.connection.keys.outbox(scene.a, driver.run.run_id)
        eventually(lambda: scene.backend.admin.xlen(outbox))
        if field == b"content":
            field = MANIFEST if large else SEALED if parties.seals else b"c"
        change_entry(scene.backend, outbox, field)
        [reply] = scene.replies(driver, message_id)
        assert reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        assert "A reply of a (" in caplog.text
        assert driver.pull_messages([message_id]) == []
        [reply] = to_all(driver, [scene.a], number(6), "2")
        assert number_in(reply) == 6


def test_a_changed_chunk_of_a_reply_is_error_4(scene: Scene) -> None:
    """Its sha256 is another one."""
    parties = scene.parties
    with (
        parties.driving(scene.backend) as driver,
        serving(scene.backend, echo_app(), name="a", protection=parties.of_node("a")),
    ):
        message_id, keys, run = push(driver, scene.a, LARGE), driver.connection.keys, driver.run.run_id
        eventually(lambda: scene.backend.admin.xlen(keys.outbox(scene.a, run)))
        data = keys.data(scene.a, run)
        entries = scene.backend.admin.xrange(data)
        scene.backend.admin.delete(data)  # a stream takes only entries behind its last
        scene.backend.admin.xgroup_create(data, "brokerfl", "0", mkstream=True)
        for index, (entry, fields) in enumerate(entries):
            changed = {name: flipped(value) for name, value in fields.items()} if index == 2 else fields
            scene.backend.admin.xadd(data, changed, id=entry)
        scene.backend.admin.pexpire(data, 60_000)
        [reply] = scene.replies(driver, message_id)
        assert "chunk 3 does not have the sha256" in reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        [reply] = to_all(driver, [scene.a], LARGE, "2")
        assert layers_in(reply.content) == layers_in(LARGE)


@both
@pytest.mark.parametrize("what", ["small state", "large state", "chunk", "frame"])
def test_what_was_changed_is_not_resumed(scene: Scene, what: str) -> None:
    """The new ServerApp says so, and changes nothing: once it is undone, the run has its state again."""
    backend, parties = scene.backend, scene.parties
    driver = start(backend, protection=parties.of_owner, run_config={"lr": 0.25})
    is_large = what in ("large state", "chunk")
    driver.context.state["s"] = LARGE["p"] if is_large else number(3)["m"]
    driver.checkpoint()
    kill(driver)
    keys, run = driver.connection.keys, driver.run.run_id
    with (
        changed(backend, keys, run, what),
        pytest.raises(FrameError),
        resumed(backend, driver, protection=parties.of_owner),
    ):
        pass
    with pytest.raises(FrameError, match=r"is (sealed|signed)"), resumed(backend, driver):
        pass
    with resumed(backend, driver, protection=parties.of_owner) as after:
        assert after.context.state == driver.context.state
        assert after.context.run_config == {"lr": 0.25}
        with scene.serving():
            scene.ends_right(after)


@contextmanager
def changed(backend: Backend, keys: Keys, run: int, what: str) -> Iterator[None]:
    """Change a byte of a value of a run, until the block ends."""
    if what == "chunk":
        key, field = max(backend.admin.keys("*:blob:*")), None
    elif what == "frame":
        key, field = keys.meta(run).encode(), b"frame"
    else:
        key = keys.context(run).encode()
        field = next(each for each in (MANIFEST, SEALED, b"c") if backend.admin.hexists(key, each))
    was = backend.admin.get(key) if field is None else backend.admin.hget(key, field)
    for data in (flipped(was, len(was) // 2), was):
        if field is None:
            backend.admin.set(key, data, keepttl=True)
        else:
            backend.admin.hset(key, field, data)
        if data != was:
            yield


def test_messages_are_executed_only_where_they_belong(scene: Scene) -> None:
    """One that was copied to another node, or into another run, is executed nowhere else, and counted once."""
    backend, parties = scene.backend, scene.parties
    with parties.driving(backend) as driver, parties.driving(backend) as other:
        keys = driver.connection.keys
        ids = [push(driver, node, number(1)) for node in (scene.a, scene.b)]
        elsewhere = push(other, scene.a, number(2))
        [(_, ours)] = backend.admin.xrange(keys.inbox(scene.a, driver.run.run_id))
        for inbox in (keys.inbox(scene.b, driver.run.run_id), keys.inbox(scene.a, other.run.run_id)):
            backend.admin.xadd(inbox, ours)
        with scene.serving("a"), scene.serving("b"):
            replies = [*scene.replies(driver, *ids), *scene.replies(other, elsewhere)]
            assert not any(reply.has_error() for reply in replies)
            assert len(scene.seen["b"].contents) == 1
            assert len(scene.contents) == 2


def test_swapped_messages_are_executed_nowhere(scene: Scene) -> None:
    """Both nodes refuse what is the other's. As if they had been deleted, they end with their ttl."""
    backend, parties = scene.backend, scene.parties
    with parties.driving(backend) as driver:
        keys, run, nodes = driver.connection.keys, driver.run.run_id, (scene.a, scene.b)
        messages = [driver.create_message(number(1), "train", node, "1", ttl=1.0) for node in nodes]
        ids = driver.push_messages(messages)
        inboxes = [keys.inbox(node, run) for node in nodes]
        entries = [backend.admin.xrange(inbox)[0] for inbox in inboxes]
        for inbox, (entry, _), (_, fields) in zip(inboxes, entries, reversed(entries), strict=True):
            backend.admin.xdel(inbox, entry)
            backend.admin.xadd(inbox, fields)
        with scene.serving("a"), scene.serving("b"):
            for reply in scene.replies(driver, *ids):
                reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
            assert not any(seen.contents for seen in scene.seen.values())
            scene.ends_right(driver)


def test_what_was_is_not_done_again(scene: Scene) -> None:
    """An old message that is replayed is not executed; an old reply answers no other message."""
    backend, parties = scene.backend, scene.parties
    with parties.driving(backend) as driver:
        keys, run = driver.connection.keys, driver.run.run_id
        first = push(driver, scene.a, number(1))
        [(_, message)] = backend.admin.xrange(keys.inbox(scene.a, run))
        with scene.serving():
            eventually(lambda: backend.admin.xlen(keys.outbox(scene.a, run)))
            [(_, answer)] = backend.admin.xrange(keys.outbox(scene.a, run))
            assert number_in(scene.replies(driver, first)[0]) == 1
            backend.admin.xadd(keys.inbox(scene.a, run), message)
            scene.ends_right(driver)  # later messages are executed behind it
            assert len(scene.contents) == 3
        again = push(driver, scene.a, number(1), "again")
        for message_id in (first, again):  # the first is settled: its reply is dropped
            backend.admin.xadd(keys.outbox(scene.a, run), {**answer, ID: message_id.encode()})
        backend.admin.xadd(keys.bell(run), {"n": str(scene.a)})
        [reply] = scene.replies(driver, again)
        assert "another message" in reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


def test_another_data_set_is_another_run(scene: Scene) -> None:
    """A run that is copied into another Redis, with all that was signed there, is executed by no node."""
    backend, parties = scene.backend, scene.parties
    with parties.driving(backend) as driver:
        message_id = push(driver, scene.a, number(1))
        identity = driver.connection.keys.identity
        former = backend.admin.get(identity)
        backend.admin.set(identity, b"ab" * 16)
        with scene.serving():
            [reply] = scene.replies(driver, message_id)
            assert reply.has_error()
        assert scene.contents == []
        backend.admin.set(identity, former)


def test_who_is_not_signed_is_not_heard(scene: Scene) -> None:
    """A node refuses the message of a run that nobody signed; a run the reply of a node that signs nothing."""
    backend, parties = scene.backend, scene.parties
    with driving(backend) as unsigned, scene.serving():
        [reply] = to_all(unsigned, [scene.a], number(1))
        assert "the run is not signed" in reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
    assert scene.contents == []
    with parties.driving(backend) as driver, scene.serving(protection=UNPROTECTED):
        [reply] = to_all(driver, [scene.a], number(1))
        assert "it is not signed" in reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


@both
def test_keys_that_nobody_vouches_for_are_good_for_nothing(scene: Scene) -> None:
    """A node that is no member, or has lost its keys, answers, and is not counted; nor is an owner's that is a thief's.

    The next one is served.
    """
    backend, parties = scene.backend, scene.parties
    honest = parties.members[scene.a]
    with parties.driving(backend) as driver:
        del parties.members[scene.a]
        with scene.serving():
            [reply] = to_all(driver, [scene.a], number(1))
            assert "not among the members" in reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
    assert len(scene.contents) == (0 if parties.seals else 1)
    parties.members[scene.a] = public_of(new_identity("a"))
    with parties.driving(backend) as driver, scene.serving():
        [reply] = to_all(driver, [scene.a], number(1))
        assert "signature" in reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
    parties.members[scene.a] = honest
    owner, parties.owner = parties.owner, new_identity("lab")
    with parties.driving(backend) as driver, scene.serving():
        [reply] = to_all(driver, [scene.a], number(1))
        assert "does not trust the owner" in reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
    parties.owner = owner
    with parties.driving(backend) as driver, scene.serving():
        scene.ends_right(driver)


def test_a_node_that_serves_sealed_runs_refuses_others(backend: Backend) -> None:
    """Its operator wants nothing in clear."""
    scene = Scene(backend, seals=False)
    with scene.parties.driving(backend) as driver, scene.serving(protection=scene.parties.of_node("a", seals=True)):
        [reply] = to_all(driver, [scene.a], number(1))
        assert "serves only sealed ones" in reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
    assert scene.contents == []


@both
def test_a_killed_serverapp_is_resumed(scene: Scene) -> None:
    """By its owner: what nodes do meanwhile is adopted, and nothing is executed twice."""
    backend, parties = scene.backend, scene.parties
    driver = start(backend, protection=parties.of_owner)
    driver.context.state["s"] = number(3)["m"]
    driver.checkpoint()
    former = [push(driver, scene.a, content, group) for content, group in ((number(1), "1"), (LARGE, "2"))]
    kill(driver)
    with scene.serving():
        outbox = driver.connection.keys.outbox(scene.a, driver.run.run_id)
        eventually(lambda: backend.admin.xlen(outbox) == 2)
        with resumed(backend, driver, protection=parties.of_owner) as after:
            assert after.context.state == driver.context.state
            ids = [push(after, scene.a, content, group) for content, group in ((number(1), "1"), (LARGE, "2"))]
            assert ids == former
            assert [number_in(reply) for reply in scene.replies(after, *ids)] == [1, 2]
            scene.ends_right(after)
    assert len(scene.contents) == 4


@both
def test_nothing_is_signed_that_was_only_found_in_redis(scene: Scene) -> None:
    """A resumed app sends what it has, not a content that the ledger names: others may have written that."""
    backend, parties, other, own = scene.backend, scene.parties, model(layer(2)), model(layer(3))
    driver = start(backend, protection=parties.of_owner)
    message_id, elsewhere = push(driver, scene.a, LARGE), push(driver, scene.b, other)
    kill(driver)
    keys, run = driver.connection.keys, driver.run.run_id
    entries = {each: decode_entry(backend.admin.hget(keys.ledger(run), each)) for each in (message_id, elsewhere)}
    lie = entries[message_id]._replace(digest=entries[elsewhere].digest)
    backend.admin.hset(keys.ledger(run), message_id, encode_entry(lie))
    backend.admin.xtrim(keys.inbox(scene.a, run), maxlen=0)
    with resumed(backend, driver, protection=parties.of_owner) as after, scene.serving():
        assert push(after, scene.a, own) == message_id
        assert number_in(scene.replies(after, message_id)[0]) == 1
    assert scene.contents == [own]


@both
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_node_that_was_restarted_answers_from_its_journal(scene: Scene, tmp_path: Path, large: bool) -> None:
    """If Redis lost the reply, the node publishes the same one again; what was large is asked for anew."""
    backend, parties = scene.backend, scene.parties
    app = echo_app()
    options = {"name": "a", "protection": parties.of_node("a")}
    with parties.driving(backend) as driver:
        keys, run = driver.connection.keys, driver.run.run_id
        content = LARGE if large else number(1)
        message_id = push(driver, scene.a, content)
        [(_, message)] = backend.admin.xrange(keys.inbox(scene.a, run))
        outbox = keys.outbox(scene.a, run)
        with serving(backend, app, tmp_path, **options):
            eventually(lambda: backend.admin.xlen(outbox))
        backend.admin.xtrim(outbox, maxlen=0)
        backend.admin.xadd(keys.inbox(scene.a, run), message)
        with serving(backend, app, tmp_path, **options):
            [reply] = scene.replies(driver, message_id)
            assert reply.content == content


def test_what_was_answered_is_not_told_to_who_changes_the_frame(scene: Scene, tmp_path: Path) -> None:
    """The journal has the reason of an Error in clear: a node that does not know for whom it is says nothing of it."""
    backend, app = scene.backend, ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError("secret")

    options = {"name": "a", "protection": scene.parties.of_node("a")}
    with scene.parties.driving(backend) as driver:
        keys, run = driver.connection.keys, driver.run.run_id
        message_id = push(driver, scene.a, number(1))
        [(_, message)] = backend.admin.xrange(keys.inbox(scene.a, run))
        with serving(backend, app, tmp_path, **options):
            assert "secret" in reason_of(scene.replies(driver, message_id)[0], ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
        frame = backend.admin.hget(keys.node_runs(scene.a), str(run))
        backend.admin.hset(keys.node_runs(scene.a), str(run), flipped(frame))
        backend.admin.xadd(keys.inbox(scene.a, run), message)
        backend.admin.xtrim(keys.outbox(scene.a, run), maxlen=0)
        with serving(backend, app, tmp_path, **options):
            eventually(lambda: backend.admin.xlen(keys.outbox(scene.a, run)))
        [(_, told)] = backend.admin.xrange(keys.outbox(scene.a, run))
        assert b"secret" not in b"".join(told.values())
        assert b"cannot read the run's frame" in told[HEAD]


@both
def test_a_message_that_is_set_aside_is_in_clear_at_its_node(scene: Scene, tmp_path: Path) -> None:
    """There `brokerfl dead` shows and replays it."""
    folder = tmp_path / str(scene.a)
    with scene.parties.driving(scene.backend) as driver, scene.serving(folder=folder, max_crashes=0):
        for content in (number(1), LARGE):
            [reply] = to_all(driver, [scene.a], content)
            reason_of(reply, ErrorCode.CLIENT_APP_CRASHED)
    small, large = (decode_message(message.read_fields()) for message in dead_messages(tmp_path))
    assert (small.content, large.content) == (number(1), LARGE)
