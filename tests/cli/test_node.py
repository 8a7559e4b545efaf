"""`brokerfl-node`: names, signals, and what a node's death means to the runs."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.apps import eventually
from tests.cli.conftest import DEADLINE, NEVER, Broker, Commands, error_of, gated, listed, node_id, run_id
from tests.conftest import PREFIX

pytestmark = pytest.mark.timeout(180)


FORKING = """
import multiprocessing
import time
from logging import INFO

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    child.terminate()
    child.join()
    log(INFO, f"Ended with {child.exitcode}")
    return message.create_reply(message.content)
"""

#: As `CLIENT`, with a child that nobody ends.
ORPHANING = """
import multiprocessing
import time
from logging import INFO
from pathlib import Path

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    gate = Path(str(context.node_config["gate"]))
    if not gate.exists():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        log(INFO, f"Child {child.pid}")
    while not gate.exists():
        time.sleep(0.02)
    return message.create_reply(message.content)
"""


#: Asks in a child, which ends with 40 plus the answer, or with 50 if it connects to anything.
ASKING = """
import multiprocessing
import os
import sys
from logging import INFO

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, log

app = ClientApp()


def ask(context: Context) -> None:
    sys.addaudithook(lambda event, _: os._exit(50) if event == "socket.connect" else None)
    sys.exit(40 + context.cancelled())


@app.train()
def train(message: Message, context: Context) -> Message:
    child = multiprocessing.get_context("fork").Process(target=ask, args=(context,))
    child.start()
    child.join()
    log(INFO, f"Ended with {child.exitcode}")
    return message.create_reply(message.content)
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that is not there; a node waits for it in the middle of a message."""
    return tmp_path / "gate"


def elsewhere(tmp_path: Path) -> tuple[str, str]:
    """Another state directory, as a node on another machine has."""
    return "--state-dir", str(tmp_path / "elsewhere")


def test_a_second_process_with_a_name_is_refused(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """The second node of a name ends with 20 and one line that names the name and its holder; the first serves on."""
    first = commands.node("--name", "hospital-1", "--lease", "5")
    second = commands.run("brokerfl-node", "client:app", "--name", "hospital-1", *elsewhere(tmp_path), code=20)
    assert second.err.count("Error:") == 1
    assert f"Error: the name 'hospital-1' is in use by process {first.pid} on " in second.err
    assert "Traceback" not in second.text
    commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1").wait_for("Round 1: 1 of 1 replied")


def test_a_second_process_on_one_machine_is_refused_at_once(commands: Commands, broker: Broker) -> None:
    """On one machine the lock of the state directory refuses it with 20, without waiting for the first one's lease."""
    first = commands.node("--name", "hospital-1", "--lease", NEVER)
    second = commands.run("brokerfl-node", "client:app", "--name", "hospital-1", code=20)
    folder = f"{commands.env['BROKERFL_STATE_DIR']}/{node_id(first)}"
    assert error_of(second).startswith(f"Error: another process uses the state directory {folder}: ")
    commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1").wait_for("Round 1: 1 of 1 replied")


def test_a_killed_named_node_serves_again_at_once(commands: Commands, broker: Broker, gate: Path) -> None:
    """After kill -9 in the middle of a message, a restart has the same id and answers it, whatever its lease."""
    first = commands.node("--name", "hospital-1", "--lease", NEVER, *gated(gate))
    server = commands.server("--run-config", "nodes=1", "--offline-grace", NEVER)
    first.wait_for("Training begins")
    first.kill()
    gate.touch()
    second = commands.node("--name", "hospital-1", "--lease", NEVER, *gated(gate))
    assert node_id(second) == node_id(first)
    assert "Round 1: 1 of 1 replied" in server.ends(0).text


def test_a_child_of_the_app_is_not_the_node(commands: Commands, broker: Broker) -> None:
    """A process that a ClientApp forks and ends dies of SIGTERM at once; it does not leave Redis in the node's name."""
    commands.write("client.py", FORKING)
    node = commands.node("--grace", "0", "--lease", NEVER)
    server = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1 rounds=2")
    assert "Round 2: 1 of 1 replied" in server.text
    assert re.findall(r"Ended with (\S+)", node.text) == ["-15", "-15"]
    assert [row["state"] for row in listed(commands)] == ["ready"]


def test_a_child_of_the_app_asks_without_redis(commands: Commands, broker: Broker) -> None:
    """A forked process may hold a copy of any lock: context.cancelled() answers there without a connection."""
    commands.write("client.py", ASKING)
    node = commands.node()
    commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1")
    assert node.wait_for(r"Ended with (\d+)") == "40"


def test_a_child_that_outlives_its_node_does_not_hold_the_name(commands: Commands, broker: Broker, gate: Path) -> None:
    """After kill -9 a named node serves again, however long a process lives that its app had forked."""
    commands.write("client.py", ORPHANING)
    first = commands.node("--name", "hospital-1", "--lease", NEVER, *gated(gate))
    server = commands.server("--run-config", "nodes=1", "--offline-grace", NEVER)
    orphan = int(first.wait_for(r"Child (\d+)"))
    try:
        first.kill()
        gate.touch()
        commands.node("--name", "hospital-1", "--lease", NEVER, *gated(gate))
        assert "Round 1: 1 of 1 replied" in server.ends(0).text
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_killed_unnamed_node_is_error_5_and_disturbs_no_other_run(
    commands: Commands, broker: Broker, gate: Path
) -> None:
    """kill -9 in the middle of a round ends its message as Error 5, so the round ends; another run has no error."""
    victim = commands.node("--lease", "0.9", *gated(gate))
    others = commands.nodes(2)
    stop = commands.folder / "stop"
    config = f"nodes=3 without='{node_id(victim)}' until='{stop}'"
    bystander = commands.server("--run-config", config)
    bystander.wait_for("Round 2: 2 of 2 replied")
    server = commands.server("--run-config", "nodes=3")
    victim.wait_for("Training begins")
    victim.kill()
    assert f"Round 1: Error 5 of {node_id(victim)} [" in server.ends(0).text
    assert "Round 1: 2 of 3 replied" in server.text
    stop.touch()
    assert "Error" not in bystander.ends(0).text
    assert all(node.text.count("Training begins") > 2 for node in others)


@pytest.mark.parametrize("name", ["", "hospital-1"])
def test_sigterm_lets_a_node_finish_and_leave(commands: Commands, broker: Broker, gate: Path, name: str) -> None:
    """It publishes the message in hand, exits with 0 and is offline; only a named one stays in the registry."""
    node = commands.node(*gated(gate), *(["--name", name] if name else []))
    server = commands.server("--run-config", "nodes=1")
    node.wait_for("Training begins")
    node.send(signal.SIGTERM)
    node.wait_for("Got SIGTERM")
    gate.touch()
    assert f"Node {node_id(node)}" in node.ends(0).text.splitlines()[-1]
    assert "Round 1: 1 of 1 replied" in server.ends(0).text
    assert [(row["name"], row["state"]) for row in listed(commands)] == ([(name, "lost")] if name else [])
    assert broker.scan(f"{PREFIX}:*lease") == set()


def test_sigterm_lets_every_worker_finish(commands: Commands, broker: Broker, gate: Path) -> None:
    """With --workers 2 two runs are in hand at once: both are answered before the node leaves, and a third is not."""
    node = commands.node(*gated(gate), "--workers", "2", "--lease", NEVER)
    servers = [commands.server("--run-config", "nodes=1") for _ in range(2)]
    eventually(lambda: node.text.count("Training begins") == 2, DEADLINE)
    third = commands.server("--run-config", "nodes=1")
    eventually(lambda: broker.scan(f"{PREFIX}:*{run_id(third)}*:in:*"), DEADLINE)
    node.send(signal.SIGTERM)
    node.wait_for("Got SIGTERM")
    gate.touch()
    node.ends(0)
    for server in servers:
        assert "Round 1: 1 of 1 replied" in server.ends(0).text
    assert f"Round 1: Error 5 of {node_id(node)}" in third.ends(0).text
    assert node.text.count("Training begins") == 2


def test_a_second_signal_ends_a_node_at_once(commands: Commands, broker: Broker, gate: Path) -> None:
    """In the middle of a message that never ends, the second signal ends the process with 128 + its number."""
    nodes = commands.nodes(2, *gated(gate), "--grace", NEVER)
    commands.server("--run-config", "nodes=2")
    for node, number, code in zip(nodes, (signal.SIGINT, signal.SIGTERM), (130, 143), strict=True):
        node.wait_for("Training begins")
        node.send(number)
        node.wait_for(f"Got {number.name}")
        node.send(number, until_ended=True)  # one that comes at once counts as the first
        node.ends(code)


def test_signals_that_come_together_are_one(commands: Commands, broker: Broker, gate: Path) -> None:
    """GNU timeout signals a process, then its group: the node finishes what it has in hand, and leaves."""
    node = commands.node(*gated(gate), "--grace", NEVER)
    server = commands.server("--run-config", "nodes=1")
    node.wait_for("Training begins")
    node.send(signal.SIGTERM)
    node.send(signal.SIGINT)
    node.wait_for("Got SIG")
    gate.touch()
    assert "has left" in node.ends(0).text
    assert "Round 1: 1 of 1 replied" in server.ends(0).text


def test_an_empty_name_is_none(commands: Commands) -> None:
    """A variable of a shell that is not set makes no unnamed node by mistake."""
    node = commands.run("brokerfl-node", "client:app", "--name", "", code=2)
    assert "Invalid value for '--name': the name is empty: for an unnamed node, leave the option out" in node.err


def test_a_node_leaves_when_its_grace_is_over(commands: Commands, broker: Broker, gate: Path) -> None:
    """It says so, ends with 143, and is gone for the run at once: Error 5 comes long before the lease would lapse."""
    node = commands.node(*gated(gate), "--grace", "0.2", "--lease", NEVER)
    server = commands.server("--run-config", "nodes=1")
    node.wait_for("Training begins")
    node.send(signal.SIGTERM)
    assert "did not finish in 0.2 s; leaving without it" in node.ends(143).text
    assert f"Round 1: Error 5 of {node_id(node)} [" in server.ends(0).text


def test_an_idle_node_ends_with_0(commands: Commands, broker: Broker) -> None:
    """Ctrl-C and SIGTERM end a node that only waits; it says that it has left."""
    nodes = commands.nodes(2)
    for node, number in zip(nodes, (signal.SIGINT, signal.SIGTERM), strict=True):
        node.send(number)
        assert f" INFO     Node {node_id(node)} has left\n" in node.ends(0).text
    assert listed(commands) == []


def test_a_frozen_node_gives_way_to_its_successor(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """A node that did not answer for a lease, and was replaced from another machine, ends with 20 when it wakes up."""
    first = commands.node("--name", "hospital-1", "--lease", "0.9")
    first.send(signal.SIGSTOP)
    second = commands.node("--name", "hospital-1", *elsewhere(tmp_path))
    first.send(signal.SIGCONT)
    assert f"Error: another process took over node {node_id(first)} " in first.ends(20).err
    assert "Traceback" not in first.text
    commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1").wait_for("Round 1: 1 of 1 replied")
    assert second.text.count("Training begins") == 1


CONFIGURES = {
    "silences": "logging.config.dictConfig({'version': 1}); logging.disable(logging.CRITICAL)\n"
    "ours = logging.getLogger('brokerfl'); ours.handlers.clear(); ours.setLevel(logging.CRITICAL)\n"
    "ours.addFilter(lambda record: False); sys.stderr.close(); sys.stderr = None",
    "doubles": "logging.basicConfig()",
    "raises": "logging.getLogger().addHandler(type('H', (logging.Handler,), {'emit': lambda self, record: 1 / 0})())\n"
    "logging.getLogger('brokerfl').addFilter(lambda record: 1 / 0); logging.setLogRecordFactory(lambda *_: 1 / 0)",
}


@pytest.mark.parametrize("how", CONFIGURES)
def test_an_app_that_configures_logging(commands: Commands, broker: Broker, how: str) -> None:
    """Whatever an app does to the logging of its process, the node says each thing once, and answers."""
    text = commands.folder.joinpath("client.py").read_text()
    commands.write("client.py", text.replace("import time", "import logging, logging.config, sys\nimport time"))
    commands.write("client.py", commands.folder.joinpath("client.py").read_text() + "\n\n" + CONFIGURES[how] + "\n")
    node = commands.node()
    server = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1 rounds=2")
    assert "Round 2: 1 of 1 replied" in server.text
    node.send(signal.SIGTERM)
    text = "\n".join(line for line in node.ends(0).err.splitlines() if " INFO     " in line)
    assert [text.count(said) for said in ("serves", "Training begins", "Got SIGTERM", "has left")] == [1, 2, 1, 1]


def test_labels_and_node_config_arrive(commands: Commands, broker: Broker) -> None:
    """Labels are what `brokerfl nodes` shows; the node config, typed or from the environment, is in the Context."""
    text = commands.folder.joinpath("client.py").read_text()
    commands.write("client.py", text.replace('"Training begins"', 'f"Config {context.node_config}"'))
    commands.env["BROKERFL_NODE_CONFIG"] = "partition-id=3 site='Charité Berlin'"
    env = commands.node("--label", "site=berlin", "--label", "gpu=a=b")
    typed = commands.node("--node-config", "partition-id=4 lr=0.5", "--node-config", "lr=0.1 on=true")
    by_id = {row["node"]: row for row in listed(commands)}
    assert by_id[node_id(env)]["labels"] == {"site": "berlin", "gpu": "a=b"}
    assert by_id[node_id(typed)]["labels"] == {}
    commands.run("brokerfl-server", "server:app", "--run-config", "nodes=2")
    env.wait_for("Config {'partition-id': 3, 'site': 'Charité Berlin'}")
    typed.wait_for("Config {'partition-id': 4, 'lr': 0.1, 'on': True}")
