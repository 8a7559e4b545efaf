"""A Redis that takes no writes, full or read-only, is back-pressure: what was pushed stays so once, and waits end."""

import threading

import pytest
from redis.exceptions import ResponseError

from brokerfl.broker.ending import stop_run
from brokerfl.broker.failure import map_errors
from brokerfl.broker.nodes import Registration, list_nodes
from brokerfl.common import ErrorCode, RedisOutOfMemory, RedisRefuses
from brokerfl.server import Driver, push, session
from tests.apps import Gate, driving, eventually, federation, number, number_in
from tests.conftest import Backend, is_tombstone, keys_of
from tests.stage import distrust, fill, owing, silent
from tests.stage import push as push_one

#: TLS changes nothing here; test_messages.py and test_nothing_lost.py have it.
WITHOUT = ("redis-tls",)


def test_a_push_that_was_half_made_is_completed_by_the_next(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two parts the second finds Redis full: pushed again, each message is executed once."""
    monkeypatch.setattr(push, "MOST_BYTES", 10)
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.1)
    gate = Gate()
    gate.go.set()
    with federation(backend, gate.app, nodes=2) as nodes, driving(backend) as driver:
        batch = [driver.create_message(number(1), "train", node.node_id, "1") for node in nodes.nodes]
        with monkeypatch.context() as patch:
            fill(driver, patch, executions=1)
            with pytest.raises(RedisOutOfMemory):
                driver.push_messages(batch)
        assert len(driver.send_and_receive(batch)) == 2
        assert gate.calls == 2


@pytest.mark.parametrize("goes_on", ["waits for what was pushed", "pushes all again"])
def test_a_push_that_was_half_made_says_which(backend: Backend, monkeypatch: pytest.MonkeyPatch, goes_on: str) -> None:
    """Of three parts the last finds Redis full; a node that is not registered got nothing anyway."""
    monkeypatch.setattr(push, "MOST_BYTES", 10)
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.1)
    gate = Gate()
    gate.go.set()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        [node] = [node.node_id for node in nodes.nodes]
        batch = [driver.create_message(number(n), "train", to, "1") for n, to in enumerate((node, 7, node, node))]
        with monkeypatch.context() as patch:
            fill(driver, patch, executions=2)
            with pytest.raises(RedisOutOfMemory, match="2 of 4 messages were pushed") as caught:
                driver.push_messages(batch)
            first, refused, second, third = caught.value.message_ids
            assert (bool(first), refused, bool(second), third) == (True, "", True, "")
        if goes_on == "pushes all again":
            ids = driver.push_messages(batch)
            assert [*ids[:3]] == [first, "", second]
            assert sorted(number_in(reply) for reply in driver.replies(ids)) == [0, 2, 3]
        else:
            assert sorted(number_in(reply) for reply in driver.replies(caught.value.message_ids)) == [0, 2]
        assert gate.calls == (3 if goes_on == "pushes all again" else 2)


def test_a_push_of_which_nothing_was_accepted_has_no_ids(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is that of Redis."""
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.1)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        batch = [driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")]
        with monkeypatch.context() as patch:
            fill(driver, patch)
            with pytest.raises(RedisOutOfMemory, match=r"^full$") as caught:
                driver.push_messages(batch)
        assert caught.value.message_ids == ()


def test_a_full_redis_after_a_cut_stops_no_wait(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis cannot be told what it forgot: replies come, an expiry is Error 3, the run can be ended."""
    gate = Gate()
    registration = Registration(backend.connect(), "away")
    registration.register()
    with federation(backend, gate.app, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app")
        node = nodes.nodes[0].node_id
        ids = driver.push_messages(
            [
                driver.create_message(number(7), "train", node, "1"),
                driver.create_message(number(8), "train", registration.node_id, "1", ttl=1.0),
            ]
        )
        assert gate.begun.acquire(timeout=10)
        fill(driver, monkeypatch)
        distrust(driver)
        gate.go.set()
        first, second = driver.replies(ids, timeout=20)
        assert number_in(first) == 7
        assert second.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        distrust(driver)
        driver.end()
        assert keys_of(backend.admin, driver.run.run_id) == []


def test_waiting_for_room_deletes_what_is_settled(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that finds Redis full first takes out the replies that a commit has settled: they may be what fills it."""
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.3)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        driver.checkpoint()
        outbox = driver.connection.keys.outbox(node, driver.run.run_id)
        assert backend.admin.xlen(outbox) == 1
        with monkeypatch.context() as patch:
            fill(driver, patch)
            with pytest.raises(RedisOutOfMemory):
                driver.push_messages([driver.create_message(number(2), "train", node, "2")])
        assert backend.admin.xlen(outbox) == 0


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
            left = [key for each in backend.admin.scan_iter() if not is_tombstone(backend.admin, key := each.decode())]
            assert not [key for key in left if str(ended.run.run_id) in key or str(stopped.run.run_id) in key]
        finally:
            backend.admin.config_set("maxmemory", 0)
            stopped.detach()
        eventually(lambda: node in [info.node_id for info in list_nodes(backend.connect()) if info.online])


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


def test_a_failover_is_waited_out(backend: Backend) -> None:
    """While the server is a read-only replica, pushes and replies wait; afterwards the round ends with every reply."""
    if not backend.is_real or backend.name == "redis-tls" or backend.is_found:
        pytest.skip("needs REPLICAOF on a plain server")
    with federation(backend, nodes=2) as nodes, driving(backend) as driver:
        batch = [driver.create_message(number(4), "train", node.node_id, "1") for node in nodes.nodes]
        backend.admin.replicaof("127.0.0.1", 1)
        back = threading.Timer(1.0, lambda: backend.admin.replicaof("NO", "ONE"))
        back.start()
        replies = driver.send_and_receive(batch)
        back.join()
        assert [number_in(reply) for reply in replies] == [4, 4]


@pytest.mark.parametrize(
    ("refuse", "allow", "reason"),
    [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "it is a replica: name its primary"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "it has too few replicas: start"),
    ],
)
def test_a_server_that_takes_no_writes_is_named_once(
    backend: Backend, refuse: str, allow: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is wrong and what to do is said when the waiting begins, and that it is over."""
    if not backend.is_real or backend.name == "redis-tls" or backend.is_found:
        pytest.skip("needs REPLICAOF on a plain server")
    with driving(backend) as driver:
        node, pushed = silent(backend), []
        backend.admin.execute_command(*refuse.split())
        try:
            pushing = threading.Thread(target=lambda: pushed.append(push_one(driver, node, number(1))))
            pushing.start()
            eventually(lambda: caplog.records)
            assert driver.get_node_ids() == [node], "reads are answered"
            assert len(caplog.records) == 1, "they do not end it"
        finally:
            backend.admin.execute_command(*allow.split())
        pushing.join(20)
        assert pushed[0]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, said
    assert f"takes no writes: {reason}" in said[0]
    assert said[0].endswith("; waiting until that is over")
    assert "is back after" in said[1]


def test_a_server_that_cannot_save_is_named() -> None:
    """As for a replica; and an error that nobody knows does not leave brokerfl as redis-py's."""
    for text, words in (("MISCONF Errors writing to the AOF file", "cannot save its data"), ("what?", "answers with")):
        with pytest.raises(RedisRefuses, match=words), map_errors("redis://r"):
            raise ResponseError(text)
