"""`brokerfl runs`, `nodes`, `stop`: what an operator reads, and what a script does."""

import json
from datetime import datetime

import pytest

from tests.apps import eventually
from tests.cli.conftest import DEADLINE, Broker, Commands, node_id, run_id

pytestmark = pytest.mark.timeout(180)

COUNTING = '''
import time
from pathlib import Path

from brokerfl.common import Context, MessageType, RecordSet
from brokerfl.server import Driver, ServerApp

a_long_name_for_an_app = app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Two messages that are answered, a third that is left open, and a wait."""
    nodes = driver.wait_for_nodes(2)
    for group, chosen in (("1", nodes), ("2", nodes[:1])):
        ids = driver.push_messages(
            driver.create_message(RecordSet(), MessageType.TRAIN, node, group) for node in chosen
        )
        if group == "1":
            assert len(list(driver.replies(ids))) == 2
    print("Pushed", flush=True)
    while not Path("go").exists():
        time.sleep(0.02)
    list(driver.replies(ids))
'''


def rows(commands: Commands, *arguments: str) -> list[dict[str, object]]:
    parsed = json.loads(commands.run("brokerfl", *arguments, "--format", "json").out)
    assert isinstance(parsed, list)
    return parsed


def test_nothing_there_is_said_in_a_line(commands: Commands, broker: Broker) -> None:
    """Without runs and nodes each command prints a line that helps on, and json is an empty list."""
    expected = {
        ("runs",): "no runs; --all also lists those that have ended\n",
        ("runs", "--all"): "no runs\n",
        ("nodes",): "no nodes; brokerfl-node client:app starts one\n",
        ("runs", "--format", "json"): "[]\n",
        ("nodes", "--format", "json"): "[]\n",
    }
    started = {arguments: commands.start("brokerfl", *arguments) for arguments in expected}
    assert {arguments: process.ends(0).out for arguments, process in started.items()} == expected


def test_runs_counts_what_happened(commands: Commands, broker: Broker) -> None:
    """A run shows its id, status, app, holder, and counts nodes, messages, settled replies; once ended only its end."""
    commands.write("counting.py", COUNTING)
    commands.nodes(2)
    server = commands.start("brokerfl-server", "counting:a_long_name_for_an_app")
    server.wait_for("^Pushed$")
    [row] = rows(commands, "runs")
    assert datetime.fromisoformat(str(row.pop("started"))).tzinfo is not None
    assert str(row.pop("holder")).startswith(f"process {server.pid} on ")
    assert row == {
        "run": run_id(server), "status": "running", "app": "counting:a_long_name_for_an_app", "ended": None,
        "nodes": 2, "messages": 3, "replies": 2,
    }  # fmt: skip
    commands.write("go", "")
    server.ends(0)
    [row] = rows(commands, "runs", "--all")
    assert datetime.fromisoformat(str(row.pop("ended"))).tzinfo is not None
    assert row == {
        "run": run_id(server), "status": "completed", "app": "", "started": None, "holder": "",
        "nodes": None, "messages": None, "replies": None,
    }  # fmt: skip


def test_tables_never_cut_what_can_be_copied(commands: Commands, broker: Broker) -> None:
    """In a pipe every row is one line with the whole id, name and label, however narrow the terminal is said to be."""
    label = "purpose=" + "x" * 300
    commands.env["COLUMNS"] = "40"
    node = commands.node("--name", "a node [bold]with[/bold] a long name", "--label", label, "--label", "gpu=yes")
    server = commands.server("--run-config", "nodes=9")
    head, row = commands.run("brokerfl", "nodes").out.splitlines()
    assert head.split() == ["node", "status", "name", "app", "labels", "version", "since"]
    for text in (node_id(node), "online", "a node [bold]with[/bold] a long name", f"{label} gpu=yes"):
        assert text in row
    head, row = commands.run("brokerfl", "runs").out.splitlines()
    assert head.split()[:4] == ["run", "status", "app", "started"]
    for text in (run_id(server), "running", "server:app", f"process {server.pid} on "):
        assert text in row


def test_nodes_lists_those_online_first(commands: Commands, broker: Broker) -> None:
    """A named node that was killed shows as offline, after those that serve."""
    gone = commands.node("--name", "gone", "--lease", "0.9")
    commands.node("--name", "zulu")
    gone.kill()
    eventually(lambda: not broker.scan(f"*{node_id(gone)}*:lease"), DEADLINE)
    listed = [(row["name"], row["status"]) for row in rows(commands, "nodes")]
    assert listed == [("zulu", "online"), ("gone", "offline")]
