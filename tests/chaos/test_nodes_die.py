"""What becomes of a message when its node is killed or frozen."""

import signal

import pytest

from tests.chaos.lab import KEYS, Lab, eventually, exit_code, expected, node_key
from tests.cli.conftest import run_id

pytestmark = pytest.mark.timeout(120)


def test_a_node_that_is_killed_while_it_trains_answers_once(lab: Lab) -> None:
    """kill -9 in the middle of a message: the restarted node executes it again, and its effect is there once."""
    nodes = lab.nodes(2)
    server_app = lab.run(nodes=2, rounds=3, gates=1)
    run = run_id(server_app)
    nodes["n0"].wait_for("Training begins")
    nodes["n0"].kill()
    lab.node("n0").wait_for("Training begins")
    lab.open_gates("n0", "n1")
    server_app.ends(0)
    assert lab.results() == [expected(3, 3)]
    executed = lab.executions("n0", run)
    assert executed[0] == executed[1]
    assert len(executed) == 4
    assert len(set(executed)) == 3


def test_a_node_that_is_killed_after_its_reply_executes_nothing_again(lab: Lab) -> None:
    """kill -9 when the reply is in Redis: the restarted node has its state, and goes on with the next message."""
    nodes = lab.nodes(2)
    lab.open_gates("n0")
    server_app = lab.run(nodes=2, rounds=3, gates=1)
    run = run_id(server_app)
    server_app.wait_for("1 replies are in the books")
    nodes["n0"].kill()
    lab.node("n0").wait_for("serves client:app")
    lab.open_gates("n1")
    server_app.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert len(lab.executions("n0", run)) == len(set(lab.executions("n0", run))) == 3


def test_a_node_that_is_killed_before_it_could_publish_executes_nothing_again(lab: Lab) -> None:
    """kill -9 when the message is executed and Redis is away: the restarted node publishes what it had finished."""
    nodes = lab.nodes(2)
    lab.open_gates("n1")
    server_app = lab.run(nodes=2, rounds=3, gates=1)
    run = run_id(server_app)
    nodes["n0"].wait_for("Training begins")
    lab.proxy.down()
    lab.open_gates("n0")
    nodes["n0"].wait_for("waiting until it answers again")  # nothing but a finished reply makes it ask Redis meanwhile
    nodes["n0"].kill()
    lab.proxy.up()
    lab.node("n0")
    server_app.ends(0)
    assert lab.results() == [expected(3, 3)]
    assert len(lab.executions("n0", run)) == len(set(lab.executions("n0", run))) == 3


def test_a_reply_outlives_its_node(lab: Lab) -> None:
    """A node replies and dies for good before the ServerApp looked: the reply counts, though its grace is over."""
    (node,) = lab.nodes(1).values()
    server_app = lab.run("--offline-grace", "0", nodes=1, rounds=1, gates=1)
    run = run_id(server_app)
    node.wait_for("Training begins")
    server_app.send(signal.SIGSTOP)
    lab.open_gates("n0")
    eventually(lambda: lab.admin.xlen(KEYS.outbox(node_key("n0"), int(run))), "the reply is in the outbox")
    node.kill()
    eventually(lambda: not lab.admin.exists(KEYS.node_lease(node_key("n0"))), "the node's lease lapses")
    server_app.send(signal.SIGCONT)
    server_app.ends(0)
    assert lab.results() == [expected(1)]


def test_a_frozen_node_that_nobody_replaced_goes_on(lab: Lab) -> None:
    """SIGSTOP for longer than its lease, SIGCONT: it takes its lease again; meanwhile its state directory is locked."""
    nodes = lab.nodes(2)
    lab.run(nodes=2, rounds=1, result="first").ends(0)
    for node in nodes.values():
        node.send(signal.SIGSTOP)
    lab.node("n0").ends(20)
    leases = [KEYS.node_lease(node_key(name)) for name in nodes]
    eventually(lambda: not lab.admin.exists(*leases), "the leases lapse")
    for node in nodes.values():
        node.send(signal.SIGCONT)
    eventually(lambda: lab.admin.exists(*leases) == 2 or any(map(exit_code, nodes.values())), "the leases are taken")
    assert [exit_code(node) for node in nodes.values()] == [None, None]
    lab.run(nodes=2, rounds=3).ends(0)
    assert lab.results() == [expected(3, 3)]


def test_a_frozen_node_whose_name_was_taken_over_leaves(lab: Lab) -> None:
    """SIGSTOP in a message, another process with the name, SIGCONT: the first ends with 20, the sum is right."""
    nodes = lab.nodes(2)
    lab.open_gates("n1")
    server_app = lab.run(nodes=2, rounds=3, gates=1)
    frozen = nodes["n0"]
    frozen.wait_for("Training begins")
    frozen.send(signal.SIGSTOP)
    lab.node("n0", state="another").wait_for("Training begins")
    frozen.send(signal.SIGCONT)
    lab.open_gates("n0")
    frozen.ends(20)
    server_app.ends(0)
    assert lab.results() == [expected(3, 3)]
