"""The node's side: trains and evaluates on the node's own digits, which never leave it.

Run it with ``brokerfl-node client:app --node-config 'partition-id=0 num-partitions=5'``.
"""

from collections.abc import Mapping
from typing import Any

import models
import numpy as np
from data import Digits, load_partition

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, MetricsRecord, ParametersRecord, RecordSet

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model of the message; reply with it, how many images there were, and the loss on them."""
    images, labels = own_digits(context)
    config: Mapping[str, Any] = message.content.configs_records["config"]
    # What arrives is a read-only view of the message, and training changes arrays in place.
    parameters = [array.copy() for array in message.content.parameters_records["model"].to_numpy_ndarrays()]
    # The same run on the same nodes shuffles the same way; no two nodes and no two rounds do.
    rng = np.random.default_rng([config["seed"], config["round"], int(context.node_config["partition-id"])])
    loss = models.train(parameters, images, labels, config["lr"], config["local-epochs"], rng)
    metrics = MetricsRecord({"num-examples": len(labels), "train-loss": loss})
    return message.create_reply(RecordSet({"model": ParametersRecord(parameters)}, {"metrics": metrics}))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with the loss and the accuracy of the model of the message on the node's images."""
    images, labels = own_digits(context)
    parameters = message.content.parameters_records["model"].to_numpy_ndarrays()
    loss, accuracy = models.evaluate(parameters, images, labels)
    metrics = MetricsRecord({"num-examples": len(labels), "loss": loss, "accuracy": accuracy})
    return message.create_reply(RecordSet(metrics_records={"metrics": metrics}))


def own_digits(context: Context) -> Digits:
    """Return the images and labels of this node; they are loaded once for all runs.

    Raises:
        ValueError: the node was started without saying which part is its own.
    """
    ids = [context.node_config.get(key) for key in ("partition-id", "num-partitions")]
    if not all(type(value) is int for value in ids):
        raise ValueError(
            f"the node config {context.node_config} does not say which digits are this node's: "
            "start it with --node-config 'partition-id=0 num-partitions=5'"
        )
    return load_partition(*ids)
