"""Signals of all commands: they are handled before anything slow, and SIGHUP ends a command as SIGTERM does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.apps import eventually
from tests.cli.conftest import DEADLINE, NEVER, SCRIPTS, Broker, Commands, gated, node_id, run_id, runs

pytestmark = pytest.mark.timeout(180)

SLOW = """
import time

print("Importing", flush=True)
time.sleep(600)
"""

#: Works in a child, and raises if that is ended.
WORKING = """
import multiprocessing
import time
from logging import INFO
from pathlib import Path

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, log

app = ClientApp()


def work(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.02)


@app.train()
def train(message: Message, context: Context) -> Message:
    gate = Path(str(context.node_config["gate"]))
    child = multiprocessing.get_context("fork").Process(target=work, args=(gate,))
    child.start()
    log(INFO, f"Working in {child.pid}")
    child.join()
    if child.exitcode:
        raise RuntimeError(f"a child ended with {child.exitcode}")
    return message.create_reply(message.content)
"""

#: Does not let a signal through.
UNWINDING = """
import time

from brokerfl.common import Context
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    print("Waiting", flush=True)
    try:
        time.sleep(600)
    except BaseException:
        HOW
"""

#: Each command, ended while it imports something slow.
COMMANDS = (
    ("brokerfl-node", "client:app"),
    ("brokerfl-server", "server:app"),
    ("brokerfl", "runs"),
)


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended; in a container nobody may ask a lost one for its code."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_signal_that_comes_during_the_imports_ends_a_command(commands: Commands, command: tuple[str, str]) -> None:
    """It ends by its own handler, with 128 plus the number: as process 1 it would have got no other signal."""
    for name in ("client", "server", "redis"):
        commands.write(f"{name}.py", SLOW)
    for path in ("", str(commands.folder)):  # what is slow is the app, and redis-py
        if command[0] == "brokerfl" and not path:
            continue
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process = commands.start(*command, **({"PYTHONPATH": path} if path else {}))
            process.wait_for("Importing")
            process.send(number)
            assert "Traceback" not in process.ends(128 + number).text


def test_sighup_ends_a_node_and_a_server(commands: Commands, broker: Broker) -> None:
    """When the terminal is closed, a node leaves with 0, and a ServerApp detaches its run and ends with 129."""
    node = commands.node()
    server = commands.server("--run-config", "nodes=9", "--lease", NEVER)
    server.send(signal.SIGHUP)
    server.ends(129)
    assert f"Run {run_id(server)} is detached: got SIGHUP\n" in server.err
    commands.run("brokerfl", "stop", run_id(server))
    node.send(signal.SIGHUP)
    assert f"Node {node_id(node)} has left" in node.ends(0).err


def test_a_signal_to_the_group_is_no_error_of_the_app(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """SIGTERM also ends the app's children, so it raises: the message stays open, and is executed after a restart."""
    commands.write("client.py", WORKING)
    gate = tmp_path / "gate"
    named = "--name", "hospital-1", *gated(gate)
    node = commands.node(*named)
    server = commands.server("--run-config", "nodes=1", "--offline-grace", NEVER)
    node.wait_for("Working")
    os.killpg(node.pid, signal.SIGTERM)
    assert "RuntimeError: a child ended with -15" in node.ends(0).text
    gate.touch()
    commands.node(*named)
    assert "Round 1: 1 of 1 replied" in server.ends(0).text
    assert "Error" not in server.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminals_signal_spares_the_apps_children(
    commands: Commands, broker: Broker, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C reaches all that a terminal runs: a node's forked children go on, and the message in hand is answered."""
    commands.write("client.py", WORKING)
    gate = tmp_path / "gate"
    node = commands.node(*gated(gate))
    server = commands.server("--run-config", "nodes=1")
    node.wait_for("Working")
    os.killpg(node.pid, number)
    node.wait_for(f"Got {number.name}")
    gate.touch()
    node.ends(0)
    assert "Round 1: 1 of 1 replied" in server.ends(0).text


def test_a_node_that_gives_up_ends_its_apps_children(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """The second Ctrl-C ends what would ignore it."""
    commands.write("client.py", WORKING)
    node = commands.node(*gated(tmp_path / "gate"))
    commands.server("--run-config", "nodes=1")
    child = int(node.wait_for(r"Working in (\d+)"))
    node.send(signal.SIGINT)
    node.wait_for("Got SIGINT")
    node.send(signal.SIGINT, until_ended=True)
    node.ends(130)
    eventually(lambda: not is_alive(child), DEADLINE)


@pytest.mark.parametrize("how", ["raise RuntimeError", "return"])
def test_what_follows_a_signal_is_not_the_end_of_a_run(commands: Commands, broker: Broker, how: str) -> None:
    """A main that raises, or returns, after a signal has neither failed nor completed: its run is detached."""
    commands.write("server.py", UNWINDING.replace("HOW", how))
    server = commands.server()
    server.wait_for("^Waiting$")
    server.send(signal.SIGTERM)
    server.ends(143)
    assert f"Run {run_id(server)} is detached: got SIGTERM\n" in server.err
    assert runs(commands) == {run_id(server): "detached"}


def test_nohup_is_respected(commands: Commands, broker: Broker) -> None:
    """Where SIGHUP is ignored, as under nohup, a node and a ServerApp go on."""

    def start(*arguments: str) -> tuple[str, ...]:
        return "/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", str(SCRIPTS / arguments[0]), *arguments[1:]

    node = commands.start(*start("brokerfl-node", "client:app"))
    node_id(node)
    server = commands.start(*start("brokerfl-server", "server:app", "--run-config", "nodes=2"))
    run_id(server)
    for process in (node, server):
        process.send(signal.SIGHUP)
    other = commands.node()
    assert "Round 1: 2 of 2 replied" in server.ends(0).text
    for process in (node, other):
        process.send(signal.SIGTERM)
        process.ends(0)


INTERRUPTED_FORK = """
import os, signal, sys
from brokerfl.cli.signals import handle, handle_early

class Interrupted(Exception):
    pass

def interrupt(number, frame):
    raise Interrupted

os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))  # runs last: the signal is blocked by then
handle_early()
handle(interrupt)
try:
    child = os.fork()
    if child == 0:
        os._exit(0)
    signal.pause()
except Interrupted:
    print("interrupted")
"""


def test_a_signal_in_the_middle_of_a_fork_is_not_lost() -> None:
    """What a handler raises in there would only be printed: the handler runs when the fork is over."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_FORK], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
