"""From which size on an array should leave its message: python -m benchmarks.inline_limit.

A round with one array to 5 nodes and back, with every content in its message or every content in chunks, in
alternation. The limit belongs where the second is not slower than the first.
"""

import logging
import sys

import click
from rich.console import Console

from benchmarks.federation import Federation, model_round, set_inline_limit
from benchmarks.measure import Comparison, Plan, Round, alternate
from benchmarks.processes import exit_on_signals
from benchmarks.report import Grid, spread
from brokerfl.broker.embedded import EmbeddedServer

_SIZES = tuple(kibibytes * 1024 for kibibytes in (4, 8, 16, 32, 64, 128, 256))
_NODES = 5

#: Bytes: above all of the sizes, and below all of them.
_ALWAYS, _NEVER = 1 << 30, 1024


def _with_limit(limit: int, round_: Round) -> Round:
    """Return a round before which this process is given ``limit``, as the nodes of that round were at their start."""

    def limited() -> float:
        set_inline_limit(limit)
        return round_()

    return limited


def measure(url: str, plan: Plan) -> list[tuple[int, Comparison]]:
    """Return for each size the rounds with chunks compared with those without."""
    with (
        Federation(url, _NODES, "bench-inline", inline=_ALWAYS) as inline,
        Federation(url, _NODES, "bench-chunked", inline=_NEVER) as chunked,
        inline.run() as (inline_driver, inline_nodes),
        chunked.run() as (chunked_driver, chunked_nodes),
    ):
        found = []
        for size in _SIZES:
            rounds = {
                "chunked": _with_limit(_NEVER, model_round(chunked_driver, chunked_nodes, size)),
                "inline": _with_limit(_ALWAYS, model_round(inline_driver, inline_nodes, size)),
            }
            samples = alternate(rounds, plan, warm_up=10)
            found.append((size, Comparison(samples["chunked"], samples["inline"])))
        return found


@click.command()
@click.option("--repeat", type=click.IntRange(min=1), default=5, show_default=True, help="Turns of each side.")
@click.option("--seconds", type=float, default=0.5, show_default=True, help="Least time of a turn.")
def main(repeat: int, seconds: float) -> None:
    """Compare rounds with arrays in chunks and rounds with arrays in messages."""
    exit_on_signals()
    logging.getLogger("brokerfl").setLevel(logging.ERROR)
    console = Console()
    try:
        with EmbeddedServer() as server, console.status("measuring"):
            found = measure(server.url, Plan(repeat, seconds, quick=False))
    except KeyboardInterrupt:
        sys.exit(130)
    grid = Grid(("array", "chunked", "inline", "ratio"))
    for size, comparison in found:
        low, high = comparison.spread
        ratio = f"{comparison.ratio:.2f} ({low:.2f} to {high:.2f})"
        grid.rows.append(
            (f"{size // 1024} KiB", spread(comparison.ours, "s"), spread(comparison.reference, "s"), ratio)
        )
    console.print(grid.rich(f"A round with one array to {_NODES} nodes and back"))


if __name__ == "__main__":
    main()
