"""What a node keeps on its disk: it is killed and started again, and what it learned and answered is there."""

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from brokerfl.broker.embedded import EmbeddedServer
from tests.apps import eventually
from tests.cli.conftest import DEADLINE, NEVER, Broker, Commands, Process, error_of, listed, node_id, run_id
from tests.cli.counting import executed_once, executions, open_gate, start_node, total, write_apps
from tests.conftest import PREFIX

pytestmark = pytest.mark.timeout(180)

#: Sends a node one message for each order in the run config, all in one round, and prints what comes back.
ORDERING = """
import json

from brokerfl.common import ConfigsRecord, Context, MessageType, RecordSet
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    [node] = driver.wait_for_nodes(1)
    orders = context.run_config["orders"].split()
    messages = [
        driver.create_message(
            RecordSet(configs_records={"order": ConfigsRecord({"do": order})}), MessageType.TRAIN, node, "1"
        )
        for order in orders
    ]
    by_id = dict(zip(driver.push_messages(messages), orders))
    for reply in driver.replies(by_id):
        told = {"order": by_id[reply.metadata.reply_to_message]}
        if reply.has_error():
            told |= {"error": reply.error.code, "reason": reply.error.reason}
        else:
            told["n"] = reply.content.metrics_records["executed"]["n"]
        print(json.dumps(told), flush=True)
"""


@pytest.fixture(autouse=True)
def apps(commands: Commands) -> None:
    """The example's ServerApp, and a ClientApp that can be held in a round."""
    write_apps(commands)


def state_dir(commands: Commands) -> Path:
    return Path(commands.env["BROKERFL_STATE_DIR"])


def start_server(commands: Commands, rounds: int, *options: str, nodes: int = 1) -> Process:
    config = f"num-rounds={rounds} min-nodes={nodes}"
    return commands.start("brokerfl-server", "server:app", "--run-config", config, *options)


def sum_of(server: Process) -> int:
    """What the ServerApp added up, at its end."""
    return int(server.ends(0).wait_for(r"The sum is (\d+) after"))


def warnings_of(process: Process) -> list[str]:
    return [line for line in process.text.splitlines() if " WARNING  " in line]


# Killed and started again.


def test_a_node_killed_while_it_trains(commands: Commands, broker: Broker) -> None:
    """kill -9 in the middle of round 2: only that message is executed again, and the state counts it once."""
    node = start_node(commands, "berlin", gate=2)
    server = start_server(commands, 3)
    node.wait_for("Round 2 begins")
    node.kill()
    again = start_node(commands, "berlin", gate=2)
    again.wait_for("Round 2 begins")
    open_gate(commands)
    assert sum_of(server) == total(1, 3)
    assert executions(commands, "berlin") == ["1", "2", "2", "3"]
    assert warnings_of(again) == []


def test_a_node_killed_after_its_reply(commands: Commands, broker: Broker) -> None:
    """kill -9 after the reply of round 2: started again it executes nothing twice, and its count goes on at 3."""
    node = start_node(commands, "berlin")
    start_node(commands, "slow", gate=2)
    server = start_server(commands, 3, nodes=2)
    outbox = f"{PREFIX}:{{run:{run_id(server)}}}:out:{node_id(node)}"
    node.wait_for("Round 2 begins")
    inbox = outbox.replace(":out:", ":in:")
    eventually(lambda: broker.admin.xlen(outbox) and not broker.admin.xlen(inbox), DEADLINE)
    node.kill()
    start_node(commands, "berlin")
    open_gate(commands)
    assert sum_of(server) == total(2, 3)
    assert executed_once(commands, "berlin") == ["1", "2", "3"]


def test_a_state_that_was_taken_away(commands: Commands, broker: Broker) -> None:
    """A state directory that was deleted between two starts is said in a warning; the run ends with a new count."""
    node = start_node(commands, "berlin", gate=2)
    server = start_server(commands, 3)
    node.wait_for("Round 2 begins")
    node.kill()
    shutil.rmtree(state_dir(commands))
    again = start_node(commands, "berlin")
    [warning] = warnings_of(again)
    assert "Node 'berlin' used another state directory before: its context.state of current runs" in warning
    assert sum_of(server) == 1 + 1 + 2
    assert executions(commands, "berlin") == ["1", "2", "2", "3"]


def test_a_state_of_another_machine(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """Another --state-dir is said in a warning at the start that changed it, and not again at the next one."""
    node = start_node(commands, "berlin", gate=2)
    server = start_server(commands, 2)
    node.wait_for("Round 2 begins")
    node.kill()
    moved = "--state-dir", str(tmp_path / "moved")
    second = start_node(commands, "berlin", *moved, gate=2)
    assert ["used another state directory before" in line for line in warnings_of(second)] == [True]
    second.wait_for("Round 2 begins")
    second.kill()
    third = start_node(commands, "berlin", *moved, gate=2)
    open_gate(commands)
    assert sum_of(server) == 1 + 1
    assert warnings_of(third) == []


def test_a_state_of_another_redis(commands: Commands, broker: Broker) -> None:
    """A node that is started at another Redis says so and starts afresh; back at the first one, it goes on."""
    node = start_node(commands, "berlin", gate=2)
    server = start_server(commands, 2, "--lease", NEVER)
    node.wait_for("Round 2 begins")
    node.kill()
    with EmbeddedServer() as other:
        there = start_node(commands, "berlin", "--redis", other.url)
        assert ["belongs to another Redis" in line for line in warnings_of(there)] == [True]
        config = "--run-config", "num-rounds=2 min-nodes=1"
        elsewhere = commands.start("brokerfl-server", "server:app", "--redis", other.url, *config)
        assert sum_of(elsewhere) == total(1, 2)
        there.kill()
    back = start_node(commands, "berlin")
    assert sum_of(server) == total(1, 2)
    assert warnings_of(back) == []


# The directory.


def test_a_state_directory_that_cannot_be_written(commands: Commands, broker: Broker) -> None:
    """It ends a node with 21 and one line that names it, be it a file, below a file, or somebody else's."""
    file = commands.write("file", "")
    cases = {str(file): "is a file", str(file / "below"): "cannot be written (Not a directory)"}
    if os.getuid():
        locked = commands.folder / "locked"
        locked.mkdir(mode=0o500)
        cases[str(locked / "below")] = "cannot be written (Permission denied)"
    for path, reason in cases.items():
        code = 2 if path == str(file) else 21  # what is wrong with the first one, click tells
        node = commands.run("brokerfl-node", "client:app", "--name", "berlin", "--state-dir", path, code=code)
        assert path in error_of(node)
        assert reason in error_of(node)


def test_a_journal_that_is_damaged(commands: Commands, broker: Broker) -> None:
    """A file that SQLite cannot read ends a node with 21 and one line that names it; it stays, and the node is gone."""
    start_node(commands, "berlin").kill()
    [journal] = state_dir(commands).glob("*/*.db")
    for file in journal.parent.glob("*.db*"):
        file.unlink()
    journal.write_bytes(b"surely no database " * 1000)
    node = commands.run("brokerfl-node", "client:app", "--name", "berlin", code=21)
    assert error_of(node).startswith(f"Error: the node's journal {journal} cannot be opened (")
    assert error_of(node).endswith("): move it away to start with a new state")
    assert broker.scan("*:lease") == set(), "it seems to be online"
    assert journal.read_bytes() == b"surely no database " * 1000


def test_nodes_share_a_state_directory(commands: Commands, broker: Broker) -> None:
    """Nodes of several names keep their states in one directory, side by side; an unnamed one keeps none there."""
    nodes = [start_node(commands, name) for name in ("berlin", "paris")]
    commands.node("--node-config", "name='unnamed'")
    assert {path.name for path in state_dir(commands).iterdir()} == {node_id(node) for node in nodes}
    server = start_server(commands, 3, nodes=3)
    assert sum_of(server) == total(3, 3)


# Messages that kill their node.


def start_ordering(commands: Commands, orders: str) -> Process:
    commands.write("ordering.py", ORDERING)
    return commands.start(
        "brokerfl-server", "ordering:app", "--run-config", f"orders='{orders}'", "--offline-grace", NEVER
    )


def keep_alive(commands: Commands, server: Process, *options: str) -> list[Process]:
    """Start the node again whenever it dies, as a supervisor does, until the ServerApp has ended; return all starts."""
    arguments = ("client:app", "--name", "berlin", "--node-config", "name='berlin'", *options)
    started = [commands.start("brokerfl-node", *arguments)]
    until = time.monotonic() + DEADLINE
    while server.is_running:
        assert time.monotonic() < until, server.text
        if not started[-1].is_running:
            started.append(commands.start("brokerfl-node", *arguments))
        time.sleep(0.02)
    return started


def told(server: Process) -> dict[str, dict[str, object]]:
    """What came back, by order."""
    return {told["order"]: told for told in map(json.loads, server.ends(0).out.splitlines())}


def node_of(commands: Commands) -> Process:
    """The node that runs."""
    [node] = [process for process in commands.started if process.is_running]
    return node


def dump(commands: Commands) -> list[str]:
    """All that the only journal holds, in SQL."""
    [file] = state_dir(commands).glob("*/*.db")
    with closing(sqlite3.connect(file)) as db:
        return list(db.iterdump())


def dead(commands: Commands, **env: str) -> list[dict[str, Any]]:
    rows = json.loads(commands.run("brokerfl", "dead", "--format", "json", **env).out)
    assert isinstance(rows, list)
    return rows


@pytest.fixture
def killer(commands: Commands, broker: Broker) -> str:
    """The id of a message that was set aside; its node is running, and has counted two others."""
    server = start_ordering(commands, "this exit that")
    keep_alive(commands, server)
    assert told(server)["exit"]["error"] == 8
    [row] = dead(commands)
    return row["message"]


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_message_that_kills_its_node(commands: Commands, broker: Broker, how: str) -> None:
    """After three deaths in it, by os._exit or kill -9, it is Error 8 and set aside; all others are executed once."""
    server = start_ordering(commands, f"before {how} after")
    starts = keep_alive(commands, server)
    assert len(starts) == 1 + 3
    replies = told(server)
    assert [replies[order]["n"] for order in ("before", "after")] == [1, 2]
    assert replies[how]["error"] == 8
    assert f"the message killed berlin ({node_id(starts[0])[:4]}…) 3 times" in str(replies[how]["reason"])
    assert "3 times; it is set aside (brokerfl dead)" in starts[-1].text
    assert len(executions(commands, "berlin")) == 2 + 3
    # The next run has nothing to fear, and no other node.
    assert sum_of(start_server(commands, 2)) == total(1, 2)


def test_max_crashes_is_how_often(commands: Commands, broker: Broker) -> None:
    """With --max-crashes 1 the first death is the last one."""
    server = start_ordering(commands, "kill after")
    starts = keep_alive(commands, server, "--max-crashes", "1")
    assert len(starts) == 1 + 1
    assert told(server)["kill"]["error"] == 8
    assert told(server)["after"]["n"] == 1


def test_an_exception_is_no_death(commands: Commands, broker: Broker) -> None:
    """What a ClientApp raises is Error 2 with --max-crashes 1 too; the node lives, and nothing is set aside."""
    server = start_ordering(commands, "raise after")
    assert len(keep_alive(commands, server, "--max-crashes", "1")) == 1
    assert told(server)["raise"]["error"] == 2
    assert told(server)["after"]["n"] == 1
    assert dead(commands) == []


def test_a_second_signal_is_no_death(commands: Commands, broker: Broker) -> None:
    """SIGTERM twice in the middle of a message ends a node on purpose: with --max-crashes 1 it still is executed."""
    options = "--max-crashes", "1", "--grace", NEVER
    server = start_server(commands, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        node = start_node(commands, "berlin", *options, gate=1)
        node.wait_for("Round 1 begins")
        node.send(number)
        node.wait_for(f"Got {number.name}")
        node.send(number, until_ended=True)
        node.ends(128 + number)
    open_gate(commands)
    start_node(commands, "berlin", *options, gate=1)
    assert sum_of(server) == total(1, 1)
    assert dead(commands) == []


def test_a_grace_that_is_over_is_no_death(commands: Commands, broker: Broker) -> None:
    """A node that left a message behind when its grace was over executes it after the next start."""
    server = start_server(commands, 1)
    options = "--max-crashes", "1", "--grace", "0.2"
    node = start_node(commands, "berlin", *options, gate=1)
    node.wait_for("Round 1 begins")
    node.send(signal.SIGTERM)
    node.ends(143)
    open_gate(commands)
    start_node(commands, "berlin", *options, gate=1)
    assert sum_of(server) == total(1, 1)


# brokerfl dead


def test_dead_lists_what_was_set_aside(commands: Commands, killer: str) -> None:
    """`brokerfl dead` shows a message with node, run, type, group, bytes, deaths and time, as JSON and as a table."""
    [row] = dead(commands)
    server = commands.started[0]
    assert row.pop("at")
    assert int(row.pop("bytes")) > 50
    [folder] = state_dir(commands).iterdir()
    assert row == {
        "message": killer, "node": folder.name, "run": run_id(server), "type": "train", "group": "1", "crashes": 3,
    }  # fmt: skip
    head, line = commands.run("brokerfl", "dead").out.splitlines()
    assert head.split() == ["MESSAGE", "NODE", "RUN", "TYPE", "GROUP", "BYTES", "CRASHES", "AT"]
    assert line.split()[:3] == [killer, folder.name, run_id(server)]
    from_redis = {**row, "type": None, "group": None, "bytes": None, "at": None}
    eventually(
        lambda: [{**each, "at": None} for each in dead(commands, BROKERFL_STATE_DIR="")] == [from_redis], DEADLINE
    )
    node = node_of(commands)
    node.send(signal.SIGTERM)
    node.ends(0)
    assert [row["message"] for row in dead(commands)] == [killer], "not from a journal that was closed"
    [gone] = listed(commands)
    [told] = gone["latest_dead"]
    assert (gone["dead"], told["message"], told["run"], told["crashes"]) == (1, killer, row["run"], 3)
    shown = commands.run("brokerfl", "show", "node", folder.name).out
    assert f"dead        message {killer}, run {row['run'][:4]}…: 3 crashes, " in shown


def test_dead_show_tells_what_a_message_holds(commands: Commands, killer: str) -> None:
    """`brokerfl dead show` prints what the list has, and a line for each value of the content."""
    text = commands.run("brokerfl", "dead", "show", killer).out
    assert f"message   {killer}\n" in text
    assert "crashes   3\n" in text
    assert text.splitlines()[-1].split() == ["configs", "order", "do", "'exit'", "-"]
    shown = json.loads(commands.run("brokerfl", "dead", "show", killer, "--format", "json").out)
    assert shown["message"] == killer
    assert shown["content"] == [
        {"kind": "configs", "record": "order", "name": "do", "value": "'exit'", "bytes": None}
    ]  # fmt: skip


def test_dead_replay_dies_of_the_message(commands: Commands, killer: str) -> None:
    """`brokerfl dead replay` runs the app in its own process: os._exit, an exception and a signal end it, in sight."""
    replay = "brokerfl", "dead", "replay", killer, "client:app", "--node-config", "name='replay'"
    assert "Replaying a train message" in commands.run(*replay, code=7).err
    text = commands.folder.joinpath("client.py").read_text()
    commands.write("client.py", text.replace("os._exit(7)", "raise KeyError('why')"))
    raised = commands.run(*replay, code=4)
    assert f'File "{commands.folder}/client.py"' in raised.err.split("Traceback (most recent call last):\n")[1]
    assert "KeyError: 'why'" in raised.err
    assert "brokerfl/cli" not in raised.err
    commands.write("client.py", text.replace("os._exit(7)", "import ctypes; ctypes.string_at(0)"))
    crashed = commands.run(*replay, code=-signal.SIGSEGV)
    assert "in obey" in crashed.err, "no trace of where Python was"


def test_dead_replay_has_the_state_and_changes_nothing(commands: Commands, broker: Broker, killer: str) -> None:
    """A fixed app is given the run's state as the node has it, twice the same; Redis and journal stay as they were."""
    text = commands.folder.joinpath("client.py").read_text()
    commands.write("client.py", text.replace("os._exit(7)", "return"))
    node_of(commands).kill()  # it may still learn that the run is over
    before, keys = dump(commands), broker.scan()
    replay = "brokerfl", "dead", "replay", killer, "client:app", "--node-config", "name='replay'"
    for _ in range(2):
        out = commands.run(*replay, BROKERFL_REDIS_URL="redis://127.0.0.1:1").out
        assert out.splitlines()[-1].split() == ["metrics", "executed", "n", "3", "-"]
    assert dump(commands) == before
    assert broker.scan() <= keys  # the lease of the node may have lapsed


def test_dead_forget_deletes_it(commands: Commands, killer: str) -> None:
    """`brokerfl dead forget` takes a message out of the journal of a node that runs, which goes on undisturbed."""
    assert commands.run("brokerfl", "dead", "forget", killer).out == f"Message {killer} is deleted.\n"
    assert dead(commands) == []
    assert sum_of(start_server(commands, 2)) == total(1, 2)


def test_dead_needs_a_message_that_is_there(commands: Commands, killer: str, tmp_path: Path) -> None:
    """An id that nothing has ends each command with 2 and one line that names it and the directory."""
    for command in (("show", "abc"), ("forget", "abc"), ("replay", "abc", "client:app")):
        process = commands.run("brokerfl", "dead", *command, code=2)
        assert error_of(process).startswith(f"Error: there is no dead message abc in {state_dir(commands)}: ")
    other = str(tmp_path / "other")
    assert commands.run("brokerfl", "dead", "--state-dir", other).out == f"no dead messages in {other}\n"
    for command in (("dead", "--state-dir", other, "show", killer), ("dead", "show", killer, "--state-dir", other)):
        assert f"no dead message {killer} in {other}: " in error_of(commands.run("brokerfl", *command, code=2))
    typed = ("dead", "--state-dir", str(state_dir(commands)), "show", killer)
    commands.run("brokerfl", *typed, BROKERFL_STATE_DIR=other)
