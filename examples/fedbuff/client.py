"""The node's side: trains the model it is sent, and replies with what changed. It does not know who waits for whom.

Run it with ``brokerfl-node client:app --name NAME --node-config 'partition-id=0 num-partitions=5 slowdown=10'``.
Node config: which digits are its own, ``seconds`` (0.2) that a training takes at least, ``slowdown`` (1) times longer.
"""

import time
from collections.abc import Mapping
from logging import INFO
from typing import Any

import numpy as np
import softmax
from data import load_partition

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, MetricsRecord, ParametersRecord, RecordSet, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the difference that training made, the version it started from, and its number on this node."""
    started = time.perf_counter()
    config: Mapping[str, Any] = message.content.configs_records["config"]
    before = message.content.parameters_records["model"].to_numpy_ndarrays()
    # Saved together with the reply or not at all, so no two replies of this node to a run have the same number.
    trained = context.state.metrics_records.setdefault("trained", MetricsRecord({"n": 0}))
    trained["n"] += 1
    log(INFO, "Update %s trains version %s", trained["n"], config["version"])
    partition = own_partition(context)
    rng = np.random.default_rng([config["seed"], partition[0], trained["n"]])
    after = softmax.train(before, *load_partition(*partition), config["lr"], config["local-epochs"], rng)
    delta = ParametersRecord([new - old for new, old in zip(after, before, strict=True)])
    metrics = MetricsRecord({"version": config["version"], "n": trained["n"]})
    take_time(started, context)
    return message.create_reply(RecordSet({"delta": delta}, {"metrics": metrics}))


def own_partition(context: Context) -> tuple[int, int]:
    """Return which part of the digits is this node's, and how many parts there are.

    Raises:
        ValueError: the node was started without saying so.
    """
    own, total = (context.node_config.get(key) for key in ("partition-id", "num-partitions"))
    if type(own) is not int or type(total) is not int:
        raise ValueError(
            f"the node config {context.node_config} does not say which digits are this node's: "
            "start it with --node-config 'partition-id=0 num-partitions=5'"
        )
    return own, total


def take_time(started: float, context: Context) -> None:
    """Wait until a machine slower by the factor ``slowdown`` would have finished the work that began at ``started``."""
    took = max(time.perf_counter() - started, float(context.node_config.get("seconds", 0.2)))
    until = started + took * float(context.node_config.get("slowdown", 1))
    time.sleep(max(0.0, until - time.perf_counter()))
