"""What others wrote is not trusted: a node can hurt only itself, whatever it makes of the keys it may write."""

import pytest

from brokerfl.broker.nodes import list_nodes
from brokerfl.broker.outbox import Outgoing, publish
from brokerfl.broker.runs import list_runs
from brokerfl.common import Array, ErrorCode, Metadata, ParametersRecord, RecordSet
from brokerfl.server import Driver
from brokerfl.server.book.message import MOST_REOPENED
from brokerfl.wire.frame import MANIFEST, Fields
from brokerfl.wire.message import encode_message
from brokerfl.wire.payload import CHUNK, Manifest
from brokerfl.wire.record import encode_content
from tests.apps import driving, federation, number, number_in
from tests.conftest import PREFIX, Backend
from tests.stage import dropped, push, read_anew, read_outbox, silent, spares_of, to_be_deleted

#: TLS changes nothing here; test_messages.py and test_nothing_lost.py have it.
WITHOUT = ("redis-tls",)


@pytest.mark.parametrize("ring", [b"9" * 5000, b"-1", b"x", b"", b"\xff", str(2**64).encode()])
def test_forged_rings_cost_only_time(backend: Backend, ring: bytes) -> None:
    """A bell full of numbers that are none disturbs no wait."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        for _ in range(3):
            backend.admin.xadd(driver.connection.keys.bell(driver.run.run_id), {"n": ring})
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert number_in(reply) == 1


def test_replies_come_without_a_bell_that_can_be_read(backend: Backend) -> None:
    """Without a bell that can be read, sweeps find the replies."""
    if not backend.is_real:
        pytest.skip("fakeredis breaks on an XREAD of a string")
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        bell = driver.connection.keys.bell(driver.run.run_id)
        backend.admin.set(bell, "no stream", px=60_000)
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert number_in(reply) == 1


def test_rubbish_in_the_registry_hides_no_node(backend: Backend) -> None:
    """Members of the registry that are no ids are removed, and info that is no hash, or not text, is an empty one."""
    with federation(backend, nodes=1) as nodes, driving(backend, offline_grace=0.0) as driver:
        good = nodes.nodes[0].node_id
        backend.admin.sadd(f"{PREFIX}:nodes", "abc", "9" * 30, str(2**64), "77", "78")
        backend.admin.set(f"{PREFIX}:{{77}}:info", "no hash", px=60_000)
        backend.admin.set(f"{PREFIX}:{{77}}:lease", "x", px=60_000)
        backend.admin.hset(f"{PREFIX}:{{78}}:info", mapping={"labels": "[", "since": "x", "name": b"\xff"})
        backend.admin.pexpire(f"{PREFIX}:{{78}}:info", 60_000)
        assert driver.get_node_ids() == sorted([good, 77])
        assert {info.node_id: info.labels for info in list_nodes(backend.connect())} == {good: {}, 77: {}, 78: {}}
        assert backend.admin.smembers(f"{PREFIX}:nodes") == {b"77", b"78", str(good).encode()}
        replies = driver.send_and_receive([driver.create_message(number(1), "train", node, "1") for node in (good, 78)])
        assert {reply.metadata.src_node_id: reply.has_content() for reply in replies} == {good: True, 78: False}


def test_strange_runs_are_passed_over(backend: Backend) -> None:
    """A run whose frame cannot be read is listed all the same, and a field that is no run id disturbs no node."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        backend.admin.hset(driver.connection.keys.node_runs(node), mapping={"abc": "x", "77": b"\x09"})
        backend.admin.pexpire(driver.connection.keys.node_runs(node), 60_000)
        backend.admin.zadd(f"{PREFIX}:runs", {"88": 5})
        backend.admin.hset(f"{PREFIX}:{{run:88}}:meta", mapping={"frame": b"\x09", "status": "running"})
        backend.admin.pexpire(f"{PREFIX}:{{run:88}}:meta", 60_000)
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        assert number_in(reply) == 1
        assert {info.run_id for info in list_runs(backend.connect())} == {driver.run.run_id, 88}


def test_lost_groups_are_made_again(backend: Backend) -> None:
    """A doorbell or an inbox whose group was destroyed is served again, and so is every other run."""
    with federation(backend, nodes=1) as nodes, driving(backend) as one, driving(backend) as other:
        node, keys = nodes.nodes[0].node_id, one.connection.keys
        for driver in (one, other):
            driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        backend.admin.xgroup_destroy(keys.ctl(node), "brokerfl")
        backend.admin.xgroup_destroy(keys.inbox(node, one.run.run_id), "brokerfl")
        for driver in (one, other):
            [reply] = driver.send_and_receive([driver.create_message(number(2), "train", node, "1")])
            assert number_in(reply) == 2


def head_of(driver: Driver, node: int, message_id: str) -> Fields:
    """The head of a reply that a node writes itself."""
    metadata = Metadata(
        run_id=driver.run.run_id,
        message_id="",
        src_node_id=node,
        dst_node_id=1,
        reply_to_message=message_id,
        group_id="1",
        ttl=1.0,
        message_type="train",
    )
    return encode_message(message_id, metadata)


def publish_by_hand(backend: Backend, driver: Driver, node: int, *replies: Fields) -> None:
    """Put into a node's outbox whatever it likes."""
    outgoing = [Outgoing(driver.run.run_id, ("0-1",), fields) for fields in replies]
    assert all(publish(backend.connect(), node, outgoing))


@pytest.mark.parametrize(("limit", "size"), [(16 * 1024**3, 2_000_000), (10_000, 20_000)])
def test_a_reply_holds_no_more_than_it_may(backend: Backend, limit: int, size: int) -> None:
    """What leaves its content in the entry itself, beyond the limit or what any node leaves there, is Error 4."""
    with driving(backend, max_message=limit) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(1))
        array = Array("uint8", [size], "numpy.ndarray", bytes(size))
        content = encode_content(RecordSet({"p": ParametersRecord({"w": array})}))
        publish_by_hand(backend, driver, node, {**head_of(driver, node, message_id), **content})
        [reply] = driver.replies([message_id], timeout=20)
        assert reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
        assert "bytes in the message itself" in reply.error.reason


def test_copies_without_end_are_not_kept(backend: Backend) -> None:
    """A node that repeats a large reply with other chunks fills neither the memory nor the time of the ServerApp."""
    manifests = [
        Manifest((10, 3 * CHUNK), tuple(bytes([k]) * 32 for k in range(4)), tuple(f"{n}-{k}" for k in range(4)))
        for n in range(1, 41)
    ]
    with driving(backend) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(1))
        head = head_of(driver, node, message_id)
        publish_by_hand(backend, driver, node, *({**head, MANIFEST: manifest.encoded} for manifest in manifests))
        read_outbox(driver, node)
        kept = spares_of(driver, message_id)
        assert len(kept) == MOST_REOPENED
        assert dropped(driver) == len(manifests) - 1
        read_anew(driver)  # a reconnect
        read_outbox(driver, node)
        assert kept.isdisjoint(to_be_deleted(driver))


@pytest.mark.parametrize("places", [[(5, 0)] * 40, [(5, 0), (5, 1)] * 20, [(n, 0) for n in range(40, 0, -1)]])
def test_a_chunk_is_named_once(backend: Backend, places: list[tuple[int, int]]) -> None:
    """A reply whose manifest names one chunk again and again is Error 4 before any of it is read."""
    with driving(backend) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(1))
        entries = tuple(f"{at}-{number}" for at, number in places)
        manifest = Manifest((10, 39 * CHUNK), (b"d" * 32,) * 40, entries)
        head = head_of(driver, node, message_id)
        publish_by_hand(backend, driver, node, {**head, MANIFEST: manifest.encoded})
        [reply] = driver.replies([message_id], timeout=20)
        assert reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
        assert "each once" in reply.error.reason
