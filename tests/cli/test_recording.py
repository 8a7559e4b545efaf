"""`--record` and `driver.step` with real processes: an app that keeps nothing survives kill -9."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Broker, Commands, error_of, run_id
from tests.cli.counting import executed_once, open_gate, start_node, total, write_apps

pytestmark = pytest.mark.timeout(180)

FORGETFUL = '''
"""Three rounds that add up what the nodes reply. Nothing is kept, unless `step` has each round recorded as a step."""

from logging import INFO

from brokerfl.common import Context, MessageType, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


def count(driver: Driver, number: int) -> int:
    log(INFO, "Starting server round %s", number)
    nodes = driver.wait_for_nodes(2)
    messages = [driver.create_message(RecordSet(), MessageType.TRAIN, node, str(number)) for node in nodes]
    replies = driver.replies(driver.push_messages(messages))
    return sum(reply.content.metrics_records["executed"]["n"] for reply in replies)


@app.main()
def main(driver: Driver, context: Context) -> None:
    total = 0
    for number in (1, 2, 3):
        if context.run_config.get("step"):
            total += driver.step(f"round {number}", count, driver, number)
        else:
            total += count(driver, number)
        log(INFO, "Round %s is over", number)
    log(INFO, "The sum is %s", total)
'''


@pytest.mark.parametrize("options", [("--record", "tape"), ("--run-config", "step=true")], ids=["record", "step"])
@pytest.mark.parametrize("gate", [1, 3])
def test_an_app_that_keeps_nothing(commands: Commands, broker: Broker, options: tuple[str, str], gate: int) -> None:
    """kill -9 in mid-round, twice: the sum is exact, and no node executes a message twice."""
    write_apps(commands)
    commands.write("server.py", FORGETFUL)
    start_node(commands, "fast")
    slow = start_node(commands, "slow", gate=gate)
    server = commands.start("brokerfl-server", "server:app", *options)
    slow.wait_for(f"Round {gate} begins")
    server.kill()
    run = run_id(server)
    again_with = options if "--record" in options else ()
    resume = ("brokerfl-server", "server:app", "--resume", run, "--takeover", *again_with)
    again = commands.start(*resume)
    again.wait_for(f"Starting server round {gate}")
    if options[0] == "--record":
        shown = json.loads(commands.run("brokerfl", "show", run, "--format", "json").out)
        assert str(shown["recorded_at"]).endswith(f":{commands.folder / 'tape'}")
    again.kill()
    last = commands.start(*resume)
    last.wait_for(f"Starting server round {gate}")
    open_gate(commands)
    assert f"The sum is {total(2, 3)}" in last.ends(0).text
    assert [executed_once(commands, name) for name in ("fast", "slow")] == [["1", "2", "3"]] * 2


def test_a_recording_in_use_or_elsewhere(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """A directory without the run's recording ends with 2, and one that another process writes to with 34."""
    write_apps(commands)
    commands.write("server.py", FORGETFUL)
    slow = start_node(commands, "slow", gate=1)
    start_node(commands, "fast")
    server = commands.start("brokerfl-server", "server:app", "--record", "tape")
    slow.wait_for("Round 1 begins")
    resume = ("brokerfl-server", "server:app", "--resume", run_id(server), "--takeover", "--record")
    assert "has no recording of" in error_of(commands.run(*resume, "elsewhere", code=2))
    assert "is being recorded to" in error_of(commands.run(*resume, "tape", code=34))
