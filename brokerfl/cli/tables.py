"""Tables and JSON: how rows are printed. Owns `--format`; must not know what the rows mean."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import TextIOWrapper
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from brokerfl.cli.columns import Column, lines_of
from brokerfl.cli.exits import Exit
from brokerfl.cli.streams import failure
from brokerfl.common import BrokerflError
from brokerfl.common.text import shown

#: What an empty cell has, so that a script finds every column at its place.
NOTHING = "-"

#: Columns of numbers.
_NUMBERS = (
    "bytes", "crashes", "errors", "dead", "queue", "last", "median", "memory", "answered", "nodes", "total",
    "contents", "inboxes", "outboxes", "chunks", "context", "books",
)  # fmt: skip

format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format. In JSON, ids are strings because they exceed JavaScript's integers.",
)


def local_time(seconds: float) -> datetime | None:
    """Return Unix time as a local datetime; None for 0, which means unknown, and for what no calendar has."""
    try:
        return datetime.fromtimestamp(seconds).astimezone() if seconds else None
    except (ValueError, OverflowError, OSError):
        return None


def show(rows: Sequence[Mapping[str, Any]], form: str, nothing: str) -> None:
    """Print rows, all with the same columns.

    Args:
        rows: what to print.
        form: ``table`` or ``json``.
        nothing: what to print instead of an empty table.
    """
    if form == "json":
        show_text(to_json(rows))
    elif not rows:
        show_text(nothing)
    else:
        columns = [Column(name.upper(), is_number=name in _NUMBERS) for name in rows[0]]
        show_lines(lines_of(columns, [[cell_of(value) for value in row.values()] for row in rows]))


def show_lines(lines: Sequence[Text]) -> None:
    """Print lines as wide as they are, in a pipe and on a terminal: an id that is cut or wrapped cannot be copied."""
    accept_any_text()
    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True)
    _check()


def show_done(record: Mapping[str, object], text: str, form: str) -> None:
    """Print what was done: as JSON, or in words."""
    click.echo(json.dumps(record) if form == "json" else text)


def show_text(text: str) -> None:
    """Print a text that is all that its command is for."""
    click.echo(text)
    _check()


def _check() -> None:
    """Fail if standard output did not take what was asked for; quietly if its reader has seen enough, as ``head``."""
    error = failure()
    if isinstance(error, BrokenPipeError):
        sys.exit(Exit.FAILURE)
    if error is not None:
        raise BrokerflError(f"standard output cannot be written: {error.strerror}")


def accept_any_text() -> None:
    """Let standard output escape what its encoding does not have, as standard error does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def to_json(value: object) -> str:
    """Return ``value`` as indented JSON; times are in ISO 8601."""
    return json.dumps(value, indent=2, default=lambda time: time.isoformat(timespec="seconds"))


def cell_of(value: object) -> Text:
    """Return a value as a cell of a table: one line, in which no two blanks follow each other."""
    if isinstance(value, Text):
        return value
    return Text(" ".join(shown(_words(value)).split()) or NOTHING)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={text}" for key, text in value.items())
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return "" if value is None else str(value)
