"""A ClientApp that counts, and what tests of dying processes do with it.

The ServerApp is that of examples/resume, which adds up what comes back: a node replies with the number of its message
in the run, which it keeps in `context.state`. So the sum is exactly `total` if nothing was lost or counted twice.
"""

import shutil
from pathlib import Path

from tests import conftest
from tests.apps import contents_of
from tests.cli.conftest import Broker, Commands, Process

EXAMPLES = Path(__file__).parents[2] / "examples"

CLIENT = '''
"""Counts its messages as examples/resume does, and notes each in a file. In the round `gate` it waits for `gate`.

A message may hold an order: "exit", "kill" and "raise" are obeyed before it is counted.
"""

import os
import signal
import time
from logging import INFO
from pathlib import Path

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, MetricsRecord, RecordSet, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    group = message.metadata.group_id
    with open(f"{context.node_config['name']}.executed", "a") as file:
        file.write(f"{group} {message.metadata.message_id}\\n")
    log(INFO, "Round %s begins", group)
    while group == str(context.node_config.get("gate")) and not Path("gate").exists():
        time.sleep(0.02)
    obey(message)
    executed = context.state.metrics_records.setdefault("executed", MetricsRecord({"n": 0}))
    executed["n"] += 1
    return message.create_reply(RecordSet(metrics_records={"executed": executed}))


def obey(message: Message) -> None:
    order = message.content.configs_records.get("order", {}).get("do")
    if order == "exit":
        os._exit(7)
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "raise":
        raise ValueError("as ordered")
'''


def write_apps(commands: Commands) -> None:
    """Put ClientApp and ServerApp where the commands look for them."""
    shutil.copy(EXAMPLES / "resume" / "server.py", commands.folder)
    commands.write("client.py", CLIENT)


def total(nodes: int, rounds: int) -> int:
    """The sum at the end of a run in which nothing was lost and nothing counted twice."""
    return nodes * rounds * (rounds + 1) // 2


def start_node(commands: Commands, name: str, *options: str, gate: int = 0) -> Process:
    """A node that waits in the round ``gate`` until `open_gate`."""
    config = f"name={name!r} gate={gate}"
    node = commands.start(
        "brokerfl-node", "client:app", "--name", name, "--node-config", config, "--lease", "3", *options
    )
    node.wait_for("serves client:app")
    return node


def open_gate(commands: Commands) -> None:
    """Let nodes go on for good."""
    commands.write("gate", "")


def executions(commands: Commands, name: str) -> list[str]:
    """The rounds of the messages that a node began to execute, in order."""
    lines = commands.folder.joinpath(f"{name}.executed").read_text().splitlines()
    return [line.split()[0] for line in lines]


def executed_once(commands: Commands, name: str) -> list[str]:
    """As `executions`; no message is among them twice."""
    lines = commands.folder.joinpath(f"{name}.executed").read_text().splitlines()
    assert len(lines) == len(set(lines)), f"{name} executed a message twice: {lines}"
    return executions(commands, name)


def keys_of(broker: Broker, run: str) -> dict[bytes | str, object]:
    """Every key of a run with what it holds."""
    return contents_of(broker.admin, conftest.keys_of(broker.admin, run))
