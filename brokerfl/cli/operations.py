"""`brokerfl runs`, `nodes`, `stop`: what an operator sees and does. Owns their tables and their JSON."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brokerfl.broker.nodes import list_nodes
from brokerfl.broker.runs import list_runs, stop_run
from brokerfl.cli.exits import Command
from brokerfl.cli.options import RedisOptions, RunId, redis_options

#: Columns of numbers.
_COUNTS = ("nodes", "messages", "replies")

format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json prints one list of objects; ids are strings, for they exceed what JavaScript counts.",
)


@click.command(cls=Command)
@redis_options
@format_option
@click.option("--all", "ended_too", is_flag=True, help="Also runs that have ended.")
def runs(redis: RedisOptions, form: str, ended_too: bool) -> None:
    """List the runs."""
    rows = [
        {
            "run": str(run.run_id),
            "status": run.status,
            "app": run.app,
            "started": _time(run.created_at),
            "ended": _time(run.ended_at),
            "holder": run.holder,
            "nodes": None if run.ended_at else run.nodes,
            "messages": None if run.ended_at else run.messages,
            "replies": None if run.ended_at else run.replies,
        }
        for run in list_runs(redis.connect())
        if ended_too or not run.ended_at
    ]
    _show(rows, form, "no runs" if ended_too else "no runs; --all shows those that have ended")


@click.command(cls=Command)
@redis_options
@format_option
def nodes(redis: RedisOptions, form: str) -> None:
    """List the nodes."""
    rows = [
        {
            "node": str(node.node_id),
            "status": "online" if node.online else "offline",
            "name": node.name,
            "labels": node.labels,
            "version": node.version,
            "since": _time(node.since),
        }
        for node in list_nodes(redis.connect())
    ]
    _show(rows, form, "no nodes; brokerfl-node client:app starts one")


@click.command(cls=Command)
@click.argument("run", type=RunId(min=2))
@redis_options
@format_option
def stop(run: int, redis: RedisOptions, form: str) -> None:
    """Stop the run RUN, whether or not its ServerApp is alive, and delete its keys."""
    stop_run(redis.connect(), run)
    if form == "json":
        click.echo(json.dumps({"run": str(run), "status": "stopped"}))
    else:
        click.echo(f"Run {run} is stopped; its keys are deleted.")


def _time(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds).astimezone() if seconds else None


def _show(rows: Sequence[dict[str, Any]], form: str, nothing: str) -> None:
    if form == "json":
        click.echo(json.dumps(rows, indent=2, default=lambda time: time.isoformat(timespec="seconds")))
    elif not rows:
        click.echo(nothing)
    else:
        columns = [name for name in rows[0] if any(row[name] for row in rows)]
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in columns:
            table.add_column(name, justify="right" if name in _COUNTS else "left")
        for row in rows:
            table.add_row(*(Text(_text(row[name])) for name in columns))
        # Wider than any table, in a pipe and on a terminal: an id that is cut or folded cannot be copied.
        Console(width=10_000, soft_wrap=True).print(table)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={text}" for key, text in value.items())
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return "" if value is None else str(value)
