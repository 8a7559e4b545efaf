"""A large reply travels in chunks beside its entry, is asked for again while its node holds it, and leaves nothing."""

import threading
import time
from pathlib import Path

import pytest

from brokerfl.broker.connection import Connection
from brokerfl.client import ClientApp, payloads, upload
from brokerfl.client.payloads import Payloads
from brokerfl.common import Context, ErrorCode, Message
from brokerfl.common.text import shown_node
from brokerfl.wire.frame import MANIFEST
from brokerfl.wire.manifest import Manifest, decode_manifest
from tests.apps import Counter, driving, eventually, number_in
from tests.conftest import Backend
from tests.stage import (
    INLINE,
    LAYER,
    NAME,
    Streams,
    ask,
    before_lost_is_looked_for,
    by_hand,
    can_send_again,
    compare,
    cut,
    dropped,
    forget_payloads,
    held_replies,
    hold_read,
    hold_reply,
    layer,
    model,
    owing,
    reason_of,
    saved_reply,
    send,
    serving,
    spares_of,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.with_rights
def test_a_large_reply_travels_beside_its_entry(backend: Backend, tmp_path: Path) -> None:
    """Its chunks are in the data stream and not on disk, and leave Redis when the reply is settled."""
    with serving(backend, Counter().app, tmp_path) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node, LAYER)
        eventually(lambda: streams.lengths() == (0, 1, 6))
        _, reply = streams.entry(streams.outbox)
        manifest = decode_manifest(reply[MANIFEST])
        assert list(manifest.entries) == [entry.decode() for entry, _ in backend.admin.xrange(streams.data)]
        assert sum(map(len, reply.values())) < 1000
        on_disk = saved_reply(node, driver.run.run_id, message_id)
        assert on_disk is not None
        assert sum(map(len, on_disk.values())) < 1000
        [received] = driver.replies([message_id])
        assert received.content.parameters_records["p"]["a"].data == bytes(LAYER)
        assert streams.lengths() == (0, 1, 6), "nothing has settled it yet"
        driver.checkpoint()
        driver.pull_messages([])
        assert streams.lengths() == (0, 0, 0)


def test_the_payload_of_a_settled_reply_goes_while_its_node_owes_another(backend: Backend) -> None:
    """What an open message may need keeps the stream from being trimmed, but not that payload from being deleted."""
    counter = Counter()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        [reply] = driver.replies([ask(driver, node, LAYER)])
        counter.go.clear()
        waiting = ask(driver, node)
        driver.settle(reply)
        assert streams.lengths() == (1, 0, 0)
        counter.go.set()
        assert len(list(driver.replies([waiting]))) == 1


def test_a_small_reply_needs_no_data_stream(backend: Backend) -> None:
    """A content up to the inline limit is in the reply's own entry."""
    with serving(backend, Counter().app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        ask(driver, node, INLINE - 100)
        eventually(lambda: streams.lengths() == (0, 1, 0))


@pytest.mark.parametrize("held", [True, False])
def test_a_reply_with_a_chunk_missing_is_asked_for_again(
    backend: Backend, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node executes nothing again: it sends the chunks once more while it holds them, afterwards it is Error 4."""
    if not held:
        monkeypatch.setattr(payloads, "KEEP_REPLY", 0.0)
    counter = Counter()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node, LAYER)
        eventually(lambda: streams.lengths() == (0, 1, 6) and bool(held_replies(node)) == held)
        backend.admin.xdel(streams.data, backend.admin.xrange(streams.data)[3][0])
        [reply] = driver.replies([message_id])
        assert counter.calls == 1
        if held:
            assert reply.content.parameters_records["p"]["a"].data == bytes(LAYER)
        else:
            assert "content of its reply is gone" in reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        assert send(driver, node, LAYER).has_content()


@pytest.mark.parametrize(("how", "reason"), [("shorter", "but its manifest says"), ("other", "sha256")])
def test_a_reply_with_a_chunk_that_differs_is_error_4(backend: Backend, how: str, reason: str) -> None:
    """A reply of which a chunk is not what was sent is Error 4 with the reason, and the run goes on."""
    with serving(backend, Counter().app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node, LAYER)
        eventually(lambda: streams.lengths() == (0, 1, 6))
        entries = backend.admin.xrange(streams.data)
        backend.admin.unlink(streams.data)
        for index, (entry, fields) in enumerate(entries):
            chunk = fields[b"d"]
            if index == 3:
                chunk = chunk[:-1] if how == "shorter" else b"x" + chunk[1:]
            backend.admin.xadd(streams.data, {"d": chunk}, id=entry)
        backend.admin.pexpire(streams.data, 60_000)
        [reply] = driver.replies([message_id])
        text = reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        assert "chunk 4" in text
        assert reason in text
        assert send(driver, node, LAYER, group="2").has_content()
        driver.pull_messages([])
        assert streams.lengths() == (0, 1, 6), "the chunks of the bad reply are still there"


def test_a_dropped_large_reply_leaves_no_payload(backend: Backend) -> None:
    """The second copy of a reply goes with the next transaction of the run, and no chunk is left behind."""
    with serving(backend, Counter().app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        send(driver, node, LAYER)
        # What a node does that does not know whether its upload and its reply arrived.
        _, reply = streams.entry(streams.outbox)
        manifest = decode_manifest(reply[MANIFEST])
        copies = [backend.admin.xadd(streams.data, fields) for _, fields in backend.admin.xrange(streams.data)]
        second = Manifest(manifest.sizes, manifest.digests, tuple(entry.decode() for entry in copies))
        backend.admin.xadd(streams.outbox, {**reply, MANIFEST: second.encoded})
        backend.admin.xadd(driver.connection.keys.bell(driver.run.run_id), {"n": str(node.node_id)})
        eventually(lambda: (driver.pull_messages([]), dropped(driver))[1] == 1)
        send(driver, node, group="2")
        driver.pull_messages([])
        assert streams.lengths() == (0, 1, 0)


def test_a_payload_that_redis_forgot_after_the_reply_was_read_is_asked_for_at_once(backend: Backend) -> None:
    """The comparison has the node upload it again while it is there and holds it, not when the app wants the reply."""
    counter = Counter()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node, LAYER)
        eventually(lambda: (driver.pull_messages([]), owing(driver))[1] == [])
        streams.forget_replies()
        cut(driver)
        eventually(lambda: (driver.pull_messages([]), spares_of(driver, message_id))[1])
        forget_payloads(node)
        [reply] = driver.replies([message_id])
        assert reply.content.parameters_records["p"]["a"].data == bytes(LAYER)
        driver.checkpoint()
        driver.pull_messages([])
        assert streams.lengths() == (0, 0, 0)
    assert counter.calls == 1


def test_what_was_asked_for_again_is_not_executed_after_it_was_settled(backend: Backend) -> None:
    """Redis forgot a reply that the app has; a node without a memory comes when the run has moved on."""
    counter = Counter()
    with driving(backend) as driver:
        with serving(backend, counter.app) as node:
            streams = Streams(backend, driver, node)
            message_id = ask(driver, node, LAYER)
            [reply] = driver.replies([message_id])
            assert reply.has_content()
        streams.forget_replies()
        compare(driver)
        assert streams.lengths()[0] == 1, "it is asked for again: a crash before the commit would need it"
        driver.checkpoint()
        driver.pull_messages([])
        assert streams.lengths() == (0, 0, 0)


def test_comparisons_ask_once_for_what_redis_lost(backend: Backend) -> None:
    """A copy that came is as good as the reply: nothing is asked for again, and its chunks stay."""
    counter = Counter()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node, LAYER)
        eventually(lambda: (driver.pull_messages([]), owing(driver))[1] == [])
        streams.forget_replies()
        compare(driver)
        eventually(lambda: (driver.pull_messages([]), streams.lengths())[1] == (0, 1, 6))
        for _ in range(6):
            compare(driver)
            assert streams.lengths() == (0, 1, 6)
        forget_payloads(node)
        [reply] = driver.replies([message_id])
        assert reply.has_content()


def test_a_read_that_began_before_a_comparison_hides_nothing_from_it(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer comes after the cursors were forgotten: what Redis has is not asked for again."""
    counter = Counter()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        ask(driver, node, LAYER)
        eventually(lambda: (driver.pull_messages([]), owing(driver))[1] == [])
        ask(driver, node, 0)
        eventually(lambda: streams.lengths() == (0, 2, 6))
        answer = hold_read(driver, node.node_id)
        before_lost_is_looked_for(driver, monkeypatch, answer)
        compare(driver)
        assert streams.lengths() == (0, 2, 6)


@pytest.mark.parametrize("held", [True, False])
def test_a_forgotten_payload_is_uploaded_again(backend: Backend, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redelivered message whose payload Redis forgot gets it again while the node holds it, afterwards Error 4."""
    if not held:
        monkeypatch.setattr(payloads, "KEEP_REPLY", 0.0)
    counter = Counter()
    counter.go.clear()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node, LAYER)
        assert counter.begun.acquire(timeout=10)
        _, fields = streams.entry(streams.inbox)
        counter.go.set()
        eventually(lambda: streams.lengths() == (0, 1, 6))
        if not held:
            eventually(lambda: not held_replies(node))
        streams.forget_replies()
        streams.again(fields)
        [reply] = driver.replies([message_id])
        if held:
            assert reply.content.parameters_records["p"]["a"].data == bytes(LAYER)
        else:
            reason = reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
            assert f"{shown_node(node.node_id, NAME)} answered, but the content" in reason
    assert counter.calls == 1


def test_a_large_reply_is_held_until_the_next_round(backend: Backend) -> None:
    """A message of another group says that the run needs the last reply no longer; one of the same does not."""
    with serving(backend, Counter().app) as node, driving(backend) as driver:
        send(driver, node, LAYER, group="1")
        send(driver, node, group="1")
        assert held_replies(node) == {driver.run.run_id}
        send(driver, node, group="2")
        assert held_replies(node) == set()


def test_a_reply_that_the_app_changed_is_not_held_any_more(backend: Backend) -> None:
    """Its chunks are not uploaded once more only to be found wrong."""
    array = layer(1)
    with by_hand(backend, ClientApp(), None) as node:
        hold_reply(node, 7, model(array), since=time.monotonic())
        assert can_send_again(node, 7, "m")
        array[:] = 0
        assert not can_send_again(node, 7, "m")


def test_a_held_reply_that_the_app_changed_is_not_sent_again(backend: Backend) -> None:
    """A ClientApp that goes on writing to the arrays of its last reply makes Error 4 of it, never a wrong array."""
    array = layer(1)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_reply(model(array))

    with serving(backend, app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node)
        eventually(lambda: streams.lengths() == (0, 1, 6))
        array[:] = 0
        backend.admin.xtrim(streams.data, maxlen=0)
        [reply] = driver.replies([message_id])
        reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


def test_the_entries_of_a_reply_rise_with_its_chunks(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four chunks a full Redis refused the second: those behind it go again, after it, and none is left over."""
    add, refused = upload.add_data, []

    def add_some(
        connection: Connection, node_id: int, run_id: int, chunks: list[memoryview]
    ) -> list[str | None] | None:
        added = add(connection, node_id, run_id, chunks)
        if added is not None and len(added) > 1 and not refused:
            refused.append(added[1])
            backend.admin.xdel(connection.keys.data(node_id, run_id), added[1])
            added[1] = None
        return added

    monkeypatch.setattr(upload, "add_data", add_some)
    with serving(backend, Counter().app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node, LAYER)
        [received] = driver.replies([message_id])
        assert received.content.parameters_records["p"]["a"].data == bytes(LAYER)
        assert refused
        assert streams.lengths() == (0, 1, 6)


def test_a_reply_that_nobody_wants_undoes_its_change(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cancelled while Redis was too full for its payload: nothing of that execution remains."""
    counter, given_up = Counter(), threading.Event()
    with serving(backend, counter.app, tmp_path) as node, driving(backend) as driver:
        with monkeypatch.context() as unwanted:
            unwanted.setattr(Payloads, "upload", lambda *_: given_up.set())
            message_id = ask(driver, node, LAYER)
            assert given_up.wait(10)
            driver.cancel_messages([message_id])
        assert number_in(send(driver, node)) == 1
