"""What becomes of runs when Redis is killed, forgets what it acknowledged, or loses everything."""

import shutil
import signal

import pytest

from tests.chaos.conftest import SERVERS
from tests.chaos.lab import KEYS, Lab, eventually, expected, node_key
from tests.cli.conftest import run_id

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("lab", SERVERS, indirect=True)]

TRAINS_TWICE = r"(?s)Training begins.*Training begins"


def test_writes_that_were_acknowledged_and_forgotten_are_repaired(lab: Lab) -> None:
    """Redis dies under two runs' load and forgets inbox or outbox entries: both runs end right.

    Entries that a client had seen before, and that are gone afterwards, prove that something was forgotten.
    """
    lab.nodes(4)
    server_apps = {app: lab.run(app=app, nodes=4, payload=300_000, result=app) for app in ("app", "stream")}
    for _ in range(3):
        before = {app: server_app.text.count("replies are in the books") for app, server_app in server_apps.items()}
        assert lab.crash_redis_at_work(), "nothing was forgotten"
        for app, server_app in server_apps.items():
            more = before[app] + 20
            eventually(lambda p=server_app, n=more: p.text.count("replies are in the books") > n, "the run goes on")
    lab.commands.write("finish", "")
    for app, server_app in server_apps.items():
        server_app.ends(0)
        (result,) = lab.results(app)
        assert result == expected(*result["folded"])
        assert lab.keys_of(run_id(server_app)) == set()


def test_a_forgotten_run_is_written_again(lab: Lab) -> None:
    """Redis forgets all of a run while its nodes train: the ServerApp writes it again, and no node trains twice."""
    nodes = lab.nodes(2)
    size = lab.file_size()
    server_app = lab.run(nodes=2, rounds=3, gates=1)
    run = run_id(server_app)
    for node in nodes.values():
        node.wait_for("Training begins")
    lab.crash_redis(size)
    lab.open_gates("n0", "n1")
    server_app.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert [len(lab.executions(name, run)) for name in nodes] == [3, 3]
    assert lab.keys_of(run) == set()


def test_forgotten_replies_are_published_again(lab: Lab) -> None:
    """Redis forgets a reply that the ServerApp has and one that it has not: both count once, no node trains twice."""
    nodes = lab.nodes(3)
    server_app = lab.run(nodes=3, rounds=3, gates=1)
    run = run_id(server_app)
    for node in nodes.values():
        node.wait_for("Training begins")
    size = lab.file_size()
    lab.open_gates("n0")
    server_app.wait_for("1 replies are in the books")
    server_app.send(signal.SIGSTOP)
    lab.open_gates("n1")
    eventually(lambda: lab.admin.xlen(KEYS.outbox(node_key("n1"), int(run))), "the reply is in the outbox")
    lab.crash_redis(size)
    server_app.send(signal.SIGCONT)
    lab.open_gates("n2")
    server_app.ends(0)
    assert lab.results() == [expected(3, 3, 3)]
    assert [len(lab.executions(name, run)) for name in nodes] == [3, 3, 3]
    assert lab.keys_of(run) == set()


@pytest.mark.parametrize("payload", [0, 100_000])
def test_replies_that_were_read_and_not_handed_over_yet_survive(lab: Lab, payload: int) -> None:
    """Redis forgets a reply that the ServerApp has read while it worked on another one, also one of a large payload."""
    nodes = lab.nodes(2)
    server_app = lab.run(nodes=2, rounds=3, gates=1, pause=1, payload=payload)
    run = run_id(server_app)
    for node in nodes.values():
        node.wait_for("Training begins")
    server_app.send(signal.SIGSTOP)
    size = lab.file_size()
    lab.open_gates("n0", "n1")
    outboxes = [KEYS.outbox(node_key(name), int(run)) for name in nodes]
    eventually(lambda: all(map(lab.admin.xlen, outboxes)), "both replies are in Redis")
    # After such a time the ServerApp looks into all outboxes at once.
    eventually(lambda: not lab.admin.exists(KEYS.run_lease(int(run))), "the lease of the run lapses")
    server_app.send(signal.SIGCONT)
    server_app.wait_for("1 replies are in the books")
    lab.crash_redis(size)
    lab.commands.write("go", "")
    server_app.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert [len(lab.executions(name, run)) for name in nodes] == [3, 3]
    assert lab.keys_of(run) == set()


@pytest.mark.parametrize("payload", [0, 100_000])
def test_forgotten_replies_to_two_runs_are_published_again(lab: Lab, payload: int) -> None:
    """Redis forgets what a node replied to two runs, one right after the other, before their ServerApps looked."""
    (node,) = lab.nodes(1).values()
    server_apps = {file: lab.run(nodes=1, rounds=3, gates=1, payload=payload, result=file) for file in ("a", "b")}
    for server_app in server_apps.values():
        server_app.wait_for("Pushed")
    node.wait_for("Training begins")
    for server_app in server_apps.values():
        server_app.send(signal.SIGSTOP)
    size = lab.file_size()
    lab.open_gates("n0")
    outboxes = [KEYS.outbox(node_key("n0"), int(run_id(server_app))) for server_app in server_apps.values()]
    eventually(lambda: all(map(lab.admin.xlen, outboxes)), "both replies are in Redis")
    lab.crash_redis(size)
    for file, server_app in server_apps.items():
        server_app.send(signal.SIGCONT)
        server_app.ends(0)
        assert lab.results(file) == [expected(3)]
        assert len(lab.executions("n0", run_id(server_app))) == 3


def test_a_forgotten_commit_is_written_again(lab: Lab) -> None:
    """Redis forgets that a run moved on to its second round: it is told, as a resume of the run then shows."""
    nodes = lab.nodes(2)
    lab.open_gates("n0")
    server_app = lab.run(nodes=2, rounds=3, gates=2)
    run = run_id(server_app)
    server_app.wait_for("1 replies are in the books")
    size = lab.file_size()
    lab.open_gates("n1")
    for node in nodes.values():
        node.wait_for(TRAINS_TWICE)
    lab.crash_redis(size)
    second = set(server_app.wait_for(r"(?s)Pushed.*Pushed ([\w ]+)").split())
    eventually(lambda: set(lab.ledger(run)) == second, "the ledger is that of the second round")
    server_app.kill()
    resumed = lab.resume(run)
    resumed.wait_for("Starting with 2 replies in the books")
    lab.open_gates("n0", "n1", message=2)
    resumed.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert [len(lab.executions(name, run)) for name in nodes] == [3, 3]


def test_a_redis_that_lost_everything_ends_the_runs(lab: Lab) -> None:
    """Restarted without its file: runs end with 32, nodes register again by themselves and serve a new run."""
    nodes = lab.nodes(2)
    lab.open_gates("n0", "n1")
    server_apps = [lab.run(app=app, nodes=2, rounds=3, gates=2) for app in ("app", "stream")]
    for node in nodes.values():
        node.wait_for(TRAINS_TWICE)
    server_apps[1].wait_for("(?s)Pushed.*Pushed")  # to both nodes
    lab.kill_redis()
    shutil.rmtree(lab.data / "appendonlydir")
    lab.restart_redis()
    for server_app in server_apps:
        assert "Redis lost its data" in server_app.ends(32).err
    lab.open_gates("n0", "n1", message=2)
    lab.run(nodes=2, rounds=3).ends(0)
    assert lab.results() == [expected(3, 3)]
    assert lab.admin.smembers(KEYS.nodes) == {str(node_key(name)).encode() for name in nodes}
    assert not any(lab.keys_of(run_id(server_app)) for server_app in server_apps)
