"""A node with a gate, an audit file and a review, as real processes; and the commands of its site."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from brokerfl.cli.exits import Exit
from brokerfl.cli.main import main
from brokerfl.client.gate_folder import GateFolder
from tests.apps import eventually
from tests.cli.conftest import DEADLINE, SCRIPTS, Broker, Commands, Process, error_of, node_id, run_id

ASK, ALL = '["*"]\napprove = "ask"\n', '["*"]\napprove = "always"\n'

#: Rounds over two runs; each reply is noted when it is there.
SERVER = """
from pathlib import Path

from brokerfl.common import Context, MetricsRecord, RecordSet
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    nodes = driver.wait_for_nodes(1)
    for number in range(int(context.run_config["rounds"])):
        content = RecordSet(metrics_records={"m": MetricsRecord({"n": number})})
        messages = [driver.create_message(content, "train", nodes[0], str(number)) for _ in range(5)]
        for reply in driver.send_and_receive(messages):
            with Path(str(context.run_config["replies"])).open("a") as file:
                outcome = "error" if reply.has_error() else "reply"
                file.write(f"{reply.metadata.reply_to_message} {outcome}\\n")
"""


@pytest.fixture
def gate(commands: Commands) -> Path:
    """A gate that asks about each run."""
    return commands.write("gate.toml", ASK)


def named(*options: str) -> tuple[str, ...]:
    return "--name", "site-7", "--gate", "gate.toml", *options


def output(commands: Commands, *words: str) -> str:
    """What a command prints, in this process: it takes a second to start one."""
    done = CliRunner(env=commands.env).invoke(main, words)
    assert done.exit_code == 0, done.output
    return done.output


def listed(commands: Commands) -> list[dict[str, Any]]:
    rows = json.loads(output(commands, "gate", "list", "--format", "json"))
    assert isinstance(rows, list)
    return rows


def audit_of(commands: Commands, node: Process) -> Path:
    return Path(commands.env["BROKERFL_STATE_DIR"]) / node_id(node) / "audit.jsonl"


def test_a_site_approves_and_denies(commands: Commands, broker: Broker, gate: Path) -> None:
    """What waits is seen on both sides; an approval lets the run go on, a denial ends it with Errors."""
    node = commands.node(*named("--lease", "0.9"))
    first = commands.server("--run-config", "nodes=1 lr=0.1", "--run-name", "tuning", "--lease", "0.9")
    run = run_id(first)
    eventually(lambda: listed(commands), DEADLINE)
    [row] = listed(commands)
    assert (row["run"], row["node"], row["state"], row["name"]) == (run, node_id(node), "pending", "tuning")
    assert (row["app"], row["type"], row["config"]) == ("server:app", "train", {"nodes": 1, "lr": 0.1})
    assert row["why"] == "each run of its owner is to be approved"
    first.wait_for(r"site-7 \(\w+…\) has not approved it \[awaits_approval\]")
    shown = output(commands, "show", "node", "site-7")
    assert re.search(r"^withheld +1 runs, until its site lets them in$", shown, re.MULTILINE)

    def seen() -> tuple[str, str]:
        [shown] = json.loads(output(commands, "runs", "--format", "json"))
        return shown["state"], shown["reason"]

    eventually(lambda: seen() == ("waiting", "awaits_approval"), DEADLINE)
    assert "is approved at node" in output(commands, "gate", "approve", run[:6])
    assert "Round 1: 1 of 1 replied" in first.ends(0).text
    second = commands.server("--run-config", "nodes=1")
    done = json.loads(output(commands, "gate", "deny", run_id(second), "--format", "json"))
    assert done == {"run": run_id(second), "state": "denied", "nodes": node_id(node)}
    assert "Round 1: Error 6" in second.ends(Exit.ALL_ERRORS, 0).text
    told = [json.loads(line) for line in audit_of(commands, node).read_text().splitlines()]
    assert [(line["run"], line["outcome"]) for line in told] == [(run, "reply"), (run_id(second), "refused")]


def test_a_run_that_nobody_knows(tmp_path: Path) -> None:
    """A name, a slip, an id of which several begin; an id in full may be decided about before the run comes."""

    def gate(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["gate", *words, "--state-dir", str(tmp_path)])
        assert done.exit_code == code
        return done.output

    assert gate("list") == f"no run waits at a gate in {tmp_path}\n"
    gate("approve", "1234567890123456789", code=Exit.RUN_NOT_FOUND)
    for node in "12":
        GateFolder(tmp_path / node / "gate").open()
    for text in ("tuning", "12345", "123456789012345678901"):
        assert f"no run {text} waits at a gate in {tmp_path}" in gate("deny", text, code=Exit.RUN_NOT_FOUND)
    runs = ["1234567890123456780", "1234567890123456789"]
    for run in runs:
        assert gate("deny", run) == f"Run {run} is denied at nodes 1, 2.\n"
    assert f"2 runs begin with 1234: {', '.join(runs)}" in gate("approve", "1234", code=Exit.RUN_NOT_FOUND)
    gate("approve", runs[0])
    rows = json.loads(gate("list", "--format", "json"))
    assert sorted((row["node"], row["run"], row["state"]) for row in rows) == [
        (node, run, state) for node in "12" for run, state in zip(runs, ("approved", "denied"), strict=True)
    ]


def test_what_is_wrong_at_the_start(commands: Commands, broker: Broker, gate: Path) -> None:
    """One line that names it, and the exit code of what it is."""
    commands.write("wrong.toml", f"{ALL}aps = []")
    started = [
        (commands.start("brokerfl-node", "client:app", *options), code, told)
        for options, code, told in (
            (("--gate", "gate.toml"), Exit.USAGE, "--gate needs --name"),
            (("--name", "a", "--gate", "wrong.toml"), Exit.USAGE, r"wrong\.toml: \['\*'\] has an unknown key 'aps'"),
            (("--review", "client:nothing"), Exit.USAGE, "--review client:nothing cannot be loaded: "),
            (("--audit", "/dev/full"), Exit.JOURNAL, "the audit file /dev/full cannot be written"),
            (("--audit", "missing/a.jsonl"), Exit.JOURNAL, r"the audit file .* \(No such file or directory\)"),
        )
    ]
    for process, code, told in started:
        assert re.search(told, error_of(process.ends(code)))


def test_every_reply_is_accounted_for(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """Two workers and two runs; the node is killed again and again, and the file has each reply once."""
    commands.write("gate.toml", ALL)
    commands.write("server.py", SERVER)
    replies = tmp_path / "replies"
    options = named("--workers", "2", "--lease", "0.9", "--max-crashes", "100")
    node = commands.node(*options)
    servers = [commands.server("--run-config", f"rounds=24 replies='{replies}'") for _ in range(2)]
    for count in (20, 90):
        eventually(lambda count=count: replies.exists() and replies.read_text().count("\n") >= count, DEADLINE)
        node.kill()
        node = commands.node(*options)
    for server in servers:
        server.ends(0)
    told = [json.loads(line) for line in audit_of(commands, node).read_text().splitlines()]
    received = dict(line.split() for line in replies.read_text().splitlines())
    assert len(received) == 240
    assert {line["message"]: line["outcome"] for line in told} == received
    assert len(told) == len(received)


def test_a_full_disk_stops_the_node(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """The line does not fit: the node ends with 21 and a clear error, and its reply is not sent."""
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"x" * (8 * 1024**2 - 10) + b"\n")
    limited = "ulimit -f 16384; exec brokerfl-node client:app --audit $0"  # blocks of 512 bytes
    node = commands.start("/bin/sh", "-c", limited, str(file), PATH=f"{SCRIPTS}:/usr/bin:/bin")
    server = commands.server("--run-config", "nodes=1")
    assert f"the audit file {file} cannot be written (" in error_of(node.ends(Exit.JOURNAL))
    file.unlink()
    assert "Round 1: Error 5" in server.ends(Exit.ALL_ERRORS, 0).text


def test_a_review_of_the_site(commands: Commands, broker: Broker) -> None:
    """A function by its name; what it raises stays in the node's log."""
    commands.write("review.py", "def keep(message, reply):\n    raise ValueError(f'secret {len(reply.content)}')\n")
    node = commands.node("--review", "review:keep")
    server = commands.server("--run-config", "nodes=1")
    assert "Round 1: Error 6" in server.ends(Exit.ALL_ERRORS, 0).text
    assert "secret" not in server.text
    node.wait_for("The review refused a reply: ValueError: secret 0")
    node.send(signal.SIGTERM)
    node.ends(0, 128 + signal.SIGTERM)
