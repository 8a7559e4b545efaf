"""What is wrong with a state directory, and what to do about it.

Owns the advice for each error of the system and of SQLite. It must not know what was being read or written.
"""

import errno
import os
import sqlite3
from pathlib import Path

from brokerfl.common import JournalError
from brokerfl.common.private import NotOursError, open_private

_ELSEWHERE = "name another state directory with --state-dir"

_ADVICE = {
    errno.ENOSPC: "make room on its disk (df and df -i tell whether bytes or inodes are missing)",
    errno.EDQUOT: "make room: this user's quota is used up",
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: close some, or allow more (fs.file-max)",
    errno.EROFS: f"the file system is read-only: {_ELSEWHERE}",
    errno.EACCES: f"this user may not write there: {_ELSEWHERE}",
    errno.EPERM: f"this user may not write there: {_ELSEWHERE}",
    errno.EIO: f"its disk fails: {_ELSEWHERE}",
}

#: Files that SQLite opens for one database.
_FILES = 4

#: What SQLite says itself. Of everything else only the system knows the reason.
_SQLITE = {
    sqlite3.SQLITE_FULL: _ADVICE[errno.ENOSPC],
    sqlite3.SQLITE_CORRUPT: "move it away to start with a new state",
    sqlite3.SQLITE_NOTADB: "move it away to start with a new state",
    sqlite3.SQLITE_BUSY: "another program is using it: end that",
    sqlite3.SQLITE_LOCKED: "another program is using it: end that",
}


def trouble(what: str, path: Path | str, failed: str, error: Exception) -> JournalError:
    """Return the error to raise.

    Args:
        what: what the path is.
        path: the file or directory; ":memory:" is neither.
        failed: what cannot be done with it, such as "cannot be written".
        error: an OSError, or one of sqlite3.
    """
    if isinstance(error, NotOursError):
        return JournalError(f"{error.strerror}: {_ELSEWHERE}")
    if isinstance(error, OSError):
        return JournalError(f"{what} {path} {failed} ({error.strerror}): {_ADVICE.get(error.errno or 0, _ELSEWHERE)}")
    text = f"{what} {path} {failed} ({error})"
    if str(path) == ":memory:":
        return JournalError(text)
    advice = _SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    return JournalError(f"{text}: {advice or _try(Path(path).parent)}")


def _try(folder: Path) -> str:
    """Do what SQLite cannot do there, and return what the system says; SQLite keeps that to itself."""
    probe, files = folder / "probe", list[int]()
    try:
        files.append(open_private(probe))
        os.write(files[0], bytes(8192))
        os.fsync(files[0])
        files.extend(os.dup(files[0]) for _ in range(_FILES))
        return _ELSEWHERE
    except OSError as error:
        return _ADVICE.get(error.errno or 0, _ELSEWHERE)
    finally:
        for file in files:
            os.close(file)
        if files:
            probe.unlink(missing_ok=True)
