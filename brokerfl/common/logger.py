"""The logger "brokerfl" and how it prints. Owns the one console handler; must not know what is logged.

As in Flower, importing the package adds a handler to its own logger, at level INFO. Records also propagate to the
root logger, so that an application's own logging (and pytest's ``caplog``) sees them; each is printed once.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from json import dumps
from logging import DEBUG, INFO, LogRecord
from typing import Any

from brokerfl.common.text import shown

#: Width of the level and the spaces after the colon together: messages of all levels start in the same column.
_COLUMN = 10

_COLOURS = {"DEBUG": 94, "INFO": 92, "WARNING": 93, "ERROR": 91, "CRITICAL": 95}

#: Control characters that a line may hold: apps log tracebacks and tables.
_KEPT = "\n\t"

_text = logging.Formatter()


class ConsoleHandler(logging.Handler):
    """Prints to standard error: ``INFO :      Starting server round 1``.

    The stream is looked up for each record, so redirection works at any time. Levels are coloured on a
    terminal, unless the variable NO_COLOR is set (no-color.org).

    Attributes:
        timestamps: show the local time after the level.
        json: print one JSON object per line, with ``time`` (UTC, ISO 8601), ``level`` and ``message``.
    """

    def __init__(self, level: int = INFO) -> None:
        super().__init__(level)
        self.timestamps = False
        self.json = False

    def emit(self, record: LogRecord) -> None:
        """Print one record."""
        stream = sys.stderr
        if stream is None:  # a process without a console, such as pythonw
            return
        try:
            coloured = not self.json and stream.isatty() and not os.environ.get("NO_COLOR")
            stream.write((self._colour(record) if coloured else self.format(record)) + "\n")
            stream.flush()
        except Exception:  # as in every handler of the standard library: logging never ends the program
            with suppress(Exception):  # it prints to the same stream, which may be closed
                self.handleError(record)

    def format(self, record: LogRecord) -> str:
        """Return the text of one record, without colours."""
        if self.json:
            time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            return dumps({"time": time, "level": record.levelname, "message": _text.format(record)})
        padding = " " * (_COLUMN - len(record.levelname))
        return f"{self._head(record)}:{padding}{shown(_text.format(record), keep=_KEPT)}"

    def _head(self, record: LogRecord) -> str:
        return f"{record.levelname} {_text.formatTime(record) if self.timestamps else ''}"

    def _colour(self, record: LogRecord) -> str:
        head = self._head(record)
        rest = self.format(record)[len(head) :]
        return f"\033[{_COLOURS.get(record.levelname, 0)}m{head}\033[0m{rest}"


class _Logger(logging.Logger):
    """A logger that an application's own logging neither silences, nor doubles, nor breaks.

    Where a handler of the application prints a record to standard output or error, `ConsoleHandler` does not; it still
    decides which levels are printed there.
    """

    @property
    def disabled(self) -> bool:
        """Never: `logging.config` disables every logger that it does not know."""
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass

    def _log(self, *arguments: Any, **options: Any) -> None:
        options["stacklevel"] = options.get("stacklevel", 1) + 1  # this frame is not the caller's
        with suppress(Exception):  # raised by a filter or a factory of the application
            super()._log(*arguments, **options)

    def callHandlers(self, record: LogRecord) -> None:  # noqa: N802
        """Pass a record to all handlers of this logger and the root logger."""
        handlers = [handler for handler in self._all_handlers() if record.levelno >= handler.level]
        others = [handler for handler in handlers if _prints(handler)]
        if _console in self.handlers and others:
            superfluous = [_console] if record.levelno >= _console.level else others
            handlers = [handler for handler in handlers if handler not in superfluous]
        for handler in handlers:
            try:
                handler.handle(record)
            except Exception:
                with suppress(Exception):
                    handler.handleError(record)

    def _all_handlers(self) -> Iterator[logging.Handler]:
        of: logging.Logger | None = self
        while of is not None:
            yield from of.handlers
            of = of.parent if of.propagate else None


def _prints(handler: logging.Handler) -> bool:
    """Return whether a handler of the standard library, or rich's, prints to standard output or error."""
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    return any(stream is each for each in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) if each is not None)


logger = logging.getLogger("brokerfl")
logger.__class__ = _Logger
logger.setLevel(DEBUG)
_console = ConsoleHandler()
logger.addHandler(_console)

#: ``log(INFO, "Starting server round %s", 1)``, as in Flower.
log = logger.log


def configure_logging(level: int = INFO, *, timestamps: bool = False, json: bool = False) -> None:
    """Configure the console handler; there is never more than one.

    Args:
        level: records below it are not printed.
        timestamps: show the local time after the level.
        json: print JSON lines, which always include the time.
    """
    _console.setLevel(level)
    _console.timestamps = timestamps
    _console.json = json
    logger.addHandler(_console)
