"""The report: tables for a terminal, and docs/performance.md with its picture.

Owns how figures are written. It must not know how they were measured.
"""

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.growth import Curve, Points, size_label
from benchmarks.many_runs import NODES, Load
from benchmarks.measure import Comparison, Samples
from benchmarks.rows import Row

BARE = """\
"Bare redis-py" does the same work in plain commands, with as many processes on the same server, as well as we know \
how.
It has no ledger, no fence and no records, and nothing in it survives a crash.

- Small messages: each node has one stream, and one pipeline pushes to all of them.
  Nodes read up to 100 messages at once and publish their replies in one pipeline with XACK and XDEL.
- Models: chunks of 1 MiB are SET once under their sha256, and the message names them.
  Nodes GET one chunk after the other (pipelines of 16 take twice as long, since their results are in memory together) \
and check each hash.
  They reply with entries of a data stream, hashed again, which the collector reads, checks and deletes.
- redis-py's Python packer with memoryviews copies nothing when sending.
- Models of at most 64 KiB travel in the message, without hashes.

It does one thing after another in one thread.
So it is not a lower bound: a ratio below 1 means that redis-py can do better than this, not that Redis is asked for \
less.

Both sides take turns in one run.
Each round has a new random model, and nodes reply with new memory (the model plus a number of the node's own), so \
that nothing is saved by recognising bytes.
Peaks of memory are VmHWM of fresh processes, reset before the model is made.
The ServerApp releases its model once it is pushed, and each reply once it is folded.
If Redis keeps an append-only file, brokerfl itself holds what was sent for five seconds more.
A node "with 2 workers" is started with `--workers 2`."""

BEYOND = """\
Two cores carry everything here: the server, the ServerApp and all nodes.
So the figures are mostly CPU time rather than waiting, and a figure close to its target is above it in some runs and \
below it in others.

The 1,000 small messages miss their target in every run.
The row says how much CPU time each side takes for a round: some 200 µs of Python per message and reply, compared with \
20 µs for bare redis-py.
A profile (py-spy, 1,000 samples a second) is flat.
Of the ServerApp's time, 14 % go to encoding contents and ledger entries, 20 % to packing, sending and recording a \
transaction, 18 % to decoding replies, 12 % to reading them, and 15 % to making and checking records and messages.
Of a node's time, without its waiting for work, 17 % go to reading, 39 % to decoding, executing and encoding, and 36 % \
to recording and publishing replies.
Nothing in it waits for a timer, and nothing is done twice.
The garbage collector takes a tenth of it.
More cores improve the figure; so would a codec in C.

In the row with two runs, the models of the large one keep both cores busy (97 %) with hashing and with copying \
between kernel and process.
The tiny run gets its share of what is left.
Bare redis-py did no better: its own tiny round, by five separate processes next to the same large run, went from 2.1 \
to 14.7 ms, a factor of 7.2, measured once.
brokerfl's factor was 7.1 to 7.3 until the hashing threads gave way to all others (Linux); since then it was 5.0 to \
6.1 in three runs of all rows.
Windows of 4 chunks instead of 16 had halved it before; windows of 2 change nothing more.
With the lowest priority, hashing would bring it to 4.9 to 5.3, and would starve where training keeps the cores busy."""

SERVERS = f"""\
All servers are the same Valkey, on this machine, and the Cluster has no replicas.
So three primaries cannot be faster than one server here: they share its two cores.
What tells is the part of the busiest primary, which is 1.00 on one server and at least a third on three.
A run is on the primary that its random id leads to, and each turn has new runs: two of them may have the same one.
The {NODES} nodes, and the chunks of models, are spread in the same way.

A round costs more on a Cluster.
On one server a node reads all its inboxes at once; on a Cluster each message also rings the node's doorbell, and the \
inbox is read when it has rung.
So the last column counts as well: below 1.00, three primaries take more rounds than one server before the busiest one \
is at its limit.
The row with the empty round says how much CPU time the ServerApp, the nodes and the servers take for one.

A run with `--wait-replicas` sends WAIT with each of its transactions, and goes on once the replica has them.
Here the replica is on the same two cores; elsewhere each WAIT also takes a round trip between the two machines."""

LOADS = f"Runs at once, each with one empty round after the other over the same {NODES} nodes, on three primaries"

HOW = """\
    scripts/bench            # everything; writes this page
    scripts/bench --quick    # less than three minutes; writes nothing
    scripts/bench --only empty --only 10mb --repeat 9"""

#: In a row without a target.
_NONE = "\N{EN DASH}"


#: Columns of the tables when the output is not a terminal.
_FILE_WIDTH = 160


def console() -> Console:
    """Return what tables are printed to: the terminal, or a file of a fixed width."""
    found = Console()
    return found if found.is_terminal else Console(width=_FILE_WIDTH)


@dataclass
class Grid:
    """A table as text, for a terminal and for Markdown alike."""

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def rich(self, title: str) -> Table:
        """Return it for a terminal."""
        table = Table(title=title)
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return it for a page."""
        rule = ["---", *("---:" for _ in self.columns[1:])]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows))


def quantity(value: float, unit: str) -> str:
    """Return seconds or bytes with three digits and a unit that fits."""
    scales = {"s": ((1.0, "s"), (1e-3, "ms"), (0.0, "µs")), "B": ((1e6, "MB"), (0.0, "KB"))}[unit]
    factor, name = next(scale for scale in scales if abs(value) >= scale[0])
    value /= factor or {"µs": 1e-6, "KB": 1e3}[name]
    return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f} {name}"


def spread(samples: Samples, unit: str) -> str:
    """Return the median, and in brackets its spread."""
    low, high = samples.spread
    return f"{quantity(samples.median, unit)} ({quantity(low, unit)} to {quantity(high, unit)})"


def _ratio(comparison: Comparison) -> str:
    low, high = comparison.spread
    return f"{comparison.ratio:.2f} ({low:.2f} to {high:.2f})"


def table_of(found: Mapping[Row, Comparison | Exception]) -> Grid:
    """Return the rows of the table."""
    grid = Grid(("work", "brokerfl", "compared with", "ratio", "at most", "ok"))
    for row, result in found.items():
        target = _NONE if row.target is None else f"{row.target:g}"
        if isinstance(result, Exception):
            grid.rows.append((row.work, f"not measured: {_first_line(result)}", "", "", target, "no"))
            continue
        work = f"{row.work}; {result.note}" if result.note else row.work
        reference = f"{row.beside}: {_reference(result.reference, row.unit)}"
        ok = _NONE if row.target is None else "yes" if result.ratio <= row.target else "no"
        grid.rows.append((work, spread(result.ours, row.unit), reference, _ratio(result), target, ok))
    return grid


def _reference(samples: Samples, unit: str) -> str:
    constant = samples.values[0] == samples.values[-1]
    return quantity(samples.median, unit) if constant else spread(samples, unit)


def _first_line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"[|/]\S*", "…", text)


def curve_of(curve: Curve, points: Points) -> Grid:
    """Return a curve as a table."""
    grid = Grid((curve.axis, "brokerfl", "bare redis-py", "ratio"))
    for value, comparison in points:
        cells = (spread(comparison.ours, "s"), spread(comparison.reference, "s"), _ratio(comparison))
        grid.rows.append((curve.label(value), *cells))
    return grid


def loads_of(loads: Iterable[Load]) -> Grid:
    """Return many runs at once as a table."""
    part = "busiest primary's part of"
    rates = ("rounds a second", "on one server", "ratio")
    grid = Grid(("runs", *rates, f"{part} commands", f"{part} CPU time", "its CPU time a round / one server's"))
    for load in loads:
        rates = (_plain(load.rates.ours, 0), _plain(load.rates.reference, 0), _ratio(load.rates))
        grid.rows.append((str(load.runs), *rates, _plain(load.commands, 2), _plain(load.cpu, 2), _ratio(load.busiest)))
    return grid


def _plain(samples: Samples, digits: int) -> str:
    low, high = samples.spread
    return f"{samples.median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def environment_of(environment: Mapping[str, str]) -> Grid:
    """Return the environment as a table."""
    return Grid(("what", "here"), list(environment.items()))


# The page.


def write_page(
    folder: Path,
    environment: Mapping[str, str],
    found: Mapping[Row, Comparison | Exception],
    curves: Mapping[Curve, Points],
    loads: Sequence[Load],
) -> None:
    """Write performance.md and performance.svg into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder / "performance.svg", curves)
    date = datetime.datetime.now(datetime.UTC).date()
    parts = [
        "# Performance",
        f"Written by `scripts/bench` on {date}; do not edit.\n"
        "Figures are medians, followed by the 10th and 90th percentile of all rounds, or by the minimum and maximum of "
        "fewer than ten.\n"
        "A ratio is the median of the turns, followed by their minimum and maximum.",
        environment_of(environment).markdown(),
        "## Compared with bare redis-py",
        table_of(found).markdown(),
        "## How a round grows",
        "![How a round grows with the number of nodes and with the payload](performance.svg)",
        *_sections(curves),
        "## Several servers",
        f"{LOADS}:",
        loads_of(loads).markdown(),
        SERVERS,
        "## Near the target, or beyond it",
        BEYOND,
        "## What is measured",
        BARE,
        "## How to run it",
        HOW,
    ]
    (folder / "performance.md").write_text("\n\n".join(parts) + "\n")


def _sections(curves: Mapping[Curve, Points]) -> Iterable[str]:
    for curve, points in curves.items():
        yield f"{curve.title}:"
        yield curve_of(curve, points).markdown()


def draw(path: Path, curves: Mapping[Curve, Points]) -> None:
    """Draw the curves side by side: median, with the spread behind it."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "brokerfl", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (curve, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        values = [value for value, _ in points]
        for label, colour, side in (("brokerfl", "#c0392b", "ours"), ("bare redis-py", "#2c3e50", "reference")):
            samples: list[Samples] = [getattr(comparison, side) for _, comparison in points]
            low, high = zip(*(sample.spread for sample in samples), strict=True)
            medians = [sample.median * 1e3 for sample in samples]
            axes.plot(values, medians, "o-", color=colour, label=label, markersize=4)
            axes.fill_between(values, [x * 1e3 for x in low], [x * 1e3 for x in high], color=colour, alpha=0.15, lw=0)
        axes.set(title=curve.title, xlabel=curve.axis, ylabel="round, ms")
        if curve.label is size_label:
            axes.set(xscale="log", yscale="log")
        else:
            axes.set(ylim=(0, None))
        axes.set_xticks(values, [curve.label(value) for value in values], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
