"""`--sign` and `--seal` with real processes: who is given which keys, what an operator sees, and a kill -9."""

from collections.abc import Iterator

import pytest

from brokerfl.broker.connection import connect
from tests.cli.conftest import Broker, Commands, Process, error_of, run_id
from tests.conftest import PREFIX
from tests.monitor import watching
from tests.parties import Parties

pytestmark = pytest.mark.timeout(180)

CLIENT = """
from brokerfl.client import ClientApp
from brokerfl.common import ConfigsRecord, Context, Message, RecordSet, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    log(20, "Trains with %s", context.run_config["word"])
    if message.metadata.group_id == "2":
        raise ValueError("secret-exception")
    return message.create_reply(RecordSet({"r": ConfigsRecord({"text": "secret-reply"})}))
"""

SERVER = """
import time
from pathlib import Path

from brokerfl.common import ConfigsRecord, Context, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    nodes = driver.wait_for_nodes(2)
    state = context.state.configs_records.setdefault("s", ConfigsRecord({"done": 0, "text": "secret-state"}))
    while state["done"] < 3:
        group = str(state["done"] + 1)
        content = RecordSet({"c": ConfigsRecord({"text": "secret-content"})})
        messages = [driver.create_message(content, "train", node, group) for node in nodes]
        replies = driver.send_and_receive(messages)
        texts = [r.error.reason if r.has_error() else r.content["r"]["text"] for r in replies]
        state["done"] += 1
        log(20, "Round %s: %s secret-log", group, sorted(texts))
        driver.log_metrics(int(group), **{"secret-metric": 0.5})
        driver.checkpoint()
        while group == "2" and not Path("go").exists():
            time.sleep(0.02)
"""

SECRETS = [f"secret-{what}" for what in ("exception", "reply", "state", "content", "log", "metric", "config")]


@pytest.fixture
def parties(commands: Commands, broker: Broker) -> Iterator[Parties]:
    """Credentials of two nodes and an owner, and the apps."""
    made, connection = Parties("a", "b"), connect(broker.url, prefix=PREFIX)
    commands.write("client.py", CLIENT)
    commands.write("server.py", SERVER)
    made.write(commands.folder, broker.url, connection)
    yield made
    broker.admin.delete(connection.keys.members)
    connection.close()


def node(commands: Commands, name: str, *options: str) -> Process:
    return commands.node("--credentials", f"{name}.credentials", "--share-errors", "text", "--share-log", *options)


def test_a_sealed_run_survives_a_kill(commands: Commands, broker: Broker, parties: Parties) -> None:
    """Its operator sees none of its texts, also in what remains; its owner gets everything, and resumes it."""
    with watching(broker.admin) as spy:
        for name in parties.nodes:
            node(commands, name, "--seal")
        lab = ("--credentials", "lab.credentials", "--seal")
        server = commands.start("brokerfl-server", "server:app", *lab, "--run-config", "word=secret-config")
        assert server.wait_for(r"Round 1: (.*) secret-log") == "['secret-reply', 'secret-reply']"
        assert server.wait_for(r"Round 2: (.*) secret-log") == str(["ValueError: secret-exception"] * 2)
        run = run_id(server)
        assert "config      sealed" in commands.run("brokerfl", "show", run).out
        assert "is sealed: its log is only" in error_of(commands.run("brokerfl", "log", run, code=2))
        server.kill()
        spy.look()
        refused = commands.run("brokerfl-server", "server:app", "--resume", run, code=1)
        assert "is sealed: resume it with --sign" in refused.err
        (commands.folder / "go").touch()
        after = commands.start("brokerfl-server", "server:app", "--resume", run, *lab)
        assert after.wait_for(r"Round 3: (.*) secret-log") == "['secret-reply', 'secret-reply']"
        after.ends(0)
        told = commands.run("brokerfl", "events", run).out
        assert "completed" in told
        spy.look()
    assert spy.shown(*SECRETS) == set()


def test_keys_are_asked_for(commands: Commands, broker: Broker, parties: Parties) -> None:
    """A command that is to sign says what it needs."""
    for command, option in (("brokerfl-node", "--sign"), ("brokerfl-server", "--seal")):
        told = error_of(commands.run(command, "client:app", option, code=2))
        assert f"{option} needs keys: --credentials FILE" in told
