"""What others wrote is not trusted: a node can hurt only itself, whatever it makes of the keys it may write."""

import threading

import pytest

from brokerfl.broker.ledger import MOST_REOPENED
from brokerfl.broker.nodes import Registration, list_nodes
from brokerfl.broker.outbox import Outgoing, publish
from brokerfl.broker.runs import list_runs, stop_run
from brokerfl.common import Array, ErrorCode, Metadata, ParametersRecord, RecordSet, RedisOutOfMemory
from brokerfl.server import Driver
from brokerfl.testing import fake_connection
from brokerfl.wire.frame import MANIFEST, Fields
from brokerfl.wire.message import encode_message
from brokerfl.wire.payload import CHUNK, Manifest
from brokerfl.wire.record import encode_content
from tests.apps import Gate, driving, eventually, federation, number, number_in
from tests.conftest import PREFIX, Backend
from tests.stage import dropped, owing, push, read_anew, read_outbox, silent, spares_of, to_be_deleted

#: TLS changes nothing here; test_messages.py and test_outage.py have it.
WITHOUT = ("redis-tls",)


@pytest.mark.parametrize("ring", [b"9" * 5000, b"-1", b"x", b"", b"\xff", str(2**64).encode()])
def test_forged_rings_cost_only_time(backend: Backend, ring: bytes) -> None:
    """A bell full of numbers that are none disturbs no wait."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        for _ in range(3):
            backend.admin.xadd(driver.connection.keys.bell(driver.run.run_id), {"n": ring})
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert number_in(reply) == 1


def test_a_bell_made_into_something_else(backend: Backend) -> None:
    """Without a bell that can be read, sweeps find the replies."""
    if not backend.is_real:
        pytest.skip("fakeredis breaks on an XREAD of a string")
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        bell = driver.connection.keys.bell(driver.run.run_id)
        backend.admin.set(bell, "no stream", px=60_000)
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert number_in(reply) == 1


def test_a_registry_full_of_rubbish(backend: Backend) -> None:
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


def test_a_full_redis_can_be_emptied(backend: Backend) -> None:
    """At maxmemory a run can be settled, judged, ended and stopped: what fills Redis can be deleted."""
    if not backend.is_real:
        pytest.skip("fakeredis has no maxmemory")
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        ended, stopped = Driver(backend.connect(), "a"), Driver(backend.connect(), "b", lease=0.6)
        gone = Registration(backend.connect(), lease=0.3)
        gone.register()
        gate.go.set()
        for driver in (ended, stopped):
            driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        ids = ended.push_messages([ended.create_message(number(1), "train", gone.node_id, "1")])
        backend.admin.config_set("maxmemory", 1)
        try:
            ended.checkpoint()
            [reply] = ended.replies(ids)
            assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
            ended.end()
            stop_run(backend.connect(), stopped.run.run_id, patience=3.0)
            left = [key.decode() for key in backend.admin.scan_iter()]
            assert not [key for key in left if str(ended.run.run_id) in key or str(stopped.run.run_id) in key]
        finally:
            backend.admin.config_set("maxmemory", 0)
            stopped.detach()
        eventually(lambda: node in [info.node_id for info in list_nodes(backend.connect()) if info.online])


def test_a_failover_is_waited_out(backend: Backend) -> None:
    """While the server is a read-only replica, pushes and replies wait; afterwards the round ends with every reply."""
    if not backend.is_real or backend.name == "redis-tls":
        pytest.skip("needs REPLICAOF on a plain server")
    with federation(backend, nodes=2) as nodes, driving(backend) as driver:
        batch = [driver.create_message(number(4), "train", node.node_id, "1") for node in nodes.nodes]
        backend.admin.replicaof("127.0.0.1", 1)
        back = threading.Timer(1.0, lambda: backend.admin.replicaof("NO", "ONE"))
        back.start()
        replies = driver.send_and_receive(batch)
        back.join()
        assert [number_in(reply) for reply in replies] == [4, 4]


def test_a_failed_push_leaves_no_trace(backend: Backend) -> None:
    """After a push that a full Redis refused, the same group still moves the run on when it is pushed again."""
    if not backend.is_real:
        pytest.skip("fakeredis has no maxmemory")
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node, keys = nodes.nodes[0].node_id, driver.connection.keys
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        backend.admin.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisOutOfMemory):
                driver.push_messages([driver.create_message(number(2), "train", node, "2")])
        finally:
            backend.admin.config_set("maxmemory", 0)
        assert owing(driver) == []
        driver.send_and_receive([driver.create_message(number(2), "train", node, "2")])
        assert backend.admin.hlen(keys.ledger(driver.run.run_id)) == 1


@pytest.mark.parametrize(
    ("what", "value"),
    [("ttl", float("nan")), ("ttl", float("inf")), ("ttl", -1), ("group_id", 1), ("dst_node_id", "5")],
)
def test_impossible_messages_are_named(what: str, value: object) -> None:
    """A ttl, group or node that no frame can carry is a ValueError that names it, when the message is made."""
    driver = Driver(fake_connection())
    arguments = {"dst_node_id": 5, "group_id": "1", "ttl": None, what: value}
    with pytest.raises(ValueError, match=what):
        driver.create_message(RecordSet(), "train", **arguments)  # type: ignore[arg-type]
    driver.end()


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
