"""The logger "brokerfl". Owns its console handler, and what an app's logging may change; must not know what is logged.

As in Flower, importing the package adds a handler to its own logger, at level INFO. Records also propagate to the
root logger, so that an application's own logging (and pytest's ``caplog``) sees them; each is printed once.

Who may change what:

- In a script, and with `brokerfl.testing`, the logger is one like any other: `configure_logging`, its level, its
  handlers, its filters and `logging.disable` decide what is printed. It is only never disabled by `logging.config`, not
  silenced by a filter or a record factory that raises, and not printed twice where the root logger prints, too.
- In `brokerfl-node` and `brokerfl-server`, the options of the command decide, and nothing else: see `keep_log`.
  Handlers that an app adds get what they would get otherwise, except those that print to the terminal.

What happens to each message is logged by the logger "brokerfl.messages", at level DEBUG, if `configure_logging` or
--verbose asked for it.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from logging import DEBUG, INFO, LogRecord
from typing import Any, TextIO

from brokerfl.common.kept_log import KeptLog
from brokerfl.common.layout import Layout, flower_line, identify, json_line, timed_line


class ConsoleHandler(logging.Handler):
    """Prints to standard error: ``INFO :      Starting server round 1``.

    Levels are coloured on a terminal, unless the variable NO_COLOR is set (no-color.org).

    Args:
        level: records below it are not printed.
        stream: where to; None looks up standard error for each record, so redirection works at any time.

    Attributes:
        layout: makes the lines.
    """

    def __init__(self, level: int = INFO, layout: Layout = flower_line, stream: TextIO | None = None) -> None:
        super().__init__(level)
        self.layout = layout
        self._stream = stream

    def emit(self, record: LogRecord) -> None:
        """Print one record."""
        stream = self._stream or sys.stderr
        if stream is None:  # a process without a console, such as pythonw
            return
        try:
            coloured = stream.isatty() and not os.environ.get("NO_COLOR")
            stream.write(self.layout(record, coloured) + "\n")
            stream.flush()
        except Exception:  # as in every handler of the standard library: logging never ends the program
            with suppress(Exception):  # it prints to the same stream, which may be closed
                self.handleError(record)

    def format(self, record: LogRecord) -> str:
        """Return the text of one record, without colours."""
        return self.layout(record, False)


class _Logger(logging.Logger):
    """A logger that an application's own logging neither silences, nor doubles, nor breaks.

    Where a handler of the application prints a record to standard output or error, `ConsoleHandler` does not; it still
    decides which levels are printed there.
    """

    # Of all loggers of this class:
    kept: KeptLog | None = None
    traces = False  # whether the log, or a level that somebody has set, asks what happens to each message

    @property
    def disabled(self) -> bool:
        """Never: `logging.config` disables every logger that it does not know."""
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        """Whether a record of this level goes anywhere."""
        kept = _Logger.kept
        return (kept is not None and level >= kept.level) or super().isEnabledFor(level)

    def setLevel(self, level: int | str) -> None:  # noqa: N802
        """Let records pass from this level on."""
        super().setLevel(level)
        kept = _Logger.kept
        _Logger.traces = _messages.level == DEBUG if kept is None else kept.level <= DEBUG

    def _log(self, *arguments: Any, **options: Any) -> None:
        options["stacklevel"] = options.get("stacklevel", 1) + 1  # this frame is not the caller's
        with suppress(Exception):
            super()._log(*arguments, **options)

    def makeRecord(self, *arguments: Any, **options: Any) -> LogRecord:  # noqa: N802
        """Return a record with its ids; if the application's factory fails, one of the standard library's."""
        try:
            record = super().makeRecord(*arguments, **options)
            identify(record)
        except Exception:
            record = LogRecord(*arguments[:8], *arguments[9:])
            for key, value in (arguments[8] or {}).items():
                record.__dict__.setdefault(key, value)
            identify(record)
        return record

    def handle(self, record: LogRecord) -> None:
        """Pass a record on: in a command to its own log first."""
        kept = _Logger.kept
        if kept is not None and record.levelno >= kept.level and not kept.take(record):
            return
        if super().isEnabledFor(record.levelno) and self._lets_pass(record):
            self.callHandlers(record)

    def _lets_pass(self, record: LogRecord) -> bool:
        try:
            return bool(self.filter(record))
        except Exception:  # a filter of the application's
            return True

    def callHandlers(self, record: LogRecord) -> None:  # noqa: N802
        """Pass a record to all handlers of this logger and its parents."""
        every = list(self._all_handlers())
        handlers = [handler for handler in every if record.levelno >= handler.level]
        others = [handler for handler in handlers if prints(handler)]
        if _Logger.kept is not None:
            handlers = [each for each in handlers if each is not _console and each not in others]
        elif _console in every and others:
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


def prints(handler: logging.Handler) -> bool:
    """Return whether a handler of the standard library, or rich's, prints to standard output or error."""
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    return any(stream is each for each in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) if each is not None)


logger = logging.getLogger("brokerfl")
_messages = logging.getLogger("brokerfl.messages")
logger.__class__ = _messages.__class__ = _Logger
logger.setLevel(DEBUG)
_messages.setLevel(INFO)
_console = ConsoleHandler()
logger.addHandler(_console)

#: ``log(INFO, "Starting server round %s", 1)``, as in Flower.
log = logger.log


def configure_logging(level: int = INFO, *, timestamps: bool = False, json: bool = False) -> None:
    """Configure the console handler; there is never more than one. In `brokerfl-node` and `brokerfl-server`: nothing.

    Args:
        level: records below it are not printed. DEBUG also says what happens to each message.
        timestamps: show the local time, and the ids of run, node and message.
        json: print JSON lines, which always have these.
    """
    _console.setLevel(level)
    _console.layout = json_line if json else timed_line if timestamps else flower_line
    _messages.setLevel(DEBUG if level <= DEBUG else INFO)
    logger.addHandler(_console)


# What happens to each message.


def is_tracing() -> bool:
    """Return whether anybody may want to know what happens to each message; asked for each step of each message."""
    return _Logger.traces


def trace(event: str, text: str, *arguments: object, **ids: object) -> None:
    """Log what happened to a message, if anybody wants to know.

    Args:
        event: what happened, in a word or two.
        text: the template of the line.
        arguments: for the template.
        ids: ``run``, ``node`` and ``message_id``, if they are not those of `log_context`.
    """
    if _Logger.traces:
        extra = {"event": event, **{key: str(value) for key, value in ids.items() if value is not None}}
        _messages.log(DEBUG, text, *arguments, extra=extra, stacklevel=2)


# The log of a command.


def keep_log(handlers: Sequence[logging.Handler]) -> None:
    """From now on, these handlers get every record from their level on, whatever an app does to the logging.

    Lines of brokerfl's own that repeat are damped. No other handler prints to standard output or error.

    Args:
        handlers: they must not be added to a logger; none gives the log back.
    """
    _Logger.kept = KeptLog(handlers) if handlers else None
    _messages.setLevel(_messages.level)


def kept_log() -> KeptLog | None:
    """Return the log of this command, if it has one."""
    return _Logger.kept
