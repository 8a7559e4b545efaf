"""Sends integers to a fixed set of nodes and adds up the running totals that come back, by two programs.

``app`` works in rounds, ``stream`` sends each node its next integer as soon as the last one came back. Both go on where
``context.state`` says. Run config: ``nodes`` and ``rounds`` (how many; without ``rounds`` they go on until the file
``finish`` is there), ``payload`` (bytes of a message beside the integer: others in each round), ``result`` (a file
that gets a line of JSON), ``pause`` (after so many replies they wait until the file ``go`` is there).
"""

import json
import sys
import time
from collections.abc import Iterable
from logging import INFO
from pathlib import Path
from random import Random

from brokerfl.common import Array, Context, Message, MessageType, MetricsRecord, ParametersRecord, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()
stream = ServerApp()


def value(number: int, index: int) -> int:
    """What node ``index`` is sent as its ``number``-th integer."""
    return number * number + 1000 * index


class Books:
    """What the run knows; kept in ``context.state``.

    Attributes:
        nodes: ids of the nodes; all lists are in this order.
        folded: how many replies of each node are in the sum.
        counts: how many messages each node says it has executed.
    """

    def __init__(self, driver: Driver, context: Context) -> None:
        self._driver = driver
        self._context = context
        self._config = context.run_config
        saved = context.state.metrics_records.get("books")
        if saved is None:
            self.nodes = sorted(driver.wait_for_nodes(int(self._config["nodes"])))
            self.folded = [0] * len(self.nodes)
            self.counts = [0] * len(self.nodes)
            self.sum = self.errors = 0
        else:
            self.nodes, self.folded, self.counts = (list(saved[name]) for name in ("nodes", "folded", "counts"))
            self.sum, self.errors = saved["sum"], saved["errors"]
        log(INFO, "Starting with %s replies in the books", sum(self.folded))

    def save(self) -> None:
        """Put everything into the state, for the next commit."""
        self._context.state.metrics_records["books"] = MetricsRecord(
            {
                "nodes": self.nodes,
                "folded": self.folded,
                "counts": self.counts,
                "sum": self.sum,
                "errors": self.errors,
            }
        )

    def push(self, number: int, indices: Iterable[int], group: str) -> list[str]:
        """Send each of these nodes its ``number``-th integer."""
        messages = [
            self._driver.create_message(self._content(number, index), MessageType.TRAIN, self.nodes[index], group)
            for index in indices
        ]
        ids = self._driver.push_messages(messages)
        log(INFO, "Pushed %s", " ".join(ids))
        return ids

    def _content(self, number: int, index: int) -> RecordSet:
        payload = int(self._config.get("payload", 0))
        array = Array("uint8", [payload], "numpy.ndarray", Random(number).randbytes(payload))
        return RecordSet(
            {"payload": ParametersRecord({"array": array})} if payload else {},
            {"sent": MetricsRecord({"value": value(number, index)})},
        )

    def fold(self, reply: Message) -> int:
        """Add a reply; return the index of its node."""
        index = self.nodes.index(reply.metadata.src_node_id)
        self.folded[index] += 1
        if reply.has_error():
            log(INFO, "Error %s: %s", reply.error.code, reply.error.reason)
            self.errors += 1
        else:
            books = reply.content.metrics_records["books"]
            self.sum += books["total"]
            self.counts[index] = books["count"]
        log(INFO, "%s replies are in the books", sum(self.folded))
        while sum(self.folded) == self._config.get("pause") and not Path("go").exists():
            time.sleep(0.02)
        return index

    def is_complete(self, index: int) -> bool:
        """Whether this node is sent no more."""
        rounds = self._config.get("rounds")
        return Path("finish").exists() if rounds is None else self.folded[index] >= rounds

    def write_result(self) -> None:
        result = {"sum": self.sum, "errors": self.errors, "folded": self.folded, "counts": self.counts}
        with Path(str(self._config["result"])).open("a") as file:
            file.write(json.dumps(result) + "\n")


@app.main()
def main(driver: Driver, context: Context) -> None:
    books = Books(driver, context)
    complete = False
    while not complete:
        number = books.folded[0] + 1
        books.save()  # the push of a new group saves it and settles the last one's replies, at once
        ids = books.push(number, range(len(books.nodes)), str(number))
        for reply in driver.replies(ids):
            books.fold(reply)
        complete = books.is_complete(0)
    books.write_result()


@stream.main()
def main_of_stream(driver: Driver, context: Context) -> None:
    books = Books(driver, context)

    def push_next(index: int) -> None:
        waiting.extend(books.push(books.folded[index] + 1, [index], "stream"))

    waiting: list[str] = []
    for index in range(len(books.nodes)):
        if books.folded[index] < context.run_config.get("rounds", sys.maxsize):
            push_next(index)  # adopts what is open: the books do not say what was pushed
    while waiting:
        reply = next(driver.replies(waiting))
        waiting.remove(reply.metadata.reply_to_message)
        index = books.fold(reply)
        books.save()
        driver.checkpoint()
        if not books.is_complete(index):
            push_next(index)
    books.write_result()
