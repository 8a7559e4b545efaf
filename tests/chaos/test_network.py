"""What becomes of a run when the network fails, in all the ways in which it can."""

import signal

import pytest

from tests.chaos.lab import KEYS, Lab, eventually, expected, node_key
from tests.cli.conftest import run_id

pytestmark = pytest.mark.timeout(120)

#: The network fails in a proxy, whichever server is behind it.
WITHOUT = ("valkey",)


def test_an_outage_longer_than_every_lease_makes_no_living_node_unavailable(lab: Lab) -> None:
    """Every lease lapses in an outage, and nodes come back after the ServerApp: none is Error 5, even without grace."""
    nodes = lab.nodes(2)
    server_app = lab.run("--offline-grace", "0", "--lease", "5", nodes=2, rounds=3, gates=1)
    run = run_id(server_app)
    lab.open_gates("n0")
    server_app.wait_for("1 replies are in the books")
    lab.proxy.down()
    leases = [KEYS.run_lease(int(run)), *(KEYS.node_lease(node_key(name)) for name in nodes)]
    eventually(lambda: not lab.admin.exists(*leases), "every lease lapses")
    for node in nodes.values():
        node.send(signal.SIGSTOP)
    lab.proxy.up()
    server_app.wait_for("is back after")
    looks = lab.calls("time")
    eventually(lambda: lab.calls("time") > looks, "the ServerApp looks for absent nodes")
    for node in nodes.values():
        node.send(signal.SIGCONT)
    lab.open_gates("n1")
    server_app.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert [len(lab.executions(name, run)) for name in nodes] == [3, 3]


@pytest.mark.parametrize("keep", [0, 7])
def test_a_lost_answer_duplicates_nothing(lab: Lab, keep: int) -> None:
    """Connections break in the answers to transactions, which are executed all the same: each takes effect once."""
    lab.nodes(2)
    server_app = lab.run(nodes=2, rounds=10, gates=1)
    run = run_id(server_app)
    for _ in range(10):  # publishes, pushes, and the end
        lab.proxy.break_answer(b"EXEC", keep)
    lab.open_gates("n0", "n1")
    server_app.ends(0)
    assert lab.proxy.faults["break on command"] == 10
    assert lab.results() == [expected(10, 10)]
    assert [len(lab.executions(name, run)) for name in ("n0", "n1")] == [10, 10]
    assert lab.keys_of(run) == set()


@pytest.mark.parametrize("payload", [0, 100_000])
def test_a_reply_that_was_published_twice_counts_once(lab: Lab, payload: int) -> None:
    """Nodes repeat a publish whose answer was lost; when the second copies go, what is needed still does not go."""
    nodes = lab.nodes(2)
    server_app = lab.run(app="stream", nodes=2, rounds=3, gates=1, payload=payload)
    run = run_id(server_app)
    for node in nodes.values():
        node.wait_for("Training begins")
    server_app.send(signal.SIGSTOP)
    for name in nodes:
        outbox = KEYS.outbox(node_key(name), int(run))
        lab.proxy.break_answer(b"XACK")
        lab.open_gates(name)
        eventually(lambda key=outbox: lab.admin.xlen(key) == 2, "the reply is in Redis twice")
    # After such a time the ServerApp looks into all outboxes at once.
    eventually(lambda: not lab.admin.exists(KEYS.run_lease(int(run))), "the lease of the run lapses")
    server_app.send(signal.SIGCONT)
    server_app.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert [len(lab.executions(name, run)) for name in nodes] == [3, 3]


def test_bad_weather_changes_nothing(lab: Lab) -> None:
    """Requests and answers that are delayed, lost, cut in the middle or late by seconds: two runs end right."""
    lab.nodes(2)
    server_apps = {
        file: lab.run(app=app, nodes=2, rounds=8, result=file, payload=20_000)
        for file, app in (("in-rounds", "app"), ("as-stream", "stream"))
    }
    lab.proxy.weather = 0.08
    for file, server_app in server_apps.items():
        server_app.ends(0)
        assert lab.results(file) == [expected(8, 8)]
        assert lab.keys_of(run_id(server_app)) == set()
        for name in ("n0", "n1"):
            assert len(lab.executions(name, run_id(server_app))) == 8
    broken = [f"{fault} {what}" for fault in ("lose", "cut") for what in ("request", "answer")]
    assert sum(lab.proxy.faults[fault] for fault in broken) > 0


def test_half_open_connections_are_noticed(lab: Lab) -> None:
    """Connections on which nothing moves are given up; a reply that arrives on one afterwards takes no effect."""
    lab.nodes(2)
    lab.open_gates("n0")
    server_app = lab.run(nodes=2, rounds=5, gates=1)
    run = run_id(server_app)
    server_app.wait_for("1 replies are in the books")
    lab.proxy.stall()
    lab.open_gates("n1")
    server_app.wait_for("(?s)Pushed.*Pushed")
    lab.proxy.release()
    server_app.ends(0)
    assert lab.results() == [expected(5, 5)]
    assert [len(lab.executions(name, run)) for name in ("n0", "n1")] == [5, 5]
    assert lab.keys_of(run) == set()


def test_a_commit_that_arrives_late_takes_no_effect(lab: Lab) -> None:
    """It is on its way until its sender has repeated it and the run moved on: a resume starts at the last commit."""
    lab.nodes(2)
    lab.open_gates("n0")
    server_app = lab.run(nodes=2, rounds=4, gates=3)
    run = run_id(server_app)
    server_app.wait_for("1 replies are in the books")
    lab.open_gates("n0", "n1", message=2)
    lab.proxy.hold(b":ledger")
    lab.open_gates("n1")
    server_app.wait_for("(?s)Pushed.*Pushed.*Pushed")
    assert lab.proxy.faults["stall on command"] == 1
    lab.proxy.release()
    server_app.kill()
    resumed = lab.resume(run)
    resumed.wait_for("Starting with 4 replies in the books")
    lab.open_gates("n0", "n1", message=3)
    resumed.ends(0)
    assert lab.results() == [expected(4, 4)]
    assert [len(lab.executions(name, run)) for name in ("n0", "n1")] == [4, 4]
    assert lab.keys_of(run) == set()


def test_an_outage_is_logged_when_it_begins_and_when_it_ends(lab: Lab) -> None:
    """However often nodes and ServerApps try to connect, each says once that Redis went and once that it is back."""
    nodes = lab.nodes(2)
    server_app = lab.run(nodes=2, rounds=2, gates=1)
    lab.open_gates("n0")
    server_app.wait_for("1 replies are in the books")
    lab.kill_redis()
    eventually(lambda: lab.proxy.faults["refused"] > 20, "many tries")
    lab.restart_redis()
    for process in (server_app, nodes["n0"]):
        process.wait_for("is back after")
    lab.open_gates("n1")
    server_app.ends(0)
    for process in (server_app, *nodes.values()):
        assert process.text.count("waiting until it answers again") == process.text.count("is back after") <= 1
