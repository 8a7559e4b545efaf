"""How a log record looks: as a line of Flower's, with time and ids, or as JSON.

Owns the columns, the colours and the keys. It must not know where lines go.

    INFO :      Starting server round 1
    2026-11-29 19:30:47.123 INFO     Starting server round 1 [run 1141…]
    {"time": "2026-11-29T18:30:47.123+00:00", "level": "INFO", "logger": "brokerfl", "message": …}
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from json import dumps
from logging import LogRecord

from brokerfl.common.log_context import current_ids, name_of, realm_in
from brokerfl.common.text import short, shown

#: Makes a line of a record; coloured or not.
Layout = Callable[[LogRecord, bool], str]

#: Width of the level and the spaces after the colon together: messages of all levels start in the same column.
_COLUMN = 10

#: Width of the level in a line with the time.
_LEVEL = 8

_COLOURS = {"DEBUG": 94, "INFO": 92, "WARNING": 93, "ERROR": 91, "CRITICAL": 95}

#: Control characters that a line may hold: apps log tracebacks and tables.
_KEPT = "\n\t"

#: What `identify` adds to a record, each a text or None.
IDS = ("run", "node", "node_name", "message_id", "event")

_exceptions = logging.Formatter()


def identify(record: LogRecord) -> None:
    """Add the ids of here and now to a record, as attributes that any formatter can use; what it has stays."""
    run, node, message = current_ids()
    fields = record.__dict__
    fields.setdefault("run", None if run is None else str(run))
    fields.setdefault("node", None if node is None else str(node))
    fields.setdefault("node_name", _name(fields["node"]))
    fields.setdefault("message_id", message)
    fields.setdefault("event", None)


def _name(node: object) -> str | None:
    return (name_of(int(node)) or None) if isinstance(node, str) and node.isdecimal() else None


def text_of(record: LogRecord) -> str:
    """Return the message of a record with its traceback, if it has one."""
    try:
        return _exceptions.format(record)
    except Exception:  # the arguments do not fit: a mistake of the app's, which the line shows
        return f"{record.msg!r} % {record.args!r}"


def flower_line(record: LogRecord, coloured: bool) -> str:
    """Return a line as Flower prints it."""
    level, padding = f"{record.levelname} ", " " * (_COLUMN - len(record.levelname))
    return f"{_colour(record, level) if coloured else level}:{padding}{shown(text_of(record), keep=_KEPT)}"


def timed_line(record: LogRecord, coloured: bool) -> str:
    """Return a line with the local time, and with the ids after the first line of the message."""
    at = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
    level = f"{record.levelname:<{_LEVEL}}"
    text = shown(text_of(record), keep=_KEPT)
    first, line_break, rest = text.partition("\n")
    return f"{at} {_colour(record, level) if coloured else level} {first}{_ids(record, text)}{line_break}{rest}"


def json_line(record: LogRecord, coloured: bool) -> str:
    """Return a JSON object: time (UTC, ISO 8601), level, logger and message, and all `IDS`."""
    ids = {key: getattr(record, key, None) for key in IDS}
    return dumps(
        {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": text_of(record),
            **{key: None if value is None else str(value) for key, value in ids.items()},
        }
    )


def _ids(record: LogRecord, text: str) -> str:
    """Return the ids that the message itself does not name."""
    run, node, name, message, _ = (getattr(record, key, None) for key in IDS)
    words = []
    if run and str(run) not in text:
        words.append(f"run {_short(run, len(realm_in(str(run))))}")
    if node and str(node) not in text:
        words.append(f"node {shown(str(name)) if name else _short(node)}")
    if message and str(message) not in text:
        words.append(f"message {short(str(message))}")
    return f" [{' '.join(words)}]" if words else ""


def _short(number: object, more: int = 0) -> str:
    text = str(number)
    return short(int(text), more) if text.isdecimal() else shown(text)


def _colour(record: LogRecord, text: str) -> str:
    return f"\033[{_COLOURS.get(record.levelname, 0)}m{text}\033[0m"
