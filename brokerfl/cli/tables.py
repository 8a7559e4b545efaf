"""Tables and JSON: how rows are printed. Owns `--format`; must not know what the rows mean."""

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from io import TextIOWrapper
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brokerfl.cli.exits import Exit
from brokerfl.cli.streams import failure
from brokerfl.common import BrokerflError
from brokerfl.common.text import shown

#: Columns of numbers.
_COUNTS = ("nodes", "messages", "replies", "bytes", "crashes")

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


def show(rows: Sequence[dict[str, Any]], form: str, nothing: str) -> None:
    """Print rows, all with the same columns; the table leaves out empty columns.

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
        columns = [name for name in rows[0] if any(row[name] for row in rows)]
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in columns:
            table.add_column(name, justify="right" if name in _COUNTS else "left")
        for row in rows:
            table.add_row(*(Text(_text(row[name])) for name in columns))
        # As wide as the table, in a pipe and on a terminal: an id that is cut or wrapped cannot be copied.
        width = sum(2 * max(len(_text(row[name])) for row in rows) + len(name) + 2 for name in columns)
        accept_any_text()
        Console(width=width, soft_wrap=True).print(table)
        _check()


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


def _text(value: object) -> str:
    if isinstance(value, dict):
        return shown(" ".join(f"{key}={text}" for key, text in value.items()))
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return "" if value is None else shown(str(value))
