"""Runs: their ids, their life, their lifetimes, and the fence around every write."""

import threading

import pytest

from brokerfl.broker import nodes as nodes_module
from brokerfl.broker.runs import list_runs
from brokerfl.common import RunFenced, RunLost
from brokerfl.server import Driver
from tests.apps import Gate, contents_of, driving, eventually, federation, number, number_in
from tests.conftest import Backend, check_keys

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


def keys_of(backend: Backend, driver: Driver) -> list[str]:
    return [key.decode() for key in backend.admin.scan_iter() if str(driver.run.run_id) in key.decode()]


def test_run_ids_are_never_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest random number still give an id from 2 to 2**64 - 1."""
    for drawn, expected in ((0, 2), (2**64 - 3, 2**64 - 1)):
        monkeypatch.setattr(nodes_module.secrets, "randbelow", lambda limit, drawn=drawn: drawn)
        assert nodes_module.new_id() == expected


def test_the_list_counts(backend: Backend) -> None:
    """list_runs shows app, status, nodes and counters of a running run, and that it completed."""
    with federation(backend, nodes=2) as nodes:
        with driving(backend) as driver:
            for turn in range(2):
                driver.send_and_receive(
                    [driver.create_message(number(1), "train", node.node_id, str(turn)) for node in nodes.nodes]
                )
            [info] = list_runs(backend.connect())
            assert (info.run_id, info.app, info.status) == (driver.run.run_id, "server:app", "running")
            assert (info.nodes, info.messages, info.replies) == (2, 4, 2)
            assert "process" in info.holder
        [info] = list_runs(backend.connect())
        assert (info.run_id, info.status) == (driver.run.run_id, "completed")
        assert info.ended_at >= driver.run.created_at


def test_every_key_has_a_lifetime_in_the_middle_of_a_run(backend: Backend) -> None:
    """While messages are open, answered and settled, no key of run or node is without a ttl."""
    gate = Gate()
    with federation(backend, gate.app, nodes=2) as nodes, driving(backend) as driver:
        ids = driver.push_messages(
            [driver.create_message(number(1), "train", node.node_id, "1") for node in nodes.nodes]
        )
        check_keys(backend.admin)
        gate.go.set()
        list(driver.replies(ids))
        check_keys(backend.admin)
        driver.checkpoint()  # the ledger is empty, so its hash is gone
        driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "2")])
        check_keys(backend.admin)


def test_an_attached_run_never_loses_its_keys(backend: Backend) -> None:
    """A ServerApp that waits for longer than the retention time still finds all keys: it renews them."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend, retention=1.0) as driver:
        ids = driver.push_messages([driver.create_message(number(3), "train", nodes.nodes[0].node_id, "1")])
        before = keys_of(backend, driver)
        assert list(driver.replies(ids, timeout=2.5)) == []
        assert sorted(keys_of(backend, driver)) == sorted(before)
        gate.go.set()
        assert [number_in(reply) for reply in driver.replies(ids)] == [3]


def test_everything_of_a_dead_run_expires(backend: Backend) -> None:
    """When everything has died, the keys of the run expire by themselves after the retention time."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app", retention=1.0, lease=0.5)
        driver.push_messages([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        driver._heartbeat.stop()  # as after a kill -9
        eventually(lambda: not keys_of(backend, driver))
        gate.go.set()
    assert list_runs(backend.connect()) == []


def test_detach_keeps_the_messages(backend: Backend) -> None:
    """A detached run shows as such, keeps its keys, and its Driver sends nothing any more."""
    with federation(backend, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app")
        message = driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")
        driver.push_messages([message])
        before = {key for key in keys_of(backend, driver) if not key.endswith(":lease")}
        driver.detach()
        assert set(keys_of(backend, driver)) == before
        assert [info.status for info in list_runs(backend.connect())] == ["detached"]
        assert driver.push_messages([message]) == [""]


def test_a_former_owner_writes_nothing(backend: Backend) -> None:
    """Once another token owns the run, the old ServerApp pushes, settles and ends nothing; waits raise RunFenced."""
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        driver = Driver(backend.connect(), "server:app")
        keys, run = driver._connection.keys, driver.run.run_id
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        backend.admin.set(keys.owner(run), "2:somebody-else", keepttl=True)
        before = contents_of(backend.admin, keys_of(backend, driver)) if backend.is_real else {}
        assert driver.push_messages([driver.create_message(number(2), "train", node, "2")]) == [""]
        with pytest.raises(RunFenced):
            driver.end()
        with pytest.raises(RunFenced):
            driver.pull_messages([])
        assert backend.admin.hlen(keys.ledger(run)) == 1
        assert backend.admin.xlen(keys.outbox(node, run)) == 1
        assert backend.admin.xlen(keys.inbox(node, run)) == 0
        assert contents_of(backend.admin, before) == before
        driver.detach()


def test_lost_data_end_the_waits(backend: Backend) -> None:
    """When the run's keys are gone from Redis, waits end with RunLost: no hang."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app")
        outcome: list[str] = []

        def wait() -> None:
            try:
                driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
            except RunLost as error:
                outcome.append(str(error))

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert gate.begun.acquire(timeout=10)
        for key in keys_of(backend, driver):
            backend.admin.unlink(key)
        waiter.join(10)
        assert outcome
        gate.go.set()
        driver.detach()
