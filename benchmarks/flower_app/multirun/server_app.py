"""The ServerApp: sends a message to every node, waits for all answers, and so on for some rounds.

It appends the times of each round and of its end to the file that ``timings`` in the run config names, one line of
JSON each.
"""

import json
import time
from collections.abc import Callable, Iterable
from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Make the rounds."""
    config = context.run_config
    note = _notebook(str(config["timings"]))
    note(begun=time.time())
    for server_round in range(1, int(config["num-server-rounds"]) + 1):
        log(INFO, "Starting server round %s", server_round)
        nodes = _wait_for_nodes(grid, int(config["num-nodes"]))
        model = np.random.default_rng().random(int(config["model-bytes"]) // 4, dtype=np.float32)
        started = time.time()
        content = RecordDict({"model": ArrayRecord([model])} if model.size else {})
        messages = [
            Message(content, dst_node_id=node, message_type=MessageType.TRAIN, group_id=str(server_round))
            for node in nodes
        ]
        replies = list(grid.send_and_receive(messages))
        note(round=server_round, started=started, ended=time.time())
        _check(model, replies, len(nodes))
        log(INFO, "Received %s replies", len(replies))
    note(finished=time.time())


def _notebook(file: str) -> Callable[..., None]:
    def note(**times: float) -> None:
        with open(file, "a") as lines:
            lines.write(json.dumps(times) + "\n")

    return note


def _wait_for_nodes(grid: Grid, number: int) -> list[int]:
    while len(nodes := list(grid.get_node_ids())) < number:
        time.sleep(0.1)
    return nodes


def _check(model: np.ndarray, replies: Iterable[Message], number: int) -> None:
    """Look whether each node answered, and, where there is a model, with a sum of its own."""
    shifts = set()
    for reply in replies:
        if reply.has_error():
            raise RuntimeError(f"node {reply.metadata.src_node_id} answered with error {reply.error}")
        if model.size:
            (answer,) = reply.content.array_records["model"].to_numpy_ndarrays()
            shift = round(float(answer[0] - model[0]))
            if answer.shape != model.shape or answer[-1] != model[-1] + np.float32(shift):
                raise RuntimeError(f"node {reply.metadata.src_node_id} answered something else")
            shifts.add(shift)
    if len(shifts) != (number if model.size else 0):
        raise RuntimeError(f"of {number} nodes, {len(shifts)} answers differ")
