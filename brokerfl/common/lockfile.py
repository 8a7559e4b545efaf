"""A file that one process holds at a time. Owns that it is released when the process ends, even by a kill.

The lock belongs to the open file, which a fork shares: a child that outlives its parent would still hold it. So each
child closes the files it inherits.
"""

import fcntl
import os
from pathlib import Path

from brokerfl.common.private import open_private


class LockFile:
    """A lock, held until `close` or the end of the process.

    Args:
        path: the file, made if it is missing.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_private(path)
        _held.add(self)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release it."""
        if self in _held:
            _held.remove(self)
            os.close(self._file)


_held: set[LockFile] = set()


def _release_all() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_release_all)
