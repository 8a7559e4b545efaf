"""The ServerApp's side: federated averaging (McMahan et al., 2017, arXiv:1602.05629) of a classifier of digits.

Run it with ``brokerfl-server server:app --run-config 'model="mlp" num-rounds=25'``. All keys are in `DEFAULTS`.
"""

import json
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from logging import INFO, WARNING
from typing import Any

import models
import numpy as np
from data import load_test_set

from brokerfl.common import (
    ConfigsRecord,
    Context,
    Message,
    MessageType,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
    log,
)
from brokerfl.server import Driver, ServerApp

#: The run config. lr is the model's own unless given; history is a file to which each round adds a line of JSON.
DEFAULTS: dict[str, Any] = {
    "model": "softmax",
    "num-rounds": 25,
    "lr": 0.0,
    "local-epochs": 5,
    "min-nodes": 5,
    "fraction": 1.0,
    "seed": 0,
    "history": "",
}

app = ServerApp()


@dataclass
class Round:
    """The result of one round: how good the model is on the held-out digits, and what travelled.

    Attributes:
        round: its number, from 1.
        accuracy: on the held-out digits, 0 to 1.
        loss: the mean cross-entropy on them.
        nodes: the ids of the nodes that answered.
        errors: messages without an answer.
        messages: sent, and replies to them, Error replies included.
        bytes: of the models in both.
        seconds: from the choice of the nodes to the evaluation.
    """

    round: int
    accuracy: float = 0.0
    loss: float = 0.0
    nodes: list[str] = field(default_factory=list)
    errors: int = 0
    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"Round {self.round}: accuracy {self.accuracy:.4f} loss {self.loss:.2f} "
            f"from {len(self.nodes)} nodes in {self.seconds:.2f} s"
        )


class Average:
    """The weighted mean of the models added to it. It holds one model, no matter how many were added."""

    def __init__(self) -> None:
        self.parameters: list[models.Floats] = []
        self._weight = 0

    def add(self, parameters: list[models.Floats], weight: int) -> None:
        """Fold a model in."""
        self._weight += weight
        if not self.parameters:
            self.parameters = [np.zeros_like(array) for array in parameters]
        for mean, array in zip(self.parameters, parameters, strict=True):
            mean += (array - mean) * (weight / self._weight)


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Train for num-rounds rounds, or for what a resumed run has left of them."""
    config = read_config(context)
    parameters, done = restore(context) or (models.create(config["model"], config["seed"]), 0)
    log(INFO, "Waiting for %s nodes", config["min-nodes"])
    driver.wait_for_nodes(config["min-nodes"])
    for server_round in range(done + 1, config["num-rounds"] + 1):
        log(INFO, "Starting server round %s", server_round)
        parameters, result = train(driver, parameters, config, server_round)
        # Before the next push: pushing a new group is what settles the replies of this one.
        save(context, parameters, server_round)
        log(INFO, "%s", result)
        if config["history"]:
            with open(config["history"], "a") as history:
                history.write(json.dumps(asdict(result)) + "\n")
    ask_nodes(driver, parameters)
    _, accuracy = models.evaluate(parameters, *load_test_set())
    log(INFO, "Finished: accuracy %.4f after %s rounds", accuracy, max(done, config["num-rounds"]))


def read_config(context: Context) -> dict[str, Any]:
    """Return the run config with the defaults filled in.

    Raises:
        ValueError: a key or a value that cannot be used.
    """
    if unknown := context.run_config.keys() - DEFAULTS.keys():
        raise ValueError(f"the run config has {', '.join(sorted(unknown))}; its keys are {', '.join(DEFAULTS)}")
    for key, value in context.run_config.items():
        kind = (int, float) if isinstance(DEFAULTS[key], float) else type(DEFAULTS[key])
        if not isinstance(value, kind):
            raise ValueError(f"the run config has {key}={value!r}, but it takes values like {DEFAULTS[key]!r}")
    config = DEFAULTS | context.run_config
    if config["model"] not in models.LAYERS:
        raise ValueError(f"the run config has model={config['model']!r}, but it takes {' or '.join(models.LAYERS)}")
    if not 0 < config["fraction"] <= 1:
        raise ValueError(f"the run config has fraction={config['fraction']}, which is not above 0 and at most 1")
    config["lr"] = float(config["lr"] or models.LEARNING_RATES[config["model"]])
    return config


def restore(context: Context) -> tuple[list[models.Floats], int] | None:
    """Return the model and the last round of an interrupted run, if this is one that was resumed."""
    if "model" not in context.state.parameters_records:
        return None
    progress: Mapping[str, Any] = context.state.configs_records["progress"]
    log(INFO, "Resuming after server round %s", progress["round"])
    return context.state.parameters_records["model"].to_numpy_ndarrays(), progress["round"]


def save(context: Context, parameters: list[models.Floats], server_round: int) -> None:
    """Keep what `restore` reads."""
    context.state.parameters_records["model"] = ParametersRecord(parameters)
    context.state.configs_records["progress"] = ConfigsRecord({"round": server_round})


def train(
    driver: Driver, parameters: list[models.Floats], config: dict[str, Any], server_round: int
) -> tuple[list[models.Floats], Round]:
    """Let a sample of the nodes train the model; return the average of the results."""
    # A node that has left is not waited for, as long as there is another one.
    online = driver.wait_for_nodes(1)
    rng = random.Random(f"{config['seed']} {server_round}")
    node_ids = rng.sample(online, max(1, round(config["fraction"] * len(online))))
    started = time.perf_counter()
    result = Round(server_round)
    model = ParametersRecord(parameters)
    settings = {key: config[key] for key in ("model", "lr", "local-epochs", "seed")}
    content = RecordSet({"model": model}, configs_records={"config": ConfigsRecord(settings | {"round": server_round})})
    message_ids = push(driver, content, MessageType.TRAIN, node_ids, str(server_round))
    result.messages = len(message_ids)
    result.bytes = len(message_ids) * model.count_bytes()
    result.errors = len(node_ids) - len(message_ids)

    average = Average()
    # A reply of another form, or with a NaN, is an Error reply: one bad node does not end the run.
    like = RecordSet({"model": model}, {"metrics": MetricsRecord({"num-examples": 0})})
    for reply in driver.replies(message_ids, like=like):
        result.messages += 1
        if failed(reply):
            result.errors += 1
            continue
        trained = reply.content.parameters_records["model"]
        metrics: Mapping[str, Any] = reply.content.metrics_records["metrics"]
        average.add(trained.to_numpy_ndarrays(), max(1, metrics["num-examples"]))
        result.bytes += trained.count_bytes()
        result.nodes.append(str(reply.metadata.src_node_id))
        del reply, trained  # before the next one is fetched: so memory holds one, no matter how many nodes there are

    if not result.nodes:
        log(WARNING, "Round %s: no node answered; continuing with the old model", server_round)
    parameters = average.parameters or parameters
    result.loss, result.accuracy = models.evaluate(parameters, *load_test_set())
    result.seconds = time.perf_counter() - started
    return parameters, result


def ask_nodes(driver: Driver, parameters: list[models.Floats]) -> None:
    """Log how good the model is on the nodes' own digits."""
    content = RecordSet({"model": ParametersRecord(parameters)})
    message_ids = push(driver, content, MessageType.EVALUATE, driver.get_node_ids(), "evaluate")
    like = RecordSet(metrics_records={"metrics": MetricsRecord({"accuracy": 0.0})})
    replies = [reply for reply in driver.replies(message_ids, like=like) if not failed(reply)]
    accuracies: list[Any] = [reply.content.metrics_records["metrics"]["accuracy"] for reply in replies]
    if accuracies:
        log(INFO, "On the nodes' own digits: accuracy %.4f to %.4f", min(accuracies), max(accuracies))


def push(driver: Driver, content: RecordSet, message_type: str, node_ids: list[int], group_id: str) -> list[str]:
    """Send the same content to all nodes; return the ids of the messages that were accepted."""
    messages = [driver.create_message(content, message_type, node_id, group_id) for node_id in node_ids]
    message_ids = driver.push_messages(messages)
    for node_id, message_id in zip(node_ids, message_ids, strict=True):
        if not message_id:
            log(WARNING, "The message to node %s was refused", node_id)
    return [message_id for message_id in message_ids if message_id]


def failed(reply: Message) -> bool:
    """Return whether a node answered with an error, which is logged."""
    if reply.has_error():
        error = reply.error
        log(WARNING, "Node %s answered with error %s: %s", reply.metadata.src_node_id, error.code, error.reason)
    return reply.has_error()
