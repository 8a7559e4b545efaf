"""Nodes and ServerApps that run for months: systemd, outages at the start, what is stuck, pauses and health."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokerfl.broker import arrival
from brokerfl.broker.connection import Connection
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.cli.exits import Exit
from brokerfl.cli.runfile import RunFile
from brokerfl.cli.systemd import Systemd
from brokerfl.common import ConfigError, RedisUnreachable
from brokerfl.testing import FakeServer, fake_connection
from tests.apps import Clock, eventually
from tests.cli.conftest import DEADLINE, NEVER, Broker, Commands, error_of, gated, node_id, run_id

pytestmark = pytest.mark.timeout(180)


class Manager:
    """A service manager: what services tell it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hears(self, *wanted: str) -> dict[str, str]:
        """Wait for a message with these variables; return all of it."""
        self._socket.settimeout(DEADLINE)
        while True:
            told = dict(line.split("=", 1) for line in self._socket.recv(4096).decode().split("\n"))
            if told.keys() >= {*wanted}:
                return told

    def heard(self) -> bool:
        """Forget what has come; return whether there was anything."""
        self._socket.setblocking(False)
        count = 0
        try:
            while True:
                self._socket.recv(4096)
                count += 1
        except BlockingIOError:
            return count > 0

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """With a socket in the file system, or without a file."""
    made = Manager(str(tmp_path / "notify") if request.param == "file" else f"@brokerfl/{tmp_path}")
    yield made
    made.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that is not there; a node waits for it in the middle of a message."""
    return tmp_path / "gate"


def test_systemd_hears_of_a_node(commands: Commands, broker: Broker, manager: Manager, gate: Path) -> None:
    """That it is ready, that it is alive while a ClientApp is busy, and that it leaves."""
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    node = commands.start("brokerfl-node", "client:app", *gated(gate), "--lease", "0.9", **env)
    assert manager.hears("STATUS")["STATUS"] == "connecting to Redis"
    assert manager.hears("READY") == {
        "READY": "1",
        "STATUS": f"Node {node_id(node)} serves client:app on {broker.url}",
    }
    commands.server("--run-config", "nodes=1")
    node.wait_for("Training begins")
    manager.heard()
    for _ in range(3):
        assert manager.hears("WATCHDOG") == {"WATCHDOG": "1"}
    node.send(signal.SIGTERM)
    assert manager.hears("STOPPING")["STATUS"] == "leaving"
    gate.touch()
    node.ends(0)


def test_a_watchdog_of_what_hangs_is_not_fed(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked at half of the time; and a process that the variables are not for feeds nothing."""
    asked: list[float] = []
    is_alive = True

    def answer(within: float) -> bool:
        asked.append(within)
        return is_alive

    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Systemd().watchdog == 0
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    systemd = Systemd()
    assert systemd.watchdog == 0.04
    assert Systemd().watchdog == 0, "the variables are not passed on"
    systemd.watch(answer)
    assert manager.hears("WATCHDOG") == {"WATCHDOG": "1"}
    is_alive = False
    eventually(lambda: len(asked) > 2)
    count = len(asked)
    eventually(lambda: len(asked) > count + 1)
    manager.heard()
    count = len(asked)
    eventually(lambda: len(asked) > count + 3)
    assert not manager.heard()
    assert set(asked) == {0.02}


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also if its socket is gone."""
    for address in ("", str(tmp_path / "gone")):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        Systemd().tell(READY=1)


#: Moves the clocks of a Python process by as many seconds as a file says.
MOVED = """
import time

def moved(clock):
    def read():
        with open({file!r}) as file:
            return clock() + float(file.read() or 0)
    return read

time.time, time.monotonic = moved(time.time), moved(time.monotonic)
"""


def test_a_day_under_systemd(commands: Commands, tmp_path: Path) -> None:
    """A node that starts before its Redis, is busy, idles through a night without Redis, and then hangs.

    Its watchdog is fed until it hangs, and `node-health` says the same; when Redis is back it serves on.
    """
    manager, clock, gate = Manager(str(tmp_path / "notify")), tmp_path / "clock", tmp_path / "gate"
    clock.write_text("0")
    path = commands.write("clock/sitecustomize.py", MOVED.format(file=str(clock))).parent
    server = EmbeddedServer(data=tmp_path / "data")
    server.start()
    commands.env["BROKERFL_REDIS_URL"] = server.url
    server.stop()
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    env["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    options = ("--name", "site-9", "--wait-for-redis", "--lease", "0.9", *gated(gate))
    node = commands.start("brokerfl-node", "client:app", *options, **env)

    def health(code: Exit, word: str) -> bool:
        probe = commands.start("brokerfl", "node-health", "site-9").ends(Exit.OK, Exit.FAILURE)
        if f"is {word}" not in probe.out:
            return False
        probe.ends(code)
        return True

    try:
        assert manager.hears("STATUS")["STATUS"] == "connecting to Redis"
        node.wait_for("waiting for it")
        server.start()
        manager.hears("READY")
        morning = commands.server("--run-config", "nodes=1")
        node.wait_for("Training begins")
        manager.heard()
        eventually(lambda: health(Exit.OK, "training"), DEADLINE)
        assert manager.hears("WATCHDOG") == {"WATCHDOG": "1"}
        gate.touch()
        morning.ends(0)

        server.stop()
        node.wait_for("waiting until it answers again")
        clock.write_text(str(8 * 3600))
        manager.heard()
        for _ in range(3):
            manager.hears("WATCHDOG")
        server.start()
        node.wait_for(r"is back after 28\d\d\d")
        commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1").wait_for("Round 1: 1 of 1 replied")
        assert "lost its data" not in node.text

        node.send(signal.SIGSTOP)
        eventually(lambda: health(Exit.FAILURE, "lost"), DEADLINE)
        manager.heard()
        assert health(Exit.FAILURE, "lost")
        assert not manager.heard()
        node.send(signal.SIGCONT)
        manager.hears("WATCHDOG")
        eventually(lambda: health(Exit.OK, "ready"), DEADLINE)
        node.send(signal.SIGTERM)
        manager.hears("STOPPING")
        node.ends(0)
    finally:
        commands.kill()
        server.stop()
        manager.close()


# Redis away.


def test_a_node_waits_for_redis(commands: Commands) -> None:
    """At its start, and again later; without the option it ends with 10."""
    server = EmbeddedServer()
    server.start()
    commands.env["BROKERFL_REDIS_URL"] = server.url
    server.stop()
    commands.run("brokerfl-node", "client:app", code=10)
    node = commands.start("brokerfl-node", "client:app", "--wait-for-redis")
    try:
        node.wait_for(r"WARNING +Redis at .* does not answer.*; waiting for it \(0 s so far\)")
        server.start()
        node.wait_for("Redis at .* answers after")
        node.wait_for("serves client:app")
        server.stop()
        node.wait_for("waiting until it answers again")
        server.start()
        node.wait_for("is back after")
        commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1").wait_for("Round 1: 1 of 1 replied")
    finally:
        commands.kill()
        server.stop()


def test_a_night_without_redis_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is asked."""
    clock, attempts = Clock(), 0
    monkeypatch.setattr(arrival, "time", clock)
    morning, made = clock.now + 8 * 3600, fake_connection(FakeServer(), "test")

    def connect() -> Connection:
        nonlocal attempts
        attempts += 1
        if clock.now < morning:
            raise RedisUnreachable("Redis at redis://nowhere does not answer: refused.")
        return made

    assert arrival.await_redis(connect) is made
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "Redis at redis://nowhere does not answer: refused; waiting for it (0 s so far)"
    assert 400 <= len(said) <= 482 < attempts
    assert "answers after 288" in said[-1]


def test_what_waiting_cannot_mend_is_raised() -> None:
    """A wrong URL is wrong in the morning, too."""

    def connect() -> Connection:
        raise ConfigError("no URL")

    with pytest.raises(ConfigError, match="no URL"):
        arrival.await_redis(connect)


# What is stuck.


def test_a_stuck_node_ends_and_goes_on(commands: Commands, broker: Broker, gate: Path) -> None:
    """It ends with 22; after a restart it executes the other run's message, for which it was not to blame."""
    name = ("--name", "site-9", "--workers", "2", "--max-crashes", "1")
    node = commands.node(*name, *gated(gate), "--lease", "0.9", "--exit-when-stuck", "1")
    servers = [commands.server("--run-config", "nodes=1") for _ in range(2)]
    eventually(lambda: node.text.count("Training begins") == 2, DEADLINE)
    commands.run("brokerfl", "stop", run_id(servers[0]))
    servers[0].ends(31)
    assert "Traceback" not in node.ends(22).text
    assert f"of run {run_id(servers[0])} for " in node.wait_for("WARNING +(site-9 .* nobody waits for it any more)")
    assert node.text.count("nobody waits") == 1
    commands.node(*name)
    assert "Round 1: 1 of 1 replied" in servers[1].ends(0).text


# Pauses and health.


def test_a_node_is_paused_and_resumed(commands: Commands, broker: Broker, gate: Path) -> None:
    """By its name; it is paused when it is started again, and healthy all the time."""
    node = commands.node("--name", "site-9", "--lease", "0.9")
    assert "site-9 (" in commands.run("brokerfl", "pause", "site-9").out
    node.wait_for("Paused")
    node.kill()
    eventually(
        lambda: " is lost: " in commands.start("brokerfl", "node-health", "site-9").ends(Exit.OK, Exit.FAILURE).out,
        DEADLINE,
    )
    again = commands.node("--name", "site-9")
    again.wait_for("Paused")
    assert "is paused; its last heartbeat was " in commands.run("brokerfl", "node-health", "site-9").out
    server = commands.server("--run-config", "nodes=1")
    done = json.loads(commands.run("brokerfl", "resume", node_id(again), "--format", "json").out)
    assert done == {"node": node_id(again), "name": "site-9", "state": "resumed"}
    assert "Round 1: 1 of 1 replied" in server.ends(0).text
    assert "Training begins" not in again.text.split("Resumed")[0]


def test_health_tells_busy_from_stuck(commands: Commands, broker: Broker, gate: Path) -> None:
    """A node that executes is healthy, for as long as somebody waits; a name that nobody has is 23."""
    node = commands.node("--name", "site-9", *gated(gate), "--lease", "0.9", "--exit-when-stuck", NEVER)
    server = commands.server("--run-config", "nodes=1")
    node.wait_for("Training begins")
    run = run_id(server)
    busy = "is training: it has executed a message of run"

    def health() -> str:
        return commands.run("brokerfl", "node-health", BROKERFL_NODE_NAME="site-9").out

    eventually(lambda: f"{busy} {run} for " in health(), DEADLINE)
    commands.run("brokerfl", "stop", run)
    eventually(lambda: "and nobody has waited for it for " in health(), DEADLINE)
    unknown = commands.run("brokerfl", "node-health", "site-8", code=23)
    assert error_of(unknown) == "Error: there is no node 'site-8' under the prefix 'test'; see brokerfl nodes"


# Services that resume their run.


def test_a_service_resumes_its_run(commands: Commands, broker: Broker, gate: Path) -> None:
    """As long as the run is not over; then the next start is a new one."""
    file = commands.folder / "run"
    options = ("--run-file", "run", "--run-config", "nodes=1 rounds=2")
    commands.node(*gated(gate))
    first = commands.server(*options)
    assert RunFile(file).read() == run_id(first)
    first.kill()
    second = commands.start("brokerfl-server", "server:app", "--run-file", "run", "--takeover")
    second.wait_for(f"Run {run_id(first)} of server:app resumed")
    gate.touch()
    assert "Round 2: 1 of 1 replied" in second.ends(0).text
    assert not file.exists()
    third = commands.run("brokerfl-server", "server:app", *options)
    assert run_id(third) != run_id(first)
    assert not file.exists()


def test_a_run_that_was_stopped_is_not_started_again(commands: Commands, broker: Broker) -> None:
    """The service that resumes it ends with 30, and the file goes."""
    file = commands.write("run", "5\n")
    assert "5" in error_of(commands.run("brokerfl-server", "server:app", "--run-file", "run", code=30))
    assert not file.exists()
    commands.write("run", "something else")
    assert "holds no run id: delete it" in error_of(
        commands.run("brokerfl-server", "server:app", "--run-file", "run", code=2)
    )
    assert file.exists()
