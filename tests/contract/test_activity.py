"""What a node says of itself, what it says is stuck, and that it can be paused."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from brokerfl.broker.ending import stop_run
from brokerfl.broker.node_info import PAUSED, STATUS
from brokerfl.broker.nodes import list_nodes, read_node
from brokerfl.broker.pausing import pause, resume
from brokerfl.cli.references import find_node
from brokerfl.client.node import Node
from brokerfl.client.publisher import Publisher
from brokerfl.common import NodeNotFound
from brokerfl.view.judge import STUCK_AFTER, judge_node
from brokerfl.view.overview import read_overview
from brokerfl.view.reasons import NodeState, Reason, RunState
from brokerfl.wire.status import Awaited, NodeStatus, Phase, RunStatus, encode_status
from tests.apps import Bench, Gate, driving, eventually, number
from tests.conftest import Backend
from tests.stage import (
    by_hand,
    hang,
    has_queued,
    heartbeat,
    numbers,
    pass_time,
    push,
    push_numbers,
    read_inbox,
    serving,
    silent,
    start,
    turns,
)

WITHOUT = ("redis-tls",)


def status_of(backend: Backend, node: Node) -> NodeStatus:
    """What a node last said."""
    info = read_node(backend.connect(), node.node_id)
    assert info is not None
    assert info.status is not None
    return info.status


def state_of(backend: Backend, node: Node) -> NodeState:
    """What an operator sees at the moment at which the node said it."""
    status = status_of(backend, node)
    return judge_node(True, status, status.at).state


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes seconds pass for executions."""
    return pass_time(monkeypatch)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_node_is_doing(backend: Backend, tmp_path: Path, go_on: Callable[[float], None], workers: int) -> None:
    """Each heartbeat says what is being executed since when, what is queued, and how it has gone so far."""
    bench = Bench()
    with (
        driving(backend) as driver,
        driving(backend) as other,
        serving(backend, bench.app, tmp_path, workers=workers) as node,
    ):
        assert numbers(driver, push_numbers(driver, node, 0)) == [1]
        [_] = driver.send_and_receive([driver.create_message(number(1), "train.raise", node.node_id, "2")])
        for _ in range(2):
            bench.begun.acquire(timeout=20)
        held = [bench.hold(each) for each in (driver, other)]
        now = driver.connection.read_time()
        message_id = push(driver, node.node_id, number(2), "3")
        assert bench.begun.acquire(timeout=20)
        ids = push_numbers(other, node, 0)
        if workers == 2:
            assert bench.begun.acquire(timeout=20)
        go_on(7.0)
        heartbeat(node)
        found = status_of(backend, node)
        assert len(found.doing) == workers
        doing = found.doing[0]
        assert (doing.run, doing.message, doing.type, doing.group) == (driver.run.run_id, message_id, "train", "3")
        assert now - 1 <= doing.since <= found.at - 7
        assert doing.over_since == 0
        assert (found.done, found.errors, found.error, found.pid) == (2, 1, "ValueError", os.getpid())
        assert found.host
        assert found.disk > 0
        assert 0 < found.median < 7
        assert state_of(backend, node) is NodeState.TRAINING
        for each in held:
            each.set()
        assert numbers(other, ids) == [1]
        eventually(lambda: (heartbeat(node), not status_of(backend, node).doing)[1])
        assert status_of(backend, node).done == 4


def test_a_full_redis_refuses_nothing_but_the_status(backend: Backend, go_on: Callable[[float], None]) -> None:
    """The lease is renewed all the same."""
    if not backend.is_real:
        pytest.skip("fakeredis has no maxmemory")
    with by_hand(backend, Bench().app, None) as node:
        keys = backend.connect().keys
        heartbeat(node)
        before = status_of(backend, node)
        backend.admin.pexpire(keys.node_lease(node.node_id), 9000)
        backend.admin.config_set("maxmemory", 1)
        try:
            go_on(1.0)
            heartbeat(node)
        finally:
            backend.admin.config_set("maxmemory", 0)
        assert status_of(backend, node) == before
        assert backend.admin.pttl(keys.node_lease(node.node_id)) > 9000


def test_a_status_alone_is_no_info(backend: Backend) -> None:
    """A Redis that forgot the info of a node gets all of it again, also if a status came there first."""
    with by_hand(backend, Bench().app, None, name="berlin") as node:
        info = backend.connect().keys.node_info(node.node_id)
        backend.admin.unlink(info)
        backend.admin.hset(info, STATUS, b"")
        heartbeat(node)
        [found] = list_nodes(backend.connect())
        assert (found.name, found.status is not None) == ("berlin", True)


def test_a_loop_that_stands_still(
    backend: Backend, go_on: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeat says so. One that executes, or waits for room in Redis, does not stand still."""
    gate = Gate()
    with driving(backend) as driver, serving(backend, gate.app) as node:
        ids = push_numbers(driver, node, 0)
        assert gate.begun.acquire(timeout=20)
        go_on(STUCK_AFTER + 1)
        heartbeat(node)
        assert state_of(backend, node) is NodeState.TRAINING
        assert node.is_alive(20)
        gate.go.set()
        assert numbers(driver, ids) == [0]
        go = hang(node, monkeypatch)
        go_on(20.0)
        assert not node.is_alive(15)
        heartbeat(node)
        assert not node.is_alive(15)
        with monkeypatch.context() as full:
            full.setattr(Publisher, "is_full", True)
            assert node.is_alive(15)
        go_on(STUCK_AFTER + 1)
        heartbeat(node)
        assert state_of(backend, node) is NodeState.STUCK
        assert not node.is_alive(15)
        go.set()


# Stuck.


def stuck_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for record in caplog.records if "nobody waits" in (text := record.getMessage())]


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
def test_what_nobody_waits_for_is_said(
    backend: Backend, go_on: Callable[[float], None], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """An app that does not ask is said to be stuck half a minute after its run was stopped; once, and every hour."""
    gate = Gate()
    with serving(backend, gate.app, name="site-9") as node:
        driver = start(backend)
        [message_id] = push_numbers(driver, node, 0)
        assert gate.begun.acquire(timeout=20)
        go_on(60.0)
        heartbeat(node)
        assert status_of(backend, node).doing[0].over_since == 0
        if how == "stopped":
            driver.detach()
            stop_run(backend.connect(), driver.run.run_id)
        else:
            driver.cancel_messages([message_id])
            driver.checkpoint()
        go_on(2.0)
        heartbeat(node)
        heartbeat(node)
        assert status_of(backend, node).doing[0].over_since > 0
        assert stuck_in(caplog) == []
        for _ in range(3):
            go_on(STUCK_AFTER / 2 + 1)
            heartbeat(node)
        assert state_of(backend, node) is NodeState.STUCK
        [said] = stuck_in(caplog)
        assert said.startswith("site-9 (")
        assert f"has executed message {message_id} of run {driver.run.run_id} for 1m" in said
        go_on(3600.0)
        heartbeat(node)
        assert len(stuck_in(caplog)) == 2
        gate.go.set()
        eventually(lambda: (heartbeat(node), not status_of(backend, node).doing)[1])
        assert state_of(backend, node) is NodeState.READY
        if how == "cancelled":
            driver.end()


def test_a_stuck_node_gives_up_when_it_is_alone(backend: Backend, go_on: Callable[[float], None]) -> None:
    """Others may finish what somebody waits for, but not for ever."""
    bench, given_up = Bench(), threading.Event()
    with (
        serving(backend, bench.app, workers=2, stuck_limit=100.0, on_stuck=given_up.set) as node,
        driving(backend) as other,
    ):
        driver = start(backend)
        held = [bench.hold(each) for each in (driver, other)]
        for each in (driver, other):
            push_numbers(each, node, 0)
            assert bench.begun.acquire(timeout=20)
        driver.detach()
        stop_run(backend.connect(), driver.run.run_id)
        go_on(2.0)
        heartbeat(node)
        go_on(150.0)
        heartbeat(node)
        assert not given_up.is_set(), "the other run waits for its message"
        go_on(60.0)
        heartbeat(node)
        assert given_up.is_set()
        given_up.clear()
        held[1].set()
        eventually(lambda: (heartbeat(node), len(status_of(backend, node).doing) == 1)[1])
        heartbeat(node)
        assert given_up.is_set()
        held[0].set()


# Pauses.


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest) -> int:
    """How many."""
    return int(request.param)


def test_a_paused_node_begins_nothing(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """It hears so at once, finishes what it executes, stays online, and goes on with all when it is resumed."""
    bench, lease = Bench(), 600.0  # no heartbeat comes
    with driving(backend) as driver, serving(backend, bench.app, tmp_path, workers=workers, lease=lease) as node:
        held = bench.hold(driver)
        first = push_numbers(driver, node, 0)
        assert bench.begun.acquire(timeout=20)
        pause(backend.connect(), node.node_id)
        second = push_numbers(driver, node, 1, 2)
        held.set()
        assert numbers(driver, first) == [1]
        eventually(lambda: state_of(backend, node) is NodeState.PAUSED)
        third = push_numbers(driver, node, 3)
        assert numbers(driver, [*second, *third], timeout=0.2) == []
        assert bench.executed == {driver.run.run_id: [0]}
        resume(backend.connect(), node.node_id)
        assert numbers(driver, [*second, *third]) == [2, 3, 4]
        assert state_of(backend, node) is not NodeState.PAUSED, "a worker may execute by the time that it is said"
        heartbeat(node)
        assert state_of(backend, node) is NodeState.READY
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if text.startswith(("Paused", "Resumed"))] == [
        "Paused: no message is begun until this node is resumed",
        "Resumed",
    ]


def test_a_node_that_is_started_again_is_still_paused(backend: Backend, tmp_path: Path, workers: int) -> None:
    """What its former process had read waits, too."""
    bench = Bench()
    with driving(backend) as driver:
        with by_hand(backend, bench.app, tmp_path, workers=workers) as node:
            node.turn(0.01)
            ids = push_numbers(driver, node, 0, 1)
            eventually(lambda: (read_inbox(node, 10), has_queued(node))[1])
        pause(backend.connect(), node.node_id)
        with serving(backend, bench.app, tmp_path, workers=workers) as node:
            eventually(lambda: state_of(backend, node) is NodeState.PAUSED)
            assert numbers(driver, ids, timeout=0.2) == []
            assert bench.executed == {}
            resume(backend.connect(), node.node_id)
            assert sorted(numbers(driver, ids)) == [1, 2]


def test_a_node_that_missed_the_ring_hears_with_its_heartbeat(backend: Backend) -> None:
    """The mark counts, not the ring."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        keys = backend.connect().keys
        node.turn(0.01)
        backend.admin.hset(keys.node_info(node.node_id), PAUSED, "1")
        heartbeat(node)
        push_numbers(driver, node, 0)
        for _ in range(3):
            node.turn(0.01)
        assert bench.executed == {}
        backend.admin.hdel(keys.node_info(node.node_id), PAUSED)
        heartbeat(node)
        turns(node, 1, bench)


def test_a_run_stands_still_because_of_a_paused_node(backend: Backend) -> None:
    """The words of node and ServerApp together name the node."""
    with driving(backend) as driver, serving(backend, Bench().app, name="site-7") as node:
        pause(backend.connect(), node.node_id)
        eventually(lambda: status_of(backend, node).is_paused)
        push_numbers(driver, node, 0)
        now, run_id = driver.connection.read_time(), driver.run.run_id
        told = RunStatus(now, Phase.REPLIES, now, owing=1, awaited=(Awaited(node.node_id, now),))
        backend.admin.set(driver.connection.keys.run_status(run_id), encode_status(told), px=60_000)
        [run] = read_overview(backend.connect()).runs
        assert (run.state, run.reason) == (RunState.STUCK, Reason.NODE_STUCK)
        assert run.judged.why.startswith("site-7 (")
        assert run.judged.why.endswith(") is paused")
        resume(backend.connect(), node.node_id)


def test_which_node_is_meant(backend: Backend) -> None:
    """A name, an id, or the beginning of an id that no other has."""
    ids = {name: silent(backend, name) for name in ("site-1", "site-12", "site-2")}
    connection = backend.connect()

    def found(text: str) -> str:
        return find_node(connection, text).name

    assert [found(text) for text in ("site-1", "site-12", "site-2", str(ids["site-1"]))] == [
        "site-1", "site-12", "site-2", "site-1"
    ]  # fmt: skip
    assert found(str(ids["site-2"])[:12]) == "site-2"
    for nobody in ("", "site", "site-3", str(ids["site-2"])[:3]):
        with pytest.raises(NodeNotFound, match="there is no node"):
            found(nobody)


def test_a_node_that_is_gone_cannot_be_paused(backend: Backend) -> None:
    """No mark is left for a node that nobody knows."""
    for act in (pause, resume):
        with pytest.raises(NodeNotFound, match="node 5 is not registered any more"):
            act(backend.connect(), 5)
    assert not backend.admin.exists(backend.connect().keys.node_info(5))
