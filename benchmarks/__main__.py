"""The command: ``scripts/bench``."""

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from traceback import print_exc
from typing import TypeVar

import click
from rich.console import Console

from benchmarks import environment, many_runs, report
from benchmarks.growth import CURVES, Curve, Points, measure_curve
from benchmarks.many_runs import Load, measure_many_runs
from benchmarks.measure import Comparison, Plan
from benchmarks.processes import exit_on_signals
from benchmarks.rows import ROWS, Row
from benchmarks.stage import Stage

Result = TypeVar("Result")

_DOCS = Path(__file__).parent.parent / "docs"


@click.command()
@click.option("--quick", is_flag=True, help="Measure less, in less than three minutes; writes no page.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*ROWS, *CURVES, many_runs.NAME]),
    help="Measure this; may be repeated; writes no page.",
)
@click.option("--repeat", type=click.IntRange(min=1), help="Turns of each side [default: 5; 3 with --quick].")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=_DOCS,
    help="Where performance.md and performance.svg are written [default: docs].",
)
def main(quick: bool, only: tuple[str, ...], repeat: int | None, output: Path) -> None:
    """Measure brokerfl and bare redis-py, one server and a Cluster, and write docs/performance.md.

    Exit code 1 means that something could not be measured. A figure beyond its target is shown but is not a failure.
    """
    exit_on_signals()
    logging.getLogger("brokerfl").setLevel(logging.ERROR)
    plan = Plan(repeat or (3 if quick else 5), 0.15 if quick else 0.5, quick)
    console, started = report.console(), time.monotonic()
    try:
        with Stage() as stage:
            described = environment.describe(stage.client)
            console.print(report.environment_of(described).rich("Environment"))
            found = _measure_rows(console, stage, plan, only)
            curves, failed = _measure_curves(console, stage, plan, only)
            loads = _measure_many_runs(console, plan, only)
    except KeyboardInterrupt:
        console.print("Interrupted; everything that was started has been stopped.")
        sys.exit(130)
    console.print(f"{time.monotonic() - started:.0f} s in all.")
    if not quick and not only and not failed and loads is not None:
        report.write_page(output, described, found, curves, loads)
        console.print(f"Written: {output / 'performance.md'}, {output / 'performance.svg'}")
    sys.exit(failed or loads is None or any(isinstance(result, Exception) for result in found.values()))


def _measure_rows(
    console: Console, stage: Stage, plan: Plan, only: tuple[str, ...]
) -> dict[Row, Comparison | Exception]:
    found: dict[Row, Comparison | Exception] = {}
    for row in ROWS.values():
        if only and row.name not in only:
            continue
        started = time.monotonic()
        with console.status(f"{row.name}: {row.work}"):
            found[row] = _measure(partial(row.measure, stage, plan))
        console.print(f"[dim]{row.name}: {time.monotonic() - started:.1f} s[/dim]")
    if found:
        console.print(report.table_of(found).rich("brokerfl compared with a reference"))
    return found


def _measure_curves(
    console: Console, stage: Stage, plan: Plan, only: tuple[str, ...]
) -> tuple[dict[Curve, Points], bool]:
    """Return the curves, and whether one could not be measured."""
    found: dict[Curve, Points] = {}
    failed = False
    for curve in CURVES.values():
        if only and curve.name not in only:
            continue
        with console.status(curve.title):
            points = _measure(partial(measure_curve, curve, stage, plan))
        if isinstance(points, Exception):
            failed = True
            continue
        found[curve] = points
        console.print(report.curve_of(curve, points).rich(curve.title))
    return found, failed


def _measure_many_runs(console: Console, plan: Plan, only: tuple[str, ...]) -> list[Load] | None:
    """Return many runs at once, none if nobody asked for them; None if they could not be measured."""
    if only and many_runs.NAME not in only:
        return []
    with console.status(report.LOADS):
        loads = _measure(partial(measure_many_runs, plan))
    if isinstance(loads, Exception):
        return None
    console.print(report.loads_of(loads).rich(report.LOADS))
    return loads


def _measure(measure: Callable[[], Result]) -> Result | Exception:
    """One thing that cannot be measured does not keep the others from being."""
    try:
        return measure()
    except Exception as error:
        print_exc()
        return error


if __name__ == "__main__":
    main()
