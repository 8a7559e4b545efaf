"""Files and directories of this user alone.

Owns that none is followed to another place, read by others, or taken from them. It must not know what they hold.
"""

import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path

#: Most bytes of a file that is read whole.
_MOST = 1024 * 1024

#: The rights of others than the owner, and those of them that change something.
_OF_OTHERS, _WRITE = 0o077, 0o022


class NotOursError(OSError):
    """A file or directory that another user owns or has rights to, or a symbolic link."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(0, f"{path} {what}")


def private_directory(path: Path) -> None:
    """Create a directory that only this user can read, or check one that is there.

    Its parents are created if missing. An empty directory of this user is closed to others.

    Raises:
        NotOursError: it is a symbolic link or no directory, or another user's; or it has something in it, and others
            have rights to it: they may have read that, or put it there.
        OSError: it cannot be created.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = _opened(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mode = stat.S_IMODE(os.fstat(directory).st_mode)
        if mode & _OF_OTHERS:
            if os.listdir(directory):
                raise NotOursError(path, f"can be used by other users (its mode is {mode:04o}, not 0700)")
            os.fchmod(directory, 0o700)
    finally:
        os.close(directory)


def read_private(path: Path) -> bytes:
    """Return what is in a file that has a secret.

    As with PostgreSQL's keys, a file of root may be read by its group, too: so secrets are mounted into containers.

    Raises:
        NotOursError: it is a symbolic link, no plain file, or too large; others have rights to it, or own it.
        OSError: it cannot be read.
    """
    return _read(path, lambda owner: 0o037 if owner == 0 and os.geteuid() != 0 else _OF_OTHERS)


def read_unforged(path: Path) -> bytes:
    """Return what is in a file that is no secret, but decides something: others may read it, and not write.

    Raises:
        NotOursError: it is a symbolic link, no plain file, or too large; others may write it, or own it.
        OSError: it cannot be read.
    """
    return _read(path, lambda owner: _WRITE)


def _read(path: Path, forbidden: Callable[[int], int]) -> bytes:
    file = _opened(path, os.O_RDONLY | os.O_NONBLOCK, owners=(0, os.geteuid()))
    with open(file, "rb") as opened:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise NotOursError(path, "is not a file")
        mode = stat.S_IMODE(about.st_mode)
        if mode & forbidden(about.st_uid):
            raise NotOursError(
                path, f"can be used by other users (its mode is {mode:04o}): chmod 600 closes it to them"
            )
        content = opened.read(_MOST + 1)
    if len(content) > _MOST:
        raise NotOursError(path, f"has more than {_MOST} bytes")
    return content


def write_private(path: Path, content: bytes, *, replace: bool = False, mode: int = 0o600) -> None:
    """Write a file whole or not at all, with rights for this user alone.

    Args:
        path: the file.
        content: what it is to have.
        replace: whether there may be one already.
        mode: its rights, for what is no secret.

    Raises:
        FileExistsError: it is there, and not to be replaced.
        OSError: it cannot be written.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}.new")
    file = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(file, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fchmod(file, mode)
            os.fsync(file)
        if replace:
            made.replace(path)
        else:
            os.link(made, path)  # unlike a rename, it replaces nothing
    finally:
        made.unlink(missing_ok=True)


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


def _opened(path: Path, flags: int, owners: Collection[int] = ()) -> int:
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        if path.is_symlink():
            raise NotOursError(path, "is a symbolic link") from None
        raise
    if os.fstat(file).st_uid not in (owners or (os.geteuid(),)):
        os.close(file)
        raise NotOursError(path, "belongs to another user")
    return file
