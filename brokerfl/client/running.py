"""The file that says which messages are being executed, so that a process that was killed can be asked.

Owns its layout: one record for each worker, written by one write, which survives kill -9. It must not know SQLite, nor
what a death means.
"""

import os
import threading
from pathlib import Path

#: Bytes of a record: a run id has at most 20 digits, a message id 32.
_RECORD = 64

#: Most records that are read, and so most workers of a node.
MOST_WORKERS = 1024


class RunningFile:
    """What each worker is executing. Safe to share between threads.

    Args:
        path: the file, made if it is missing.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()

    def note(self, text: str, worker: int = 0) -> None:
        """Note what a worker executes, a run's and a message's id; "" when it executes nothing."""
        with self._lock:
            if self._file >= 0:  # a worker may outlast the file of the Redis that it works for
                os.pwrite(self._file, text.ljust(_RECORD).encode(), worker * _RECORD)

    def read(self) -> list[tuple[str, str]]:
        """Return the (run id, message id) that are noted. Records that hold anything else are passed over."""
        data = os.pread(self._file, MOST_WORKERS * _RECORD, 0).decode("latin-1")
        records = [data[start : start + _RECORD].split() for start in range(0, len(data), _RECORD)]
        return [(words[0], words[1]) for words in records if len(words) == 2]

    def clear(self) -> None:
        """Forget what every worker executes."""
        os.ftruncate(self._file, 0)

    def abandon(self) -> None:
        """Whatever is noted until this process ends, the next one does not find it. Takes no lock."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._file)
            self._file = -1
