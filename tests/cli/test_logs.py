"""The log of a node and a ServerApp: its lines, its file, and what it says of each message."""

import json
import re
import signal
from pathlib import Path
from typing import Any

from tests.cli.conftest import Broker, Commands, error_of, node_id, run_id

APP = """
import threading

from brokerfl.common import Context, MessageType, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    [node] = driver.wait_for_nodes(1)
    thread = threading.Thread(target=log, args=(20, "In a thread"))
    thread.start()
    thread.join()
    driver.send_and_receive([driver.create_message(RecordSet(), MessageType.TRAIN, node, "1")])
    driver.checkpoint()
    raise KeyError("enough")
"""

CLOSED = ("--redis", "redis://127.0.0.1:1")

#: What a message that goes well goes through.
ON_THE_SERVER = ["accepted", "answered", "handed over", "settled"]
ON_THE_NODE = ["received", "executing", "executed", "published"]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_and_files(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """With json and --verbose every line parses and knows its ids, in the file as on the console; also how it ended."""
    commands.write("server.py", APP)
    files = tmp_path / "node.log", tmp_path / "server.log"
    node = commands.node("--name", "site-7", "--log-format", "json", "--verbose", "--log-file", str(files[0]))
    server = commands.start(
        "brokerfl-server", "server:app", "--verbose", BROKERFL_LOG_FORMAT="json", BROKERFL_LOG_FILE=str(files[1])
    ).ends(4)
    run, named = run_id(server), node_id(node)
    node.send(signal.SIGTERM)
    node.ends(0)
    assert [file.read_text() for file in files] == [node.err, server.err]

    of_server, of_node = lines(server.err), lines(node.err)
    steps = [each for each in of_server if each["event"]]
    assert [each["event"] for each in steps] == ON_THE_SERVER
    assert {(each["run"], each["node"]) for each in steps} == {(run, named)}
    [message] = {each["message_id"] for each in steps}
    assert {each["run"] for each in of_server} == {run}
    assert "In a thread" in [each["message"] for each in of_server]
    trace, end = (each["message"] for each in of_server[-2:])
    assert trace.endswith("KeyError: 'enough'")
    assert end.startswith(f"Run {run} is detached: main raised KeyError: 'enough'\n")

    assert {(each["node"], each["node_name"]) for each in of_node} == {(named, "site-7")}
    of_message = [each for each in of_node if each["message_id"]]
    assert [each["event"] for each in of_message if each["event"]] == ON_THE_NODE
    assert {(each["run"], each["message_id"]) for each in of_message} == {(run, message)}
    assert "Training begins" in [each["message"] for each in of_message]


def test_text(commands: Commands, broker: Broker) -> None:
    """Without options: time, level, message and short ids; no line for each message."""
    node = commands.node("--name", "site-7")
    server = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1")
    node.send(signal.SIGTERM)
    every = (node.ends(0).err + server.err).splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO     \w", line) for line in every)
    run = f"run {run_id(server)[:4]}…"
    [begins] = [line for line in every if "Training begins" in line]
    assert re.search(rf"INFO     Training begins \[{run} node site-7 message [0-9a-f]{{8}}…\]$", begins)
    assert f"Round 1: 1 of 1 replied [{run}]" in server.err


def test_files_that_cannot_be_used(commands: Commands, tmp_path: Path) -> None:
    """One line names the file, with exit code 2, before anything else is done."""
    missing = tmp_path / "none" / "log"
    for command, app in (("brokerfl-node", "client:app"), ("brokerfl-server", "server:app")):
        refused = commands.run(command, app, "--log-file", str(missing), *CLOSED, code=2)
        assert error_of(refused).startswith(
            f"Error: the log file {missing} cannot be opened (No such file or directory)"
        )
