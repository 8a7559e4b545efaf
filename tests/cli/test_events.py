"""`brokerfl events`, `export` and `compare`: what an operator reads of runs, while they go on and after their end."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Broker, Commands, error_of, gated, run_id

pytestmark = pytest.mark.timeout(180)

PLOTTED = Path(__file__).parent.parent.parent / "examples" / "tracking" / "to_gnuplot.py"

TELLING = r'''
import time
from logging import INFO
from pathlib import Path

from brokerfl.common import log, Context, MessageType, MetricsRecord, RecordSet
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Two rounds whose loss falls with the learning rate."""
    [node] = driver.wait_for_nodes(1)
    for round in (1, 2):
        content = RecordSet(metrics_records={"m": MetricsRecord({"n": round})})
        driver.send_and_receive([driver.create_message(content, MessageType.TRAIN, node, str(round))])
        driver.log_metrics(round, loss=context.run_config["lr"] / round)
        log(INFO, "The loss\x1b falls")
        if round == 2:
            driver.log_metrics(round, gap=float("nan"))
    driver.checkpoint()
    print("Told", flush=True)
    while not Path("go").exists():
        time.sleep(0.02)
'''


def test_what_is_told_of_runs(commands: Commands, broker: Broker) -> None:
    """The events of a run that goes on; of runs that have ended their numbers, and how they compare."""
    commands.write("telling.py", TELLING)
    commands.node("--name", "berlin")
    servers = [
        commands.start("brokerfl-server", "telling:app", "--lease", "0.6", "--run-config", f"lr={lr} rounds=2")
        for lr in (1.0, 0.5)
    ]
    first, second = map(run_id, servers)
    for server in servers:
        server.wait_for("^Told$")
    follower = commands.start("brokerfl", "events", first, "--follow")
    follower.wait_for("round 2, train: 1 of 1 answered in .*, n=2$")
    follower.wait_for("round 2: gap=nan$")
    exported = commands.run("brokerfl", "export", first).out
    told = [json.loads(line) for line in exported.splitlines()]
    kinds = [event["kind"] for event in told]
    assert kinds == ["started", "begun", "answered", "metrics", "begun", "answered", "metrics", "metrics"]
    assert [event.get("values") for event in told[-3:]] == [{"n": 2.0}, {"loss": 0.5}, {"gap": None}]
    logger = commands.start("brokerfl", "log", second, "-f")
    logger.wait_for("INFO .* started")
    logger.wait_for(r"INFO     The loss\\x1b falls \[run ")
    drawn = subprocess.run([sys.executable, PLOTTED], input=exported, capture_output=True, text=True, check=True)
    assert drawn.stdout == '"train/n"\n1 1.0\n2 2.0\n\n\n"loss"\n1 1.0\n2 0.5\n\n\n'
    commands.write("go", "")
    for server in servers:
        server.ends(0)
    follower.wait_for("completed, train/n=2, loss=0.5, gap=nan$")
    follower.ends(0)
    logger.ends(0)
    assert "has already ended" in error_of(commands.run("brokerfl", "log", second, code=30))
    rows = [*csv.DictReader(commands.run("brokerfl", "export", first, "--format", "csv").out.splitlines())]
    assert [(row["group"], row["value"]) for row in rows if (row["kind"], row["name"]) == ("metrics", "loss")] == [
        ("1", "1.0"),
        ("2", "0.5"),
    ]
    assert [row["kind"] for row in rows][-1] == "completed"
    compared = json.loads(commands.run("brokerfl", "compare", first, second, "--format", "json").out)
    found = {(row["what"], row["name"]): (row["first"], row["second"]) for row in compared}
    assert found["run", "run"] == (first, second)
    assert found["run", "state"] == ("completed", "completed")
    assert found["config", "lr"] == ("1.0", "0.5")
    assert ("config", "rounds") not in found
    assert found["metric", "loss"] == ("0.5", "0.25")
    assert found["run", "messages"] == ("2", "2")


def test_a_node_shares_its_log_on_purpose(commands: Commands, broker: Broker) -> None:
    """With --share-log, what it says of a run is in that run's log, under its name; another node's is not."""
    commands.node("--name", "open", "--share-log", *gated(commands.folder / "gate"))
    closed = commands.node("--name", "closed")
    server = commands.server("--run-config", "nodes=2")
    logger = commands.start("brokerfl", "log", run_id(server), "--follow")
    logger.wait_for(rf"INFO     Training begins \[run {run_id(server)[:4]}… node open message ")
    closed.wait_for("Training begins")
    closed.send(signal.SIGTERM)
    closed.ends(0)
    shared = commands.run("brokerfl", "log", run_id(server)).out
    assert "node open" in shared
    assert "node closed" not in shared
    assert "serves client:app" not in shared
    commands.write("gate", "")
    server.ends(0)
    logger.ends(0)


def test_a_run_that_is_not_there(commands: Commands, broker: Broker) -> None:
    """Each command says so; and a run whose events nobody wanted has none."""
    for arguments in (("events", "77"), ("export", "77"), ("compare", "77", "78")):
        assert "there is no run 77" in error_of(commands.run("brokerfl", *arguments, code=30))
    commands.write("telling.py", TELLING)
    commands.write("go", "")
    commands.node()
    server = commands.start("brokerfl-server", "telling:app", "--no-events", "--run-config", "lr=1.0")
    server.ends(0)
    [told] = commands.run("brokerfl", "export", run_id(server)).out.splitlines()
    assert json.loads(told).keys() == {"time", "kind"}
