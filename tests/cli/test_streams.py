"""Standard output and error that are closed, full or broken: neither an answer nor an exit code changes."""

import signal
import sys
from pathlib import Path

import pytest

from tests.apps import eventually
from tests.cli.conftest import DEADLINE, SCRIPTS, Broker, Commands, Process, gated, listed, node_id, run_id, runs

pytestmark = pytest.mark.timeout(180)

#: Starts a command whose standard output and error are what `how` says.
STARTER = """
import os
import sys

how, command, *arguments = sys.argv[1:]
if how == "full":
    for number in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
elif how == "closed":
    os.closerange(0, 3)
elif how in ("broken", "stuck"):
    reader, writer = os.pipe()
    if how == "stuck":  # nobody reads, and not a byte fits in
        os.set_inheritable(reader, True)
        os.set_blocking(writer, False)
        try:
            while os.write(writer, bytes(4096)):
                pass
        except BlockingIOError:
            os.set_blocking(writer, True)
    else:
        os.close(reader)
    for number in (1, 2):
        os.dup2(writer, number)
os.execv(command, [command, *arguments])
"""

PRINTING = """
import sys
from pathlib import Path
import time

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    for stream in (sys.stdout, sys.stderr):
        print("Training begins", file=stream)
        stream.flush()
    Path("begun").touch()
    gate = context.node_config.get("gate")
    while gate and not Path(str(gate)).exists():
        time.sleep(0.02)
    return message.create_reply(message.content)
"""

CLOSING = """
import sys

from brokerfl.common import Context
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    sys.stdout.close()
    sys.stderr.close()
    driver.wait_for_nodes(9)
"""

HOW = ["closed", "broken", "stuck", *(["full"] if Path("/dev/full").exists() else [])]


def start(commands: Commands, how: str, command: str, *arguments: str) -> Process:
    return commands.start(sys.executable, "-c", STARTER, how, str(SCRIPTS / command), *arguments)


@pytest.mark.parametrize("how", HOW)
def test_a_node_answers_and_ends_as_ever(commands: Commands, broker: Broker, how: str, tmp_path: Path) -> None:
    """Its app prints and flushes, the node logs: messages are answered, the grace is kept, the exit code is right."""
    commands.write("client.py", PRINTING)
    node = start(commands, how, "brokerfl-node", "client:app", *gated(tmp_path / "gate"), "--grace", "0.2")
    server = commands.server("--run-config", "nodes=1")
    eventually((commands.folder / "begun").exists, DEADLINE)
    (tmp_path / "gate").touch()
    assert "Round 1: 1 of 1 replied" in server.ends(0).text
    (tmp_path / "gate").unlink()
    (commands.folder / "begun").unlink()
    commands.server("--run-config", "nodes=1")
    eventually((commands.folder / "begun").exists, DEADLINE)
    node.send(signal.SIGTERM)
    node.ends(143)
    assert listed(commands) == []


@pytest.mark.parametrize("how", HOW)
def test_a_server_ends_as_ever(commands: Commands, broker: Broker, how: str) -> None:
    """Ctrl-C detaches its run and ends with 130, a run that completes with 0, an app that is not there with 3."""
    waiting = start(commands, how, "brokerfl-server", "server:app", "--run-config", "nodes=1 rounds=2")
    eventually(lambda: "running" in runs(commands).values(), DEADLINE)
    waiting.send(signal.SIGINT)
    waiting.ends(130)
    [run] = runs(commands)
    commands.node()
    start(commands, how, "brokerfl-server", "server:app", "--resume", run).ends(0)
    start(commands, how, "brokerfl-server", "server:no_app").ends(3)


def test_an_app_that_closes_the_streams_ends_as_ever(commands: Commands, broker: Broker) -> None:
    """What is said about the end is lost, the run is not: it is detached, with 143."""
    commands.write("server.py", CLOSING)
    server = commands.server()
    run = run_id(server)
    server.send(signal.SIGTERM)
    server.ends(143)
    assert runs(commands) == {run: "detached"}


def test_a_closed_descriptor_is_no_socket(commands: Commands, broker: Broker) -> None:
    """With all three closed, 0 to 2 are the null device, so that what a library prints does not reach Redis."""
    look = "[os.path.samestat(os.fstat(number), os.stat(os.devnull)) for number in range(3)]"
    app = PRINTING.replace('Path("begun").touch()', f'Path("begun").write_text(str({look}))')
    commands.write("client.py", app.replace("import sys", "import os\nimport sys"))
    start(commands, "closed", "brokerfl-node", "client:app")
    commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1")
    assert (commands.folder / "begun").read_text() == "[True, True, True]"


def test_what_is_asked_for_cannot_be_lost_silently(commands: Commands, broker: Broker) -> None:
    """A list that cannot be written is an error, but a run that was stopped is stopped."""
    node_id(commands.node())
    server = commands.server("--run-config", "nodes=9")
    for how in {"full", "broken"}.intersection(HOW):
        start(commands, how, "brokerfl", "nodes").ends(1)
        start(commands, how, "brokerfl", "nodes", "--format", "json").ends(1)
    start(commands, "broken", "brokerfl", "stop", run_id(server)).ends(0)
    server.ends(31)
