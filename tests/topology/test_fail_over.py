"""Runs go on through fail-overs, killed primaries and slots that move: every sum is exact, and nothing is left."""

import pytest

from tests.chaos.lab import expected
from tests.cli.conftest import Commands, Process, commands, run_id
from tests.topology.fleets import ClusterFleet, Fleet, until
from tests.topology.lab import KEYS, FleetLab

pytestmark = pytest.mark.timeout(180)

KEY = KEYS.identity

__all__ = ["commands"]  # the fixture


def begin(lab: FleetLab) -> list[Process]:
    """Two nodes, and two runs of them with large contents, under way."""
    lab.nodes(2)
    server_apps = [lab.run(app=app, nodes=2, payload=100_000, result=app) for app in ("app", "stream")]
    lab.go_on(*server_apps)
    return server_apps


def finish(lab: FleetLab, server_apps: list[Process]) -> None:
    """All is right in the end, and no node is deaf."""
    lab.commands.write("finish", "")
    for app, server_app in zip(("app", "stream"), server_apps, strict=True):
        server_app.ends(0)
        (result,) = lab.results(app)
        assert result == expected(*result["folded"])
        assert lab.keys_of(run_id(server_app)) == set()
    last = lab.run(nodes=2, rounds=3, result="last").ends(0)
    assert lab.results("last") == [expected(3, 3)]
    assert lab.keys_of(run_id(last)) == set()
    assert not any("Traceback" in process.text for process in lab.commands.started)


@pytest.mark.parametrize("fleet", ["sentinel"], indirect=True)
def test_behind_sentinel(lab: FleetLab) -> None:
    """The primary hands over, then its successor is killed: both times the runs go on with the next one."""
    server_apps = begin(lab)
    lab.fleet.fail_over(KEY)
    lab.go_on(*server_apps)
    lab.fleet.kill_primary(KEY)
    lab.go_on(*server_apps)
    finish(lab, server_apps)


@pytest.mark.parametrize("fleet", ["valkey-cluster"], indirect=True)
def test_the_demo(fleet: Fleet, commands: Commands) -> None:
    """It trains on a Cluster while a primary hands over, without a prefix from its user, and cleans up behind it."""
    demo = commands.start("brokerfl", "demo", "--redis", fleet.url, "--rounds", "10")
    (nodes,) = until(lambda: [key for key in fleet.scan("*demo*") if key.endswith(":ledger")], "a run begins")[:1]
    fleet.fail_over(nodes)
    demo.ends(0)
    assert fleet.scan() == set()


@pytest.mark.parametrize("fleet", ["cluster", "valkey-cluster"], indirect=True)
def test_on_a_cluster(lab: FleetLab) -> None:
    """A replica takes over, the slot moves to another primary, and that one is killed: the runs go on each time."""
    assert isinstance(lab.fleet, ClusterFleet)
    server_apps = begin(lab)
    former = lab.fleet.primary_of(KEY)
    lab.fleet.fail_over(KEY)
    lab.go_on(*server_apps)
    now = lab.fleet.primary_of(KEY)
    lab.fleet.move_slot(KEY, next(port for port in lab.fleet.primaries() if port not in (former, now)))
    lab.go_on(*server_apps)
    lab.fleet.kill_primary(KEY)
    lab.go_on(*server_apps)
    finish(lab, server_apps)
