"""The ClientApp: answers what it is sent, each array plus the node's own number, so that no two answers are alike."""

from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one message."""
    log(INFO, "Answering the message")
    shift = np.float32(1 + int(context.node_config["partition-id"]))
    content = RecordDict()
    for name, record in message.content.array_records.items():
        content[name] = ArrayRecord([array + shift for array in record.to_numpy_ndarrays()])
    return Message(content, reply_to=message)
