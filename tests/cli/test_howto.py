"""Runs at once over the same nodes, end to end: the how-to, and what one run may see of another."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Broker, Commands, node_id, run_id
from tests.conftest import PREFIX, is_tombstone

pytestmark = pytest.mark.timeout(180)

HOWTO = Path(__file__).parents[2] / "examples" / "multirun"

REGISTRY = {f"{PREFIX}:id", f"{PREFIX}:nodes", f"{PREFIX}:runs"}

TELLING_CLIENT = '''
from brokerfl.client import ClientApp
from brokerfl.common import ConfigsRecord, Context, Message, RecordSet

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the value in the message, the one in the run config, and all that this node's state has ever seen."""
    seen = context.state.configs_records.setdefault("seen", ConfigsRecord({"values": []}))
    seen["values"] = [*seen["values"], message.content.configs_records["c"]["value"]]
    told = {"config": context.run_config["secret"], "values": seen["values"], "run": str(context.run_id)}
    return message.create_reply(RecordSet(configs_records={"c": ConfigsRecord(told)}))
'''

TELLING_SERVER = '''
import json
import time
from pathlib import Path

from brokerfl.common import ConfigsRecord, Context, MessageType, RecordSet
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Send a value of its own each round, and print what comes back. Wait for the other run in the middle."""
    secret = context.run_config["secret"]
    nodes = driver.wait_for_nodes(3)
    for number in range(1, 5):
        content = RecordSet(configs_records={"c": ConfigsRecord({"value": f"{secret}-{number}"})})
        messages = [driver.create_message(content, MessageType.TRAIN, node, str(number)) for node in nodes]
        for reply in driver.send_and_receive(messages):
            told = reply.content.configs_records["c"]
            print(json.dumps({"round": number, "node": str(reply.metadata.src_node_id), **told}), flush=True)
        while number == 2 and not Path("both").exists():
            time.sleep(0.02)
'''


def test_the_how_to_runs_twice_at_once_over_five_nodes(commands: Commands, broker: Broker) -> None:
    """Two ServerApps of the how-to end over the same five nodes, print what it shows, and leave only the registry."""
    for name in ("client.py", "server.py"):
        shutil.copy(HOWTO / name, commands.folder)
    nodes = commands.nodes(5, "--insecure")
    ids = {node_id(node) for node in nodes}
    servers = [commands.start("brokerfl-server", "server:app", "--insecure") for _ in range(2)]
    assert len(ids) == 5
    assert run_id(servers[0]) != run_id(servers[1])
    for server in servers:
        text = server.ends(0).text
        run = run_id(server)
        for number in (1, 2, 3):
            assert f" INFO     Starting server round {number} [run " in text
        assert sum(map(int, re.findall(r"INFO     Pulled (\d+) result\(s\)", text))) == 6
        replied = re.findall(r"INFO     Received replies from node IDs: \[(\d+), (\d+)\]", text)
        assert len(replied) == 3
        assert {node for pair in replied for node in pair} <= ids
        assert " INFO     Multi-run example complete! [run " in text
        assert sum(node.text.count(f" INFO     Echoing a `train` message of run {run} [node ") for node in nodes) == 6
    living = {f"{PREFIX}:{{{node}}}:{name}" for node in ids for name in ("info", "lease", "ctl")}
    left = {key for key in broker.scan() if not is_tombstone(broker.admin, key)}
    assert left == REGISTRY | living


def test_nothing_of_one_run_is_visible_in_another(commands: Commands, broker: Broker) -> None:
    """Message, reply, run config and a node's state are the run's own while two runs use the same three nodes."""
    commands.write("client.py", TELLING_CLIENT)
    commands.write("server.py", TELLING_SERVER)
    commands.nodes(3)
    servers = {
        secret: commands.start("brokerfl-server", "server:app", "--run-config", f'secret="{secret}"')
        for secret in ("alpha", "beta")
    }
    for server in servers.values():
        server.wait_for('"round": 2')
    commands.write("both", "")
    for secret, server in servers.items():
        told = [json.loads(line) for line in server.ends(0).out.splitlines()]
        assert len(told) == 4 * 3
        for reply in told:
            assert reply["config"] == secret
            assert reply["run"] == run_id(server)
            assert reply["values"] == [f"{secret}-{number}" for number in range(1, reply["round"] + 1)]
