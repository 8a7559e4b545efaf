"""The ServerApp's side: asynchronous federated learning, FedBuff (Nguyen et al., 2022, arXiv:2106.06639).

Every node is kept busy, no matter what the others do. Each reply is what training changed, weighted by the age of the
version that it started from; a full buffer of replies makes a new version.

Run it with ``brokerfl-server server:app --run-config 'num-versions=50'``. All keys are in `DEFAULTS`.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from logging import INFO, WARNING
from typing import Any

import numpy as np
import softmax
from data import load_test_set

from brokerfl.common import (
    ConfigsRecord,
    Context,
    ErrorCode,
    Message,
    MessageType,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
    log,
)
from brokerfl.server import Driver, ServerApp

#: The run config. history is a file to which each version adds a line of JSON; the fields are those of `Version`.
DEFAULTS: dict[str, Any] = {
    "num-versions": 50,
    "buffer-size": 2,
    "lr": 0.1,
    "server-lr": 1.0,
    "local-epochs": 1,
    "min-nodes": 5,
    "seed": 0,
    "history": "",
}

#: Seconds without a reply after which it looks for new nodes.
PATIENCE = 5.0

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Make num-versions versions, or what a resumed run has left of them."""
    config = read_config(context)
    model, version = restore(context)
    driver.wait_for_nodes(config["min-nodes"])
    started = time.perf_counter()
    busy: dict[str, int] = {}  # the message that each node works on
    failing: set[int] = set()  # nodes that get no more work until there is a new version
    buffer = Buffer()
    while version < config["num-versions"]:
        idle = set(driver.wait_for_nodes(1)).difference(busy.values(), failing)
        busy |= push(driver, model, version, config, idle, "updates")
        if not busy:
            raise RuntimeError("every node that is online fails; the log shows why")
        reply = next(driver.replies(busy, timeout=PATIENCE, like=update_of(model)), None)
        if reply is None:
            continue
        node_id = busy.pop(reply.metadata.reply_to_message)
        if failed(reply):
            if reply.error.code != ErrorCode.NODE_UNAVAILABLE:  # such a node is offline until it is back
                failing.add(node_id)
            continue
        buffer.add(reply, version)
        if len(buffer.updates) < config["buffer-size"]:
            continue
        model, version = buffer.apply_to(model, config["server-lr"]), version + 1
        report(buffer, model, version, started, config["history"])
        save(context, model, version)
        # One transaction saves the version and settles the replies that it is made of. Only then is it sent: no node
        # ever works on a version that a crash can undo.
        driver.checkpoint()
        buffer, failing = Buffer(), set()
    log(INFO, "Finished: %s updates made %s versions", version * config["buffer-size"], version)


class Buffer:
    """The weighted sum of the updates added to it. It holds one model, no matter how many were added.

    Attributes:
        updates: node and number of each, such as "4635785750417912527 3".
        staleness: of each: how many versions were made after the one it started from.
    """

    def __init__(self) -> None:
        self.updates: list[str] = []
        self.staleness: list[int] = []
        self._sum: list[softmax.Floats] = []

    def add(self, reply: Message, version: int) -> None:
        """Fold an update in, with the weight that the paper gives it: 1 / sqrt(1 + staleness)."""
        metrics: Mapping[str, Any] = reply.content.metrics_records["metrics"]
        self.updates.append(f"{reply.metadata.src_node_id} {metrics['n']}")
        self.staleness.append(max(0, version - metrics["version"]))
        weight = (1 + self.staleness[-1]) ** -0.5
        delta = reply.content.parameters_records["delta"].to_numpy_ndarrays()
        if not self._sum:
            self._sum = [np.zeros_like(array) for array in delta]
        for total, array in zip(self._sum, delta, strict=True):
            total += weight * array

    def apply_to(self, model: list[softmax.Floats], server_lr: float) -> list[softmax.Floats]:
        """Return the next version."""
        step = server_lr / len(self.updates)
        return [array + step * total for array, total in zip(model, self._sum, strict=True)]


def update_of(model: list[softmax.Floats]) -> RecordSet:
    """Return what an update is like; another reply is an Error reply, and does not end the run."""
    metrics = MetricsRecord({"version": 0, "n": 0})
    return RecordSet({"delta": ParametersRecord(model)}, {"metrics": metrics})


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
    return DEFAULTS | context.run_config


def restore(context: Context) -> tuple[list[softmax.Floats], int]:
    """Return the model and its version: those of an interrupted run, if this is one that was resumed."""
    if "model" not in context.state.parameters_records:
        return softmax.create(), 0
    progress: Mapping[str, Any] = context.state.configs_records["progress"]
    log(INFO, "Resuming with version %s", progress["version"])
    return context.state.parameters_records["model"].to_numpy_ndarrays(), progress["version"]


def save(context: Context, model: list[softmax.Floats], version: int) -> None:
    """Keep what `restore` reads."""
    context.state.parameters_records["model"] = ParametersRecord(model)
    context.state.configs_records["progress"] = ConfigsRecord({"version": version})


def push(
    driver: Driver, model: list[softmax.Floats], version: int, config: dict[str, Any], nodes: Iterable[int], group: str
) -> dict[str, int]:
    """Let nodes train a version; return the ids of the messages that were accepted, and who got them.

    After a resume, a message that a node has not answered, or whose reply was not counted, is not sent again: its id
    is returned.
    """
    settings = ConfigsRecord({"version": version} | {key: config[key] for key in ("lr", "local-epochs", "seed")})
    content = RecordSet({"model": ParametersRecord(model)}, configs_records={"config": settings})
    messages = [driver.create_message(content, MessageType.TRAIN, node, group) for node in nodes]
    ids = driver.push_messages(messages)
    return {id_: message.metadata.dst_node_id for id_, message in zip(ids, messages, strict=True) if id_}


def failed(reply: Message) -> bool:
    """Return whether a node answered with an error, which is logged."""
    if reply.has_error():
        error = reply.error
        log(WARNING, "Node %s answered with error %s: %s", reply.metadata.src_node_id, error.code, error.reason)
    return reply.has_error()


@dataclass
class Version:
    """A line of the history: how good a version is on the held-out digits, and what it is made of.

    Attributes:
        version: its number, from 1.
        accuracy: on the held-out digits, 0 to 1.
        loss: the mean cross-entropy on them.
        seconds: since this process sent its first message.
        staleness: as in `Buffer`.
        updates: as in `Buffer`.
    """

    version: int
    accuracy: float
    loss: float
    seconds: float
    staleness: list[int]
    updates: list[str]


def report(buffer: Buffer, model: list[softmax.Floats], version: int, started: float, history: str) -> None:
    """Log a version, and add a line to the history if there is one."""
    loss, accuracy = softmax.evaluate(model, *load_test_set())
    made = Version(version, accuracy, loss, time.perf_counter() - started, buffer.staleness, buffer.updates)
    log(INFO, "Version %s: accuracy %.4f loss %.2f after %.1f s", version, accuracy, loss, made.seconds)
    if history:
        with open(history, "a") as file:
            file.write(json.dumps(asdict(made)) + "\n")
