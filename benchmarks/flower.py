"""brokerfl compared with Flower, with the same app: python -m benchmarks.flower.

Owns the command, its table and docs/flower-performance.md. How either side is run is `superlink`'s.
"""

import datetime
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from benchmarks import environment, memory, rivals
from benchmarks.growth import size_label
from benchmarks.measure import Comparison, Samples
from benchmarks.report import Grid, environment_of, spread
from benchmarks.report import console as open_console
from benchmarks.superlink import NODES, ROUNDS, RUNS, Brokerfl, Outcome, Side, SuperLink, find_command
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.common import BrokerflError

_DOCS = Path(__file__).parent.parent / "docs"

_COMMANDS = (
    "flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp", "flwr",
    "brokerfl-node", "brokerfl-server",
)  # fmt: skip

#: Since then a SuperLink has one port, and the options that it is started with here.
_OLDEST = (1, 41)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_WHAT = f"""\
This is Flower's how-to "Use Multi-run": {RUNS} ServerApps at once over the same {NODES} nodes, {ROUNDS} rounds each.
In a round, the ServerApp calls `grid.send_and_receive` with one message for each node and waits for all replies.
The app is `benchmarks/flower_app`, a project as `flwr new` makes it, which imports only flwr and numpy; both sides \
run the same files.
"Empty" is a message without records.
With arrays, each round has new random numbers, and each node replies with new ones: the array plus a number of the \
node's own, which the ServerApp checks.

Flower's side has a SuperLink that keeps its state in memory, SuperNodes, and two `flwr run` at once.
brokerfl's side has an embedded Valkey that keeps nothing on disk, `brokerfl-node`, and two `brokerfl-server` at once.
Both use their default options, except for ports, `--insecure` (there are no certificates), and anything that needs a \
network: no telemetry, no check for updates, and no installation of the app's dependencies, which are already there.
Nodes are ready before the clock starts.
A turn starts everything from scratch, and runs first the empty messages, then the arrays; the sides take turns.

"From submission to the end" is the time from the start of the two commands until `main` of both ServerApps has \
returned, by the clock that the app reads.
A round is the time of `send_and_receive`, including making its messages.
Memory is the resident memory that belongs to a process alone, without mapped files such as libraries, which processes \
share.
It is summed over all processes of a side ten times a second; the table shows the highest sum."""

_WHY = """\
Flower, as of 1.41, waits by polling: a SuperNode that found no message looks again after 3 s, `send_and_receive` \
looks for replies every 3 s, and a SuperExec, which starts ServerApps and ClientApps, looks for work every second.
A SuperNode takes the next message once the last one is answered, as a node of brokerfl does with its default of one \
worker.

Each message also starts a separate process for the ClientApp, which first imports flwr and the app.
Here these imports share the cores of one machine; if each node has its own machine, they take less time.
That process also has advantages that brokerfl does not offer: a ClientApp leaves nothing behind in memory, and when \
it crashes, its node survives.
brokerfl's nodes are processes that import the app once."""

_HOW = """\
    pip install -e '.[flower,bench]'
    python -m benchmarks.flower"""


@dataclass(frozen=True)
class _Case:
    name: str
    work: str
    size: int


@click.command()
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of each side.")
@click.option(
    "--size", type=click.IntRange(min=4), default=10_000_000, show_default=True, help="Bytes of the larger message."
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=_DOCS,
    help="Where flower-performance.md is written [default: docs].",
)
def main(repeat: int, size: int, output: Path) -> None:
    """Measure brokerfl and Flower, and write docs/flower-performance.md.

    The same app runs twice at once over five nodes: on a SuperLink with SuperNodes, and on Valkey with brokerfl's
    nodes. The sides take turns, each with fresh processes.
    """
    for number in _SIGNALS:
        signal.signal(number, _leave)
    console, started = open_console(), time.monotonic()
    cases = [_Case("empty", "empty messages", 0), _Case("arrays", f"{size_label(size)} of float32", size)]
    try:
        described = _describe()
        console.print(environment_of(described).rich("Environment"))
        found = _measure(console, cases, repeat)
    except SystemExit:
        console.print("Interrupted; everything that was started has been stopped.")
        raise
    except (RuntimeError, BrokerflError) as error:
        raise click.ClickException(str(error)) from None
    table = _table_of(cases, found)
    console.print(table.rich(f"{RUNS} runs of {ROUNDS} rounds at once, {NODES} nodes"))
    console.print(f"{time.monotonic() - started:.0f} s in all.")
    output.mkdir(parents=True, exist_ok=True)
    page = output / "flower-performance.md"
    page.write_text(_page(described, table, repeat))
    console.print(f"Written: {page}")


def _leave(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # let everything be stopped
    sys.exit(128 + number)


def _describe() -> dict[str, str]:
    """Return the environment.

    Raises:
        RuntimeError: something that is measured is not installed, or this is not Linux.
    """
    memory.resident()
    for command in _COMMANDS:
        find_command(command)
    flwr = version("flwr")
    if tuple(int(part) for part in flwr.split(".")[:2]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise RuntimeError(f"flwr {flwr} is too old: {oldest} and later are started as this benchmark does it")
    with EmbeddedServer() as server:
        return {"flwr": flwr, **environment.describe(rivals.connect(server.url))}


def _measure(console: Console, cases: Sequence[_Case], repeat: int) -> dict[tuple[type[Side], str], list[Outcome]]:
    """Return the outcomes of each side and case, turn by turn."""
    sides: list[type[Side]] = [Brokerfl, SuperLink]
    found: dict[tuple[type[Side], str], list[Outcome]] = {}
    for turn in range(repeat):
        for kind in sides[:: -1 if turn % 2 else 1]:
            with console.status(f"turn {turn + 1} of {repeat}: {kind.name}"), kind() as side:
                for case in cases:
                    outcome = side.run(case.name, case.size)
                    found.setdefault((kind, case.name), []).append(outcome)
                    console.print(f"[dim]turn {turn + 1}, {kind.name}, {case.work}: {outcome.seconds:.1f} s[/dim]")
    return found


def _table_of(cases: Sequence[_Case], found: Mapping[tuple[type[Side], str], list[Outcome]]) -> Grid:
    grid = Grid(("messages", "measured", Brokerfl.name, SuperLink.name, "ratio"))
    for case in cases:
        ours, flowers = found[Brokerfl, case.name], found[SuperLink, case.name]
        for what, unit, values in (
            ("from submission to the end of both runs", "s", lambda outcome: (outcome.seconds,)),
            ("a round", "s", lambda outcome: outcome.rounds),
            ("peak memory of all processes", "B", lambda outcome: (outcome.memory,)),
        ):
            comparison = Comparison(Samples(tuple(map(values, ours))), Samples(tuple(map(values, flowers))))
            sides = (spread(comparison.ours, unit), spread(comparison.reference, unit))
            grid.rows.append((case.work, what, *sides, _ratio(comparison)))
    return grid


def _ratio(comparison: Comparison) -> str:
    low, high = comparison.spread
    return f"{comparison.ratio:.2g} ({low:.2g} to {high:.2g})"


def _page(described: Mapping[str, str], table: Grid, repeat: int) -> str:
    date = datetime.datetime.now(datetime.UTC).date()
    turns = "one turn" if repeat == 1 else f"{repeat} turns"
    parts = [
        "# Performance compared with Flower",
        f"Written by `python -m benchmarks.flower` on {date}; do not edit.\n"
        f"Figures are medians of {turns} of each side, followed by the 10th and 90th percentile, or by the minimum and "
        "maximum of fewer than ten.\n"
        "A ratio is brokerfl's figure divided by Flower's: the median of the turns, followed by their minimum and "
        "maximum.",
        environment_of(described).markdown(),
        f"## {RUNS} runs of {ROUNDS} rounds at once, {NODES} nodes",
        table.markdown(),
        "## What is measured",
        _WHAT,
        "## Where the time goes",
        _WHY,
        "## How to run it",
        _HOW,
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
