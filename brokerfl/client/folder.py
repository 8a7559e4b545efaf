"""The node's own directory.

Owns where it is, the lock that keeps out a second process, and its identity. It must not know what a journal keeps in
it.
"""

import os
import secrets
import shutil
from pathlib import Path

from brokerfl.client.trouble import trouble
from brokerfl.common import JournalError, NodeNameTaken
from brokerfl.common.lockfile import LockFile
from brokerfl.common.private import open_private, private_directory


def default_state_dir() -> Path:
    """Return where nodes keep their state by default (XDG Base Directory Specification, 0.8).

    Raises:
        JournalError: this user has no home directory.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "brokerfl"
    try:
        return Path.home().absolute() / ".local" / "state" / "brokerfl"
    except (RuntimeError, OSError):  # neither $HOME nor an entry in the passwd file
        raise JournalError("this user has no home directory: name a state directory with --state-dir") from None


def node_folder(state_dir: Path, node_id: int) -> Path:
    """Return the directory of one node."""
    return state_dir / str(node_id)


class Folder:
    """A node's directory, locked until `close`.

    Args:
        path: where it is; created if missing.

    Attributes:
        path: as given.
        home: the identity of the directory.

    Raises:
        NodeNameTaken: another process has locked it.
        JournalError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._hold()
            self.home = self._read_home()
        except OSError as error:
            raise trouble("the state directory", path, "cannot be written", error) from None

    def _hold(self) -> None:
        private_directory(self.path)  # what a node learns is private
        try:
            self._lock = LockFile(self.path / "lock")
        except BlockingIOError:
            raise NodeNameTaken(
                f"another process uses the state directory {self.path}: "
                "a node with this name already runs on this machine"
            ) from None

    def _read_home(self) -> str:
        home = self.path / "home"
        if not home.exists():
            made = self.path / "home.new"  # a kill in between must not leave half a file
            with open(open_private(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
                file.write(secrets.token_hex(8))
            made.replace(home)
        with open(open_private(home, os.O_RDONLY)) as file:
            return file.read()

    def guard(self, journal: Path) -> None:
        """Create the file of a journal for SQLite, which follows links and gives its other files the same rights.

        Raises:
            JournalError: it or a file that belongs to it is not this user's own, or cannot be created.
        """
        beside = (Path(f"{journal}-wal"), Path(f"{journal}-shm"), journal.with_suffix(".running"))
        try:
            for path in (journal, *(each for each in beside if each.exists() or each.is_symlink())):
                os.close(open_private(path))
        except OSError as error:
            raise trouble("the node's journal", journal, "cannot be opened", error) from None

    def free(self) -> int:
        """Return the free bytes of its disk; 0 if that is unknown."""
        try:
            return shutil.disk_usage(self.path).free
        except OSError:
            return 0

    def close(self) -> None:
        """Unlock it."""
        self._lock.close()
