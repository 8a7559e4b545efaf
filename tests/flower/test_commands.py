"""Flower apps run by `brokerfl-node` and `brokerfl-server`: real processes, real signals, files as users have them."""

import filecmp
import importlib
import json
import os
import re
import shutil
import signal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from redis import Redis

from brokerfl.broker.embedded import EmbeddedServer
from tests.apps import eventually, written_size
from tests.cli import conftest as cli
from tests.cli.conftest import NEVER, Broker, Commands, Process, error_of, node_id, run_id
from tests.conftest import PREFIX

commands = cli.commands
broker = cli.broker

# Without importing flwr, which takes a second: only the commands need it.
has_flwr = find_spec("flwr") is not None
has_message_api = has_flwr and tuple(map(int, version("flwr").split(".")[:2])) >= (1, 21)
needs_flwr = pytest.mark.skipif(not has_flwr, reason="flwr is not installed")
needs_message_api = pytest.mark.skipif(not has_message_api, reason="no flwr, or one without flwr.serverapp (1.13)")

pytestmark = pytest.mark.timeout(180)

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"

#: Nothing listens there: what is wrong must be found before.
CLOSED = ("--redis", "redis://127.0.0.1:1")


def begin_node(commands: Commands, app: str, index: int, *options: str, config: str = "", count: int = 2) -> Process:
    """A node with this partition-id that may not serve yet."""
    text = f"partition-id={index} num-partitions={count} {config}"
    return commands.start("brokerfl-node", app, "--node-config", text, *options)


def serving(*nodes: Process) -> list[Process]:
    """Wait until they serve."""
    for node in nodes:
        node.wait_for(r"Node \d+ .*serves")
    return list(nodes)


def open_gate(commands: Commands) -> None:
    """Let nodes go on for good."""
    commands.write("gate", "")


# A project as `flwr new` makes it.


@pytest.fixture
def project(commands: Commands) -> Path:
    """A copy of examples/flower, in which the commands run."""
    shutil.rmtree(commands.folder)
    shutil.copytree(EXAMPLE, commands.folder, ignore=shutil.ignore_patterns("__pycache__"))
    return commands.folder


def files_of(folder: Path) -> list[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(file) for file in files if "__pycache__" not in file.parts)


def model_of(task: ModuleType, rounds: int, lr: float) -> list[Any]:
    """The example's model after some rounds with two nodes, without any Flower."""
    shares = [task.load_partition(index, 2) for index in range(2)]
    weights = [len(labels) / sum(len(labels) for _, labels in shares) for _, labels in shares]
    model: list[Any] = task.create_model()
    for _ in range(rounds):
        trained = [task.train(model, share, lr, 5) for share in shares]
        model = [
            sum(weight * part for weight, part in zip(weights, parts, strict=True))
            for parts in zip(*trained, strict=True)
        ]
    return model


@needs_message_api
def test_the_project_of_a_stranger_runs_unchanged(
    commands: Commands, broker: Broker, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`brokerfl-node .` twice and `brokerfl-server .`: the model is that of its formula, and no file has changed.

    The config is that of pyproject.toml, its tables by names with dots; --run-config goes over it.
    """
    pytest.importorskip("sklearn")
    serving(*(begin_node(commands, ".", index) for index in range(2)))
    monkeypatch.syspath_prepend(project)
    task = importlib.import_module("flower_digits.task")
    for given, rounds, lr in (("num-server-rounds=3", 3, 0.5), ("num-server-rounds=2 train.lr=0.25", 2, 0.25)):
        server = commands.run("brokerfl-server", ".", "--run-config", given)
        assert f" INFO     Run {run_id(server)} of flower_digits.server_app:app started\n" in server.err
        assert f" INFO     [ROUND {rounds}/{rounds}] [run {run_id(server)[:4]}…]\n" in server.err
        with np.load(project / "final_model.npz") as saved:
            for theirs, ours in zip(saved.values(), model_of(task, rounds, lr), strict=True):
                np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-12)  # BLAS may add in another order
        (project / "final_model.npz").unlink()
    assert files_of(project) == files_of(EXAMPLE)
    assert filecmp.cmpfiles(EXAMPLE, project, files_of(EXAMPLE), shallow=False)[1:] == ([], [])


def test_a_key_that_the_project_does_not_have(commands: Commands, project: Path) -> None:
    """--run-config with a key that pyproject.toml lacks ends with 2; the line names the key, the file and its keys."""
    server = commands.run("brokerfl-server", ".", "--run-config", "num-rounds=3", *CLOSED, code=2)
    assert server.err == (
        f"Error: --run-config: 'num-rounds' is not in [tool.flwr.app.config] of {project / 'pyproject.toml'}, which "
        "has: num-server-rounds, min-nodes, train.lr, train.steps. Correct it, or add it there\n"
    )


# NumPyClient, server_fn and a legacy strategy.

LEGACY_CLIENT = '''
"""Moves the model towards 1 + partition-id. In the round `gate` it waits for the file `gate`."""

import time
from pathlib import Path

from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class Client(NumPyClient):
    def __init__(self, node_config):
        self.node_config = node_config
        self.target = 1 + node_config["partition-id"]

    def fit(self, parameters, config):
        print("Round", config["round"], "begins", flush=True)
        while config["round"] == self.node_config.get("gate") and not Path("gate").exists():
            time.sleep(0.02)
        return [parameters[0] + config["rate"] * (self.target - parameters[0])], self.target, {}

    def evaluate(self, parameters, config):
        return float(abs(parameters[0] - self.target).sum()), self.target, {}


def client_fn(context: Context):
    return Client(context.node_config).to_client()


app = ClientApp(client_fn=client_fn)
'''

LEGACY_SERVER = '''
"""Rounds of FedAvg with two clients; the model after each goes into a file."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


def server_fn(context: Context):
    config = context.run_config

    def save(server_round, parameters, _):
        np.save(f"round-{server_round}.npy", parameters[0])

    strategy = FedAvg(
        min_available_clients=2,
        initial_parameters=ndarrays_to_parameters([np.zeros((2, 3))]),
        on_fit_config_fn=lambda server_round: {"round": server_round, "rate": config["rate"]},
        evaluate_fn=save,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=config["num-server-rounds"]))


app = ServerApp(server_fn=server_fn)
'''

WORKFLOW_SERVER = '''
"""Rounds of FedAvg in flwr's DefaultWorkflow, from the number in the file `start`; it keeps nothing of its own."""

from pathlib import Path

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow

app = ServerApp()


def save(server_round, parameters, _):
    np.save(f"round-{server_round}.npy", parameters[0])


@app.main()
def main(grid, context: Context) -> None:
    strategy = FedAvg(
        min_available_clients=2,
        initial_parameters=ndarrays_to_parameters([np.full((2, 3), float(Path("start").read_text()))]),
        on_fit_config_fn=lambda server_round: {"round": server_round, "rate": 0.25},
        evaluate_fn=save,
    )
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=2), strategy=strategy)
    DefaultWorkflow()(grid, legacy)
'''

LEGACY_RUN = ("brokerfl-server", "legacy.server_app:app", "--run-config", "num-server-rounds=2 rate=0.25")


@pytest.fixture
def legacy(commands: Commands) -> str:
    """The legacy apps are there; the name of the ClientApp."""
    for name, text in (("__init__", ""), ("client_app", LEGACY_CLIENT), ("server_app", LEGACY_SERVER)):
        commands.write(f"legacy/{name}.py", text)
    return "legacy.client_app:app"


def assert_fitted(commands: Commands) -> None:
    """The files hold what the formula says: weights 1 and 2, targets 1 and 2."""
    model = 0.0
    for number in range(3):
        saved = np.load(commands.folder / f"round-{number}.npy")
        np.testing.assert_allclose(saved, np.full((2, 3), model), rtol=1e-15)
        model = sum(target * (model + 0.25 * (target - model)) for target in (1, 2)) / 3


@needs_flwr
def test_a_numpy_client_and_a_server_fn(commands: Commands, broker: Broker, legacy: str) -> None:
    """Apps named package.module:attribute, a NumPyClient and a legacy FedAvg: each round's model is the formula's."""
    serving(*(begin_node(commands, legacy, index) for index in range(2)))
    commands.run(*LEGACY_RUN)
    assert_fitted(commands)


@needs_flwr
def test_a_signal_detaches_a_server_whose_threads_wait(commands: Commands, broker: Broker, legacy: str) -> None:
    """A legacy ServerApp waits for each client in a thread: SIGTERM ends it while they wait, and it can be resumed.

    It goes on in the same round, and what its threads raised is not taken for failures of clients.
    """
    nodes = serving(*(begin_node(commands, legacy, index, "--lease", NEVER, config="gate=2") for index in range(2)))
    server = commands.start(*LEGACY_RUN, "--lease", NEVER)
    for node in nodes:
        node.wait_for("Round 2 begins")
    server.send(signal.SIGTERM)
    assert f"Run {run_id(server)} is detached: got SIGTERM\n" in server.ends(143).err
    assert "Traceback" not in server.text
    open_gate(commands)
    again = commands.run(*LEGACY_RUN[:2], "--resume", run_id(server))
    assert "goes on in round 2 (train); " in again.err
    assert [re.findall(r"Round (\d) begins", node.text) for node in nodes] == [["1", "2"]] * 2
    assert_fitted(commands)


@needs_flwr
def test_a_workflow_goes_on(commands: Commands, broker: Broker, legacy: str) -> None:
    """Killed in round 1 of a DefaultWorkflow, and resumed with another first model: it goes on with the first one."""
    commands.write("server.py", WORKFLOW_SERVER)
    commands.write("start", "0")
    nodes = serving(*(begin_node(commands, legacy, index, "--lease", NEVER, config="gate=1") for index in range(2)))
    server = commands.start("brokerfl-server", "server:app", "--lease", NEVER)
    for node in nodes:
        node.wait_for("Round 1 begins")
    server.kill()
    commands.write("start", "718")
    open_gate(commands)
    again = commands.run("brokerfl-server", "server:app", "--resume", run_id(server))
    assert "goes on in round 1 (train); " in again.err
    assert [re.findall(r"Round (\d) begins", node.text) for node in nodes] == [["1", "2"]] * 2
    assert_fitted(commands)


@needs_message_api
def test_a_stopped_run_ends_a_legacy_server(commands: Commands, broker: Broker, legacy: str) -> None:
    """`brokerfl stop` while its threads wait: it ends with 31 in that round, and does not take it for failures.

    Before flwr.serverapp came, flwr looked for nodes in a thread of its own, and the other rounds were run without any.
    """
    nodes = serving(*(begin_node(commands, legacy, index, config="gate=1") for index in range(2)))
    server = commands.start(*LEGACY_RUN)
    for node in nodes:
        node.wait_for("Round 1 begins")
    commands.run("brokerfl", "stop", run_id(server))
    assert server.ends(31).err.splitlines()[-1] == f"Error: run {run_id(server)} was stopped"
    assert server.err.count("[ROUND") == 1
    assert "Traceback" not in server.text


@needs_message_api
@pytest.mark.usefixtures("valkey_url")
def test_an_outage_that_is_too_long_ends_a_legacy_server(commands: Commands, legacy: str) -> None:
    """After --outage-limit it ends with 10 in that round, detached, although its threads were the ones that waited."""
    with EmbeddedServer() as redis:
        commands.env["BROKERFL_REDIS_URL"] = redis.url
        nodes = serving(*(begin_node(commands, legacy, index, config="gate=1") for index in range(2)))
        server = commands.start(*LEGACY_RUN, "--outage-limit", "0.3")
        for node in nodes:
            node.wait_for("Round 1 begins")
    assert f"Run {run_id(server)} is detached: Redis was unreachable for more than 0.3 s: " in server.ends(10).err
    assert server.err.count("[ROUND") == 1
    assert "Traceback" not in server.text


# The Driver of Flower's multi-run how-to.

DRIVER_CLIENT = '''
"""Replies with all that the run ever sent to this node."""

import time

from flwr.client import ClientApp
from flwr.common import ConfigsRecord, Context, Message, RecordSet

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    state = context.state.configs_records
    values = list(state["seen"]["values"]) if "seen" in state else []
    values.append(message.content.configs_records["sent"]["value"])
    state["seen"] = ConfigsRecord({"values": values})
    content = RecordSet()
    content.configs_records["seen"] = ConfigsRecord({"values": values, "run": str(message.metadata.run_id)})
    reply = message.create_reply(content)
    if len(values) == 1:
        time.sleep(0.2)  # what an app, a mod or the conversion of a large model does to a reply that is made already
    return reply
'''

DRIVER_SERVER = '''
"""The loop of the how-to: push, then pull until all have replied. It waits for the other run in the middle."""

import json
import random
import time
from pathlib import Path

from flwr.common import ConfigsRecord, Context, Message, MessageType, RecordSet
from flwr.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    for server_round in range(1, 4):
        while len(all_node_ids := driver.get_node_ids()) < 3:
            time.sleep(0.05)
        content = RecordSet()
        content.configs_records["sent"] = ConfigsRecord({"value": f"{context.run_config['name']}-{server_round}"})
        messages = []
        for node_id in random.sample(all_node_ids, 3):
            message = driver.create_message(
                content=content,
                message_type=MessageType.TRAIN,
                dst_node_id=node_id,
                group_id=str(server_round),
            )
            messages.append(message)
        message_ids = driver.push_messages(messages)
        message_ids = [message_id for message_id in message_ids if message_id != ""]
        replies: list[Message] = []
        while len(replies) < len(message_ids):
            replies += driver.pull_messages(message_ids)
            time.sleep(0.05)
        for reply in replies:
            seen = reply.content.configs_records["seen"]
            told = {"run": seen["run"], "values": list(seen["values"])}
            print(json.dumps({"round": server_round, "node": str(reply.metadata.src_node_id), **told}), flush=True)
        while server_round == 2 and not Path("both").exists():
            time.sleep(0.02)
'''


@needs_flwr
def test_two_runs_of_a_driver_at_once(commands: Commands, broker: Broker) -> None:
    """Two ServerApps of the Driver era over the same three nodes: each gets one reply a node and round, all its own.

    A reply that the app made a while before it returned it does not seem to outlive its message.
    """
    commands.write("client.py", DRIVER_CLIENT)
    commands.write("server.py", DRIVER_SERVER)
    nodes = {node_id(node): node for node in serving(*(begin_node(commands, "client:app", i) for i in range(3)))}
    servers = {
        name: commands.start("brokerfl-server", "server:app", "--run-config", f'name="{name}"')
        for name in ("alpha", "beta")
    }
    for server in servers.values():
        server.wait_for('"round": 2')
    commands.write("both", "")
    for name, server in servers.items():
        told = [json.loads(line) for line in server.ends(0).out.splitlines() if line.startswith("{")]
        assert sorted((reply["round"], reply["node"]) for reply in told) == [
            (number, node) for number in (1, 2, 3) for node in sorted(nodes)
        ]
        for reply in told:
            assert reply["run"] == run_id(server)
            assert reply["values"] == [f"{name}-{number}" for number in range(1, reply["round"] + 1)]
    assert all("the reply's ttl" not in node.text for node in nodes.values())  # would be a warning that it is cut


# What dies.

TRAINING_CLIENT = '''
"""Counts in context.state how often it has trained, and says so. In the round `gate` it waits for the file `gate`."""

import time
from pathlib import Path

from flwr.client import ClientApp
from flwr.common import Context, Message, MetricsRecord, ParametersRecord, RecordSet, array_from_numpy

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    server_round, index = message.content.configs_records["config"]["server-round"], context.node_config["partition-id"]
    print("Round", server_round, "begins", flush=True)
    while server_round == context.node_config.get("gate") and not Path("gate").exists():
        time.sleep(0.02)
    state = context.state.metrics_records
    trained = state["trained"]["n"] + 1 if "trained" in state else 1
    state["trained"] = MetricsRecord({"n": trained})
    reply = RecordSet()
    model = message.content.parameters_records["arrays"]["0"].numpy() / 2 + 1 + index
    reply.parameters_records["arrays"] = ParametersRecord({"0": array_from_numpy(model)}, keep_input=True)
    reply.metrics_records["metrics"] = MetricsRecord({"num-examples": 1 + index, "trained": trained})
    return message.create_reply(reply)
'''

KEEPING_SERVER = '''
"""Four rounds. Which is the last, its model and the sum of the counts are in context.state."""

import time

import numpy as np
from flwr.common import ConfigsRecord, Context, MetricsRecord, ParametersRecord, RecordSet, array_from_numpy
from flwr.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    models, progress = context.state.parameters_records, context.state.metrics_records
    if "progress" not in progress:
        models["model"] = ParametersRecord({"0": array_from_numpy(np.zeros(3))}, keep_input=True)
        progress["progress"] = MetricsRecord({"round": 0, "trained": 0})
    for server_round in range(progress["progress"]["round"] + 1, 5):
        while len(node_ids := list(driver.get_node_ids())) < 2:
            time.sleep(0.05)
        content = RecordSet()
        content.parameters_records["arrays"] = models["model"]
        content.configs_records["config"] = ConfigsRecord({"server-round": server_round})
        messages = [driver.create_message(content, "train", node_id, str(server_round)) for node_id in node_ids]
        total, trained = np.zeros(3), progress["progress"]["trained"]
        for reply in driver.send_and_receive(messages):
            metrics = reply.content.metrics_records["metrics"]
            total += metrics["num-examples"] * reply.content.parameters_records["arrays"]["0"].numpy()
            trained += metrics["trained"]
        models["model"] = ParametersRecord({"0": array_from_numpy(total / 3)}, keep_input=True)
        progress["progress"] = MetricsRecord({"round": server_round, "trained": trained})
    np.save("model.npy", models["model"]["0"].numpy())
    print("Trained", progress["progress"]["trained"], flush=True)
'''

#: The same loop, with nothing in context.state and without groups.
FORGETFUL_SERVER = KEEPING_SERVER.replace(
    "context.state.parameters_records, context.state.metrics_records", "{}, {}"
).replace("str(server_round)) for", '"") for')

STRATEGY_SERVER = '''
"""Four rounds of FedAvg."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)
    num_rounds = context.run_config.get("num-server-rounds", 4)
    result = strategy.start(grid, ArrayRecord([np.zeros(3)]), num_rounds=num_rounds)
    np.save("model.npy", result.arrays.to_numpy_ndarrays()[0])
'''


class Accident:
    """A run of four rounds in which one node has replied in round 2, while the other one is at work."""

    def __init__(self, commands: Commands, broker: Broker, server_app: str, *options: str) -> None:
        commands.write("client.py", TRAINING_CLIENT)
        commands.write("server.py", server_app)
        self.commands = commands
        self.fast, self.slow = serving(self.begin("fast"), self.begin("slow"))
        forever = ("--lease", NEVER, "--offline-grace", NEVER)
        self.server = commands.start("brokerfl-server", "server:app", *forever, *options)
        self.fast.wait_for("Round 2 begins")
        self.slow.wait_for("Round 2 begins")
        outbox = f"{PREFIX}:{{run:{run_id(self.server)}}}:out:{node_id(self.fast)}"
        bell = f"{PREFIX}:bell:{{run:{run_id(self.server)}}}"
        # Round 1's reply is deleted by the first look at the outboxes after round 2 was pushed.
        eventually(lambda: broker.admin.xlen(outbox) and broker.admin.xlen(bell) == 3)

    def begin(self, name: str) -> Process:
        """Start a node that may not serve yet."""
        index = ("fast", "slow").index(name)
        config = "gate=2" if name == "slow" else ""
        return begin_node(self.commands, "client:app", index, "--name", name, "--lease", NEVER, config=config)

    def resumed(self, *options: str) -> Process:
        """Kill the ServerApp and resume its run."""
        self.server.kill()
        again = self.commands.start("brokerfl-server", "server:app", "--resume", run_id(self.server), *options)
        again.wait_for(f"Run {run_id(self.server)} of server:app resumed")
        return again

    def rounds(self) -> list[list[str]]:
        """The rounds that each node began."""
        return [re.findall(r"Round (\d) begins", node.text) for node in (self.fast, self.slow)]


def assert_trained(commands: Commands) -> None:
    """The model is that of four rounds in which nothing happened."""
    model = 0.0
    for _ in range(4):
        model = sum(weight * (model / 2 + weight) for weight in (1, 2)) / 3
    np.testing.assert_allclose(np.load(commands.folder / "model.npy"), np.full(3, model), rtol=1e-15)


@needs_flwr
def test_a_node_is_killed_in_mid_round(commands: Commands, broker: Broker) -> None:
    """kill -9, and a restart under its name: the round completes, and what was in its context.state is there."""
    accident = Accident(commands, broker, KEEPING_SERVER)
    accident.slow.kill()
    open_gate(commands)
    again = accident.begin("slow")
    # Each node counted from 1 to 4: a state that was lost, or changed twice by one message, has another sum.
    assert "Trained 20\n" in accident.server.ends(0).out
    assert accident.rounds() == [["1", "2", "3", "4"], ["1", "2"]]
    assert re.findall(r"Round (\d) begins", again.text) == ["2", "3", "4"]
    assert node_id(again) == node_id(accident.slow)
    assert_trained(commands)


@needs_flwr
def test_a_server_that_keeps_its_round_is_resumed(commands: Commands, broker: Broker) -> None:
    """kill -9 in mid-round, --resume: it goes on with that round, no node trains twice, and the result is the same."""
    accident = Accident(commands, broker, KEEPING_SERVER)
    again = accident.resumed()
    open_gate(commands)
    assert "Trained 20\n" in again.ends(0).out
    assert accident.rounds() == [["1", "2", "3", "4"]] * 2
    assert_trained(commands)


@needs_message_api
def test_a_server_that_keeps_nothing_starts_over(commands: Commands, broker: Broker) -> None:
    """kill -9 in mid-round of a hand-written loop, --resume: it begins at round 1, without what was left open."""
    accident = Accident(commands, broker, FORGETFUL_SERVER)
    again = accident.resumed()
    eventually(lambda: accident.fast.text.count("Round 1 begins") == 2, cli.DEADLINE)
    open_gate(commands)
    again.ends(0)
    assert accident.rounds() == [["1", "2", "1", "2", "3", "4"]] * 2
    assert_trained(commands)


@needs_message_api
def test_a_strategy_goes_on(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """kill -9 in mid-round of FedAvg, --resume: no line was written for it, and yet no node trains twice.

    It goes on from a copy of its folder, as on another machine: all else that it needs is in Redis.
    """
    accident = Accident(commands, broker, STRATEGY_SERVER)
    accident.server.kill()
    open_gate(commands)
    (commands.folder / "server.py").rename(tmp_path / "server.py")
    commands.folder = tmp_path
    again = commands.run("brokerfl-server", "server:app", "--resume", run_id(accident.server))
    assert "goes on in round 2 (train)" in again.err
    assert accident.rounds() == [["1", "2", "3", "4"]] * 2
    assert_trained(commands)


@needs_message_api
def test_a_record_is_a_checkpoint(commands: Commands, broker: Broker) -> None:
    """The latest model is exported while no ServerApp lives; a file that is there stays, unless --force replaces it."""
    accident = Accident(commands, broker, STRATEGY_SERVER)
    accident.server.kill()
    file = commands.write("model.npz", "mine")
    export = ("brokerfl", "export", run_id(accident.server), "--arrays", str(file))
    assert error_of(commands.run(*export, code=2)) == f"Error: --arrays: {file} exists; --force replaces it"
    assert file.read_text() == "mine"
    assert commands.run(*export, "--force").out == f"{file}: the model of round 1, 1 array\n"
    with np.load(file) as model:
        np.testing.assert_allclose(model["0"], np.full(3, (1 + 2 * 2) / 3), rtol=1e-15)
    nowhere = str(commands.folder / "no" / "model.npz")
    assert "No such file" in error_of(commands.run(*export[:3], "--arrays", nowhere, code=2))
    assert "needs --arrays" in error_of(commands.run(*export[:3], "--force", code=2))
    assert error_of(commands.run("brokerfl", "export", "none", "--arrays", "m.npz", code=30))
    assert sorted(path.name for path in commands.folder.iterdir() if path.suffix == ".npz" or "." in path.name[:1]) == [
        "model.npz"
    ]


@needs_message_api
def test_a_recorded_loop_goes_on(commands: Commands, broker: Broker) -> None:
    """kill -9 in mid-round of a hand-written loop that keeps nothing, with --record: no node trains twice."""
    accident = Accident(commands, broker, FORGETFUL_SERVER, "--record", "tape")
    again = accident.resumed("--record", "tape")
    open_gate(commands)
    assert "has gone through its recording" in again.ends(0).err
    assert accident.rounds() == [["1", "2", "3", "4"]] * 2
    assert_trained(commands)


@needs_message_api
def test_another_strategy_is_given_recorded_replies(commands: Commands, broker: Broker) -> None:
    """brokerfl replay shows what FedMedian would have made of what FedAvg got, without Redis and nodes."""
    commands.write("client.py", TRAINING_CLIENT)
    commands.write("server.py", STRATEGY_SERVER)
    serving(*(begin_node(commands, "client:app", index, "--lease", NEVER) for index in (0, 1)))
    commands.run("brokerfl-server", "server:app", "--record", "tape")
    (commands.folder / "model.npy").unlink()
    del commands.env["BROKERFL_REDIS_URL"]
    again = commands.run("brokerfl", "replay", "tape", "server:app")
    assert "8 recorded replies of run" in again.err
    assert_trained(commands)
    commands.write("median.py", STRATEGY_SERVER.replace("FedAvg", "FedMedian"))
    commands.run("brokerfl", "replay", "tape", "median:app", "--run-config", "num-server-rounds=1")
    np.testing.assert_allclose(np.load(commands.folder / "model.npy"), np.full(3, 1.5), rtol=1e-15)


@pytest.mark.usefixtures("valkey_url")
def test_a_strategy_goes_on_after_redis_was_killed(commands: Commands, tmp_path: Path) -> None:
    """kill -9 of the ServerApp, then of Redis: what its append-only file has is enough to go on from."""
    data = tmp_path / "data"
    with EmbeddedServer(data=data) as redis, Redis.from_url(redis.url) as admin:
        commands.env |= {"BROKERFL_REDIS_URL": redis.url, "BROKERFL_PREFIX": PREFIX}
        accident = Accident(commands, Broker(redis.url, admin), STRATEGY_SERVER)
        accident.server.kill()
        written_size(admin, data)
        os.kill(redis.pid, signal.SIGKILL)
        redis.stop()
        redis.start()
        open_gate(commands)
        resumed = commands.run("brokerfl-server", "server:app", "--resume", run_id(accident.server))
        assert "goes on in round 2 (train)" in resumed.err
        assert accident.rounds() == [["1", "2", "3", "4"]] * 2
        assert_trained(commands)


@needs_message_api
def test_a_kept_run_is_extended(commands: Commands, broker: Broker) -> None:
    """--keep lets a run stay that has ended; resumed with more rounds and nothing else, it goes on after its last."""
    commands.write("client.py", TRAINING_CLIENT)
    commands.write("server.py", STRATEGY_SERVER)
    nodes = serving(*(begin_node(commands, "client:app", index, "--lease", NEVER) for index in (0, 1)))
    server = ("brokerfl-server", "server:app", "--run-config")
    kept = commands.run(*server, "num-server-rounds=2 lr=0.1", "--keep")
    run = run_id(kept)
    assert "is detached: its app has ended, and --keep keeps it" in kept.err
    for other in ("num-server-rounds=1", "lr=0.2"):
        assert "with more rounds and nothing else" in commands.run(*server, other, "--resume", run, code=2).err
    again = commands.run(*server, "num-server-rounds=4", "--resume", run)
    assert "goes on at the end of its loop; 4 executions are not repeated" in again.err
    assert [re.findall(r"Round (\d) begins", node.text) for node in nodes] == [["1", "2", "3", "4"]] * 2
    assert_trained(commands)


@needs_message_api
def test_another_app_is_refused_and_begins_anew(commands: Commands, broker: Broker) -> None:
    """What diverges from the record ends with 36 and says how; --from-start forgets the record."""
    accident = Accident(commands, broker, STRATEGY_SERVER)
    accident.server.kill()
    commands.write("server.py", STRATEGY_SERVER.replace("FedAvg", "FedMedian"))
    resume = ("brokerfl-server", "server:app", "--resume", run_id(accident.server))
    refused = commands.run(*resume, code=36)
    assert "has the strategy flwr.serverapp.strategy.fedavg.FedAvg where this app has flwr.serverapp" in refused.err
    open_gate(commands)
    commands.write("server.py", STRATEGY_SERVER)
    assert "started over" in commands.run(*resume, "--from-start").err
    assert accident.rounds() == [["1", "2", "1", "2", "3", "4"]] * 2
    assert_trained(commands)


# Errors.

COMPONENTS = '[tool.flwr.app.components]\nserverapp = "an_app:app"\nclientapp = "an_app:app"\n'

#: What is wrong: pyproject.toml, if there is one; the exit code; what the line says of the project's folder.
WRONG: dict[str, tuple[str | None, int, str]] = {
    "no file": (None, 3, r"{}/pyproject.toml does not exist: create one that names the clientapp under \[tool"),
    "no components": ("[project]\n", 3, r"{}/pyproject.toml names no clientapp: add it under \[tool.flwr.app.compon"),
    "no clientapp": (COMPONENTS.partition("client")[0], 3, "{}/pyproject.toml names no clientapp: add it under"),
    "no TOML": ("[tool.flwr\n", 2, r"{}/pyproject.toml is not valid TOML: Expected ']' .*\(at line 1, column 11\)$"),
    "no text": ("\N{LATIN SMALL LETTER E WITH ACUTE}", 2, "{}/pyproject.toml cannot be read: it is not UTF-8, "),
    "no module": (COMPONENTS.replace("an_app", "p.nowhere"), 3, "there is no module 'p.nowhere' in {} "),
    "no attribute": (COMPONENTS.replace(":app", ""), 3, r"{}/pyproject.toml: the clientapp in \[.*\] is 'an_app'"),
}


def test_a_project_that_cannot_be_used(commands: Commands) -> None:
    """`brokerfl-node .` ends with a code and one line that names the file and what is wrong with it."""
    started = {}
    for what, (text, _, _) in WRONG.items():
        folder = commands.folder / what
        folder.mkdir()
        if text is not None:
            (folder / "pyproject.toml").write_text(text, encoding="latin-1")
        started[what] = commands.start("brokerfl-node", what, *CLOSED)
    for what, process in started.items():
        _, code, line = WRONG[what]
        folder = re.escape(str(commands.folder / what))
        assert re.match(f"Error: {line.format(folder)}", error_of(process.ends(code))), process.text
        assert process.err.count("\n") == 1


def test_a_config_that_no_context_can_hold(commands: Commands) -> None:
    """`brokerfl-server .` ends with 2 and one line that names the file, and the key as run_config would have it."""
    file = commands.write("pyproject.toml", f"{COMPONENTS}[tool.flwr.app.config.a]\nb = [1]\n")
    assert error_of(commands.run("brokerfl-server", ".", *CLOSED, code=2)) == (
        f"Error: {file}: [tool.flwr.app.config]: a.b is a list, not a boolean, number or string"
    )


def test_a_project_that_is_named_twice_or_is_not_there(commands: Commands) -> None:
    """A directory and --app-dir end with 2; a path that is no directory ends with 3."""
    twice = commands.start("brokerfl-node", ".", "--app-dir", ".", *CLOSED)
    nowhere = commands.start("brokerfl-node", "./nowhere", *CLOSED)
    assert error_of(twice.ends(2)).startswith("Error: the app '.' is a directory, and --app-dir (or BROKERFL_APP_DIR)")
    assert error_of(nowhere.ends(3)).startswith("Error: the app './nowhere' is neither module:attribute")


@needs_flwr
def test_an_app_of_the_wrong_kind(commands: Commands) -> None:
    """flwr's ServerApp given to `brokerfl-node`, and its ClientApp to `brokerfl-server`, end with 3 and one line."""
    commands.write("pyproject.toml", COMPONENTS)
    commands.write("an_app.py", LEGACY_SERVER)
    commands.write("legacy.py", LEGACY_CLIENT)
    node = commands.start("brokerfl-node", ".", *CLOSED)
    server = commands.start("brokerfl-server", "legacy:app", *CLOSED)
    assert error_of(node.ends(3)) == "Error: an_app:app is of type ServerApp, not ClientApp"
    assert error_of(server.ends(3)) == "Error: legacy:app is of type ClientApp, not ServerApp"


def test_flwr_is_not_installed(commands: Commands) -> None:
    """An app that imports flwr where there is none ends with 40, and one line says what to install."""
    commands.write("pyproject.toml", COMPONENTS)
    commands.write("an_app.py", LEGACY_CLIENT)
    commands.write("none/flwr.py", "raise ModuleNotFoundError(\"No module named 'flwr'\", name='flwr')\n")
    path = os.pathsep.join(filter(None, [str(commands.folder / "none"), os.environ.get("PYTHONPATH")]))
    for command in ("brokerfl-node", "brokerfl-server"):
        process = commands.run(command, ".", *CLOSED, code=40, PYTHONPATH=path)
        missing = "an_app is a Flower app and needs flwr: pip install 'brokerfl[flower]'"
        assert error_of(process) == f"Error: {missing}"
