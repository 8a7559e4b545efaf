"""Files and directories of this user alone.

Owns that none is followed to another place, read by others, or taken from them. It must not know what they hold.
"""

import os
import stat
from pathlib import Path


class NotOursError(OSError):
    """A file or directory that another user owns or can write, or a symbolic link."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(0, f"{path} {what}")


def private_directory(path: Path) -> None:
    """Create a directory that only this user can read, or check one that is there.

    Its parents are created if missing. A directory of this user that others may read is closed to them.

    Raises:
        NotOursError: it is a symbolic link or no directory, or another user's.
        OSError: it cannot be created.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = _opened(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if stat.S_IMODE(os.fstat(directory).st_mode) & 0o077:
            os.fchmod(directory, 0o700)
    finally:
        os.close(directory)


def open_private(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a file that only this user can read, creating it if it is missing, and return its descriptor.

    Raises:
        NotOursError: it is a symbolic link, no plain file, or another user's.
        OSError: it cannot be opened.
    """
    file = _opened(path, flags | os.O_NONBLOCK)  # a pipe would wait for whoever writes it
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise NotOursError(path, "is not a file")
        if stat.S_IMODE(os.fstat(file).st_mode) & 0o077:
            os.fchmod(file, 0o600)
    except BaseException:
        os.close(file)
        raise
    return file


def _opened(path: Path, flags: int) -> int:
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        if path.is_symlink():
            raise NotOursError(path, "is a symbolic link") from None
        raise
    if os.fstat(file).st_uid != os.geteuid():
        os.close(file)
        raise NotOursError(path, "belongs to another user")
    return file
