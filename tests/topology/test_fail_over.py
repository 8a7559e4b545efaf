"""Runs go on through fail-overs, killed primaries and slots that move: every sum is exact, and nothing is left."""

import signal

import pytest

from brokerfl.broker.embedded import EmbeddedServer
from tests.chaos.lab import eventually, exit_code, expected, node_key
from tests.chaos.soak import soak
from tests.cli.conftest import Commands, Process, commands
from tests.topology.fleets import ClusterFleet, Fleet, until
from tests.topology.lab import KEYS, FleetLab

pytestmark = pytest.mark.timeout(180)

KEY = KEYS.identity

#: What a command says with its exit code if Redis is unreachable.
UNREACHABLE = 10

__all__ = ["commands"]  # the fixture


def only_with_topology(*names: str) -> list[object]:
    """These fleets, each only if --topology names it."""
    return [pytest.param(name, marks=pytest.mark.on_request) for name in names]


on_any_fleet = pytest.mark.parametrize(
    "fleet", only_with_topology("sentinel", "cluster", "valkey-cluster"), indirect=True
)
on_a_cluster = pytest.mark.parametrize("fleet", ["cluster", *only_with_topology("valkey-cluster")], indirect=True)


def begin(lab: FleetLab) -> dict[str, Process]:
    """Two nodes, and two runs of them with large contents, under way; the runs by app."""
    lab.nodes(2)
    server_apps = {app: lab.run(app=app, nodes=2, payload=100_000, result=app) for app in ("app", "stream")}
    lab.go_on(*server_apps.values())
    return server_apps


def finish(lab: FleetLab, **server_apps: Process) -> None:
    """All is right in the end, and no node is deaf."""
    lab.commands.write("finish", "")
    for app, server_app in server_apps.items():
        server_app.ends(0)
        (result,) = lab.results(app)
        assert result == expected(*result["folded"])
        assert lab.keys_of(run_of(server_app)) == set()
    last = lab.run(nodes=2, rounds=3, result="last").ends(0)
    assert lab.results("last") == [expected(3, 3)]
    assert lab.keys_of(run_of(last)) == set()
    assert not any("Traceback" in process.text for process in lab.commands.started)


def run_of(server_app: Process) -> str:
    """The id of its run."""
    return server_app.wait_for(r"Run (\d+) of .* (?:started|resumed)")


def stop(lab: FleetLab, run: str) -> None:
    """`brokerfl stop`, again and again until it reaches Redis."""
    while exit_code(lab.commands.start("brokerfl", "stop", run).ends(0, UNREACHABLE)) == UNREACHABLE:
        pass


def resume(lab: FleetLab, run: str, *options: str, app: str = "app") -> Process:
    """Resume a run, again and again until it reaches Redis."""
    while True:
        resumed = lab.resume(run, *options, app=app)
        eventually(lambda p=resumed: exit_code(p) is not None or "resumed" in p.text, "it resumes, or ends")
        if exit_code(resumed) != UNREACHABLE:
            return resumed


@pytest.mark.parametrize("fleet", ["sentinel"], indirect=True)
def test_behind_sentinel(lab: FleetLab) -> None:
    """The primary hands over, then its successor is killed: both times the runs go on with the next one."""
    server_apps = begin(lab)
    lab.fleet.fail_over(KEY)
    lab.go_on(*server_apps.values())
    lab.fleet.kill_primary(KEY)
    lab.go_on(*server_apps.values())
    finish(lab, **server_apps)


@pytest.mark.parametrize("fleet", ["cluster", "valkey-cluster"], indirect=True)
def test_on_a_cluster(lab: FleetLab) -> None:
    """A replica takes over, the slot moves to another primary, and that one is killed: the runs go on each time."""
    assert isinstance(lab.fleet, ClusterFleet)
    server_apps = begin(lab)
    former = lab.fleet.primary_of(KEY)
    lab.fleet.fail_over(KEY)
    lab.go_on(*server_apps.values())
    now = lab.fleet.primary_of(KEY)
    lab.fleet.move_slot(KEY, next(port for port in lab.fleet.primaries() if port not in (former, now)))
    lab.go_on(*server_apps.values())
    lab.fleet.kill_primary(KEY)
    lab.go_on(*server_apps.values())
    finish(lab, **server_apps)


@pytest.mark.parametrize("fleet", ["cluster", *only_with_topology("sentinel", "valkey-cluster")], indirect=True)
def test_a_server_app_dies_with_its_primary(lab: FleetLab) -> None:
    """Killed with one of two replies, and resumed while no replica has taken over: no node trains twice."""
    nodes = lab.nodes(2)
    lab.open_gates("n0")
    server_app = lab.run(nodes=2, rounds=3, gates=1, payload=100_000, result="app")
    run = run_of(server_app)
    server_app.wait_for("1 replies are in the books")
    nodes["n1"].wait_for("Training begins")
    former = lab.fleet.primary_of(KEYS.ledger(int(run)))
    eventually(lambda: lab.fleet.lacks(former) == 0, "a replica has all that the ServerApp wrote")
    lab.fleet.kill(former)
    server_app.kill()
    resumed = resume(lab, run)
    resumed.wait_for("1 replies are in the books")
    lab.open_gates("n1")
    finish(lab, app=resumed)
    assert [len(lab.executions(name, run)) for name in nodes] == [3, 3]


@on_a_cluster
def test_a_node_dies_while_its_slot_moves(lab: FleetLab) -> None:
    """It cannot start while its info has moved and its other keys have not; then it serves both runs as before."""
    assert isinstance(lab.fleet, ClusterFleet)
    server_apps = begin(lab)
    key = KEYS.node_info(node_key("n0"))
    source = lab.fleet.primary_of(key)
    with lab.fleet.moving_slot(key, next(port for port in lab.fleet.primaries() if port != source)):
        lab.commands.started[0].kill()
        assert "the slot is being moved" in lab.node("n0").ends(UNREACHABLE).err
    lab.node("n0").wait_for("serves client:app")
    lab.go_on(*server_apps.values())
    finish(lab, **server_apps)


@on_any_fleet
def test_a_stop_and_a_takeover_while_a_primary_is_down(lab: FleetLab) -> None:
    """One run is stopped, and another one, whose ServerApp is frozen, is taken over: both as on one server."""
    server_apps = begin(lab)
    stopped, frozen = server_apps["app"], server_apps["stream"]
    run = run_of(frozen)
    former = lab.fleet.primary_of(KEYS.ledger(int(run)))
    frozen.send(signal.SIGSTOP)
    eventually(lambda: lab.fleet.lacks(former) == 0, "a replica has all that the frozen one wrote")
    lab.fleet.kill(former)
    stop(lab, run_of(stopped))
    stopped.ends(31)
    taker = resume(lab, run, "--takeover", app="stream")
    lab.go_on(taker)
    frozen.send(signal.SIGCONT)
    frozen.ends(33)
    lab.go_on(taker)
    finish(lab, stream=taker)
    assert lab.keys_of(run_of(stopped)) == set()


@on_any_fleet
def test_a_primary_dies_during_a_large_upload(lab: FleetLab) -> None:
    """Some chunks were acknowledged and are forgotten, and the next ones have nowhere to go for a while."""
    lab.nodes(2)
    server_app = lab.run(nodes=2, rounds=1, payload=60_000_000, result="app")
    chunk = until(lambda: sorted(lab.fleet.scan("*:blob:*")), "the upload begins")[0]
    former = lab.fleet.primary_of(chunk)
    lab.fleet.cut_off(former)
    eventually(lambda: lab.fleet.lacks(former) > 2_000_000, "it has more than its replica")
    server_app.send(signal.SIGSTOP)
    assert len(lab.fleet.scan("*:blob:*")) < 57
    lab.fleet.kill(former)
    server_app.send(signal.SIGCONT)
    finish(lab, app=server_app)


@on_any_fleet
def test_a_short_soak(lab: FleetLab) -> None:
    """Two runs over four nodes, while nodes, ServerApps and primaries are killed, and slots move."""
    soak(lab, seed=1, seconds=10.0)


def trained(demo: Process) -> list[str]:
    """What a demo says of its accuracy and of what travelled, without what differs each time."""
    for words in ("nodes ready", "What travelled"):
        demo.wait_for(words)
    demo.ends(0)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in demo.out.splitlines() if line.startswith("│")]
    accuracy, travelled = rows[:2], [row[:-1] for row in rows[2:]]
    assert len(rows) == 4, demo.out
    return [*map(str, accuracy), *map(str, travelled)]


def start_demo(commands: Commands, url: str) -> Process:
    return commands.start("brokerfl", "demo", "--redis", url, "--rounds", "60", COLUMNS="200")


def ledgers(fleet: Fleet) -> list[str]:
    """Those of both runs of a demo, which are under way."""
    found: list[str] = until(
        lambda: len(keys := sorted(fleet.scan("*demo*:ledger"))) == 2 and keys, "two runs are there"
    )
    return found


@pytest.mark.parametrize("fleet", ["valkey-cluster"], indirect=True)
def test_the_demo(fleet: Fleet, commands: Commands) -> None:
    """While a run's primary is killed, and a run's slot moves, it trains as on one server, and cleans up behind it."""
    pytest.importorskip("sklearn")
    assert isinstance(fleet, ClusterFleet)
    demo = start_demo(commands, fleet.url)
    fleet.kill_primary(ledgers(fleet)[0])
    moved = ledgers(fleet)[1]
    fleet.move_slot(moved, next(port for port in fleet.primaries() if port != fleet.primary_of(moved)))
    assert len(ledgers(fleet)) == 2
    shown = trained(demo)
    assert fleet.scan() == set()
    with EmbeddedServer(binary=fleet.binary) as server:
        assert shown == trained(start_demo(commands, server.url))


@pytest.mark.parametrize("fleet", only_with_topology("sentinel"), indirect=True)
def test_the_demo_behind_sentinel(fleet: Fleet, commands: Commands) -> None:
    """While the primary is killed, and then its successor, it trains as on one server, and cleans up behind it."""
    pytest.importorskip("sklearn")
    demo = start_demo(commands, fleet.url)
    successor = fleet.kill_primary(ledgers(fleet)[0])
    until(lambda: fleet.client(successor).info("replication")["connected_slaves"], "the last one follows")
    fleet.kill_primary(ledgers(fleet)[0])
    assert len(ledgers(fleet)) == 2
    shown = trained(demo)
    assert fleet.scan() == set()
    with EmbeddedServer(binary=fleet.binary) as server:
        assert shown == trained(start_demo(commands, server.url))
