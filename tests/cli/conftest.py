"""Real processes: starts the commands, waits for what they print, sends signals, and leaves none behind.

The apps are written to a directory of the test's own, as a user would write them.
"""

import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as redis_py

from tests.conftest import PREFIX, check_keys

#: Seconds until a test gives up waiting. Nothing takes so long, however busy the machine is.
DEADLINE = 50.0

#: Seconds no test waits: a test that passes with such a lease did not wait for it to lapse.
NEVER = "600"

SCRIPTS = Path(sys.executable).parent

CLIENT = '''
"""Sends back what it is sent. With `gate` in its node config it first waits until that file is there."""

import time
from logging import INFO
from pathlib import Path

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    log(INFO, "Training begins")
    gate = context.node_config.get("gate")
    while gate and not Path(str(gate)).exists():
        time.sleep(0.02)
    return message.create_reply(message.content)
'''

SERVER = '''
"""Rounds with all nodes, or with all but the node `without`: `rounds` of them, or until the file `until` is there."""

from itertools import count
from logging import INFO
from pathlib import Path

from brokerfl.common import Context, MessageType, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    config = context.run_config
    nodes = [node for node in driver.wait_for_nodes(int(config["nodes"])) if str(node) != config.get("without")]
    for number in count(1):
        messages = [driver.create_message(RecordSet(), MessageType.TRAIN, node, str(number)) for node in nodes]
        replies = driver.send_and_receive(messages)
        for reply in replies:
            if reply.has_error():
                log(INFO, f"Round {number}: Error {reply.error.code} of {reply.metadata.src_node_id}")
        log(INFO, f"Round {number}: {sum(reply.has_content() for reply in replies)} of {len(messages)} replied")
        if Path(str(config["until"])).exists() if "until" in config else number == config.get("rounds", 1):
            break
'''


class Process:
    """A command that was started. Its output goes to two files, which are read again at each look."""

    def __init__(self, arguments: list[str], folder: Path, env: Mapping[str, str], output: Path) -> None:
        self.command = " ".join(Path(argument).name if i == 0 else argument for i, argument in enumerate(arguments))
        self._files = output.with_suffix(".out"), output.with_suffix(".err")
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self._process = subprocess.Popen(
                arguments, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    @property
    def text(self) -> str:
        return self.out + self.err

    def wait_for(self, pattern: str) -> str:
        """Wait until a line matches; return the first group, or all that matched."""
        until = time.monotonic() + DEADLINE
        while True:
            code = self._process.poll()  # asked before the look: nothing comes after the end
            match = re.search(pattern, self.text, re.MULTILINE)
            if match:
                return match[match.re.groups and 1]
            assert code is None, f"{self.command} ended with {code} and never printed {pattern!r}:\n{self.text}"
            assert time.monotonic() < until, f"{self.command} did not print {pattern!r}:\n{self.text}"
            time.sleep(0.02)

    def send(self, number: signal.Signals, *, until_ended: bool = False) -> None:
        """Send a signal; one that may come too early is sent again until the process has ended."""
        until = time.monotonic() + DEADLINE
        self._process.send_signal(number)
        while until_ended and self._process.poll() is None and time.monotonic() < until:
            self._process.send_signal(number)
            time.sleep(0.02)

    def ends(self, *codes: int) -> "Process":
        """Wait until it ends, with this exit code or one of these."""
        try:
            ended = self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.command} did not end:\n{self.text}")
        assert ended in codes, f"{self.command} ended with {ended}, not {codes}:\n{self.text}"
        return self

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()


class Commands:
    """Starts commands in one directory, with nothing of brokerfl's in their environment but ``env``."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder = folder
        # What a killed command leaves, and what a named node keeps, goes with the test's directory.
        self.env = {"TMPDIR": str(output), "BROKERFL_STATE_DIR": str(output / "state")}
        self._output = output
        self.started: list[Process] = []

    def start(self, command: str, *arguments: str, **env: str) -> Process:
        """Start a command; the variables ``env`` are for it alone."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BROKERFL_")}
        output = self._output / f"{len(self.started)}"
        process = Process([str(SCRIPTS / command), *arguments], self.folder, {**inherited, **self.env, **env}, output)
        self.started.append(process)
        return process

    def nodes(self, count: int, *options: str) -> list[Process]:
        """Start nodes and wait until they serve."""
        processes = [self.start("brokerfl-node", "client:app", *options) for _ in range(count)]
        for process in processes:
            process.wait_for(r"Node \d+ .*serves client:app")
        return processes

    def node(self, *options: str) -> Process:
        """Start a node and wait until it serves."""
        return self.nodes(1, *options)[0]

    def server(self, *options: str) -> Process:
        """Start a ServerApp and wait until its run is there."""
        process = self.start("brokerfl-server", "server:app", *options)
        process.wait_for(r"Run \d+ of server:app started")
        return process

    def run(self, command: str, *arguments: str, code: int = 0, **env: str) -> Process:
        """Run a command to its end, with this exit code."""
        return self.start(command, *arguments, **env).ends(code)

    def write(self, name: str, text: str) -> Path:
        """Write a file into the directory."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def kill(self) -> None:
        for process in self.started:
            process.kill()


def node_id(process: Process) -> str:
    """The id of a node that serves."""
    return process.wait_for(r"Node (\d+) .*serves")


def run_id(process: Process) -> str:
    """The id of a run that was started."""
    return process.wait_for(r"Run (\d+) of .* started")


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Starts commands in a directory with `CLIENT` and `SERVER`; at the end of the test they are gone."""
    made = Commands(tmp_path / "apps", tmp_path)
    made.write("client.py", CLIENT)
    made.write("server.py", SERVER)
    yield made
    made.kill()


@dataclass(frozen=True)
class Broker:
    """A server in use: ``admin`` is a client that may do anything."""

    url: str
    admin: redis_py.Redis

    def scan(self, pattern: str = "*") -> set[str]:
        return {key.decode() for key in self.admin.scan_iter(pattern)}


@pytest.fixture
def broker(valkey_url: str, commands: Commands) -> Iterator[Broker]:
    """The embedded Valkey, empty; ``commands`` find it in their environment. What a test leaves is looked over."""
    admin = redis_py.Redis.from_url(valkey_url)
    admin.flushall()
    commands.env.update(BROKERFL_REDIS_URL=valkey_url, BROKERFL_PREFIX=PREFIX)
    yield Broker(valkey_url, admin)
    commands.kill()
    check_keys(admin)
    admin.close()


def error_of(process: Process) -> str:
    """The one line of an error; there is no traceback, and nothing on standard output."""
    errors = [line for line in process.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, process.text
    assert "Traceback" not in process.text
    assert process.out == ""
    return errors[0]


def gated(gate: Path) -> tuple[str, str]:
    return "--node-config", f"gate='{gate}'"


def listed(commands: Commands) -> list[dict[str, object]]:
    nodes = json.loads(commands.run("brokerfl", "nodes", "--format", "json").out)
    assert isinstance(nodes, list)
    return nodes


def runs(commands: Commands) -> dict[str, str]:
    """The status of each run that has not ended."""
    rows = json.loads(commands.run("brokerfl", "runs", "--format", "json").out)
    return {row["run"]: row["state"] for row in rows}


#: For `stand_in`.
NO_REDIS: dict[bytes, bytes] = {}


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


@contextmanager
def stand_in(answers: dict[bytes, bytes], port: int = 0) -> Iterator[str]:
    """A server that answers with ``answers`` by command; without one it speaks HTTP."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while head := self.rfile.readline():
                words = []
                for _ in range(int(head[1:])):
                    self.rfile.readline()
                    words.append(self.rfile.readline().strip().upper())
                unknown = b"-ERR unknown command\r\n" if answers else b"HTTP/1.1 400 Bad Request\r\n\r\n"
                self.wfile.write(answers.get(words[0], unknown))

    with _Server(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
