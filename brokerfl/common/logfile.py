"""The log file: one process writes it, only its user can read it, and it is rotated by size.

Owns that neither a full disk nor a failed rotation ends the program, or the log. It must not know what is logged.
"""

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from logging import LogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path

from brokerfl.common.errors import ConfigError
from brokerfl.common.layout import Layout
from brokerfl.common.lockfile import LockFile
from brokerfl.common.private import open_private

#: Bytes of a file before the next one is begun, and how many old ones are kept: ``node.log.1`` is the latest of them.
MOST_BYTES, OLD_FILES = 10_000_000, 5


class LogFile(RotatingFileHandler):
    """Appends to a file.

    Args:
        path: the file, made if it is missing.
        layout: makes the lines.
        level: records below it are not written.
        trouble: is given a text when the file can no longer be written, and when it can again.

    Raises:
        ConfigError: it cannot be opened, or another process writes it.
    """

    def __init__(self, path: Path, layout: Layout, level: int, trouble: Callable[[str], None] = lambda text: None):
        self._layout = layout
        self._trouble = trouble
        self._process = os.getpid()
        self._failed = self._is_failing = self._cannot_rotate = False
        try:
            self._lock_file = LockFile(path)
            super().__init__(path, maxBytes=MOST_BYTES, backupCount=OLD_FILES, encoding="utf-8", errors="replace")
        except BlockingIOError:
            raise ConfigError(
                f"the log file {path} is in use by another process: each process needs a file of its own"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"the log file {path} cannot be opened ({_reason(error)}): "
                "name a file in a directory that exists and that this user can write"
            ) from None
        self.setLevel(level)

    def format(self, record: LogRecord) -> str:
        """Return the line of a record."""
        return self._layout(record, False)

    def emit(self, record: LogRecord) -> None:
        """Write a record; if that fails, it is lost."""
        self._failed = False
        super().emit(record)
        if self._failed != self._is_failing:
            self._is_failing = self._failed
            if not self._failed:
                self._trouble(f"The log file {self.baseFilename} is written again")

    def handleError(self, record: LogRecord) -> None:  # noqa: N802
        """Tell of the first of many failures."""
        self._failed = True
        if not self._is_failing:
            reason = _reason(sys.exc_info()[1])
            self._trouble(f"The log file {self.baseFilename} cannot be written ({reason}); lines are lost until it can")

    def doRollover(self) -> None:  # noqa: N802
        """Begin the next file; where that is impossible, continue with this one."""
        if os.getpid() != self._process:  # a fork of the app: its parent rotates
            return
        try:
            super().doRollover()
        except OSError as error:
            if not self._cannot_rotate:
                self._trouble(f"The log file {self.baseFilename} cannot be rotated ({_reason(error)}); it grows")
            self._cannot_rotate = True
            if self.stream is not None and self.stream.closed:  # closing it failed: it is opened again
                self.stream = None
            return
        self._cannot_rotate = False
        with suppress(OSError):  # another process was faster: it is told when it has to rotate
            former, self._lock_file = self._lock_file, LockFile(Path(self.baseFilename))
            former.close()

    def _open(self) -> io.TextIOWrapper:
        descriptor = open_private(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(descriptor, "a", encoding="utf-8", errors="replace", newline="\n")


def _reason(error: BaseException | None) -> str:
    return str(getattr(error, "strerror", None) or error)
