"""Adds what it is sent to a running total: a message whose effect was lost, or came twice, shows in every later reply.

Node config: ``name``. Run config: ``payload`` (bytes of a reply beside the numbers), ``gates`` (each of so many first
messages takes until the file ``NAME.gate.NUMBER`` is there).
"""

import os
import time
from logging import INFO
from pathlib import Path
from random import Random

from brokerfl.client import ClientApp
from brokerfl.common import Array, Context, Message, MetricsRecord, ParametersRecord, RecordSet, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    name, config = str(context.node_config["name"]), context.run_config
    note_execution(name, message)
    log(INFO, "Training begins")
    books = context.state.metrics_records.setdefault("books", MetricsRecord({"total": 0, "count": 0}))
    while books["count"] < config.get("gates", 0) and not Path(f"{name}.gate.{books['count'] + 1}").exists():
        time.sleep(0.02)
    books["total"] += message.content.metrics_records["sent"]["value"]
    books["count"] += 1
    return message.create_reply(content(int(config.get("payload", 0)), books=MetricsRecord(dict(books))))


def note_execution(name: str, message: Message) -> None:
    """Add a line to the node's own file; a short write to a file opened for appending is never divided."""
    file = os.open(f"{name}.executions", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, f"{message.metadata.run_id} {message.metadata.message_id}\n".encode())
    os.close(file)


def content(payload: int, **metrics: MetricsRecord) -> RecordSet:
    """Numbers, and beside them an array of ``payload`` bytes, as the numbers choose them."""
    array = Array("uint8", [payload], "numpy.ndarray", Random(repr([*map(dict, metrics.values())])).randbytes(payload))
    return RecordSet({"payload": ParametersRecord({"array": array})} if payload else {}, metrics)
