"""`brokerfl runs`, `nodes`, `show`: what an operator reads, and what a script does."""

import json
import re
from datetime import datetime

import pytest

from brokerfl.cli.exits import Exit
from tests.apps import eventually
from tests.cli.conftest import DEADLINE, Broker, Commands, error_of, gated, node_id, run_id

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

RUN_COLUMNS = ["RUN", "NAME", "APP", "STATE", "ROUND", "ANSWERED", "ERRORS", "WAITING FOR", "AGE", "MEMORY", "WHY"]

NODE_COLUMNS = [
    "NODE", "NAME", "STATE", "SEEN", "DOING", "SINCE", "QUEUE", "LAST", "MEDIAN", "ERRORS", "DEAD", "LAST ERROR", "APP",
    "HOST", "LABELS",
]  # fmt: skip


def rows(commands: Commands, *arguments: str) -> list[dict[str, object]]:
    parsed = json.loads(commands.run("brokerfl", *arguments, "--format", "json").out)
    assert isinstance(parsed, list)
    return parsed


def table(commands: Commands, *arguments: str) -> list[dict[str, str]]:
    """The rows of a table, split as awk would, by their titles."""
    head, *lines = (re.split("  +", line) for line in commands.run("brokerfl", *arguments).out.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_nothing_there_is_said_in_a_line(commands: Commands, broker: Broker) -> None:
    """Without runs and nodes each command prints a line that helps on, and json is an empty list."""
    expected = {
        ("runs",): "no runs; --all also lists those that have ended\n",
        ("runs", "--all"): "no runs\n",
        ("runs", "--state", "stuck"): "no runs in this state\n",
        ("nodes",): "no nodes; brokerfl-node client:app starts one\n",
        ("runs", "--format", "json"): "[]\n",
        ("nodes", "--format", "json"): "[]\n",
    }
    started = {arguments: commands.start("brokerfl", *arguments) for arguments in expected}
    assert {arguments: process.ends(0).out for arguments, process in started.items()} == expected


#: A ServerApp that pushes one message of 1 MiB, and waits for its reply.
LARGE = """
import numpy as np
from brokerfl.common import Array, MessageType, ParametersRecord, RecordSet
from brokerfl.server import ServerApp

app = ServerApp()

@app.main()
def main(driver, context):
    [node] = driver.wait_for_nodes(1)
    content = RecordSet({"model": ParametersRecord({"w": Array(np.random.default_rng(1).random(2**17))})})
    ids = driver.push_messages([driver.create_message(content, MessageType.TRAIN, node, "1")])
    print("Pushed", flush=True)
    list(driver.replies(ids))
"""

PARTS = ("contents", "inboxes", "outboxes", "chunks", "context", "books")


def test_runs_counts_what_happened(commands: Commands, broker: Broker) -> None:
    """A run shows its id, state, app, holder, and counts nodes, messages, settled replies, also after its end."""
    commands.write("counting.py", COUNTING)
    commands.nodes(2)
    server = commands.start("brokerfl-server", "counting:a_long_name_for_an_app", "--run-config", "lr=0.1 big=true")
    server.wait_for("^Pushed$")
    [row] = rows(commands, "runs", "--state", "running", "--state", "waiting")
    assert datetime.fromisoformat(str(row["started"])).tzinfo is not None
    assert str(row["holder"]).startswith(f"process {server.pid} on ")
    expected = {
        "run": run_id(server), "state": "running", "app": "counting:a_long_name_for_an_app", "ended": None,
        "nodes": 2, "messages": 3, "replies": 2, "config": {"lr": 0.1, "big": True},
    }  # fmt: skip
    assert row == {**row, **expected}
    [cells] = table(commands, "runs")
    assert [*cells] == RUN_COLUMNS
    assert run_id(server).startswith(cells["RUN"])
    assert (cells["NAME"], cells["APP"]) == ("lr=0.1 big=true", "counting:a_long_name_for_an_app")
    shown = commands.run("brokerfl", "show", cells["RUN"]).out
    assert f"run         {run_id(server)}\n" in shown
    assert json.loads(commands.run("brokerfl", "show", "run", cells["RUN"], "--format", "json").out)["messages"] == 3
    commands.write("go", "")
    server.ends(0)
    assert rows(commands, "runs") == rows(commands, "runs", "--all", "--state", "running") == []
    [row] = rows(commands, "runs", "--all")
    assert datetime.fromisoformat(str(row["ended"])).tzinfo is not None
    assert row == {**row, **expected, "state": "completed", "ended": row["ended"]}
    [cells] = table(commands, "runs", "--state", "completed")
    assert [*cells] == RUN_COLUMNS
    assert re.match("completed .* ago", cells["WHY"])


def test_what_runs_hold(commands: Commands, broker: Broker) -> None:
    """The largest first, also while Redis is full and no ServerApp is alive; what has ended holds nothing."""
    commands.write("large.py", LARGE)
    commands.node("--name", "site-1", *gated(commands.folder / "gate"))
    small = commands.server("--run-config", "nodes=1")
    large = commands.start("brokerfl-server", "large:app")
    large.wait_for("^Pushed$")
    for process in (large, small):
        process.kill()
    broker.admin.config_set("maxmemory", 1)
    try:
        found = [(row["run"], row["held"]) for row in rows(commands, "runs", "--memory")]
        cells = table(commands, "runs", "--memory")
        shown = commands.run("brokerfl", "show", run_id(large)).out
    finally:
        broker.admin.config_set("maxmemory", 0)
    assert [run for run, _ in found] == [run_id(large), run_id(small)]
    for _, held in found:
        assert [*held] == ["total", *PARTS]
        assert held["total"] == sum(held[part] for part in PARTS)
    assert 2**20 <= found[0][1]["contents"] <= 2**20 * 1.1
    assert found[1][1]["contents"] == 0
    assert [*cells[0]] == ["RUN", "NAME", "STATE", "NODES", "TOTAL", *(part.upper() for part in PARTS)]
    assert (cells[0]["CONTENTS"], cells[1]["CONTENTS"]) == ("1M", "0")
    assert re.search(r"^holds       1(\.\d)?M in Redis: contents 1M, ", shown, re.MULTILINE)
    assert [row["held"] for row in rows(commands, "runs")] == [None, None]
    for run in found:
        commands.run("brokerfl", "stop", run[0])
    assert [row["held"] for row in rows(commands, "runs", "--memory", "--all")] == [None, None]


def test_tables_never_cut_what_can_be_copied(commands: Commands, broker: Broker) -> None:
    """In a pipe every row is one line with the whole name and label, however narrow the terminal is said to be.

    Each column is there, and is found at its place.
    """
    label = "purpose=" + "x" * 300
    commands.env["COLUMNS"] = "40"
    name = "a node [bold]with[/bold] a long name"
    node = commands.node("--name", name, "--label", label, "--label", "gpu=yes")
    commands.server("--run-config", "nodes=9")
    [cells] = table(commands, "nodes")
    assert [*cells] == NODE_COLUMNS
    assert node_id(node).startswith(cells["NODE"])
    assert (cells["NAME"], cells["STATE"], cells["LABELS"]) == (name, "ready", f"{label} gpu=yes")
    [cells] = table(commands, "runs")
    assert [*cells] == RUN_COLUMNS
    assert (cells["NAME"], cells["APP"]) == ("nodes=9", "server:app")


def test_a_node_that_is_gone_can_be_forgotten(commands: Commands, broker: Broker) -> None:
    """It shows as lost, also alone, until then; one that serves is not forgotten, and the text says why."""
    gone = commands.node("--name", "gone", "--lease", "0.9")
    commands.node("--name", "zulu")
    gone.kill()
    eventually(lambda: not broker.scan(f"*{node_id(gone)}*:lease"), DEADLINE)
    assert [(row["name"], row["state"]) for row in rows(commands, "nodes")] == [("gone", "lost"), ("zulu", "ready")]
    shown = commands.run("brokerfl", "show", "node", "gone").out
    assert f"node        {node_id(gone)}\n" in shown
    assert json.loads(commands.run("brokerfl", "show", "node", "zulu", "--format", "json").out)["online"] is True
    refused = commands.start("brokerfl", "nodes", "forget", "zulu")
    assert "is online" in error_of(refused.ends(Exit.NODE_ONLINE))
    text = commands.run("brokerfl", "nodes", "forget", node_id(gone)[:8]).out
    assert text == f"gone ({node_id(gone)[:4]}…) is forgotten.\n"
    assert [row["name"] for row in rows(commands, "nodes")] == ["zulu"]
    again = commands.run("brokerfl", "nodes", "forget", "gone", code=Exit.NODE_NOT_FOUND)
    assert "there is no node 'gone'" in error_of(again)


WRONG = {
    ("stop", "abc"): (Exit.RUN_NOT_FOUND, "there is no run 'abc' under the prefix 'test'; see brokerfl runs"),
    ("show", "abc"): (Exit.RUN_NOT_FOUND, "there is no run 'abc'"),
    ("show", "12345"): (Exit.RUN_NOT_FOUND, "there is no run 12345"),
    ("show", "node", "abc"): (Exit.NODE_NOT_FOUND, "there is no node 'abc' under the prefix 'test'; see brokerfl node"),
    ("show", "a", "b"): (Exit.USAGE, "'a b' is neither RUN nor node NODE: quote a name with blanks"),
    ("show",): (Exit.USAGE, "Missing argument 'RUN | node NODE'"),
    ("nodes", "--prefix", "x", "forget", "a"): (Exit.USAGE, "--prefix belongs behind forget: brokerfl nodes forget "),
    ("runs", "--state", "dead"): (Exit.USAGE, "Invalid value for '--state': 'dead' is not one of 'running', 'waiting'"),
}


def test_what_cannot_be_found_or_read(commands: Commands, broker: Broker) -> None:
    """One line that says what is wrong and what to do."""
    started = {arguments: commands.start("brokerfl", *arguments) for arguments in WRONG}
    for arguments, process in started.items():
        code, text = WRONG[arguments]
        assert error_of(process.ends(code)).startswith(f"Error: {text}"), arguments
