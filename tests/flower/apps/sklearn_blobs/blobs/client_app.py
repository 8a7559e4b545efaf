"""The ClientApp: trains and tests the model it is sent on the data of its partition."""

import warnings

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from blobs.task import CLASSES, create_model, get_params, load_data, set_params

app = ClientApp()


def load(msg: Message, context: Context):
    """The model that was sent, and the data."""
    model = create_model(context.run_config["C"])
    set_params(model, msg.content["arrays"].to_numpy_ndarrays())
    return model, *load_data(context.node_config["partition-id"])


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    model, features, labels, _, _ = load(msg, context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one epoch does not converge
        model.fit(features, labels)
    loss = log_loss(labels, model.predict_proba(features), labels=range(CLASSES))
    metrics = MetricRecord({"train_logloss": loss, "num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(get_params(model)), "metrics": metrics})
    return Message(content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Test the model on local data."""
    model, _, _, features, labels = load(msg, context)
    loss = log_loss(labels, model.predict_proba(features), labels=range(CLASSES))
    metrics = {"test_logloss": loss, "accuracy": model.score(features, labels), "num-examples": len(labels)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
