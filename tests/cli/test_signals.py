"""Signals of all commands: they are handled before anything slow, and SIGHUP ends a command as SIGTERM does."""

import signal

import pytest

from tests.cli.conftest import NEVER, SCRIPTS, Broker, Commands, node_id, run_id

pytestmark = pytest.mark.timeout(180)

SLOW = """
import time

print("Importing", flush=True)
time.sleep(600)
"""

#: Each command, ended while it imports something slow.
COMMANDS = (
    ("brokerfl-node", "client:app"),
    ("brokerfl-server", "server:app"),
    ("brokerfl", "runs"),
)


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
