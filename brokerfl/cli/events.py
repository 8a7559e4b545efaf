"""`brokerfl events`, `log`, `export` and `compare`: what happened in runs. Owns how it is printed."""

import csv
import io
import json
import time
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import click

from brokerfl.broker.connection import Connection
from brokerfl.broker.events import read_events, read_log
from brokerfl.broker.runs import absent
from brokerfl.cli.arrays import export_model
from brokerfl.cli.exits import Command
from brokerfl.cli.options import FilePath, RedisOptions, Text, redis_options
from brokerfl.cli.references import find_run
from brokerfl.cli.tables import accept_any_text, format_option, local_time, show, show_text
from brokerfl.common import ConfigError, RunNotFound
from brokerfl.common.text import shown
from brokerfl.view.history import ended, metrics_of, record_of, said
from brokerfl.view.shape import event_to_json
from brokerfl.wire.event import Event, Kind
from brokerfl.wire.past import Past

#: Seconds between two looks for new events.
_LOOK = 1.0

#: The columns of an event in CSV: one row for each of its numbers, or one without.
_COLUMNS = (
    "time", "kind", "group", "type", "sent", "answered", "errors", "seconds", "node", "text", "name", "value",
)  # fmt: skip


@click.command(cls=Command)
@click.argument("run", type=Text())
@redis_options
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on, until the run ends.")
def events(run: str, redis: RedisOptions, follow: bool) -> None:
    """Show what happened in the run RUN.

    Its start, its groups of messages, the first Error of each node, and the numbers that its app told.
    """
    connection = redis.connect()
    accept_any_text()
    run_id = find_run(connection, run)
    last, past = "", record_of(connection, run_id)
    while True:
        for entry_id, event in [*read_events(connection, run_id, last)]:
            show_text(f"{_time(event.at)}  {said(event)}")
            last = entry_id
        if past.ended_at:
            show_text(f"{_time(past.ended_at)}  {said(_end_of(past))}")
        if past.ended_at or not follow:
            return
        time.sleep(_LOOK)
        past = record_of(connection, run_id)


@click.command("log", cls=Command)
@click.argument("run", type=Text())
@redis_options
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on, until the run ends.")
def log_(run: str, redis: RedisOptions, follow: bool) -> None:
    """Show what the ServerApp of the run RUN logged, and its nodes with --share-log, about the last 5,000 lines.

    The log is kept until the run ends.
    """
    connection = redis.connect()
    accept_any_text()
    run_id = find_run(connection, run)
    past = record_of(connection, run_id)
    if past.ended_at:
        raise RunNotFound(absent(connection, run_id))
    if past.run.is_sealed:
        raise ConfigError(f"run {run_id} is sealed: its log is only where its ServerApp runs (--log-file)")
    last = ""
    while True:
        for entry_id, line in [*read_log(connection, run_id, last)]:
            show_text(shown(line, keep="\n\t"))
            last = entry_id
        if not follow or record_of(connection, run_id).ended_at:
            return
        time.sleep(_LOOK)


def _end_of(past: Past) -> Event:
    return Event(past.ended_at, ended(past), errors=past.errors, values=past.metrics)


def _time(seconds: float) -> str:
    found = local_time(seconds)
    return f"{found:%Y-%m-%d %H:%M:%S}" if found else " " * 19


@click.command(cls=Command)
@click.argument("run", type=Text())
@redis_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="One JSON object a line, or a table for spreadsheets with one row for each number.",
)
@click.option(
    "--arrays",
    type=FilePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Instead of that, write the latest model that the run has recorded to this .npz file.",
)
@click.option("--force", is_flag=True, help="With --arrays: replace the file if it exists.")
def export(run: str, redis: RedisOptions, form: str, arrays: Path | None, force: bool) -> None:
    """Print the events and numbers of the run RUN for other programs.

    Of a run that has ended, its numbers remain for 30 days, and how it ended. --arrays writes its model while it has
    not ended, whether or not its ServerApp is alive.
    """
    if force and arrays is None:
        raise ConfigError("--force needs --arrays FILE, the file to replace")
    connection = redis.connect()
    past = record_of(connection, find_run(connection, run))
    if arrays is not None:
        if past.ended_at:
            raise RunNotFound(absent(connection, past.run.run_id))
        export_model(connection, past.run, arrays, force=force)
        return
    rows = [event_to_json(event) for event in _told(connection, past)]
    if past.ended_at:
        rows.append(event_to_json(_end_of(past)))
    accept_any_text()
    for line in _csv(rows) if form == "csv" else map(_json, rows):
        show_text(line)


def _told(connection: Connection, past: Past) -> Iterator[Event]:
    """Yield the events of a run; of one that has ended, its numbers."""
    if not past.ended_at:
        yield from (event for _, event in read_events(connection, past.run.run_id))
        return
    for name, curve in metrics_of(connection, past.run.run_id).items():
        for group, value in curve:
            yield Event(0.0, Kind.METRICS, str(group), values={name: value})


def _json(row: dict[str, Any]) -> str:
    """Return a row without what it does not say. JSON has no word for a number that is not finite: it is null."""
    values = {name: value if isfinite(value) else None for name, value in row["values"].items()}
    return json.dumps({name: value for name, value in {**row, "values": values}.items() if value or name == "kind"})


def _csv(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for name, value in row["values"].items() or [(None, None)]:
            writer.writerow({**row, "name": name, "value": value})
    yield out.getvalue().removesuffix("\n")


@click.command(cls=Command)
@click.argument("run", type=Text())
@click.argument("other", type=Text())
@redis_options
@format_option
def compare(run: str, other: str, redis: RedisOptions, form: str) -> None:
    """Compare two runs: where their configs differ, how they ended, and the last value of each number."""
    connection = redis.connect()
    one, two = (record_of(connection, find_run(connection, each)) for each in (run, other))
    rows = [
        {"name": name, "what": what, "first": str(values[0]), "second": str(values[1])}
        for what, name, *values in _compared(one, two)
    ]
    show(rows, form, "the runs have nothing to compare")


def _compared(one: Past, two: Past) -> Iterator[tuple[str, str, Any, Any]]:
    facts: dict[str, tuple[Any, ...]] = {
        "run": (one.run.run_id, two.run.run_id),
        "name": (one.run.name, two.run.name),
        "app": (one.run.app, two.run.app),
        "state": tuple(ended(each) if each.ended_at else "going on" for each in (one, two)),
        "seconds": tuple(round(each.ended_at - each.run.created_at, 1) if each.ended_at else "" for each in (one, two)),
        "messages": (one.messages, two.messages),
        "replies": (one.replies, two.replies),
        "errors": (one.errors, two.errors),
    }
    for name, (first, second) in facts.items():
        yield "run", name, first, second
    config, other = one.run.run_config, two.run.run_config
    for name in dict.fromkeys([*config, *other]):
        if config.get(name) != other.get(name):
            yield "config", name, config.get(name, ""), other.get(name, "")
    for name in dict.fromkeys([*one.metrics, *two.metrics]):
        first, second = (f"{each.metrics[name]:.6g}" if name in each.metrics else "" for each in (one, two))
        yield "metric", name, first, second
