"""Chunks without a reply, replies without their chunks: neither stays, whatever was lost, refused or killed between."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from brokerfl.broker import clock
from brokerfl.broker.connection import Connection
from brokerfl.broker.data import add_data
from brokerfl.broker.nodes import Registration
from brokerfl.broker.stream import milliseconds_of
from brokerfl.client import payloads, upload
from brokerfl.client.node import Node
from brokerfl.client.payloads import Payloads
from brokerfl.common import ErrorCode, RedisOutOfMemory, RedisUnreachable
from brokerfl.server import Driver, session
from brokerfl.server.book import contacts
from brokerfl.wire.payload import WINDOW, Payload
from brokerfl.wire.record import encode_content
from tests.apps import Gate, Seen, driving, eventually, federation, number
from tests.conftest import PREFIX, Backend
from tests.stage import (
    CHUNK,
    Late,
    after_uploads,
    before_transactions,
    chunks_in,
    cut,
    cut_node,
    distrust,
    fill,
    forget_received,
    heartbeat,
    held_replies,
    hold_reply,
    in_inbox,
    is_unsettled,
    kill,
    known_chunks,
    layer,
    manifests_written,
    model,
    needs,
    push,
    read_outbox,
    remove_chunks,
    resumed,
    silent,
    start,
    to_all,
    to_be_deleted,
    unsettled,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


def break_off(backend: Backend, driver: Driver, node: int, chunks: int = 3) -> None:
    """Leave what a node leaves that dies in the middle of an upload."""
    added = add_data(backend.connect(), node, driver.run.run_id, [memoryview(bytes(1000))] * chunks)
    assert added is not None
    assert None not in added
    last = milliseconds_of(str(added[-1]))
    eventually(lambda: milliseconds_now(backend) > last + 5)


def milliseconds_now(backend: Backend) -> float:
    """Redis' time: what is to go must be older than the commit."""
    seconds, micros = backend.admin.time()
    return float(seconds * 1000 + micros / 1000)


def chunks_of_node(backend: Backend, driver: Driver, node: int) -> int:
    """How many chunks a node has in Redis."""
    return int(backend.admin.xlen(driver.connection.keys.data(node, driver.run.run_id)))


# Broadcasts.


def test_a_chunk_that_somebody_deleted_is_sent_again(backend: Backend) -> None:
    """Without a lost connection: the next push of the content finds out and uploads what is missing."""
    with federation(backend, Seen().app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0]
        content = model(layer(1))
        to_all(driver, [node.node_id], content, "1")
        there = chunks_in(backend)
        backend.admin.unlink(*sorted(there)[:2])
        forget_received(node)  # as a node that has not seen it
        [reply] = to_all(driver, [node.node_id], content, "2")
        assert not reply.has_error()
        assert chunks_in(backend) == there


def test_a_message_is_published_only_with_its_content(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis loses the chunks between upload and transaction: they are uploaded once more, before the message."""
    with federation(backend, Seen().app, nodes=1) as nodes, driving(backend) as driver:
        driver.connection.persists = False  # nothing is held in memory
        losses = [1]

        def lose() -> None:
            if losses:
                losses.pop()
                remove_chunks(backend)
                cut(driver)

        after_uploads(driver, monkeypatch, lose)
        [reply] = to_all(driver, [nodes.nodes[0].node_id], model(layer(1)))
        assert not reply.has_error()
        assert losses == []


def test_a_content_made_of_known_chunks_is_in_the_books(backend: Backend) -> None:
    """Nothing of it has to be sent, and yet a resumed run knows that it is there."""
    first, second = layer(1, 4 * CHUNK), layer(2, 4 * CHUNK)
    former = start(backend)
    node = silent(backend)
    push(former, node, model(first, second), "1")
    push(former, node, model(second, first), "1")
    manifests = former.connection.keys.blobs(former.run.run_id)
    assert backend.admin.hlen(manifests) == 2
    kill(former)
    with resumed(backend, former) as driver:
        assert known_chunks(driver)
        assert set(needs(driver)) == {1}


def test_the_manifest_is_written_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with each window of a large upload."""
    with driving(backend) as driver:
        written = manifests_written(driver, monkeypatch)
        push(driver, silent(backend), model(layer(1, 40 * CHUNK)))
        assert len(written) == 1


# Replies.


def test_a_dead_node_leaves_nothing_of_an_upload(backend: Backend) -> None:
    """Its message ends as Error 5, and what it had sent of the reply goes when the run moves on."""
    registration = Registration(backend.connect(), "", lease=0.3)
    registration.register()
    node = registration.node_id
    with driving(backend) as driver:
        message_id = push(driver, node, number(1))
        break_off(backend, driver, node)
        [reply] = driver.replies([message_id], timeout=20)
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
        assert chunks_of_node(backend, driver, node) == 3
        del reply
        driver.checkpoint()
        assert chunks_of_node(backend, driver, node) == 0


def test_an_upload_that_broke_off_goes_although_messages_are_open(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an app that always has a message with each node; what is younger than the oldest open one stays."""
    monkeypatch.setattr(clock, "CLOCK_STEP", 0)
    gate = Gate()
    gate.go.set()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        [reply] = to_all(driver, [node], model(layer(1)))
        kept = chunks_of_node(backend, driver, node)
        break_off(backend, driver, node)
        driver.settle(reply)
        assert chunks_of_node(backend, driver, node) == 0
        break_off(backend, driver, node)
        ids = driver.push_messages([driver.create_message(model(layer(2)), "train", node, "1")])
        [reply] = driver.replies(ids, timeout=20)
        gate.go.clear()
        waiting = driver.push_messages([driver.create_message(number(3), "train", node, "1")])
        driver.settle(reply)
        assert chunks_of_node(backend, driver, node) == 0
        break_off(backend, driver, node, 2)  # it may be the beginning of the one that is to come
        gate.go.set()
        [small] = driver.replies(waiting, timeout=20)
        later = driver.push_messages([driver.create_message(model(layer(4)), "train", node, "1")])
        eventually(lambda: chunks_of_node(backend, driver, node) == 2 + kept)
        driver.settle(small)
        assert chunks_of_node(backend, driver, node) == 2 + kept
        [reply] = driver.replies(later, timeout=20)
        driver.settle(reply)
        assert chunks_of_node(backend, driver, node) == 0


def test_what_an_adopted_message_may_have_stays(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it came into its inbox is not known after a resume, so nothing of its node is deleted."""
    monkeypatch.setattr(clock, "CLOCK_STEP", 0)
    former = start(backend)
    node = silent(backend)
    for value in (1, 2):
        push(former, node, number(value))
    kill(former)
    with resumed(backend, former) as driver:
        ids = [push(driver, node, number(value)) for value in (1, 2)]
        break_off(backend, driver, node)
        driver.cancel_messages(ids[:1])
        [reply] = driver.replies(ids[:1], timeout=20)
        assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        driver.settle(reply)
        assert chunks_of_node(backend, driver, node) == 3


def test_chunks_that_seem_older_than_their_message_stay(backend: Backend) -> None:
    """The clock of Redis was set back after the push: the node's upload for it has earlier entry ids."""
    with driving(backend) as driver:
        node = silent(backend)
        gone, waiting = (push(driver, node, number(value)) for value in (1, 2))
        inbox, _, data = driver.connection.keys.of_node_and_run(node, driver.run.run_id)
        began = milliseconds_of(backend.admin.xrange(inbox)[1][0].decode())
        for earlier in (90_000, 30_000):  # what is older than a minute is left from something else
            backend.admin.xadd(data, {"d": bytes(1000)}, id=f"{began - earlier}-0")
        driver.cancel_messages([gone])
        [reply] = driver.replies([gone], timeout=20)
        driver.settle(reply)
        assert chunks_of_node(backend, driver, node) == 1
        assert is_unsettled(driver, waiting)


def test_what_fits_nothing_is_deleted_when_there_is_room(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction that was to delete it was refused: it goes with the next."""
    with driving(backend) as driver:
        node = silent(backend)
        push(driver, node, number(1))
        outbox = driver.connection.keys.outbox(node, driver.run.run_id)
        stray = backend.admin.xadd(outbox, {"i": "0" * 32, "h": b"\x01"}).decode()
        read_outbox(driver, node)
        with monkeypatch.context() as full:
            full.setattr(session, "FULL_PATIENCE", 0.0)
            fill(driver, full)
            with pytest.raises(RedisOutOfMemory):
                push(driver, node, number(2))
        assert to_be_deleted(driver) == {stray}
        push(driver, node, number(2))
        assert backend.admin.xlen(outbox) == 0


def test_deletions_that_were_refused_are_repeated(backend: Backend) -> None:
    """Redis refuses to delete what was settled, while all connections hold: it goes with the next look."""
    if not backend.is_real:
        pytest.skip("fakeredis refuses nothing")
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node, keys = nodes.nodes[0].node_id, driver.connection.keys
        to_all(driver, [node], number(1))
        driver.checkpoint()
        outbox = keys.outbox(node, driver.run.run_id)
        assert backend.admin.xlen(outbox) == 1
        backend.admin.config_set("min-replicas-to-write", 9)  # no write is taken
        try:
            driver.pull_messages([])
        finally:
            backend.admin.config_set("min-replicas-to-write", 0)
        assert backend.admin.xlen(outbox) == 1
        to_all(driver, [node], number(2), "2")
        driver.checkpoint()
        eventually(lambda: (driver.pull_messages([]), backend.admin.xlen(outbox))[1] == 0)


def test_a_reply_names_no_chunk_that_its_node_deleted(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full Redis, and the answer to the deletion of what it has is lost: all is uploaded anew."""
    add, remove, calls = upload.add_data, upload.remove_data, [0]

    def full_once(connection: Connection, node: int, run: int, chunks: Iterable[memoryview]) -> list[str | None] | None:
        calls[0] += 1
        return [None for _ in chunks] if calls[0] == 2 else add(connection, node, run, chunks)

    def answer_is_lost(*arguments: Any) -> None:
        remove(*arguments)
        raise RedisUnreachable("the answer was lost")

    monkeypatch.setattr(upload, "HOLD", 0.0)
    monkeypatch.setattr(upload, "add_data", full_once)
    monkeypatch.setattr(upload, "remove_data", answer_is_lost)
    with driving(backend) as driver:
        node, run = silent(backend), driver.run.run_id
        push(driver, node, number(1))
        uploading = Payloads(backend.by_hand(), node)
        manifest = uploading.upload(run, "m", "1", Payload(encode_content(model(layer(1)))), lambda: True)
        assert manifest is not None
        assert uploading.has_uploaded(run, manifest)


def test_a_reply_that_waits_for_room_makes_room(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that do not fit together one gets through: the others take out what they have already uploaded."""
    add, lengths = upload.add_data, []
    with driving(backend) as driver:
        node, run = silent(backend), driver.run.run_id
        push(driver, node, number(1))

        def full_once(
            connection: Connection, node: int, run: int, chunks: Iterable[memoryview]
        ) -> list[str | None] | None:
            lengths.append(chunks_of_node(backend, driver, node))
            return [None for _ in chunks] if len(lengths) == 2 else add(connection, node, run, chunks)

        monkeypatch.setattr(upload, "HOLD", 0.0)
        monkeypatch.setattr(upload, "add_data", full_once)
        uploading = Payloads(backend.by_hand(), node)
        payload = Payload(encode_content(model(layer(1, 40 * CHUNK))))
        manifest = uploading.upload(run, "m", "1", payload, lambda: True)
        assert manifest is not None
        assert uploading.has_uploaded(run, manifest)
        assert lengths[:3] == [0, WINDOW, 0]


@contextmanager
def executing(backend: Backend) -> Iterator[Node]:
    """A node in the middle of a message, whose loop has no turn until the block ends; it holds a reply for long."""
    gate = Gate()
    gate.go.set()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0]
        to_all(driver, [node.node_id], model(layer(1)))
        assert gate.begun.acquire(timeout=10)
        gate.go.clear()
        push(driver, node.node_id, number(1))
        assert gate.begun.acquire(timeout=10)
        hold_reply(node, 7, model(layer(1)), since=0.0)
        try:
            yield node
        finally:
            gate.go.set()


def test_a_reply_is_held_no_longer_while_its_node_executes(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next message of the group takes hours: the last reply leaves the node's memory all the same."""
    monkeypatch.setattr(payloads, "KEEP_REPLY", 0.0)
    with executing(backend) as node:
        heartbeat(node)  # the heartbeat does
        assert held_replies(node) == set()


def test_what_was_held_is_there_after_a_long_outage(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat is the first to see Redis again: it leaves it to the loop to begin the time anew."""
    monkeypatch.setattr(payloads, "KEEP_REPLY", 0.5)
    with executing(backend) as node:
        cut_node(node)
        heartbeat(node)
        assert 7 in held_replies(node)


# Two threads.


@pytest.mark.parametrize("how", ["settle", "checkpoint"])
def test_what_makes_room_does_not_wait_for_it(backend: Backend, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost connection a full Redis cannot be told what it forgot; what is settled leaves it all the same."""
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.3)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        [reply] = to_all(driver, [nodes.nodes[0].node_id], number(1))
        with monkeypatch.context() as patch:
            fill(driver, patch)
            distrust(driver)
            if how == "settle":
                driver.settle(reply)
            else:
                driver.checkpoint()
        assert unsettled(driver) == 0


def test_a_push_that_waits_for_room_lets_others_make_it(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread folds and settles while another one's push finds Redis full of what is to be settled."""
    with federation(backend, nodes=2) as nodes, driving(backend) as driver:
        first, second = (node.node_id for node in nodes.nodes)
        [reply] = to_all(driver, [first], model(layer(1)))
        refused = threading.Event()

        def full_until_settled() -> None:
            if is_unsettled(driver, reply.metadata.reply_to_message) and threading.current_thread() is pusher:
                refused.set()
                raise RedisOutOfMemory("full")

        monkeypatch.setattr(session, "FULL_PATIENCE", 20.0)
        pushed: list[str] = []
        pusher = threading.Thread(target=lambda: pushed.append(push(driver, second, model(layer(2)))))
        before_transactions(driver, monkeypatch, full_until_settled)
        pusher.start()
        assert refused.wait(20)
        driver.settle(reply)
        pusher.join(20)
        [answer] = driver.replies(pushed, timeout=20)
        assert not answer.has_error()


# Nodes that are gone for good.


def test_a_run_leaves_nodes_that_have_vanished(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unnamed nodes come and go: what a run has in Redis does not grow with all that there ever were."""
    monkeypatch.setattr(contacts, "_FEW", 3)
    sizes = []
    with driving(backend) as driver:
        stays, idle, owes = (silent(backend, name) for name in ("stays", "idle", "owes"))
        admin, keys = backend.admin, driver.connection.keys
        driver.cancel_messages([push(driver, idle, number(1), "0")])
        owed = push(driver, owes, number(1), "0")
        admin.srem(keys.nodes, str(owes))
        for turn in range(40):
            node = silent(backend, f"node {turn}")
            ids = [push(driver, each, number(1), str(turn)) for each in (stays, node)]
            driver.cancel_messages(ids)
            admin.srem(keys.nodes, str(node))  # as when its info is gone
            admin.unlink(keys.node_info(node), keys.node_lease(node), keys.ctl(node))
            sizes.append(sum(1 for _ in admin.scan_iter(match=f"{PREFIX}:*", count=1000)))
        known = admin.smembers(keys.run_nodes(driver.run.run_id))
        assert str(stays).encode() in known
        assert len(known) <= 3 + 2 * 5
        assert max(sizes[20:]) <= max(sizes[:20]), "four keys of each node of the last turns"
        for node in (stays, idle, owes):
            assert admin.exists(*keys.of_node_and_run(node, driver.run.run_id)) == 3
        assert in_inbox(backend, driver, owes) == [owed]


def test_a_node_that_was_left_and_comes_back_is_contacted_again(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was away for longer than Redis knows its name; then it is a node as any other."""
    monkeypatch.setattr(contacts, "_FEW", 0)
    node = Late(backend)
    with driving(backend) as driver:
        driver.cancel_messages([push(driver, node.node_id, number(1), "1")])
        backend.admin.srem(driver.connection.keys.nodes, str(node.node_id))
        for name in ("another", "third"):  # it is looked for when there are twice as many
            push(driver, silent(backend, name), number(1), name)
        driver.checkpoint()
        assert not backend.admin.exists(*driver.connection.keys.of_node_and_run(node.node_id, driver.run.run_id))
        with node.serving():
            [reply] = to_all(driver, [node.node_id], number(2), "2")
        assert not reply.has_error()
