"""The journal: what a node must not forget when it is killed.

Owns the node's state directory: one SQLite file for each Redis the node served, and the lock that keeps a second
process out. It must not know Redis, ClientApp, or what a reply says.

    states     the `context.state` of each run, as encoded fields
    answered   the ids that were executed, with their replies; large payloads are not among them
    crashes    the messages during which the node was killed, and how often
    dead       messages that killed the node too often
    runs       since when a run has been absent from Redis

State, answered id and reply are one transaction: so no redelivery applies a change of the state twice. SQLite's WAL
needs no fsync to survive kill -9 (https://www.sqlite.org/wal.html); only a change of the state is worth one, for power
failures. Which message is being executed stands in a file beside it: one write, which survives kill -9 as well.
"""

import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brokerfl.common import ConfigError, JournalError, NodeNameTaken
from brokerfl.wire.frame import Fields, join_fields, split_fields

#: Seconds that a run's state and replies are kept after the run has vanished from Redis. A Redis that forgot its last
#: writes learns of the run again from its ServerApp, which may take as long as its outage limit.
FORGET_AFTER = 3600.0

#: Replies kept for one run. Only those of the last moments before Redis was killed are ever asked for again.
MOST_REPLIES = 10_000

#: Bytes of that file: a run id has at most 20 digits, a message id 32.
_RECORD = 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS states (run TEXT, field BLOB, data BLOB, PRIMARY KEY (run, field));
CREATE TABLE IF NOT EXISTS answered (run TEXT, message TEXT, reply BLOB, UNIQUE (run, message));
CREATE TABLE IF NOT EXISTS crashes (run TEXT, message TEXT, count INTEGER, PRIMARY KEY (run, message));
CREATE TABLE IF NOT EXISTS dead (message TEXT PRIMARY KEY, run TEXT, fields BLOB, crashes INTEGER, at REAL);
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, absent_since REAL);
"""


def default_state_dir() -> Path:
    """Return where nodes keep their state unless told otherwise (XDG Base Directory Specification, 0.8)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "brokerfl"


def node_folder(state_dir: Path | None, node_id: int) -> Path:
    """Return the directory of one node."""
    return (state_dir or default_state_dir()) / str(node_id)


class Journal:
    """What one node must not forget. Used by one thread at a time, but for `forgive`.

    Args:
        folder: the node's own directory, made if it is missing; None keeps everything in memory.

    Attributes:
        home: the identity of the directory; "" in memory.

    Raises:
        NodeNameTaken: another process holds the directory.
        ConfigError: it cannot be written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._path = ":memory:"
        self._lock = self._running = -1
        self.home = ""
        self._db: sqlite3.Connection | None = None
        self._crashes: dict[tuple[str, str], int] = {}
        self._commits = 0
        if folder is not None:
            try:
                self._lock_folder(folder)
            except OSError as error:
                raise ConfigError(
                    f"the state directory {folder} cannot be written ({error.strerror}): name another with --state-dir"
                ) from None

    def _lock_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # what a node learns is for nobody else
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise NodeNameTaken(
                f"another process uses the state directory {folder}: a node of this name runs on this machine already"
            ) from None
        home = folder / "home"
        if not home.exists():
            made = folder / "home.new"  # a kill in between must not leave half a file
            made.write_text(secrets.token_hex(8))
            made.replace(home)
        self.home = home.read_text()

    def open(self, identity: bytes) -> bool:
        """Open the part that belongs to one Redis data set; another one's is never mixed with it.

        Args:
            identity: of the data set.

        Returns:
            Whether the directory knows other data sets, and not this one.

        Raises:
            ConfigError: the file cannot be opened or is damaged.
        """
        self._close_file()
        strange = False
        if self._folder is not None:
            path = self._folder / f"{identity.hex()}.db"
            strange = not path.exists() and any(self._folder.glob("*.db"))
            self._path = str(path)
            self._running = os.open(path.with_suffix(".running"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
            self._count_crash()
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"the node's journal {self._path} cannot be opened ({error}): move it away to start afresh"
            ) from None
        return strange

    def close(self) -> None:
        """Close the file and let the directory go."""
        self._close_file()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _close_file(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._running >= 0:
            os.close(self._running)
            self._running = -1

    @property
    def _open_db(self) -> sqlite3.Connection:
        assert self._db is not None, "the journal was not opened"
        return self._db

    def _select(self, query: str, *values: str) -> list[Any]:
        try:
            return self._open_db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"the node's journal {self._path} cannot be read: {error}") from error

    @contextmanager
    def _transaction(self, *, lasting: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction; ``lasting`` survives a power failure too."""
        db = self._open_db
        try:
            if lasting:
                db.execute("PRAGMA synchronous = FULL")
            with db:  # commits, or rolls back
                db.execute("BEGIN IMMEDIATE")
                yield db
            if lasting:
                db.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            raise JournalError(f"the node's journal {self._path} cannot be written: {error}") from error

    # One message.

    def reply_to(self, run_id: int, message_id: str) -> dict[bytes, bytes] | None:
        """Return the reply to a message that was executed; None when it was not."""
        found = self._select("SELECT reply FROM answered WHERE run = ? AND message = ?", str(run_id), message_id)
        return split_fields(found[0][0]) if found else None

    def begin(self, run_id: int, message_id: str) -> int:
        """Note that a message is about to be executed; return how often the node was killed during it."""
        self._note_running(f"{run_id} {message_id}")
        return self._crashes.get((str(run_id), message_id), 0)

    def forgive(self) -> None:
        """The execution is over, or its process ends on purpose: that is no crash. May be called from any thread."""
        self._note_running("")

    def _note_running(self, text: str) -> None:
        if self._running >= 0:
            os.pwrite(self._running, text.ljust(_RECORD).encode(), 0)

    def _count_crash(self) -> None:
        """If the file names a message, the last process was killed during it."""
        db = self._open_db
        words = os.pread(self._running, _RECORD, 0).decode(errors="replace").split() if self._running >= 0 else []
        if len(words) == 2:
            with self._transaction(lasting=True):
                db.execute("INSERT INTO crashes VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1", words)
            self.forgive()
        self._crashes = {(run, message): count for run, message, count in db.execute("SELECT * FROM crashes")}

    def commit(self, run_id: int, message_id: str, reply: Fields, state: Fields | None = None) -> None:
        """Note a reply, and the state that the execution left behind, in one transaction.

        Args:
            run_id: the run.
            message_id: the message that was executed.
            reply: its fields, without the payload of a large one.
            state: the state's fields if it changed, else None.
        """
        run = str(run_id)
        with self._transaction(lasting=state is not None) as db:
            if state is not None:
                db.execute("DELETE FROM states WHERE run = ?", (run,))
                db.executemany("INSERT INTO states VALUES (?, ?, ?)", [(run, *item) for item in state.items()])
            db.execute("INSERT OR REPLACE INTO answered VALUES (?, ?, ?)", (run, message_id, join_fields(reply)))
            if self._crashes.pop((run, message_id), 0):
                db.execute("DELETE FROM crashes WHERE run = ? AND message = ?", (run, message_id))
        self.forgive()
        self._commits += 1
        if self._commits % 1000 == 0:
            self._drop_old_replies()

    def _drop_old_replies(self) -> None:
        with self._transaction() as db:
            for (run,) in db.execute("SELECT DISTINCT run FROM answered").fetchall():
                db.execute(
                    "DELETE FROM answered WHERE run = ? AND rowid <= "
                    "(SELECT rowid FROM answered WHERE run = ? ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                    (run, run, MOST_REPLIES),
                )

    def state_of(self, run_id: int) -> dict[bytes, bytes] | None:
        """Return the fields of a run's state as of the last commit; None when it never had any."""
        return dict(self._select("SELECT field, data FROM states WHERE run = ?", str(run_id))) or None

    # Runs.

    def keep_only(self, run_ids: Iterable[int]) -> None:
        """These runs are there; forget those that have been absent for long."""
        present, now = {str(run_id) for run_id in run_ids}, time.time()
        with self._transaction() as db:
            known = {
                run
                for table in ("states", "answered", "crashes")
                for (run,) in db.execute(f"SELECT DISTINCT run FROM {table}")
            }
            absent = dict(db.execute("SELECT run, absent_since FROM runs").fetchall())
            for run in known & present & set(absent):
                db.execute("DELETE FROM runs WHERE run = ?", (run,))
            for run in known - present:
                since = min(now, absent.get(run, now))
                db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (run, since))
                if now - since > FORGET_AFTER:
                    for table in ("states", "answered", "crashes", "runs"):
                        db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))

    # Dead messages.

    def set_aside(self, run_id: int, message_id: str, fields: Fields, crashes: int) -> None:
        """Keep a message that killed the node too often, for whoever looks for the reason."""
        with self._transaction(lasting=True) as db:
            db.execute(
                "INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?)",
                (message_id, str(run_id), join_fields(fields), crashes, time.time()),
            )
