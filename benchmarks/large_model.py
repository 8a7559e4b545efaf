"""A model of any size goes to two nodes and back, bit for bit: python -m benchmarks.large_model --size 2500000000.

One of its arrays holds almost half of it. Each node flips bits of its own choice; the ServerApp folds the replies one
at a time (exclusive or, in place) and compares every block with what it must be, made anew from its seed. The
ServerApp, each node and Redis, which keeps nothing on disk, are fresh processes.
"""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import memory
from benchmarks.federation import LIMIT, Federation, ask, check, open_run, push
from benchmarks.models import Floats
from benchmarks.processes import call, exit_on_signals
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.common import Message, ParametersRecord, RecordSet

#: What part of the model each array is. The first is above 1 GiB of 2.5 GB.
_SHARES = (0.45, 0.25, 0.15, 0.1, 0.04999, 0.00001)

#: Floats of a block, which has a seed of its own: comparing takes the memory of a block.
_BLOCK = 4 * 1024 * 1024

_PREFIX = "bench-large"

Bits = NDArray[np.uint32]


@dataclass
class Outcome:
    """What the ServerApp saw: seconds of each step, and the peaks of its memory and the nodes', in bytes."""

    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)


def sizes_of(size: int) -> list[int]:
    """Return how many floats each array of a model of ``size`` bytes has; they add up to it."""
    sizes = [int(size * share) // 4 for share in _SHARES[1:]]
    return [size // 4 - sum(sizes), *sizes]


def blocks(array: int, size: int) -> Iterator[tuple[int, Bits]]:
    """Yield where each block of an array starts, and its bits: any, so there are NaNs among the floats."""
    for start in range(0, size, _BLOCK):
        generator = np.random.Generator(np.random.SFC64((array, start)))
        yield start, generator.integers(0, 2**32, min(_BLOCK, size - start), np.uint32)


def make_model(sizes: Sequence[int]) -> list[Floats]:
    """Return the arrays."""
    model = [np.empty(size, np.uint32) for size in sizes]
    for number, bits in enumerate(model):
        for start, block in blocks(number, len(bits)):
            bits[start : start + len(block)] = block
    return [bits.view(np.float32) for bits in model]


def compare(arrays: Sequence[Floats], sizes: Sequence[int], mask: int, factor: int = 1) -> None:
    """Compare every bit with ``factor`` times (0 or 1) the model, flipped by ``mask``.

    Raises:
        RuntimeError: a block differs; the text says which.
    """
    if [array.shape for array in arrays] != [(size,) for size in sizes]:
        raise RuntimeError("the shapes of an answer are others than those of the model")
    for number, array in enumerate(arrays):
        bits = array.view(np.uint32)
        for start, block in blocks(number, len(bits)):
            expected = (block * np.uint32(factor)) ^ np.uint32(mask)
            if not np.array_equal(bits[start : start + len(block)], expected):
                raise RuntimeError(f"array {number} differs from the model in the block at {start}")


def serve(url: str, nodes: int, size: int) -> Outcome:
    """Be the ServerApp."""
    outcome, sizes = Outcome(), sizes_of(size)
    with open_run(url, _PREFIX) as driver:
        chosen = driver.wait_for_nodes(nodes, timeout=LIMIT)
        for node in chosen:
            ask(driver, "query.memory", node)
        base = memory.reset_peak()
        started = time.perf_counter()
        content = RecordSet({"model": ParametersRecord(make_model(sizes))})
        outcome.seconds["make the model"] = time.perf_counter() - started
        started = time.perf_counter()
        ids = push(driver, content, "train.flip", chosen, "large")
        del content
        outcome.seconds["push"] = time.perf_counter() - started
        total: list[Bits] = []
        mask = 0
        for reply in driver.replies(ids):
            outcome.seconds[f"reply {len(outcome.seconds) - 1}, since the push"] = time.perf_counter() - started
            mask ^= _fold(reply, sizes, total)
            driver.settle(reply)
            del reply  # or the next one arrives while this one is still here
        compare([bits.view(np.float32) for bits in total], sizes, mask, nodes % 2)
        outcome.seconds["all, since the push"] = time.perf_counter() - started
        outcome.peaks["ServerApp"] = memory.peak()
        outcome.peaks["ServerApp, above before"] = memory.peak() - base
        for number, node in enumerate(chosen, 1):
            outcome.peaks[f"node {number}"] = int(ask(driver, "query.memory", node)["peak"])
    return outcome


def _fold(reply: Message, sizes: Sequence[int], total: list[Bits]) -> int:
    """Compare a reply, fold it into ``total``, and return the bits that its node flipped."""
    arrays = check(reply).content.parameters_records["model"].to_numpy_ndarrays()
    _, first = next(blocks(0, sizes[0]))
    mask = int(arrays[0].view(np.uint32)[0] ^ first[0])
    if not mask:
        raise RuntimeError("a node flipped nothing")
    compare(arrays, sizes, mask)
    if not total:
        total += [np.zeros(size, np.uint32) for size in sizes]
    for folded, array in zip(total, arrays, strict=True):
        folded ^= array.view(np.uint32)
    return mask


def _warn_of_memory(console: Console, size: int, nodes: int) -> None:
    """The ServerApp holds two models, so does each node, and Redis holds all replies and the model."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    available, needed = int(found[1]) * 1024 if found else 0, (3 + 3 * nodes) * size
    if available < needed:
        console.print(
            f"[yellow]This may need up to {needed / 1e9:.1f} GB of memory, of which {available / 1e9:.1f} GB are "
            "available: give a smaller --size if it is killed.[/yellow]"
        )


@click.command()
@click.option(
    "--size", type=click.IntRange(min=4_000_000), default=2_500_000_000, show_default=True, help="Bytes of the model."
)
@click.option("--nodes", type=click.IntRange(min=1), default=2, show_default=True, help="Node processes.")
def main(size: int, nodes: int) -> None:
    """Send a large model to nodes and back, compare every bit, and show time and memory."""
    exit_on_signals()
    console = Console()
    size -= size % 4
    try:
        with EmbeddedServer() as server, Federation(server.url, nodes, _PREFIX):
            _warn_of_memory(console, size, nodes)
            with console.status(f"{size:,} bytes to {nodes} nodes and back"):
                outcome: Outcome = call(serve, server.url, nodes, size)
            outcome.peaks["Redis"] = memory.peak(server.pid)
    except KeyboardInterrupt:
        sys.exit(130)
    table = Table(title=f"{size:,} bytes to {nodes} nodes and back, bit for bit")
    for column in ("what", "seconds", "peak of memory", "in models"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for step, seconds in outcome.seconds.items():
        table.add_row(step, f"{seconds:.2f}")
    for process, peak in outcome.peaks.items():
        table.add_row(process, "", f"{peak / 1e6:,.0f} MB", f"{peak / size:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
