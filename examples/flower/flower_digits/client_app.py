"""flower-digits: the side of a node."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_digits import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model of the message on the node's own digits."""
    digits = own_digits(context)
    config = message.content["config"]
    model = task.train(message.content["arrays"].to_numpy_ndarrays(), digits, config["lr"], config["steps"])
    loss, accuracy = task.evaluate(model, digits)
    metrics = MetricRecord({"train-loss": loss, "train-accuracy": accuracy, "num-examples": len(digits[1])})
    return Message(RecordDict({"arrays": ArrayRecord(model), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model of the message on the node's own digits."""
    digits = own_digits(context)
    loss, accuracy = task.evaluate(message.content["arrays"].to_numpy_ndarrays(), digits)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(digits[1])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def own_digits(context: Context) -> task.Digits:
    """Return this node's digits, according to the node config."""
    return task.load_partition(context.node_config["partition-id"], context.node_config["num-partitions"])
