"""Promise 5: a model broadcast to N nodes is stored and uploaded once, in chunks, verified by hash on arrival.

Chunks are small here, so that a few thousand bytes make many; the last tests take them as they are.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.client import Pipeline

from brokerfl.broker.connection import Connection
from brokerfl.broker.fence import Build, Fence
from brokerfl.broker.ledger import MOST_REOPENED
from brokerfl.broker.nodes import Registration
from brokerfl.broker.outbox import Outgoing, add_data, publish
from brokerfl.broker.runs import stop_run
from brokerfl.broker.sockets import Sockets
from brokerfl.client import ClientApp, payloads
from brokerfl.common import (
    Array,
    Context,
    ErrorCode,
    Message,
    MessageTooLarge,
    Metadata,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
    RedisOutOfMemory,
)
from brokerfl.common.array import ITEMSIZE
from brokerfl.server import Driver, commit
from brokerfl.wire import hashing, payload
from brokerfl.wire.frame import MANIFEST
from brokerfl.wire.message import encode_message
from brokerfl.wire.payload import Manifest, Payload, decode_manifest
from brokerfl.wire.record import encode_content
from tests.apps import Gate, driving, echo_app, eventually, federation, number, number_in
from tests.conftest import PREFIX, Backend, check_keys
from tests.contract.test_full import fill
from tests.contract.test_journal import Counter, Streams, push, send, serving
from tests.contract.test_resume import kill, resumed, silent, start

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

#: Sizes as they are for everyone.
REAL_INLINE, REAL_CHUNK = payload.INLINE, payload.CHUNK

#: Sizes of these tests.
INLINE, CHUNK = 512, 1024

#: Bytes of a layer that takes five chunks, the last of them not full.
LAYER = 4 * CHUNK + 100


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thousand bytes make many chunks, and memory comes in huge pages where it does for large arrays."""
    monkeypatch.setattr(payload, "INLINE", INLINE)
    monkeypatch.setattr(payload, "CHUNK", CHUNK)
    monkeypatch.setattr(payload, "_HUGE", 4 * CHUNK)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the chunks that were put into pipelines to be set."""
    keys: list[str] = []
    execute = Pipeline.execute_command

    def spy(pipe: Pipeline, *command: Any, **options: Any) -> Any:
        if command[0] == "SET" and ":blob:" in str(command[1]):
            keys.append(command[1])
        return execute(pipe, *command, **options)

    monkeypatch.setattr(Pipeline, "execute_command", spy)
    return keys


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the chunks that nodes asked for."""
    keys: list[str] = []
    stream = Sockets.stream

    def spy(sockets: Sockets, commands: Any) -> Any:
        keys.extend(command[1] for command in commands if command[0] == "GET")
        return stream(sockets, commands)

    monkeypatch.setattr(Sockets, "stream", spy)
    return keys


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
    """The keys of the chunks that these contents make."""
    keys, run = driver._connection.keys, driver.run.run_id
    digests = [digest for content in contents for digest in Payload(encode_content(content)).manifest.digests]
    return {keys.blob(run, digest) for digest in digests}


def chunks_in(backend: Backend) -> set[str]:
    """The keys of the chunks that Redis has."""
    return {key.decode() for key in backend.admin.scan_iter(f"{PREFIX}:blob:*", count=1000)}


def remove_chunks(backend: Backend) -> None:
    """Redis loses all chunks of broadcasts."""
    backend.admin.unlink(*chunks_in(backend))


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


class Seen:
    """A ClientApp that keeps the contents it is given, and replies with their number."""

    def __init__(self) -> None:
        self.contents: list[RecordSet] = []
        self.app = ClientApp()

        def see(message: Message, context: Context) -> Message:
            self.contents.append(message.content)
            return message.create_reply(number(len(self.contents)))

        self.app.train()(see)
        self.app.evaluate()(see)


class Late:
    """A node that is known to a run and begins to serve when it is told to: until then its messages wait."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        registration = Registration(backend.connect(), "berlin", lease=600.0)
        registration.register()
        registration.leave()
        self.node_id = registration.node_id
        self.seen = Seen()

    @contextmanager
    def serving(self) -> Iterator[None]:
        with serving(self._backend, self.seen.app, None) as node:
            assert node.node_id == self.node_id
            yield


# Once.


@pytest.mark.parametrize("how", ["one record", "shared arrays", "equal copies"])
def test_a_broadcast_is_stored_and_sent_once(backend: Backend, sent: list[str], how: str) -> None:
    """N messages of one record, of records over the same arrays, or of equal copies: each chunk is sent once."""
    arrays = [layer(1), layer(2, 30), layer(3, 40 * CHUNK)]
    record = model(*arrays)

    def content() -> RecordSet:
        match how:
            case "one record":
                return record
            case "shared arrays":
                return model(*arrays)
            case _:
                return model(*(array.copy() for array in arrays))

    seen = Seen()
    with federation(backend, seen.app, nodes=3) as nodes, driving(backend) as driver:
        ids = [node.node_id for node in nodes.nodes]
        replies = driver.send_and_receive([driver.create_message(content(), "train", node, "1") for node in ids])
        assert sorted(map(number_in, replies)) == [1, 2, 3]
        expected = chunks_of(driver, record)
        assert len(expected) > 2 * payload.WINDOW
        assert sorted(sent) == sorted(expected)
        assert chunks_in(backend) == expected
    for received in seen.contents:
        assert layers_in(received) == [array.tobytes() for array in arrays]


def test_equal_contents_are_hashed_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five records of their own, with copies of the same arrays, are one content; one that differs in a bit is not."""
    hashed: list[bytes] = []
    digest = hashing.digest_now

    def spy(data: memoryview) -> bytes:
        hashed.append(bytes(data))
        return digest(data)

    monkeypatch.setattr(hashing, "digest_now", spy)
    array = layer(1)
    other = array.copy()
    other[len(other) // 2] ^= 1
    with driving(backend) as driver:
        nodes = [silent(backend, str(number)) for number in range(6)]
        arrays = [array, *(array.copy() for _ in range(4)), other]
        ids = driver.push_messages(
            [driver.create_message(model(mine), "train", node, "1") for node, mine in zip(nodes, arrays, strict=True)]
        )
        assert "" not in ids
        assert len(hashed) == 2 * 6
        digests = {driver._ledger.find(message_id).entry.digest for message_id in ids}  # type: ignore[union-attr]
        assert len(digests) == 2


def test_equal_layers_are_stored_once(backend: Backend, sent: list[str]) -> None:
    """Chunks of equal bytes within one content, such as zeros, are sent once, and arrive everywhere."""
    zeros = np.zeros(8 * CHUNK, dtype=np.uint8)
    seen = Seen()
    with federation(backend, seen.app, nodes=1) as nodes, driving(backend) as driver:
        to_all(driver, [nodes.nodes[0].node_id], model(zeros, zeros.copy()))
        assert len(sent) == len(chunks_in(backend)) == 2
    assert layers_in(seen.contents[0]) == [bytes(8 * CHUNK)] * 2


# The second message.


def test_the_second_message_with_the_same_model_transfers_nothing(
    backend: Backend, sent: list[str], read: list[str]
) -> None:
    """Nobody sends or reads a chunk for it."""
    seen = Seen()
    with federation(backend, seen.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        arrays = [layer(1), layer(2)]
        to_all(driver, [node], model(*arrays))
        assert len(read) == len(sent) > 0
        sent.clear()
        read.clear()
        [reply] = to_all(driver, [node], model(*(array.copy() for array in arrays)), kind="evaluate")
        assert number_in(reply) == 2
        assert (sent, read) == ([], [])
    assert layers_in(seen.contents[1]) == [array.tobytes() for array in arrays]


def test_a_layer_that_did_not_change_is_not_sent_again(backend: Backend, sent: list[str], read: list[str]) -> None:
    """Of a model of three layers of which one was trained, only that one's chunks are sent, read, and replaced."""
    seen = Seen()
    with federation(backend, seen.app, nodes=2) as nodes, driving(backend) as driver:
        ids = [node.node_id for node in nodes.nodes]
        frozen = [layer(1), layer(3)]
        first, second = (model(frozen[0], layer(seed), frozen[1]) for seed in (2, 20))
        to_all(driver, ids, first, "1")
        sent.clear()
        read.clear()
        to_all(driver, ids, second, "2")
        changed = chunks_of(driver, second) - chunks_of(driver, first)
        assert len(changed) == 5
        assert sorted(sent) == sorted(changed)
        assert sorted(read) == sorted([*changed, *changed])
        assert chunks_in(backend) == chunks_of(driver, second)
    for received in seen.contents[2:]:
        assert layers_in(received) == layers_in(second)


def test_a_node_lets_go_of_what_the_newest_message_did_not_bring(backend: Backend) -> None:
    """A node keeps of each run what its last large message brought and no more, and nothing when the run is over."""
    with federation(backend, Seen().app, nodes=1) as nodes, driving(backend) as driver:
        [node], received = nodes.nodes, nodes.nodes[0]._payloads._received
        with driving(backend) as other:
            sizes = []
            for group, size in (("1", 3 * LAYER), ("2", LAYER)):
                to_all(driver, [node.node_id], model(layer(size, size)), group)
                sizes.append(sum(map(len, received[driver.run.run_id].values())))
            assert 3 * LAYER <= sizes[0] < 3 * LAYER + 200
            assert LAYER <= sizes[1] < LAYER + 200
            to_all(other, [node.node_id], model(layer(1)))
            assert received.keys() == {driver.run.run_id, other.run.run_id}
        to_all(driver, [node.node_id], number(1))  # whatever the node hears of runs makes it look
        eventually(lambda: received.keys() == {driver.run.run_id})


def test_the_memory_of_a_node_is_bounded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many runs a node keeps what the last ones brought, as far as its cache goes, and nothing that is larger."""
    monkeypatch.setattr(payloads, "CACHE", int(2.5 * LAYER))
    with federation(backend, Seen().app, nodes=1) as nodes:
        node, received = nodes.nodes[0].node_id, nodes.nodes[0]._payloads._received
        with driving(backend) as first, driving(backend) as second, driving(backend) as third:
            for driver in (first, second, third):
                to_all(driver, [node], model(layer(1)))
            assert list(received) == [second.run.run_id, third.run.run_id]
            [reply] = to_all(first, [node], model(layer(1, 3 * LAYER)), "2")
            assert reply.has_content()
            assert list(received) == [second.run.run_id, third.run.run_id]


# What arrives.


@pytest.mark.parametrize("size", [10, LAYER], ids=["inline", "chunks"])
def test_contents_are_frozen_at_the_push(backend: Backend, size: int) -> None:
    """What the app does to its arrays right after the push is not what the node gets."""
    gate = Gate()
    array = layer(1, size)
    before = array.tobytes()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        batch = [driver.create_message(content, "train", node, "1") for content in (number(1), model(array))]
        ids = driver.push_messages(batch)
        array[:] = 0
        gate.go.set()
        replies = {reply.metadata.reply_to_message: reply for reply in driver.replies(ids)}
        assert layers_in(replies[ids[1]].content) == [before]


def test_every_dtype_comes_back(backend: Backend) -> None:
    """Arrays of every dtype, of no dimension, no element, few and many, arrive bit for bit, read-only and aligned."""
    rng = np.random.default_rng(5)
    arrays: dict[str, Array] = {}
    for dtype, itemsize in ITEMSIZE.items():
        for shape in ((), (0,), (2, 0, 3), (3,), (300, 2), (5, 7, 61)):
            data = rng.bytes(itemsize * int(np.prod(shape, dtype=int)))
            data = bytes(byte & 1 for byte in data) if dtype == "bool" else data
            arrays[f"{dtype}{shape}"] = Array(dtype, shape, "numpy.ndarray", data)
    seen = Seen()

    @seen.app.query()
    def echo(message: Message, context: Context) -> Message:
        seen.contents.append(message.content)
        return message.create_reply(message.content)

    with federation(backend, seen.app, nodes=1) as nodes, driving(backend) as driver:
        content = RecordSet({"p": ParametersRecord(dict(arrays))})
        [reply] = to_all(driver, [nodes.nodes[0].node_id], content, kind="query")
        for received in (*seen.contents, reply.content):
            record = received.parameters_records["p"]
            assert list(record) == list(arrays)
            for name, array in record.items():
                assert (array.dtype, array.shape, array.data) == (
                    arrays[name].dtype,
                    arrays[name].shape,
                    arrays[name].data,
                )
                view = array._view()
                assert not view.flags.writeable
                assert memoryview(array.data).readonly
                assert not view.size or view.ctypes.data % 16 == 0


def test_sizes_around_the_limits_come_back(backend: Backend) -> None:
    """Contents of INLINE bytes, one more, and arrays around one and several chunks arrive; only the first is inline."""

    def content_of(size: int) -> RecordSet:
        """A content of so many bytes in all."""
        for data in range(size, 0, -1):
            made = model(layer(size, data))
            if sum(map(len, encode_content(made).values())) == size:
                return made
        raise AssertionError("no such content")

    contents = [content_of(INLINE), content_of(INLINE + 1)]
    contents += [model(layer(size, size)) for size in (CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 40 * CHUNK + 1)]
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        for group, content in enumerate(contents):
            [reply] = to_all(driver, [nodes.nodes[0].node_id], content, str(group))
            assert layers_in(reply.content) == layers_in(content)
            assert chunks_in(backend) == (chunks_of(driver, content) if group else set())


# Complete, or not at all.


def test_a_full_redis_during_the_upload_pushes_nothing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is full after the first of three windows: no message, no chunk and no book is left, and it works later."""
    monkeypatch.setattr(commit, "FULL_PATIENCE", 0.1)
    content = model(layer(1, 40 * CHUNK))
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        to_all(driver, [node], number(1))
        keys, run = driver._connection.keys, driver.run.run_id
        before = backend.admin.hgetall(keys.ledger(run))
        message = driver.create_message(content, "train", node, "2")
        with monkeypatch.context() as patch:
            fill(driver, patch, executions=1)
            with pytest.raises(RedisOutOfMemory):
                driver.push_messages([message])
        assert backend.admin.hgetall(keys.ledger(run)) == before
        assert backend.admin.xlen(keys.inbox(node, run)) == 0
        assert chunks_in(backend) == set()
        assert not backend.admin.exists(keys.blobs(run))
        [reply] = driver.send_and_receive([message])
        assert layers_in(reply.content) == layers_in(content)


def test_a_push_whose_transaction_finds_redis_full_leaves_no_chunk(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks are there and the message does not fit any more: the chunks go again."""
    monkeypatch.setattr(commit, "FULL_PATIENCE", 0.1)
    node = silent(backend)
    with driving(backend) as driver:
        with monkeypatch.context() as patch:
            fill(driver, patch, executions=1)
            with pytest.raises(RedisOutOfMemory):
                driver.push_messages([driver.create_message(model(layer(1)), "train", node, "1")])
        assert chunks_in(backend) == set()
        assert not backend.admin.exists(driver._connection.keys.ledger(driver.run.run_id))


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_a_full_redis_that_has_room_in_time_is_only_slow(
    backend: Backend, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of three windows, or the message itself, is refused twice: when there is room in time, all arrives."""
    content = model(layer(1, 40 * CHUNK))
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        message = driver.create_message(content, "train", nodes.nodes[0].node_id, "1")
        fence, calls = driver._attachment.fence, [0]
        execute = Fence._execute

        def refuse(build: Build, reclaims: bool) -> object:
            calls[0] += 1
            if window < calls[0] <= window + 2:
                raise RedisOutOfMemory("full")
            return execute(fence, build, reclaims)

        monkeypatch.setattr(fence, "_execute", refuse)
        [reply] = driver.send_and_receive([message])
        assert layers_in(reply.content) == layers_in(content)
        assert calls[0] >= 6


def test_maxmemory_is_back_pressure(backend: Backend) -> None:
    """A push into a Redis at maxmemory waits, and goes through when there is room within its patience."""
    if not backend.is_real:
        pytest.skip("fakeredis has no maxmemory")

    def refused() -> int:
        return int(backend.admin.info("errorstats").get("errorstat_OOM", {}).get("count", 0))

    def make_room() -> None:
        try:
            eventually(lambda: refused() > before)
        finally:
            backend.admin.config_set("maxmemory", 0)

    content = model(layer(1))
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        before = refused()
        backend.admin.config_set("maxmemory", 1)
        helper = threading.Thread(target=make_room)
        helper.start()
        try:
            [reply] = to_all(driver, [nodes.nodes[0].node_id], content)
        finally:
            helper.join()
        assert layers_in(reply.content) == layers_in(content)
        assert refused() > before


# Chunks that are gone, or differ.


def spoil(backend: Backend, key: str, how: str) -> None:
    """Make something else of a chunk."""
    data = backend.admin.get(key)
    if how == "missing":
        backend.admin.unlink(key)
    elif how == "no string":
        backend.admin.unlink(key)
        backend.admin.hset(key, "a", "b")
        backend.admin.pexpire(key, 60_000)
    else:
        backend.admin.set(key, data[:-1] if how == "shorter" else bytes((data[0] ^ 1,)) + data[1:], keepttl=True)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "chunk 3 of 6 is gone from Redis"),
        ("no string", "chunk 3 of 6 is gone from Redis"),
        ("shorter", "chunk 3 has 1,023 bytes, but its manifest says 1,024"),
        ("other", "chunk 3 does not have the sha256"),
    ],
)
def test_a_broadcast_chunk_that_is_not_right_is_error_3(backend: Backend, how: str, reason: str) -> None:
    """The node answers with Error 3 and the reason, does not call its ClientApp, and serves what comes next."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        first, second = driver.push_messages(
            [driver.create_message(content, "train", node, "1") for content in (number(1), model(layer(1)))]
        )
        assert gate.begun.acquire(timeout=10)
        digests = Payload(encode_content(model(layer(1)))).manifest.digests
        spoil(backend, driver._connection.keys.blob(driver.run.run_id, digests[2]), how)
        gate.go.set()
        replies = {reply.metadata.reply_to_message: reply for reply in driver.replies([first, second])}
        assert number_in(replies[first]) == 1
        assert reason in reason_of(replies[second], ErrorCode.MESSAGE_UNAVAILABLE)
        assert gate.calls == 1
        [reply] = to_all(driver, [node], model(layer(2)), "2")
        assert layers_in(reply.content) == [layer(2).tobytes()]


def test_a_chunk_that_is_missing_is_asked_for_once_more(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that does not find a chunk looks again before it gives up, as long as the message is wanted."""
    read_blobs = payloads.read_blobs
    asked: list[list[bytes]] = []

    def blind(connection: Connection, run_id: int, digests: list[bytes]) -> Iterator[bytes | None]:
        asked.append(digests)
        found = read_blobs(connection, run_id, digests)
        return (None for _ in list(found)) if len(asked) == 1 else found

    monkeypatch.setattr(payloads, "read_blobs", blind)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        [reply] = to_all(driver, [nodes.nodes[0].node_id], model(layer(1)))
        assert layers_in(reply.content) == [layer(1).tobytes()]
    assert asked[0] == asked[1]


# Replies.


def test_a_large_reply_travels_beside_its_entry(backend: Backend, tmp_path: Path) -> None:
    """Its chunks are in the data stream and not on disk, and leave Redis when the reply is settled."""
    with serving(backend, Counter().app, tmp_path) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = push(driver, node, LAYER)
        eventually(lambda: streams.lengths() == (0, 1, 6))
        _, reply = streams.entry(streams.outbox)
        manifest = decode_manifest(reply[MANIFEST])
        assert list(manifest.entries) == [entry.decode() for entry, _ in backend.admin.xrange(streams.data)]
        assert sum(map(len, reply.values())) < 1000
        on_disk = node._journal.reply_to(driver.run.run_id, message_id)
        assert on_disk is not None
        assert sum(map(len, on_disk.values())) < 1000
        [received] = driver.replies([message_id])
        assert received.content.parameters_records["p"]["a"].data == bytes(LAYER)
        assert streams.lengths() == (0, 1, 6), "nothing has settled it yet"
        driver.checkpoint()
        driver.pull_messages([])
        assert streams.lengths() == (0, 0, 0)


def test_a_small_reply_needs_no_data_stream(backend: Backend) -> None:
    """A content up to the inline limit is in the reply's own entry."""
    with serving(backend, Counter().app, None) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        push(driver, node, INLINE - 100)
        eventually(lambda: streams.lengths() == (0, 1, 0))


@pytest.mark.parametrize("held", [True, False])
def test_a_reply_with_a_chunk_missing_is_asked_for_again(
    backend: Backend, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node executes nothing again: it sends the chunks once more while it holds them, afterwards it is Error 4."""
    if not held:
        monkeypatch.setattr(payloads, "HOLD", 0.0)
    counter = Counter()
    with serving(backend, counter.app, None) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = push(driver, node, LAYER)
        eventually(lambda: streams.lengths() == (0, 1, 6) and bool(node._payloads._held) == held)
        backend.admin.xdel(streams.data, backend.admin.xrange(streams.data)[3][0])
        [reply] = driver.replies([message_id])
        assert counter.calls == 1
        if held:
            assert reply.content.parameters_records["p"]["a"].data == bytes(LAYER)
        else:
            assert "payload of its reply is gone" in reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        assert send(driver, node, LAYER).has_content()


@pytest.mark.parametrize(("how", "reason"), [("shorter", "but its manifest says"), ("other", "sha256")])
def test_a_reply_with_a_chunk_that_differs_is_error_4(backend: Backend, how: str, reason: str) -> None:
    """A reply of which a chunk is not what was sent is Error 4 with the reason, and the run goes on."""
    with serving(backend, Counter().app, None) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = push(driver, node, LAYER)
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
    with serving(backend, Counter().app, None) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        send(driver, node, LAYER)
        # What a node does that does not know whether its upload and its reply arrived.
        _, reply = streams.entry(streams.outbox)
        manifest = decode_manifest(reply[MANIFEST])
        copies = [backend.admin.xadd(streams.data, fields) for _, fields in backend.admin.xrange(streams.data)]
        second = Manifest(manifest.sizes, manifest.digests, tuple(entry.decode() for entry in copies))
        backend.admin.xadd(streams.outbox, {**reply, MANIFEST: second.encoded})
        backend.admin.xadd(driver._connection.keys.bell(driver.run.run_id), {"n": str(node.node_id)})
        eventually(lambda: (driver.pull_messages([]), driver._ledger.dropped)[1] == 1)
        send(driver, node, group="2")
        driver.pull_messages([])
        assert streams.lengths() == (0, 1, 0)


@pytest.mark.parametrize("held", [True, False])
def test_a_forgotten_payload_is_uploaded_again(backend: Backend, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redelivered message whose payload Redis forgot gets it again while the node holds it, afterwards Error 4."""
    if not held:
        monkeypatch.setattr(payloads, "HOLD", 0.0)
    counter = Counter()
    counter.go.clear()
    with serving(backend, counter.app, None) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = push(driver, node, LAYER)
        assert counter.begun.acquire(timeout=10)
        _, fields = streams.entry(streams.inbox)
        counter.go.set()
        eventually(lambda: streams.lengths() == (0, 1, 6))
        if not held:
            eventually(lambda: not node._payloads._held)
        for stream in (streams.outbox, streams.data):
            backend.admin.xtrim(stream, maxlen=0)
        streams.again(fields)
        [reply] = driver.replies([message_id])
        if held:
            assert reply.content.parameters_records["p"]["a"].data == bytes(LAYER)
        else:
            reason = reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
            assert f"node {node.node_id} had answered" in reason
    assert counter.calls == 1


def test_a_held_reply_that_the_app_changed_is_not_sent_again(backend: Backend) -> None:
    """A ClientApp that goes on writing to the arrays of its last reply makes Error 4 of it, never a wrong array."""
    array = layer(1)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_reply(model(array))

    with serving(backend, app, None) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = push(driver, node)
        eventually(lambda: streams.lengths() == (0, 1, 6))
        array[:] = 0
        backend.admin.xtrim(streams.data, maxlen=0)
        [reply] = driver.replies([message_id])
        reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


# Freed.


def test_the_run_moves_on_and_only_the_new_content_stays(backend: Backend, sent: list[str]) -> None:
    """A content is freed when the last message that needs it is settled, kept when the next group has it again."""
    with federation(backend, nodes=2) as nodes, driving(backend) as driver:
        ids = [node.node_id for node in nodes.nodes]
        keys, run = driver._connection.keys, driver.run.run_id
        first, second = model(layer(1)), model(layer(2))
        for group, content in (("1", first), ("2", second), ("3", second), ("4", second), ("5", first)):
            before = chunks_in(backend)
            sent.clear()
            to_all(driver, ids, content, group)
            assert chunks_in(backend) == chunks_of(driver, content)
            assert sorted(sent) == sorted(chunks_of(driver, content) - before)
        to_all(driver, ids, number(1), "6")
        assert chunks_in(backend) == set()
        assert not backend.admin.exists(keys.blobs(run))


def test_what_one_node_still_needs_stays(backend: Backend) -> None:
    """While one message of a broadcast is open its chunks stay, whatever the others and the run do."""
    late = Late(backend)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        content = model(layer(1), layer(2))
        ids = driver.push_messages([driver.create_message(content, "train", n, "1") for n in (node, late.node_id)])
        assert len(list(driver.replies(ids[:1]))) == 1
        # Half of it is in the next content too.
        to_all(driver, [node], model(layer(1), layer(3)), "2")
        to_all(driver, [node], number(1), "3")
        assert chunks_in(backend) == chunks_of(driver, content)
        with late.serving():
            assert [number_in(reply) for reply in driver.replies(ids)] == [1]
            assert layers_in(late.seen.contents[0]) == layers_in(content)
            driver.checkpoint()
            assert chunks_in(backend) == set()


@pytest.mark.parametrize("how", ["cancelled", "expired", "unavailable"])
def test_a_message_that_ends_as_an_error_frees_too(backend: Backend, how: str) -> None:
    """A broadcast whose messages are cancelled, expire or lose their node leaves no chunk after the next commit."""
    registration = Registration(backend.connect(), "" if how == "unavailable" else "quiet", lease=0.3)
    registration.register()
    with driving(backend) as driver:
        ttl = 0.2 if how == "expired" else None
        ids = driver.push_messages(
            [driver.create_message(model(layer(1)), "train", registration.node_id, "1", ttl) for _ in range(2)]
        )
        assert chunks_in(backend)
        if how == "cancelled":
            driver.cancel_messages(ids)
        assert [reply.has_error() for reply in driver.replies(ids)] == [True, True]
        assert chunks_in(backend)
        driver.checkpoint()
        assert chunks_in(backend) == set()


def test_the_end_leaves_nothing_and_all_has_a_lifetime(backend: Backend) -> None:
    """All keys of a run expire by themselves, are renewed as long as it is attached, and go when it ends."""
    node = silent(backend)
    driver = Driver(backend.connect(), "server:app", retention=1000.0)
    driver.context.state.parameters_records["p"] = ParametersRecord({"w": Array(layer(2))})
    driver.push_messages([driver.create_message(model(layer(1)), "train", node, "1")])
    check_keys(backend.admin)
    for key in chunks_in(backend):
        assert backend.admin.pttl(key) > 900_000
        backend.admin.pexpire(key, 5000)
    driver._attachment.renew_lifetimes(driver._holdings())
    assert all(backend.admin.pttl(key) > 900_000 for key in chunks_in(backend))
    driver.end()
    assert not [key for key in backend.admin.scan_iter() if str(driver.run.run_id).encode() in key]


def test_a_stopped_run_leaves_nothing(backend: Backend) -> None:
    """`brokerfl stop` of a run without a ServerApp deletes the chunks of its broadcast, its state and its replies."""
    with federation(backend, nodes=1) as nodes:
        former = start(backend)
        former.context.state.parameters_records["p"] = ParametersRecord({"w": Array(layer(2))})
        to_all(former, [nodes.nodes[0].node_id], model(layer(1)))
        assert len(chunks_in(backend)) > 6
        former.detach()
        stop_run(backend.connect(), former.run.run_id)
        assert not [key for key in backend.admin.scan_iter() if str(former.run.run_id).encode() in key]


# Resume.


def test_counts_are_rebuilt_from_the_books(backend: Backend) -> None:
    """After a resume nothing is freed while a node has yet to fetch it, and nothing is left when all are settled."""
    late = Late(backend)
    content, following = model(layer(1), layer(2)), model(layer(1), layer(3))
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        former.push_messages([former.create_message(content, "train", n, "1") for n in (node, late.node_id)])
        kill(former)
        with resumed(backend, former) as driver:
            batch = [driver.create_message(content, "train", n, "1") for n in (node, late.node_id)]
            ids = driver.push_messages(batch)
            assert [layers_in(reply.content) for reply in driver.replies(ids[:1])] == [layers_in(content)]
            to_all(driver, [node], following, "2")
            assert chunks_in(backend) == chunks_of(driver, content, following)
            with late.serving():
                assert [number_in(reply) for reply in driver.replies(ids)] == [1]
            assert layers_in(late.seen.contents[0]) == layers_in(content)
            driver.checkpoint()
            assert chunks_in(backend) == set()


def test_what_nobody_adopts_is_freed_with_its_message(backend: Backend) -> None:
    """An orphan's chunks go when it is cancelled, and not before."""
    unread = silent(backend)
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        former.push_messages([former.create_message(model(layer(1)), "train", unread, "1")])
        kill(former)
        with resumed(backend, former) as driver:
            to_all(driver, [node], number(1), "1")
            driver.checkpoint()
            assert chunks_in(backend) == chunks_of(driver, model(layer(1)))
            for group in ("2", "3"):
                to_all(driver, [node], number(1), group)
            assert chunks_in(backend) == set()


def test_an_adopted_message_keeps_its_first_content(backend: Backend, sent: list[str]) -> None:
    """The resumed app pushes another content: the open message stays what it was, and the new one is not uploaded."""
    late = Late(backend)
    former = start(backend)
    first = model(layer(1))
    [message_id] = former.push_messages([former.create_message(first, "train", late.node_id, "1")])
    kill(former)
    sent.clear()
    with resumed(backend, former) as driver:
        again = driver.create_message(model(layer(2)), "train", late.node_id, "1")
        assert driver.push_messages([again]) == [message_id]
        assert sent == []
        with late.serving():
            assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
        assert [layers_in(content) for content in late.seen.contents] == [layers_in(first)]
        driver.checkpoint()
        assert chunks_in(backend) == set()


@pytest.mark.parametrize("lost", ["one chunk", "all chunks"])
def test_a_first_content_that_is_gone_is_replaced(backend: Backend, lost: str) -> None:
    """Redis lost a chunk of the first content: the node executes the present one once, and the rest is freed."""
    late = Late(backend)
    former = start(backend)
    [message_id] = former.push_messages([former.create_message(model(layer(1)), "train", late.node_id, "1")])
    kill(former)
    backend.admin.unlink(*list(chunks_in(backend))[: 1 if lost == "one chunk" else None])
    present = model(layer(2))
    with resumed(backend, former) as driver:
        again = driver.create_message(present, "train", late.node_id, "1")
        assert driver.push_messages([again]) == [message_id]
        assert chunks_in(backend) == chunks_of(driver, present)
        with late.serving():
            assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
        assert [layers_in(content) for content in late.seen.contents] == [layers_in(present)]
        driver.checkpoint()
        assert chunks_in(backend) == set()


@pytest.mark.parametrize(
    ("first", "present"),
    [(number(1), model(layer(2))), (model(layer(1)), number(2)), (model(layer(1)), model(layer(2)))],
    ids=["small, then large", "large, then small", "large, then large"],
)
def test_a_message_that_was_lost_is_complete_when_it_is_pushed_again(
    backend: Backend, first: RecordSet, present: RecordSet
) -> None:
    """Redis lost the inbox of an open message: what the resumed app makes the node execute is there as a whole."""
    late = Late(backend)
    former = start(backend)
    [message_id] = former.push_messages([former.create_message(first, "train", late.node_id, "1")])
    backend.admin.unlink(former._connection.keys.inbox(late.node_id, former.run.run_id))
    kill(former)
    with resumed(backend, former) as driver:
        again = driver.create_message(present, "train", late.node_id, "1")
        assert driver.push_messages([again]) == [message_id]
        with late.serving():
            [reply] = driver.replies([message_id])
            assert reply.has_content(), reply.error
        [received] = late.seen.contents
        assert encode_content(received) in (encode_content(first), encode_content(present))
        driver.checkpoint()
        assert chunks_in(backend) == set()


# Redis forgets.


@pytest.mark.parametrize("lost", ["chunks", "chunks and message", "everything of the run"])
def test_chunks_that_redis_forgot_are_written_again(backend: Backend, lost: str) -> None:
    """After a lost connection, what was uploaded just before is written again from memory, and the node executes it."""
    late = Late(backend)
    content = model(layer(1, 40 * CHUNK))
    with driving(backend) as driver:
        driver._connection.persists = True
        keys, run = driver._connection.keys, driver.run.run_id
        ids = driver.push_messages([driver.create_message(content, "train", late.node_id, "1")])
        remove_chunks(backend)
        if lost != "chunks":
            backend.admin.unlink(keys.inbox(late.node_id, run))
        if lost == "everything of the run":
            backend.admin.unlink(*keys.of_run(run))
        driver._link.reconnect(ConnectionError("cut"), None)
        assert list(driver.replies(ids, timeout=0.1)) == []
        assert chunks_in(backend) == chunks_of(driver, content)
        check_keys(backend.admin)
        with late.serving():
            assert [number_in(reply) for reply in driver.replies(ids)] == [1]
        assert layers_in(late.seen.contents[0]) == layers_in(content)
        driver.checkpoint()
        assert chunks_in(backend) == set()


def test_a_content_that_redis_forgot_is_uploaded_by_the_next_push(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that are not held any more and are gone after a lost connection are sent again with the same content."""
    monkeypatch.setattr("brokerfl.broker.blobs.HOLD", 0.0)
    content = model(layer(1))
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        to_all(driver, [node], content)
        driver._blobs.release()
        assert not driver._blobs._held
        remove_chunks(backend)
        nodes.nodes[0]._payloads.clear()
        driver._link.reconnect(ConnectionError("cut"), None)
        [reply] = to_all(driver, [node], content)
        assert layers_in(reply.content) == layers_in(content)


def test_deletions_that_redis_forgot_are_made_again(backend: Backend) -> None:
    """Redis comes back with a content that a commit had freed, and its manifest: the comparison deletes both."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        keys, run = driver._connection.keys, driver.run.run_id
        first, second = model(layer(1)), model(layer(2))
        to_all(driver, [node], first)
        manifests = backend.admin.hgetall(keys.blobs(run))
        former = {key: backend.admin.get(key) for key in chunks_in(backend)}
        to_all(driver, [node], second, "2")
        for key, data in former.items():
            backend.admin.set(key, data, px=60_000)
        backend.admin.hset(keys.blobs(run), mapping=manifests)
        driver._link.reconnect(ConnectionError("cut"), None)
        driver.pull_messages([])
        assert chunks_in(backend) == chunks_of(driver, second)
        assert len(backend.admin.hgetall(keys.blobs(run))) == 1


def test_without_persistence_nothing_is_held(backend: Backend) -> None:
    """Of a Redis without an append-only file nothing survives, so that no memory is spent on what it might forget."""
    node = silent(backend)
    for persists in (True, False):
        with driving(backend) as driver:
            driver._connection.persists = persists
            driver.push_messages([driver.create_message(model(layer(1)), "train", node, "1")])
            assert bool(driver._blobs._held) == persists


def test_the_servers_persistence_is_seen(backend: Backend) -> None:
    """A connection knows from the server whether it keeps an append-only file."""
    if not backend.is_real:
        pytest.skip("fakeredis has no INFO")
    assert not backend.connect().persists
    backend.admin.config_set("appendonly", "yes")
    try:
        assert backend.connect().persists
    finally:
        backend.admin.config_set("appendonly", "no")


# Limits.


def test_a_node_with_a_lower_limit_reads_nothing(
    backend: Backend, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A content beyond the node's limit is Error 3 by its declared sizes: no chunk is asked for, no memory is made."""

    def no_room(size: int) -> memoryview:
        raise AssertionError(f"{size} bytes were allocated")

    monkeypatch.setattr(payload, "_room", no_room)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        nodes.nodes[0]._payloads.limit = LAYER - 1
        [reply] = to_all(driver, [node], model(layer(1)))
        reason = reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
        assert f"bytes; the limit is {LAYER - 1:,} bytes" in reason
        assert read == []
        [reply] = to_all(driver, [node], model(layer(1, CHUNK)), "2")
        assert reply.has_content()


def test_a_reply_beyond_the_drivers_limit_is_error_4(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply larger than `max_message` is Error 4 before memory is made for it, and its chunks are freed like any."""
    with serving(backend, Counter().app, None) as node, driving(backend, max_message=LAYER) as driver:
        streams = Streams(backend, driver, node)
        reply = send(driver, node, LAYER)
        reason = reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        assert f"the limit is {LAYER:,} bytes" in reason
        assert send(driver, node, LAYER - 200, group="2").has_content()
        driver.checkpoint()
        driver.pull_messages([])
        assert streams.lengths() == (0, 0, 0)


def test_a_run_has_only_so_much_in_redis(backend: Backend) -> None:
    """A push beyond `max_run` raises with the numbers and pushes nothing; when the run has moved on there is room."""
    with federation(backend, nodes=1) as nodes, driving(backend, max_run=3 * LAYER) as driver:
        node = nodes.nodes[0].node_id
        keys, run = driver._connection.keys, driver.run.run_id
        with pytest.raises(MessageTooLarge, match=rf"needs 1\d,\d\d\d bytes, .* has 0 in Redis: .* the {3 * LAYER:,}"):
            driver.push_messages([driver.create_message(model(layer(1, 3 * LAYER)), "train", node, "1")])
        assert not backend.admin.exists(keys.ledger(run), keys.blobs(run), keys.inbox(node, run))
        assert chunks_in(backend) == set()
        to_all(driver, [node], model(layer(1)), "1")
        both = [driver.create_message(model(layer(seed)), "train", node, "2") for seed in (2, 3)]
        with pytest.raises(MessageTooLarge, match="together more than"):
            driver.push_messages(both)
        assert backend.admin.hlen(keys.ledger(run)) == 1
        driver.checkpoint()
        assert chunks_in(backend) == set()
        assert len(driver.send_and_receive(both)) == 2


def lie(manifest: Manifest, how: str) -> Manifest:
    """A manifest that does not fit its content, made of (description, 2 chunks, 2 chunks)."""
    sizes, digests, entries = manifest.sizes, manifest.digests, manifest.entries
    head, first, second = sizes
    match how:
        case "larger":
            sizes = (head, first, second + 1)
        case "smaller":
            sizes = (head, first - 1, second)
        case "swapped sizes":
            sizes = (head, second, first)
        case "one array for two":
            sizes = (head, first + second)
            count = payload.divide(sizes)[-1].chunks.stop
            digests, entries = digests[:count], entries[:count]
        case "an array more":
            sizes = (*sizes, 10)
            digests, entries = (*digests, digests[0]), (*entries, *entries[:1])
        case "swapped chunks":
            digests = (digests[0], *digests[3:], *digests[1:3])
        case "other hashes":
            digests = (digests[0], *(bytes(32) for _ in digests[1:]))
        case "an entry repeated":
            entries = (*entries[:2], entries[1], *entries[3:])
        case "swapped entries":
            entries = (entries[0], *entries[3:], *entries[1:3])
        case "entries of nobody":
            entries = tuple(f"{index + 1}-0" for index in range(len(entries)))
        case "no entries":
            entries = ()
        case _:
            raise AssertionError(how)
    return Manifest(sizes, digests, entries)


#: A content that `lie` lies about.
SIZES = (2 * CHUNK, 2 * CHUNK - 8)

LIES = ["larger", "smaller", "swapped sizes", "one array for two", "an array more"]


@pytest.mark.parametrize("how", [*LIES, "swapped chunks", "other hashes"])
def test_a_manifest_that_lies_is_error_3(backend: Backend, how: str) -> None:
    """A message whose manifest is not that of its content is Error 3: its ClientApp never sees a wrong array."""
    late = Late(backend)
    content = model(*(layer(size, size) for size in SIZES))
    with driving(backend) as driver:
        ids = driver.push_messages([driver.create_message(content, "train", late.node_id, "1")])
        inbox = driver._connection.keys.inbox(late.node_id, driver.run.run_id)
        [(entry, fields)] = backend.admin.xrange(inbox)
        lying = lie(decode_manifest(fields[MANIFEST]), how)
        backend.admin.xdel(inbox, entry)
        backend.admin.xadd(inbox, {**fields, MANIFEST: lying.encoded})
        with late.serving():
            [reply] = driver.replies(ids)
            reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
            assert late.seen.contents == []
            [reply] = to_all(driver, [late.node_id], model(layer(9)), "2")
            assert number_in(reply) == 1


@pytest.mark.parametrize(
    "how",
    [
        *LIES,
        "an entry repeated",
        "swapped entries",
        "entries of nobody",
        "no entries",
        "of another node",
        "no manifest",
    ],
)
def test_a_reply_whose_manifest_lies_is_error_4(backend: Backend, how: str) -> None:
    """A node whose manifest is not that of what it sent gets Error 4 for its message, and hurts no other."""
    content = model(*(layer(size, size) for size in SIZES))
    with driving(backend) as driver:
        liar, honest = (Registration(backend.connect(), name, lease=600.0) for name in ("liar", "honest"))
        run = driver.run.run_id
        for registration in (liar, honest):
            registration.register()
        ids = driver.push_messages([driver.create_message(number(1), "train", r.node_id, "1") for r in (liar, honest)])

        def entries_in_inbox(node: int) -> tuple[str, ...]:
            inbox = driver._connection.keys.inbox(node, run)
            return tuple(entry.decode() for entry, _ in backend.admin.xrange(inbox)) or ("1-1",)

        def reply(registration: Registration, message_id: str, change: Callable[[Manifest], bytes]) -> None:
            made = Payload(encode_content(content))
            node = registration.node_id
            # The honest node's chunks were there first, so that the liar may name their entries.
            entries = add_data(backend.connect(), node, run, [made.chunk(index) for index in range(len(made))])
            assert entries is not None
            header = Metadata(run, "", node, 1, message_id, "1", 60.0, "train")
            manifest = Manifest(made.manifest.sizes, made.manifest.digests, entries)
            fields = {**encode_message(message_id, header), MANIFEST: change(manifest)}
            assert publish(backend.connect(), node, [Outgoing(run, entries_in_inbox(node), fields)]) == [True]

        reply(honest, ids[1], lambda manifest: manifest.encoded)
        [good] = driver.replies(ids[1:])
        theirs = [
            entry.decode() for entry, _ in backend.admin.xrange(driver._connection.keys.data(honest.node_id, run))
        ]

        def lying(manifest: Manifest) -> bytes:
            if how == "no manifest":
                return b"\x01\xc1"
            if how == "of another node":
                return Manifest(manifest.sizes, manifest.digests, tuple(theirs)).encoded
            return lie(manifest, how).encoded

        for _ in range(MOST_REOPENED + 1):  # of entries that are not there the run asks a few times more
            reply(liar, ids[0], lying)
            found = driver.pull_messages(ids[:1])
            if found:
                break
        [bad] = found
        reason_of(bad, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        assert layers_in(good.content) == layers_in(content)
        assert len(theirs) == 5


# The state.


def test_a_large_state_is_saved_as_chunks(backend: Backend, sent: list[str]) -> None:
    """It shares the chunks of the broadcast of the same arrays, only what changed is sent, and old ones are freed."""
    with federation(backend, Seen().app, nodes=1) as nodes, driving(backend) as driver:
        node, state = nodes.nodes[0].node_id, driver.context.state
        arrays = [layer(1), layer(2)]
        state.parameters_records["p"] = model(*arrays).parameters_records["p"]
        state.metrics_records["m"] = MetricsRecord({"round": 1})
        to_all(driver, [node], model(*arrays))
        assert sorted(sent) == sorted(chunks_of(driver, model(*arrays), state)), "what both have is sent once"
        assert len(sent) == 12
        sent.clear()
        driver.checkpoint()
        assert sent == []
        assert chunks_in(backend) == chunks_of(driver, state), "the broadcast is over, the state needs its layers"
        before = chunks_in(backend)
        state.parameters_records["p"]["0"] = Array(layer(3))
        driver.checkpoint()
        assert sorted(sent) == sorted(chunks_of(driver, state) - before)
        assert len(sent) == 5
        assert chunks_in(backend) == chunks_of(driver, state)
        check_keys(backend.admin)
        state.parameters_records.clear()
        driver.checkpoint()
        assert chunks_in(backend) == set()


def test_a_large_state_comes_back(backend: Backend) -> None:
    """After a resume it is what the last commit saved; the next commits free it when it changed, and lose nothing."""
    former = start(backend)
    former.context.state.parameters_records["p"] = model(layer(1), layer(2)).parameters_records["p"]
    former.checkpoint()
    former.context.state.parameters_records["p"]["0"] = Array(layer(9))
    kill(former)
    second = Driver(backend.connect(), "", None, resume=former.run.run_id, takeover=True)
    assert layers_in(second.context.state) == layers_in(model(layer(1), layer(2)))
    second.checkpoint()
    assert chunks_in(backend) == chunks_of(second, model(layer(1), layer(2)))
    second.context.state.parameters_records["p"]["1"] = Array(layer(3))
    second.checkpoint()
    assert chunks_in(backend) == chunks_of(second, model(layer(1), layer(3)))
    kill(second)
    with resumed(backend, second) as third:
        assert layers_in(third.context.state) == layers_in(model(layer(1), layer(3)))
        third.context.state.parameters_records.clear()
        third.checkpoint()
        assert chunks_in(backend) == set()


def test_a_state_that_redis_forgot_is_written_again(backend: Backend) -> None:
    """A saved state and its chunks that Redis forgot just after the commit are there again after the comparison."""
    former = start(backend)
    former._connection.persists = True
    former.context.state.parameters_records["p"] = model(layer(1)).parameters_records["p"]
    former.checkpoint()
    remove_chunks(backend)
    backend.admin.unlink(former._connection.keys.context(former.run.run_id))
    former._link.reconnect(ConnectionError("cut"), None)
    former.pull_messages([])
    kill(former)
    with resumed(backend, former) as driver:
        assert layers_in(driver.context.state) == [layer(1).tobytes()]


# As it is for everyone.


def test_several_mebibytes_pass_and_come_back(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real sizes of chunks, and where it can be set, values of at most 1 MB: a model of 5 MB, bit for bit."""
    monkeypatch.setattr(payload, "INLINE", REAL_INLINE)
    monkeypatch.setattr(payload, "CHUNK", REAL_CHUNK)
    content = model(layer(1, 5_000_000), layer(2, 10), layer(3, REAL_CHUNK), layer(4, REAL_INLINE))
    before = backend.admin.config_get("proto-max-bulk-len") if backend.is_real else {}
    if before:
        backend.admin.config_set("proto-max-bulk-len", 1024 * 1024)
    try:
        with federation(backend, echo_app(), nodes=2) as nodes, driving(backend) as driver:
            ids = [node.node_id for node in nodes.nodes]
            for group in ("1", "2"):
                replies = to_all(driver, ids, content, group)
                assert [layers_in(reply.content) for reply in replies] == [layers_in(content)] * 2
            if before:
                assert int(backend.admin.config_get("proto-max-bulk-len")["proto-max-bulk-len"]) == 1024 * 1024
                longest = max(backend.admin.strlen(key) for key in chunks_in(backend))
                assert longest <= 1024 * 1024 - 1024
    finally:
        if before:
            backend.admin.config_set("proto-max-bulk-len", before["proto-max-bulk-len"])
