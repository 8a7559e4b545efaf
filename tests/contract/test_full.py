"""Redis is full, and something else happens too: what was pushed stays so once, waits end, runs can be ended."""

import pytest

from brokerfl.broker.nodes import Registration
from brokerfl.common import ErrorCode, RedisOutOfMemory
from brokerfl.server import Driver, commit, push
from tests.apps import Gate, driving, eventually, federation, number, number_in
from tests.conftest import Backend
from tests.stage import distrust, fill

#: TLS changes nothing here; test_messages.py and test_outage.py have it.
WITHOUT = ("redis-tls",)


def test_a_push_that_was_half_made_is_completed_by_the_next(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two parts the second finds Redis full: pushed again, each message is executed once."""
    monkeypatch.setattr(push, "MOST_BYTES", 10)
    monkeypatch.setattr(commit, "FULL_PATIENCE", 0.1)
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
        assert not backend.admin.exists(driver.connection.keys.owner(driver.run.run_id))


def test_waiting_for_room_deletes_what_is_settled(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that finds Redis full first takes out the replies that a commit has settled: they may be what fills it."""
    monkeypatch.setattr(commit, "FULL_PATIENCE", 0.3)
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


def test_a_resumed_run_has_its_whole_lifetime_again(backend: Backend) -> None:
    """What a run's nodes hold of it lives as long as the run itself, from the resume and from the detach on."""
    registration = Registration(backend.connect(), "later")
    registration.register()
    driver = Driver(backend.connect(), "server:app", retention=1000.0)
    keys, run, node = driver.connection.keys, driver.run.run_id, registration.node_id
    driver.push_messages([driver.create_message(number(1), "train", node, "1")])
    inbox = keys.inbox(node, run)
    backend.admin.pexpire(inbox, 5000)
    driver.detach()
    assert backend.admin.pttl(inbox) > 900_000
    backend.admin.pexpire(inbox, 5000)
    with_run = Driver(backend.connect(), "server:app", resume=run, retention=1000.0)
    assert backend.admin.pttl(inbox) > 900_000
    eventually(lambda: backend.admin.pttl(keys.node_runs(node)) > 900_000)
    with_run.end()
