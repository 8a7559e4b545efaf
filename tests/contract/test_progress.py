"""Promise: whoever looks at a run, and its own log, see what it waits for, and because of whom."""

import logging

import pytest

from brokerfl.broker.node_info import STATUS
from brokerfl.broker.requests import drain_run
from brokerfl.common import ErrorCode, RunNotFound
from brokerfl.common.text import shown_node
from brokerfl.server import Driver, announcer
from brokerfl.view.overview import read_overview
from brokerfl.view.reasons import Reason, RunState
from brokerfl.wire.reply import DRAINED
from brokerfl.wire.status import Doing, NodeStatus, Phase, RunStatus, decode_status, encode_status
from tests.apps import Gate, driving, eventually, federation, number, waiting
from tests.conftest import Backend
from tests.stage import NAME, beat, calls_in_progress, layer, model, push, resumed, send, serving, silent, start, tick


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait is a long one, and each look finds a line due."""
    for name in ("SAYS_AFTER", "SAYS_AGAIN", "LOOKS_AGAIN"):
        monkeypatch.setattr(announcer, name, 0.0)


def told(backend: Backend, driver: Driver) -> RunStatus:
    """What the run's heartbeat says."""
    beat(driver)
    status = decode_status(RunStatus, backend.admin.get(driver.connection.keys.run_status(driver.run.run_id)))
    assert status is not None
    return status


def lines(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """The lines at INFO that have one of these words."""
    return [record.message for record in caplog.records if any(word in record.message for word in words)]


def test_what_the_heartbeat_tells(backend: Backend) -> None:
    """Which nodes owe a reply since when by Redis' clock, how far the round is, how long rounds take, and how much."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        gate.go.set()
        assert driver.report.status().phase == Phase.APP
        send(driver, nodes.nodes[0], group="1")
        gate.go.clear()
        quiet = silent(backend)
        before = driver.connection.read_time()
        ids = [push(driver, node, number(1), "2") for node in (nodes.nodes[0].node_id, quiet)]
        status = told(backend, driver)
        assert (status.group, status.sent, status.answered, status.owing) == ("2", 2, 0, 2)
        assert {each.node for each in status.awaited} == {nodes.nodes[0].node_id, quiet}
        assert all(before - 1 < each.since <= driver.connection.read_time() + 1 for each in status.awaited)
        assert len(status.rounds) == 1
        assert status.usually > 0
        assert status.bytes_out > status.bytes_in > 0
        assert status.memory > 0
        gate.go.set()
        [reply] = driver.replies(ids[:1])
        assert reply.has_content()
        status = told(backend, driver)
        assert (status.answered, [each.node for each in status.awaited]) == (1, [quiet])
        driver.cancel_messages(ids[1:])
        status = told(backend, driver)
        assert (status.answered, status.owing, len(status.rounds)) == (2, 0, 2)


def test_large_contents_count_once_for_each_node(backend: Backend, small_chunks: None) -> None:
    """As pushed; in Redis they are once."""
    content = model(layer(1), layer(2))
    with driving(backend) as driver:
        two = [silent(backend, name) for name in ("a", "b")]
        driver.push_messages([driver.create_message(content, "train", node, "1") for node in two])
        status = told(backend, driver)
        size = sum(len(array.data) for array in content.parameters_records["p"].values())
        assert 2 * size < status.bytes_out < 3 * size
        assert size < status.memory < 2 * size


def test_the_log_says_which_nodes_are_missing(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """And when they are there. What waits says so to those who look from outside, too."""
    caplog.set_level(logging.INFO, "brokerfl")
    with federation(backend, nodes=1), driving(backend) as driver:
        with waiting(lambda: driver.wait_for_nodes(2)):
            eventually(lambda: driver.report.status().online == 1)
            tick(driver)
            tick(driver)
            status = told(backend, driver)
            assert (status.phase, status.online, status.needed) == (Phase.NODES, 1, 2)
            [run] = read_overview(backend.connect()).runs
            assert run.reason is Reason.WAITING_NODES
            silent(backend)
        said, *again, end = lines(caplog, "nodes")
        assert said == "waiting for nodes: 1 of 2 online [waiting_nodes]"
        assert set(again) <= {said}
        assert end.startswith("2 of 2 nodes online after ")


def test_the_log_says_whose_reply_is_missing(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Once, however many threads wait; as soon as the node says that it is late, why; and when all have answered."""
    caplog.set_level(logging.INFO, "brokerfl")
    gate = Gate()
    with serving(backend, gate.app) as node, driving(backend, lease=600.0) as driver:
        ids = [push(driver, node.node_id, number(n), "3") for n in range(2)]
        with waiting(lambda: list(driver.replies(ids[:1]))), waiting(lambda: list(driver.replies(ids[1:]))):
            eventually(lambda: calls_in_progress(driver) == 2)
            tick(driver)
            name = shown_node(node.node_id, NAME)
            [line] = lines(caplog, "round 3")
            assert line.startswith(f"round 3: 0 of 2 answered, waiting for {name} (")
            assert line.endswith(" [waiting_reply]")
            now = driver.connection.read_time()
            late = NodeStatus(now, now, doing=(Doing(driver.run.run_id, "m", "train", "3", now - 600),), median=3.0)
            backend.admin.hset(driver.connection.keys.node_info(node.node_id), STATUS, encode_status(late))
            tick(driver)
            assert (
                lines(caplog, "round 3")[-1] == f"round 3: 0 of 2 answered: {name} busy 10m00s, usually 3s [node_late]"
            )
            gate.go.set()
        assert lines(caplog, "round 3")[-1].startswith("round 3: 2 of 2 answered after ")
        assert len(lines(caplog, "answered after")) == 1
        tick(driver)
        assert len(lines(caplog, "round 3")) <= 4


def test_a_timeout_ends_what_was_said(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """The app goes on without a reply."""
    caplog.set_level(logging.INFO, "brokerfl")
    with driving(backend) as driver:
        ids = [push(driver, silent(backend), number(1), "warm-up")]
        with waiting(lambda: list(driver.replies(ids, timeout=1))):
            eventually(lambda: driver.report.status().phase == Phase.REPLIES)
            tick(driver)
        first, *_, last = lines(caplog, "warm-up")
        assert first.startswith("group 'warm-up': 0 of 1 answered, waiting for silent (")
        assert last.startswith("group 'warm-up': 0 of 1 answered after ")


def test_a_short_wait_is_not_said(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor its end."""
    monkeypatch.setattr(announcer, "SAYS_AFTER", 600.0)
    caplog.set_level(logging.INFO, "brokerfl")
    gate = Gate()
    with serving(backend, gate.app) as node, driving(backend) as driver:
        ids = [push(driver, node.node_id, number(1))]
        with waiting(lambda: list(driver.replies(ids))):
            eventually(lambda: driver.report.status().phase == Phase.REPLIES)
            tick(driver)
            gate.go.set()
    assert lines(caplog, "round", "answered") == []


def test_a_run_keeps_its_name(backend: Backend) -> None:
    """Over a resume, unless it gets another one; who looks from outside sees it."""
    first = start(backend, name="lr 0.1")
    assert first.run.name == "lr 0.1"
    second = start(backend, resume=first.run.run_id, takeover=True)
    assert second.run.name == "lr 0.1"
    with resumed(backend, second, name="lr 0.2") as third:
        assert third.run.name == "lr 0.2"
        [run] = read_overview(backend.connect()).runs
        assert run.run == third.run


def refuses(driver: Driver, node: int) -> None:
    """It pushes nothing, and says so to the app; that is no Error of a node."""
    again = [driver.create_message(number(2), "train", node, "2")]
    assert driver.push_messages(again) == [""]
    [reply] = driver.send_and_receive(again)
    assert reply.error.reason == DRAINED
    assert driver.report.outcome.errors == 0


def test_a_drained_run_finishes_what_is_out(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """It pushes nothing any more, as its log says once, also after a resume; what was pushed is answered."""
    caplog.set_level(logging.INFO, "brokerfl")
    gate = Gate()
    with serving(backend, gate.app) as node:
        first = start(backend)
        ids = [push(first, node.node_id, number(1))]
        with waiting(lambda: list(first.replies(ids))):
            eventually(lambda: first.report.status().phase == Phase.REPLIES)
            drain_run(backend.connect(), first.run.run_id)
            eventually(lambda: first.report.status().is_draining)
            gate.go.set()
        refuses(first, node.node_id)
        assert told(backend, first).is_draining
        [run] = read_overview(backend.connect()).runs
        assert run.state is RunState.DRAINING
        with resumed(backend, first) as second:
            refuses(second, node.node_id)
        assert len(lines(caplog, "is being drained")) == 2
    assert gate.calls == 1
    with pytest.raises(RunNotFound):
        drain_run(backend.connect(), first.run.run_id)


def test_a_redis_that_forgot_a_drain_hears_of_it_again(backend: Backend) -> None:
    """As of everything that the ServerApp knows of its run."""
    with driving(backend) as driver:
        drain_run(backend.connect(), driver.run.run_id)
        beat(driver)
        backend.admin.delete(*driver.connection.keys.of_run(driver.run.run_id))
        beat(driver)
        assert backend.admin.hexists(driver.connection.keys.meta(driver.run.run_id), "drained")


def test_errors_are_counted(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Those of refused messages, too, but not what the app cancelled itself."""
    with driving(backend) as driver:
        node = silent(backend)
        [refused] = driver.send_and_receive([driver.create_message(number(1), "train", 77, "1")])
        assert refused.error.code == ErrorCode.NODE_UNAVAILABLE
        ids = [push(driver, node, number(1))]
        driver.cancel_messages(ids)
        assert len(list(driver.replies(ids))) == 1
        assert (driver.report.outcome.replies, driver.report.outcome.errors) == (1, 1)
        assert "Error 5 from node 77: " in caplog.text
