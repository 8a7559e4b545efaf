"""A Redis that goes away, comes back empty, or is full: what the commands say and how they end."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from brokerfl.broker.embedded import EmbeddedServer
from tests.apps import append_only_file, eventually, written_size
from tests.cli.conftest import Broker, Commands, Process, error_of, run_id, stand_in

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("valkey_url")]


THREADS = '''
"""Eight threads that ask Redis for as long as the run lasts."""

from concurrent.futures import ThreadPoolExecutor
from logging import INFO

from brokerfl.common import Context, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


def ask(driver: Driver) -> None:
    while True:
        driver.get_node_ids()


@app.main()
def main(driver: Driver, context: Context) -> None:
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, driver) for _ in range(8)]
        log(INFO, "All threads ask")
        [each.result() for each in asking]
'''


@pytest.fixture
def server(commands: Commands) -> Iterator[EmbeddedServer]:
    """A server of the test's own, without persistence, that may be stopped and started; ``commands`` use it."""
    made = EmbeddedServer()
    made.start()
    commands.env["BROKERFL_REDIS_URL"] = made.url
    yield made
    commands.kill()
    made.stop()


def in_a_round(commands: Commands, *options: str, name: str = "") -> tuple[Process, Process]:
    """A node in the middle of a message and the ServerApp that waits for it."""
    node = commands.node("--node-config", "gate='gate'", *(["--name", name] if name else []))
    server_app = commands.server("--run-config", "nodes=1", *options)
    node.wait_for("Training begins")
    return node, server_app


def test_signals_end_commands_without_redis(commands: Commands, server: EmbeddedServer) -> None:
    """While Redis is away SIGTERM still ends a node with 0 and detaches a ServerApp with 143; both say what is lost."""
    node, server_app = in_a_round(commands)
    idle = commands.node()
    server.stop()
    for process in (server_app, idle):
        process.wait_for(r"WARNING +Redis at .* does not answer.*waiting until it answers again")
        process.send(signal.SIGTERM)
    assert "The node left, but could not tell Redis" in idle.ends(0).text
    assert f"brokerfl stop {run_id(server_app)}" in server_app.ends(143).err
    node.send(signal.SIGTERM)
    node.wait_for("Got SIGTERM")
    commands.write("gate", "")
    assert "The node left, but could not tell Redis" in node.ends(0).text
    assert not any("Traceback" in process.text for process in commands.started)


def test_a_node_leaves_when_its_grace_is_over_also_without_redis(commands: Commands, server: EmbeddedServer) -> None:
    """It cannot tell Redis that it leaves, and ends with 143 all the same."""
    node = commands.node("--node-config", "gate='gate'", "--grace", "0.2")
    commands.server("--run-config", "nodes=1")
    node.wait_for("Training begins")
    server.stop()
    node.send(signal.SIGTERM)
    assert "leaving without it" in node.ends(143).text


def test_an_outage_that_is_too_long_detaches_the_run(commands: Commands, server: EmbeddedServer) -> None:
    """After --outage-limit the ServerApp ends with 10 and says how to resume the run; the node waits on."""
    node, server_app = in_a_round(commands, "--outage-limit", "0.3")
    server.stop()
    text = server_app.ends(10).err
    assert f"Run {run_id(server_app)} is detached: Redis was unreachable for more than 0.3 s: " in text
    assert f"brokerfl-server server:app --resume {run_id(server_app)}" in text
    assert "Traceback" not in text
    commands.write("gate", "")
    node.wait_for("waiting until it answers again")


#: Waits with a checkpoint behind it; a resumed main goes on from there.
RESUMABLE = """
from brokerfl.common import ConfigsRecord, MessageType, RecordSet
from brokerfl.server import ServerApp

app = ServerApp()

@app.main()
def main(driver, context):
    lives = int(context.state.configs_records.get("lives", {"n": 0})["n"]) + 1
    print(f"Life {lives}", flush=True)
    context.state.configs_records["lives"] = ConfigsRecord({"n": lives})
    driver.checkpoint()
    [node] = driver.wait_for_nodes(1)
    [reply] = driver.send_and_receive([driver.create_message(RecordSet(), MessageType.TRAIN, node, "1")])
    print("Replied" if reply.has_content() else reply.error, flush=True)
"""


def test_a_run_comes_back_by_itself_after_an_outage(commands: Commands, tmp_path: Path) -> None:
    """With --restart-on-outage: same run, same process, with the saved state; no node trains twice; and it ends with 0.

    The Redis is killed, and comes back with its file.
    """
    commands.write("resumable.py", RESUMABLE)
    with EmbeddedServer(data=tmp_path / "data") as server:
        commands.env["BROKERFL_REDIS_URL"] = server.url
        node = commands.node("--node-config", "gate='gate'", "--name", "hospital-1")
        options = ("--restart-on-outage", "--outage-limit", "0.3", "--lease", "0.9")
        server_app = commands.start("brokerfl-server", "resumable:app", *options)
        node.wait_for("Training begins")
        with Redis.from_url(server.url) as admin:
            written_size(admin, tmp_path / "data")
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server_app.wait_for(f"Run {run_id(server_app)} is detached until Redis answers: Redis was unreachable for more")
        server_app.wait_for("waiting for it")
        assert server_app.is_running
        server.start()
        server_app.wait_for("^Life 2$")
        commands.write("gate", "")
        server_app.ends(0)
        assert server_app.out.splitlines() == ["Life 1", "Life 2", "Replied"]
        assert server_app.text.count(f"Run {run_id(server_app)} of resumable:app resumed") == 1
        assert "To resume it" not in server_app.text
        assert node.text.count("Training begins") == 1
        commands.kill()


def test_what_waits_for_redis_to_come_back_can_be_stopped(commands: Commands, server: EmbeddedServer) -> None:
    """By a signal; and if Redis comes back without the run, it ends as a resume of a run that is not there."""
    options = ("--run-config", "nodes=9", "--outage-limit", "0.3", "--restart-on-outage")
    waiting = [commands.server(*options) for _ in range(2)]
    server.stop()
    for process in waiting:
        process.wait_for("waiting for it")
    waiting[0].send(signal.SIGTERM)
    waiting[0].ends(143)
    server.start()
    assert f"there is no run {run_id(waiting[1])}" in waiting[1].ends(30).err


def test_a_redis_that_lost_its_data_ends_the_run(commands: Commands, server: EmbeddedServer) -> None:
    """After a restart without data the ServerApp ends with 32 and one line; the node starts afresh by itself."""
    node, server_app = in_a_round(commands, name="hospital-1")
    server.stop()
    server_app.wait_for("waiting until it answers again")
    server.start()
    last = server_app.ends(32).err.splitlines()[-1]
    assert last == f"Error: Redis lost its data, and run {run_id(server_app)} with them"
    assert "Traceback" not in server_app.text
    commands.write("gate", "")
    node.wait_for("WARNING +Redis at .* lost its data or was replaced; the node starts with a new state")
    assert "Round 1: 1 of 1 replied" in commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1").text
    assert node.text.count("Training begins") == 2


def test_a_redis_that_forgot_its_last_writes_does_not(commands: Commands, tmp_path: Path) -> None:
    """After kill -9 of a Redis whose file ends before the run, the run goes on; each message is executed once."""
    with EmbeddedServer(data=tmp_path / "data") as server:
        commands.env["BROKERFL_REDIS_URL"] = server.url
        node = commands.node("--node-config", "gate='gate'", "--name", "hospital-1")
        with Redis.from_url(server.url) as admin:
            size = written_size(admin, tmp_path / "data")
        server_app = commands.server("--run-config", "nodes=1 rounds=2")
        node.wait_for("Training begins")
        os.kill(server.pid, signal.SIGKILL)
        server_app.wait_for("waiting until it answers again")
        server.stop()
        os.truncate(append_only_file(tmp_path / "data"), size)
        server.start()
        server_app.wait_for(f"Redis had lost its last writes; run {run_id(server_app)} was restored")
        commands.write("gate", "")
        assert server_app.ends(0).text.count(": 1 of 1 replied") == 2
        assert node.text.count("Training begins") == 2
        commands.kill()


def test_a_full_redis_is_named(commands: Commands, broker: Broker) -> None:
    """A server at its maxmemory ends the start of a run with 14 and one line."""
    broker.admin.config_set("maxmemory", 1)
    try:
        process = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1", code=14)
    finally:
        broker.admin.config_set("maxmemory", 0)
    assert error_of(process).startswith(f"Error: {broker.url} is full (maxmemory): ")


def test_a_signal_ends_commands_while_redis_is_frozen(commands: Commands, server: EmbeddedServer) -> None:
    """Eight threads that ask a Redis that says nothing end together, not one after the other; so do eight workers."""
    commands.write("threads.py", THREADS)
    idle, busy = commands.node(), commands.node("--workers", "8", "--node-config", "gate='gate'")
    commands.server("--run-config", "nodes=2")
    busy.wait_for("Training begins")
    server_app = commands.start("brokerfl-server", "threads:app")
    server_app.wait_for("All threads ask")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        server_app.wait_for("waiting until it answers again")
        commands.write("gate", "")
        for process in (server_app, idle, busy):
            process.send(signal.SIGTERM)
        assert "is detached: got SIGTERM" in server_app.ends(143).err
        for node in (idle, busy):
            assert "The node left, but could not tell Redis" in node.ends(0).text
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_replica_is_told_apart_from_silence(commands: Commands, server: EmbeddedServer) -> None:
    """At the start, node and ServerApp say what it is and what to do, and do not ask whether it is running."""
    with Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
    for command, app in (("brokerfl-node", "client:app"), ("brokerfl-server", "server:app")):
        process = commands.run(command, app, code=10)
        expected = "takes no writes: it is a replica: name its primary, or promote it with REPLICAOF NO ONE"
        assert error_of(process) == f"Error: Redis at {server.url} {expected}"
        assert "Is it running?" not in process.text


class Garbage(dict[bytes, bytes]):
    """The answers of a web server, counted."""

    met = 0

    def get(self, word: bytes, default: bytes) -> bytes:  # type: ignore[override]
        self.met += 1
        return default


def test_a_node_outlives_a_proxy_that_answers_garbage(commands: Commands, server: EmbeddedServer) -> None:
    """A web server on the port for a while: it is said once, and the node serves on when Redis is back."""
    node, garbage = commands.node(), Garbage()
    server.stop()
    with stand_in(garbage, port=int(server.url.rpartition(":")[2])):
        eventually(lambda: garbage.met > 3 or not node.is_running)
        assert len(re.findall("WARNING +.*; waiting until", node.text)) == 1
    server.start()
    assert "Round 1: 1 of 1 replied" in commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1").text
    assert node.is_running
    assert "Traceback" not in node.text
