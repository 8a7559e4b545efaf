"""The node's own directory.

Owns where it is, the lock that keeps out a second process, and its identity. It must not know what a journal keeps in
it.
"""

import os
import secrets
from pathlib import Path

from brokerfl.common import JournalError, NodeNameTaken
from brokerfl.common.lockfile import LockFile


def default_state_dir() -> Path:
    """Return where nodes keep their state by default (XDG Base Directory Specification, 0.8)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home().absolute() / ".local" / "state") / "brokerfl"


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
            raise JournalError(
                f"the state directory {path} cannot be written ({error.strerror}): name another with --state-dir"
            ) from None

    def _hold(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)  # what a node learns is private
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
            made.write_text(secrets.token_hex(8))
            made.replace(home)
        return home.read_text()

    def close(self) -> None:
        """Unlock it."""
        self._lock.close()
