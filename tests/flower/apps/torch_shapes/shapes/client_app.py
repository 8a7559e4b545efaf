"""The ClientApp: trains and tests the model it is sent on the data of its partition."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from shapes.task import Net, load_data, measure
from shapes.task import train as train_fn

torch.set_num_threads(1)
app = ClientApp()


def load(msg: Message, context: Context):
    """The model that was sent, and the data."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    return model, *load_data(context.node_config["partition-id"], context.run_config["batch-size"])


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    torch.manual_seed(1000 * msg.content["config"]["server-round"] + context.node_config["partition-id"])
    model, loader, _ = load(msg, context)
    loss = train_fn(model, loader, context.run_config["local-epochs"], msg.content["config"]["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Test the model on local data."""
    model, _, loader = load(msg, context)
    loss, accuracy = measure(model, loader)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(loader.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
