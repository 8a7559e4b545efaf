"""The log of a long-running command: --log-format and --log-file.

Owns these options, and that the log begins before the app is imported, has what flwr's logger prints, and is whole when
the command ends. It must not know what is logged.
"""

import atexit
import logging
from collections.abc import Callable
from functools import wraps
from logging import DEBUG, ERROR, INFO, WARNING, Handler, LogRecord
from pathlib import Path
from typing import Any, TypeVar

import click

from brokerfl.cli.options import FilePath
from brokerfl.cli.signals import before_leaving
from brokerfl.cli.streams import another_error_stream
from brokerfl.common.kept_log import KeptLog
from brokerfl.common.layout import identify, json_line, text_of, timed_line
from brokerfl.common.logfile import LogFile
from brokerfl.common.logger import ConsoleHandler, keep_log, kept_log, prints
from brokerfl.common.shared_log import SharedLog

Function = TypeVar("Function", bound=Callable[..., Any])

#: Marks the record of a text that a command says at its end.
_SAID = "is_said"


def log_options(function: Function) -> Function:
    """Add the options of the log to a command that takes ``verbose``, and have it keep its log from the start."""

    @wraps(function)
    def wrapper(*args: Any, log_format: str, log_file: Path | None, verbose: bool, **options: Any) -> Any:
        _begin(log_format == "json", log_file, DEBUG if verbose else INFO)
        return function(*args, verbose=verbose, **options)

    for option in (
        click.option(
            "--log-file",
            type=FilePath(dir_okay=False, path_type=Path),
            envvar="BROKERFL_LOG_FILE",
            help="Also log to this file, which only this user can read; it is rotated at 10 MB, and 5 old ones stay.",
        ),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            envvar="BROKERFL_LOG_FORMAT",
            help="How log lines look.",
        ),
    ):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


def _begin(as_json: bool, file: Path | None, level: int) -> None:
    layout = json_line if as_json else timed_line
    # The app may close or replace sys.stderr.
    console = ConsoleHandler(level, json_line if as_json else _console_line, another_error_stream())
    handlers: list[Handler] = [console]
    if file is not None:
        handlers.append(LogFile(file, layout, level, lambda text: console.emit(_record(WARNING, text))))
    keep_log(handlers)
    atexit.register(_finish)
    before_leaving.append(_finish)


def _finish() -> None:
    kept = kept_log()
    if kept is not None:
        kept.finish()


def share_log() -> SharedLog | None:
    """Return the lines of the command's log from now on, for whoever sends them; None if it has no log."""
    shared = SharedLog()
    return shared if keep_for(shared) else None


def keep_for(shared: Handler) -> bool:
    """Give another handler the lines of the command's log from now on; return False if it has no log."""
    kept = kept_log()
    if kept is not None:
        kept.share(shared)
    return kept is not None


class _Adopted(Handler):
    """Writes the records of another library's logger into the log of the command."""

    def __init__(self, log: KeptLog, level: int) -> None:
        super().__init__(level)
        self._log = log

    def emit(self, record: LogRecord) -> None:
        identify(record)
        if record.levelno >= self._log.level:
            self._log.write(record)


def adopt_log_of(library: str) -> None:
    """What the logger of a library prints to the terminal becomes a part of the command's log.

    Args:
        library: the logger's name. If the library was not imported, nothing happens.
    """
    kept, theirs = kept_log(), logging.getLogger(library)
    for handler in list(theirs.handlers):
        if kept is not None and prints(handler):
            theirs.removeHandler(handler)
            theirs.addHandler(_Adopted(kept, handler.level))


def say_in_log(text: str) -> bool:
    """Write a text that a command says at its end into its log; return False if it has none.

    On the console it is printed as it is, unless that shows JSON.
    """
    kept = kept_log()
    if kept is None:
        return False
    record = _record(ERROR, text)
    setattr(record, _SAID, True)
    kept.write(record)
    return True


def _record(level: int, text: str) -> LogRecord:
    record = LogRecord("brokerfl", level, __file__, 0, text, None, None)
    identify(record)
    return record


def _console_line(record: LogRecord, coloured: bool) -> str:
    return text_of(record) if hasattr(record, _SAID) else timed_line(record, coloured)
