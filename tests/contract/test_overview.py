"""The overview: what is seen of all runs and nodes, in two round trips, whatever others wrote."""

import pytest

from brokerfl.broker.connection import Connection
from brokerfl.broker.node_info import STATUS
from brokerfl.broker.nodes import Registration
from brokerfl.view.overview import Overview, RunView, read_overview
from brokerfl.view.reasons import NodeState, Reason, RunState
from brokerfl.wire.status import Awaited, Doing, NodeStatus, Phase, RunStatus, encode_status
from tests.apps import driving, federation
from tests.conftest import Backend
from tests.stage import kill, push_numbers, start, tell, tell_again

WITHOUT = ("redis-tls",)


def overview(backend: Backend) -> Overview:
    """What an operator sees."""
    return read_overview(backend.connect())


def view_of(backend: Backend, run_id: int) -> RunView:
    """What of one run."""
    return next(run for run in overview(backend).runs if run.run_id == run_id)


def test_runs_and_nodes(backend: Backend) -> None:
    """A run that is there, one without a ServerApp, one that has ended, and a node."""
    with federation(backend, nodes=1) as made, driving(backend) as driver:
        gone, over = start(backend), start(backend)
        gone.detach()
        over.end()
        push_numbers(driver, made.nodes[0], 1)
        found = overview(backend)
        states = {run.run_id: (run.state, run.reason, run.is_over) for run in found.runs}
        assert states == {
            driver.run.run_id: (RunState.RUNNING, Reason.NONE, False),
            gone.run.run_id: (RunState.DETACHED, Reason.DETACHED, False),
            over.run.run_id: (RunState.COMPLETED, Reason.NONE, True),
        }
        assert [(node.info.node_id, node.state) for node in found.nodes] == [(made.nodes[0].node_id, NodeState.READY)]
        [run] = [run for run in found.runs if run.run_id == driver.run.run_id]
        assert (run.messages, run.nodes, run.run) == (1, 1, driver.run)
        gone = start(backend, resume=gone.run.run_id)
        gone.end()


def test_why_a_run_stands_still(backend: Backend) -> None:
    """The words of node and ServerApp together name the node."""
    with federation(backend, nodes=1) as made, driving(backend) as driver:
        connection, [node] = driver.connection, made.nodes
        keys, now, run_id = connection.keys, connection.read_time(), driver.run.run_id
        backend.admin.hset(keys.node_info(node.node_id), "name", "site-9")
        doing = (Doing(run_id, "m", "train", "3", now - 60),)
        status = NodeStatus(now, now, doing=doing, median=3.0)
        backend.admin.hset(keys.node_info(node.node_id), STATUS, encode_status(status))
        told = RunStatus(now, Phase.REPLIES, now - 60, "3", 1, owing=1, awaited=(Awaited(node.node_id, now - 60),))
        backend.admin.set(keys.run_status(run_id), encode_status(told), xx=True, keepttl=True)
        found = overview(backend)
        [view] = found.nodes
        assert (view.state, view.serves, view.status) == (NodeState.LATE, run_id, status)
        [run] = found.runs
        assert (run.state, run.reason, run.status) == (RunState.STUCK, Reason.NODE_LATE, told)
        assert run.judged.why.startswith("site-9 (")
        assert [ref.name for ref in run.waiting_for] == ["site-9"]


def test_a_status_goes_with_its_run(backend: Backend) -> None:
    """The heartbeat replaces it and never makes it anew; a detached run keeps it, and the end deletes it."""
    driver = start(backend)
    key = driver.connection.keys.run_status(driver.run.run_id)
    tell(driver, b"told")
    assert backend.admin.get(key) == b"told"
    kill(driver)
    assert backend.admin.pttl(key) > 3600_000
    driver.end()
    assert not backend.admin.exists(key)
    tell_again(driver)
    assert not backend.admin.exists(key)


def test_a_full_redis_refuses_nothing_but_the_status(backend: Backend) -> None:
    """What else a heartbeat does is done."""
    if not backend.is_real:
        pytest.skip("fakeredis is never full")
    with driving(backend) as driver:
        key = driver.connection.keys.run_status(driver.run.run_id)
        tell(driver, b"told")
        backend.admin.config_set("maxmemory", 1)
        try:
            tell(driver, b"told later")
        finally:
            backend.admin.config_set("maxmemory", 0)
        assert backend.admin.get(key) == b"told"


def test_two_round_trips(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs and nodes there are."""
    trips: list[str] = []

    def spy(connection: Connection, name: str) -> None:
        original = getattr(connection, name)

        def call(*args: object, **options: object) -> object:
            trips.append(name)
            return original(*args, **options)

        monkeypatch.setattr(connection, name, call)

    with federation(backend, nodes=3), driving(backend), driving(backend):
        connection = backend.connect()
        connection.read_time()
        for name in ("scatter", "stream"):
            spy(connection, name)
        found = read_overview(connection)
        assert (len(found.nodes), len(found.runs)) == (3, 2)
    assert trips == ["scatter", "stream"]


def test_what_others_wrote(backend: Backend) -> None:
    """Keys of other types, rubbish and floods cost that node or run its words, and no other."""
    with federation(backend, nodes=2) as made, driving(backend) as driver, driving(backend) as other:
        admin, keys = backend.admin, driver.connection.keys
        first, second = (node.node_id for node in made.nodes)
        admin.sadd(keys.nodes, "rubbish", "00012", "77")
        admin.zadd(keys.runs, {"rubbish": 5, "78": 6})
        admin.hset(keys.node_info(first), STATUS, b"x" * 1_000_000)
        admin.hset(keys.node_info(first), "name", b"y" * 1_000_000)
        admin.set(keys.run_status(driver.run.run_id), b"z" * 1_000_000)
        found = overview(backend)
        assert {node.info.node_id for node in found.nodes} == {first, second}
        assert {run.run_id for run in found.runs} == {driver.run.run_id, other.run.run_id}
        assert view_of(backend, other.run.run_id).state is RunState.RUNNING
        assert view_of(backend, driver.run.run_id).status == RunStatus()
        admin.delete(keys.run_status(driver.run.run_id))
        admin.rpush(keys.run_status(driver.run.run_id), "a list")
        assert view_of(backend, driver.run.run_id).status == RunStatus()


def test_what_a_status_cannot_repeat_is_looked_up(backend: Backend) -> None:
    """Labels that are too long for it, and what the registry says of a node that has said nothing."""
    labels = {"site": "x" * 200}
    long, short = Registration(backend.connect(), "long", labels), Registration(backend.connect(), "short", {"a": "b"})
    for registration in (long, short):
        registration.register()
        registration.renew(NodeStatus(5.0, done=7))
    backend.admin.hdel(backend.connect().keys.node_info(short.node_id), "labels")
    silent = Registration(backend.connect(), "silent", {"c": "d"})
    silent.register()
    found = {view.info.name: view.info for view in overview(backend).nodes}
    assert {name: info.labels for name, info in found.items()} == {
        "long": labels,
        "short": {"a": "b"},
        "silent": {"c": "d"},
    }
    assert {name: info.status is None or info.status.done for name, info in found.items()} == {
        "long": 7,
        "short": 7,
        "silent": True,
    }
