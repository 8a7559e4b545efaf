"""brokerfl's side: node processes with one ClientApp, and rounds through the public interface.

Owns what brokerfl is asked to do. It must not know what that is compared with.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from multiprocessing.synchronize import Event, Semaphore
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np

from benchmarks import memory, processes
from benchmarks.measure import Round
from benchmarks.models import Floats, check_answer, new_model
from benchmarks.processes import Processes
from brokerfl.broker.connection import connect
from brokerfl.broker.nodes import Registration
from brokerfl.client import ClientApp
from brokerfl.client.node import Node
from brokerfl.common import Context, Message, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.server import Driver
from brokerfl.server.hold import Options
from brokerfl.wire.guard import UNPROTECTED, Protection

#: Seconds that nodes have to come online, or to be reached by a model.
LIMIT = 120.0

#: Floats in a small message.
SMALL = 100

app = ClientApp()


@app.query()
def echo(message: Message, context: Context) -> Message:
    """Answer what came."""
    return message.create_reply(message.content)


@app.train()
def add(message: Message, context: Context) -> Message:
    """Answer new memory: each array plus the node's own number."""
    shift = np.float32(_number(context, "shift"))
    arrays = message.content.parameters_records["model"].to_numpy_ndarrays()
    return message.create_reply(RecordSet({"model": ParametersRecord([array + shift for array in arrays])}))


@app.train("flip")
def flip(message: Message, context: Context) -> Message:
    """Answer each array with the bits flipped that are set in the node's own number."""
    mask = np.uint32(_number(context, "shift"))
    arrays = message.content.parameters_records["model"].to_numpy_ndarrays()
    flipped = [(array.view(np.uint32) ^ mask).view(np.float32) for array in arrays]
    return message.create_reply(RecordSet({"model": ParametersRecord(flipped)}))


@app.evaluate()
def look(message: Message, context: Context) -> Message:
    """Answer one number from the model."""
    first = message.content.parameters_records["model"]["0"].numpy()[0]
    return message.create_reply(_metrics(first=float(first)))


@app.evaluate("gated")
def wait(message: Message, context: Context) -> Message:
    """Say that the model has arrived, and answer when the gate opens."""
    assert _gate is not None
    _gate.arrived.release()
    _gate.opened.wait()
    return look(message, context)


@app.query("memory")
def tell_memory(message: Message, context: Context) -> Message:
    """Answer the peak of this process's memory since the last question, and what it holds now."""
    highest = memory.peak()
    return message.create_reply(_metrics(peak=highest, resident=memory.reset_peak()))


def _number(context: Context, name: str) -> int:
    return int(context.node_config[name])


def _metrics(**metrics: int | float) -> RecordSet:
    return RecordSet(metrics_records={"metrics": MetricsRecord(dict(metrics))})


class Gate:
    """Holds all nodes of a federation back, once a model has arrived."""

    def __init__(self) -> None:
        self.arrived: Semaphore = processes.context.Semaphore(0)
        self.opened: Event = processes.context.Event()


_gate: Gate | None = None


def set_inline_limit(limit: int) -> None:
    """Let contents of at most ``limit`` bytes travel in their message, in this process.

    Raises:
        RuntimeError: no module of brokerfl has the constant ``INLINE`` any more.
    """
    holders = [
        module for name, module in sys.modules.items() if name.startswith("brokerfl.") and "INLINE" in vars(module)
    ]
    if not holders:
        raise RuntimeError("no module of brokerfl has a constant INLINE: look where it went")
    for module in holders:
        vars(module)["INLINE"] = limit


def _serve(
    url: str, prefix: str, shift: int, workers: int, inline: int | None, gate: Gate | None, protection: Protection
) -> None:
    global _gate
    _gate = gate
    if inline is not None:
        set_inline_limit(inline)
    connection = connect(url, prefix=prefix)
    config, registration = {"shift": shift}, Registration(connection)
    Node(app, connection, registration, node_config=config, workers=workers, protection=protection).serve()


class Federation:
    """Node processes under a prefix of their own; they end with the ``with`` block.

    Args:
        url: of the server.
        size: how many nodes.
        prefix: of their keys.
        workers: runs that a node serves at once.
        inline: bytes of a content that travel in the message; None leaves brokerfl's own limit.
        protection: what the nodes sign and seal.

    Attributes:
        gate: holds back the answers to ``evaluate.gated``.
    """

    def __init__(
        self,
        url: str,
        size: int,
        prefix: str,
        workers: int = 1,
        inline: int | None = None,
        protection: Protection = UNPROTECTED,
    ) -> None:
        self.url = url
        self._protection = protection
        self.prefix = prefix
        self.size = size
        self.gate = Gate()
        self._workers = workers
        self._inline = inline
        self._processes = Processes()

    def __enter__(self) -> Self:
        for shift in range(1, self.size + 1):
            how = self._workers, self._inline, self.gate, self._protection
            self._processes.start(_serve, self.url, self.prefix, shift, *how)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.__exit__(kind, error, trace)

    @property
    def pids(self) -> list[int]:
        """The process ids of the nodes."""
        return self._processes.pids

    @contextmanager
    def run(self, **options: Unpack[Options]) -> Iterator[tuple[Driver, list[int]]]:
        """Give a Driver with a new run and the ids of the nodes, once all are online; end the run."""
        with open_run(self.url, self.prefix, **options) as driver:
            yield driver, self._await_nodes(driver)

    def _await_nodes(self, driver: Driver) -> list[int]:
        until = time.monotonic() + LIMIT
        while True:
            self._processes.check()
            try:
                return driver.wait_for_nodes(self.size, timeout=1)
            except TimeoutError:
                if time.monotonic() > until:
                    raise


@contextmanager
def open_run(url: str, prefix: str, **options: Unpack[Options]) -> Iterator[Driver]:
    """Give a Driver with a new run; end the run. ``options`` are those of a Driver."""
    connection = connect(url, prefix=prefix)
    driver = Driver(connection, "benchmark", **options)
    try:
        yield driver
    finally:
        driver.end()
        connection.close()


# Rounds.


def model_content(model: Floats) -> RecordSet:
    """Return a message's content on the memory of ``model``."""
    return RecordSet({"model": ParametersRecord([model])})


def array_of(reply: Message) -> Floats:
    """Return the one array of a reply, as a view."""
    check(reply)
    array: Floats = reply.content.parameters_records["model"]["0"].numpy()
    return array


def check(reply: Message) -> Message:
    """Return a reply.

    Raises:
        RuntimeError: it is an Error reply.
    """
    if reply.has_error():
        raise RuntimeError(f"a node answered with error {reply.error.code}: {reply.error.reason}")
    return reply


def push(driver: Driver, content: RecordSet, message_type: str, nodes: Sequence[int], group: str) -> list[str]:
    """Send the same content to all nodes; return the ids."""
    ids = driver.push_messages([driver.create_message(content, message_type, node, group) for node in nodes])
    if "" in ids:
        raise RuntimeError("a message was refused")
    return ids


def ask(driver: Driver, message_type: str, node: int) -> dict[str, Any]:
    """Return the metrics that one node answers to an empty message."""
    (reply,) = driver.replies(push(driver, RecordSet(), message_type, [node], f"{message_type} {time.monotonic_ns()}"))
    return dict(check(reply).content.metrics_records["metrics"])


def _timed(work: Callable[[str], None]) -> Round:
    """Return a round; ``work`` is given a group that was never pushed before."""
    groups = count()

    def round_() -> float:
        group = f"round {next(groups)}"
        started = time.perf_counter()
        work(group)
        return time.perf_counter() - started

    return round_


def empty_round(driver: Driver, nodes: Sequence[int]) -> Round:
    """An empty message to each node, and back."""

    def work(group: str) -> None:
        for reply in driver.replies(push(driver, RecordSet(), "query", nodes, group)):
            check(reply)

    return _timed(work)


def small_round(driver: Driver, nodes: Sequence[int], messages: int) -> Round:
    """Small messages of different content in one push, evenly to all nodes, and back."""
    arrays = [new_model(SMALL * 4) for _ in range(messages)]

    def work(group: str) -> None:
        batch = [
            driver.create_message(model_content(array), "query", nodes[index % len(nodes)], group)
            for index, array in enumerate(arrays)
        ]
        answers = [array_of(reply) for reply in driver.replies(driver.push_messages(batch))]
        assert len(answers) == messages

    return _timed(work)


def model_round(driver: Driver, nodes: Sequence[int], size: int) -> Round:
    """A new model to all nodes, and another one back from each, released as soon as it has been seen.

    The next round's push settles the replies, as in an app that does not do it itself.
    """
    groups = count()

    def round_() -> float:
        model, group, shifts = new_model(size), f"model {next(groups)}", set()
        started = time.perf_counter()
        for reply in driver.replies(push(driver, model_content(model), "train", nodes, group)):
            answer = array_of(reply)
            shifts.add(check_answer(model, answer))
            del reply, answer  # or the next one arrives while this one is still here
        taken = time.perf_counter() - started
        assert len(shifts) == len(nodes), "nodes answered the same"
        return taken

    return round_
