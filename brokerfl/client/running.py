"""The file that says which messages are being executed, in case the process is killed.

Owns its layout: one record for each worker, written by a single write, which survives kill -9. It must not know SQLite,
or what a crash means.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

from brokerfl.common.private import open_private

#: Bytes of a record: a run id has at most 20 digits, a message id 32.
_RECORD = 64

#: Most records that are read, and so most workers of a node.
MOST_WORKERS = 1024


class RunningFile:
    """What each worker is executing. Safe to share between threads.

    Args:
        path: the file, created if missing.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_private(path)
        self._lock = threading.Lock()

    def note(self, text: str, worker: int = 0) -> None:
        """Note what a worker executes: the ids of run and message, or "" for nothing.

        Raises:
            ValueError: it is longer than a record, and would name what another worker executes.
        """
        record = text.ljust(_RECORD).encode()
        if len(record) > _RECORD:
            raise ValueError(f"{text[:_RECORD]!r} and more is not the ids of a run and a message")
        with self._lock:
            if self._file >= 0:  # a worker may still execute when the file of its Redis is closed
                os.pwrite(self._file, record, worker * _RECORD)

    def read(self) -> list[tuple[str, str]]:
        """Return the noted pairs (run id, message id). Records with anything else are skipped."""
        data = os.pread(self._file, MOST_WORKERS * _RECORD, 0).decode("latin-1")
        records = [data[start : start + _RECORD].split() for start in range(0, len(data), _RECORD)]
        return [(words[0], words[1]) for words in records if len(words) == 2]

    def clear(self) -> None:
        """Forget what every worker executes."""
        os.ftruncate(self._file, 0)

    def abandon(self) -> None:
        """Hide from the next process what is noted until this one ends. Takes no lock."""
        with suppress(OSError):  # then it counts as a crash
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._file)
            self._file = -1
