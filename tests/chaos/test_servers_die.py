"""What becomes of a run when its ServerApp is killed, frozen or stopped."""

import json
import re
import signal

import pytest

from tests.chaos.lab import Lab, eventually, expected
from tests.cli.conftest import Process, run_id

pytestmark = pytest.mark.timeout(120)


def test_a_resumed_run_ends_as_if_nothing_had_happened(lab: Lab) -> None:
    """kill -9 of a ServerApp when two of five nodes have replied and three train: no node trains twice, same result."""
    nodes = lab.nodes(5)
    lab.open_gates("n0", "n1")
    server_app = lab.run(nodes=5, rounds=3, gates=1)
    run = run_id(server_app)
    server_app.wait_for("2 replies are in the books")
    for name in ("n2", "n3", "n4"):
        nodes[name].wait_for("Training begins")
    server_app.kill()
    resumed = lab.resume(run)
    resumed.wait_for("Starting with 0 replies in the books")  # the state of the last commit
    resumed.wait_for("2 replies are in the books")
    lab.open_gates("n2", "n3", "n4")
    resumed.ends(0)
    assert lab.results() == [expected(3, 3, 3, 3, 3)]
    for name in nodes:
        executed = lab.executions(name, run)
        assert len(executed) == len(set(executed)) == 3, f"{name} executed {executed}"
    assert lab.keys_of(run) == set()


def test_a_stream_that_is_killed_over_and_over_ends_right(lab: Lab) -> None:
    """kill -9 of an asynchronous ServerApp after every few replies: each integer is counted once, and executed once."""
    lab.nodes(2)
    server_app = lab.run(app="stream", nodes=2)
    run = run_id(server_app)
    for folded in (4, 8, 12, 16):
        wait_for_replies(server_app, folded)
        server_app.kill()
        server_app = lab.resume(run, app="stream")
    wait_for_replies(server_app, 20)
    lab.commands.write("finish", "")
    server_app.ends(0)
    [result] = lab.results()
    assert result == expected(*result["folded"])
    executed = [message for name in ("n0", "n1") for message in lab.executions(name, run)]
    assert len(executed) == len(set(executed)) == sum(result["folded"])
    assert lab.keys_of(run) == set()


def wait_for_replies(server_app: Process, number: int) -> None:
    """Wait until it has counted so many; it may have counted more before it was killed the last time."""
    eventually(
        lambda: max(map(int, re.findall(r"(\d+) replies (?:are )?in the books", server_app.text)), default=0) >= number,
        f"{number} replies are in the books",
    )


def test_a_frozen_server_app_is_fenced_by_a_takeover(lab: Lab) -> None:
    """SIGSTOP, a takeover by another, SIGCONT: the first ends with 33, and one result is written."""
    lab.nodes(2)
    lab.open_gates("n0")
    frozen = lab.run(nodes=2, rounds=3, gates=1)
    run = run_id(frozen)
    frozen.wait_for("1 replies are in the books")
    frozen.send(signal.SIGSTOP)
    taker = lab.resume(run, "--takeover")
    taker.wait_for("1 replies are in the books")
    frozen.send(signal.SIGCONT)
    frozen.ends(33)
    lab.open_gates("n1")
    taker.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert [len(lab.executions(name, run)) for name in ("n0", "n1")] == [3, 3]
    assert lab.keys_of(run) == set()


def test_a_commit_that_is_on_its_way_during_a_takeover_takes_no_effect(lab: Lab) -> None:
    """It arrives when another ServerApp has taken the run over: its sender ends with 33, the books are right."""
    lab.nodes(2)
    lab.open_gates("n0")
    first = lab.run(nodes=2, rounds=3, gates=2)
    run = run_id(first)
    first.wait_for("1 replies are in the books")
    lab.proxy.hold(b":ledger")
    lab.open_gates("n1")
    eventually(lambda: lab.proxy.faults["stall on command"], "the commit is held up")
    taker = lab.resume(run, "--takeover")
    taker.wait_for("Run .* resumed")
    lab.proxy.release()
    first.ends(33)
    lab.open_gates("n0", "n1", message=2)  # until here the run cannot end: that would be another exit code
    taker.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert [len(lab.executions(name, run)) for name in ("n0", "n1")] == [3, 3]
    assert lab.keys_of(run) == set()


def test_a_frozen_server_app_wakes_after_the_end(lab: Lab) -> None:
    """One that was taken over and wakes when its run has ended writes nothing, and says that the run is not its own."""
    lab.nodes(2)
    lab.open_gates("n0")
    frozen = lab.run(nodes=2, rounds=3, gates=1)
    run = run_id(frozen)
    frozen.wait_for("1 replies are in the books")
    frozen.send(signal.SIGSTOP)
    taker = lab.resume(run, "--takeover")
    lab.open_gates("n1")
    taker.ends(0)
    frozen.send(signal.SIGCONT)
    frozen.ends(31, 32, 33)
    assert lab.results() == [expected(3, 3)]
    assert lab.keys_of(run) == set()


def test_a_run_without_a_server_app_can_be_stopped(lab: Lab) -> None:
    """`brokerfl stop` of a run whose ServerApp is dead deletes everything, and a node that is late revives nothing."""
    nodes = lab.nodes(2)
    lab.open_gates("n0")
    server_app = lab.run(nodes=2, rounds=3, gates=1)
    run = run_id(server_app)
    server_app.wait_for("1 replies are in the books")
    nodes["n1"].wait_for("Training begins")
    server_app.kill()
    lab.commands.run("brokerfl", "stop", run)
    assert lab.keys_of(run) == set()
    lab.open_gates("n1")
    lab.run(nodes=2, rounds=2, result="next").ends(0)  # n1 has done with the old one when this one ends
    assert lab.results("next") == [expected(2, 2)]
    assert lab.keys_of(run) == set()


def test_when_everything_is_dead_all_keys_of_the_run_expire(lab: Lab) -> None:
    """kill -9 of the ServerApp and of all nodes: after the retention time no key holds anything of the run."""
    nodes = lab.nodes(2)
    lab.open_gates("n0")
    server_app = lab.run("--retention", "4", nodes=2, rounds=3, gates=1)
    run = run_id(server_app)
    server_app.wait_for("1 replies are in the books")
    nodes["n1"].wait_for("Training begins")
    lab.commands.kill()
    assert len(lab.keys_of(run)) >= 8
    eventually(lambda: not lab.keys_of(run), "all keys of the run expire")
    assert json.loads(lab.commands.run("brokerfl", "runs", "--format", "json").out) == []
