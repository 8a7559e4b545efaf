"""What the steps of a Flower strategy cost its ServerApp: python -m benchmarks.steps.

Owns the app, and its table. The ServerApp is this process, so that its CPU time can be told from that of its nodes.
"""

import logging
import time
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp, strategy

from benchmarks import environment, processes, rivals
from benchmarks.growth import size_label
from benchmarks.measure import Comparison, Plan, alternate, singles
from benchmarks.processes import Processes, exit_on_signals
from benchmarks.report import Grid, environment_of, spread
from benchmarks.report import console as open_console
from brokerfl.broker.connection import connect
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.broker.nodes import Registration
from brokerfl.client.node import Node
from brokerfl.flower import adapt_client_app, adapt_server_app, hooks
from brokerfl.server import Driver

_PREFIX = "bench"
_NODES, _ROUNDS, _LAYERS = 3, 10, 4

#: The strategies, and the most that their ServerApp may take with steps, compared with one without (issue 16).
_TARGETS = {"FedAvg": 1.15, "FedAdam": 1.3}

#: Seconds between two looks at the memory of Redis.
_LOOK = 0.02


#: With steps or without: what stands in for the hooks.
_SIDES: dict[str, Any] = {
    "with": nullcontext(),
    "without": patch.object(hooks, "_steps_of", lambda value: None),
}


@click.command()
@click.option("--repeat", type=click.IntRange(min=1), default=9, show_default=True, help="Turns of each side.")
@click.option(
    "--size", type=click.IntRange(min=1000), default=10_000_000, show_default=True, help="Bytes of the model."
)
def main(repeat: int, size: int) -> None:
    """Measure a ServerApp that records the steps of its strategy, and the same one that does not."""
    exit_on_signals()
    logging.disable(logging.WARNING)
    console, table = open_console(), Grid(("strategy", "measured", "with steps", "without", "ratio", "target"))
    with EmbeddedServer() as server, Processes() as started:
        console.print(environment_of(environment.describe(rivals.connect(server.url))).rich("Environment"))
        for number in range(_NODES):
            started.start(_serve, server.url, number)
        peak = processes.context.Value("d", 0.0)
        started.start(_watch, server.url, peak)
        for kind, target in _TARGETS.items():
            for what, unit, found in _measure(server.url, kind, size, repeat, peak):
                sides = spread(found.ours, unit), spread(found.reference, unit)
                table.rows.append((kind, what, *sides, f"{found.ratio:.3g}", f"{target:g}" if unit == "s" else ""))
    console.print(table.rich(f"{_ROUNDS} rounds of {size_label(size)} with {_NODES} nodes"))


def _measure(url: str, kind: str, size: int, repeat: int, peak: Any) -> list[tuple[str, str, Comparison]]:
    """Return CPU time and memory: what is compared, its unit, and the comparison."""
    peaks: dict[str, list[float]] = {side: [] for side in _SIDES}

    def work(side: str) -> float:
        peak.value = 0.0
        seconds = _run(url, kind, size, _SIDES[side])
        peaks[side].append(peak.value)
        return seconds

    found = alternate({side: partial(work, side) for side in _SIDES}, Plan(repeat, 0.0, quick=False), warm_up=1)
    memory = Comparison(*(singles(peaks[side][1:]) for side in _SIDES))
    cpu = Comparison(*(found[side] for side in _SIDES))
    return [("CPU time of the ServerApp", "s", cpu), ("peak memory of Redis", "B", memory)]


def _run(url: str, kind: str, size: int, side: Any) -> float:
    """Train for some rounds; return the seconds of CPU time that this process took."""
    app, driver = ServerApp(), Driver(connect(url, prefix=_PREFIX), "bench")
    values = np.random.default_rng(1).normal(size=(_LAYERS, size // 4 // _LAYERS)).astype(np.float32)

    @app.main()
    def train(grid: Any, context: Any) -> None:
        arrays = ArrayRecord({f"layer {number}": Array(layer) for number, layer in enumerate(values)})
        chosen = getattr(strategy, kind)(min_available_nodes=_NODES, min_train_nodes=_NODES)
        chosen.start(grid=grid, initial_arrays=arrays, num_rounds=_ROUNDS)

    began = time.process_time()
    with side:
        try:
            adapt_server_app(app)(driver, driver.context)
        finally:
            driver.end()
    return time.process_time() - began


def _watch(url: str, peak: Any) -> None:
    client: Any = rivals.connect(url)
    while True:
        peak.value = max(peak.value, client.info("memory")["used_memory"])
        time.sleep(_LOOK)


def _serve(url: str, number: int) -> None:
    app = ClientApp()

    @app.train()
    def train(message: FlowerMessage, context: Any) -> FlowerMessage:
        arrays = message.content["arrays"]
        new = {name: Array(array.numpy() * np.float32(0.99) + np.float32(number)) for name, array in arrays.items()}
        metrics = MetricRecord({"loss": 1.0, "num-examples": 3})
        return FlowerMessage(RecordDict({"arrays": ArrayRecord(new), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: FlowerMessage, context: Any) -> FlowerMessage:
        metrics = MetricRecord({"accuracy": 1.0, "num-examples": 3})
        return FlowerMessage(RecordDict({"metrics": metrics}), reply_to=message)

    connection = connect(url, prefix=_PREFIX)
    Node(adapt_client_app(app), connection, Registration(connection)).serve()


if __name__ == "__main__":
    main()
