"""The journal: what a node must not forget when it is killed.

Owns one SQLite file in the node's directory for each Redis that the node served, and all SQL. It must not know Redis,
ClientApp, or what a reply says.

    states     the `context.state` of each run, as encoded fields
    answered   the ids that were executed, with their replies; large payloads are not among them
    crashes    the messages during which the node was killed, and how often
    dead       messages that killed the node too often
    runs       since when a run has been absent from Redis

State, answered id and reply are written in one transaction, so that no redelivery applies a change of the state twice.
Several executions may share one. SQLite's WAL needs no fsync to survive kill -9 (https://www.sqlite.org/wal.html); only
a change of the state is worth one, for power failures. A file next to it says which messages are being executed
(`running`).
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brokerfl.client.folder import Folder
from brokerfl.client.running import RunningFile
from brokerfl.common import ConfigError, JournalError
from brokerfl.wire.frame import Fields, join_fields, split_fields

#: Seconds that a run's state and replies are kept after the run has vanished from Redis. If Redis forgot its last
#: writes, the run returns when its ServerApp restores it, which may take as long as its outage limit.
FORGET_AFTER = 3600.0

#: Replies that are kept for one run. Only those from just before Redis was killed are ever asked for again.
MOST_REPLIES = 10_000

#: The number of new replies after which old ones are dropped.
_TIDY_AFTER = 1000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS states (run TEXT, field BLOB, data BLOB, PRIMARY KEY (run, field));
CREATE TABLE IF NOT EXISTS answered (run TEXT, message TEXT, reply BLOB, UNIQUE (run, message));
CREATE TABLE IF NOT EXISTS crashes (run TEXT, message TEXT, count INTEGER, PRIMARY KEY (run, message));
CREATE TABLE IF NOT EXISTS dead (message TEXT PRIMARY KEY, run TEXT, fields BLOB, crashes INTEGER, at REAL);
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, absent_since REAL);
"""

_STATE = "SELECT field, data FROM states WHERE run = ?"

#: Seconds to wait for a node that is writing.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one execution left behind.

    Attributes:
        run_id: the run.
        message_id: the message that was executed.
        reply: its fields, without the payload of a large one.
        state: the state's fields if it changed, else None.
        is_shared: the state shares memory with the app, so it has to be noted before the run continues.
    """

    run_id: int
    message_id: str
    reply: Fields
    state: Fields | None = None
    is_shared: bool = False


class Journal:
    """What one node must not forget. Safe to share between threads.

    Args:
        folder: the node's own directory, created if missing; None keeps everything in memory.

    Attributes:
        home: the identity of the directory; "" in memory.

    Raises:
        NodeNameTaken: another process has locked the directory.
        JournalError: it cannot be written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = None if folder is None else Folder(folder)
        self.home = "" if self._folder is None else self._folder.home
        self._path = ":memory:"
        self._db: sqlite3.Connection | None = None
        self._running: RunningFile | None = None
        self._using = threading.RLock()
        self._crashes: dict[tuple[str, str], int] = {}
        # What the file has, so that it is read only for what is there: ids by run, in the order of their replies.
        self._answered: dict[str, dict[str, None]] = {}
        self._known: set[str] = set()
        self._absent: dict[str, float] = {}
        self._answers = 0

    def open(self, identity: bytes) -> bool:
        """Open the file of one Redis data set; data sets are never mixed.

        Args:
            identity: the identity of the data set.

        Returns:
            Whether the directory has other data sets, but not this one.

        Raises:
            JournalError: the file cannot be opened or is damaged.
        """
        with self._using:
            self._close_file()
            strange = False
            if self._folder is not None:
                path = self._folder.path / f"{identity.hex()}.db"
                strange = not path.exists() and any(self._folder.path.glob("*.db"))
                self._path = str(path)
                self._folder.guard(path)
                self._running = RunningFile(path.with_suffix(".running"))
            try:
                self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.executescript(_SCHEMA)
                self._count_crashes()
                self._load()
            except sqlite3.DatabaseError as error:
                advice = "make room" if "full" in str(error) else "move it away to start with a new state"
                raise JournalError(f"the node's journal {self._path} cannot be opened ({error}): {advice}") from None
            return strange

    def _load(self) -> None:
        db = self._open_db
        self._crashes = {(run, message): count for run, message, count in db.execute("SELECT * FROM crashes")}
        self._answered = {}
        for run, message in db.execute("SELECT run, message FROM answered ORDER BY rowid"):
            self._answered.setdefault(run, {})[message] = None
        self._known = {run for (run,) in db.execute("SELECT DISTINCT run FROM states")}
        self._known.update(self._answered, (run for run, _ in self._crashes))
        self._absent = dict(db.execute("SELECT run, absent_since FROM runs"))

    def close(self) -> None:
        """Close the file and unlock the directory."""
        with self._using:
            self._close_file()
            if self._folder is not None:
                self._folder.close()

    def _close_file(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._running is not None:
            self._running.close()
            self._running = None

    @property
    def _open_db(self) -> sqlite3.Connection:
        assert self._db is not None, "the journal was not opened"
        return self._db

    def _select(self, query: str, *values: str) -> list[Any]:
        try:
            with self._using:
                return self._open_db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"the node's journal {self._path} cannot be read: {error}") from error

    @contextmanager
    def _transaction(self, *, lasting: bool = False) -> Iterator[sqlite3.Connection]:
        """Run one transaction; with ``lasting`` it also survives a power failure."""
        try:
            with self._using:
                db = self._open_db
                if lasting:
                    db.execute("PRAGMA synchronous = FULL")
                with db:  # commits, or rolls back
                    db.execute("BEGIN IMMEDIATE")
                    yield db
                if lasting:
                    db.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            raise JournalError(f"the node's journal {self._path} cannot be written: {error}") from error

    # Messages.

    def has_answered(self, run_id: int, message_id: str) -> bool:
        """Return whether a message was executed."""
        return message_id in self._answered.get(str(run_id), ())

    def reply_to(self, run_id: int, message_id: str) -> dict[bytes, bytes] | None:
        """Return the reply to a message that was executed; None if it was not."""
        if not self.has_answered(run_id, message_id):
            return None
        found = self._select("SELECT reply FROM answered WHERE run = ? AND message = ?", str(run_id), message_id)
        return split_fields(found[0][0]) if found else None

    def begin(self, run_id: int, message_id: str, worker: int = 0) -> int:
        """Note what a worker is about to execute; return how often the node was killed during that message."""
        if (running := self._running) is not None:
            running.note(f"{run_id} {message_id}", worker)
        return self._crashes.get((str(run_id), message_id), 0) if self._crashes else 0

    def forgive(self, worker: int = 0) -> None:
        """The worker's execution is over: it is not to blame if the node is killed from here on."""
        if (running := self._running) is not None:
            running.note("", worker)

    def abandon(self) -> None:
        """The process ends on purpose, which is not a crash. Takes no lock, because a signal handler calls it."""
        if (running := self._running) is not None:
            running.abandon()

    def _count_crashes(self) -> None:
        """Count a crash for each message that the last process was executing when it was killed."""
        if self._running is None:
            return
        if named := self._running.read():
            with self._transaction(lasting=True) as db:
                count = "INSERT INTO crashes VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1"
                db.executemany(count, named)
        self._running.clear()

    def commit(self, answers: Sequence[Answer]) -> None:
        """Note replies, and the states that their executions left, in one transaction.

        Args:
            answers: in the order of execution; the last state of each run is kept.
        """
        if not answers:
            return
        with self._using:
            self._commit(answers)
            self._answers += len(answers)
            if self._answers >= _TIDY_AFTER:
                self._answers = 0
                self._drop_old_replies()

    def _commit(self, answers: Sequence[Answer]) -> None:
        states = {answer.run_id: answer.state for answer in answers if answer.state is not None}
        replies = [(str(answer.run_id), answer.message_id, join_fields(answer.reply)) for answer in answers]
        survived = [(run, message) for run, message, _ in replies if (run, message) in self._crashes]
        with self._transaction(lasting=bool(states)) as db:
            for run_id, state in states.items():
                db.execute("DELETE FROM states WHERE run = ?", (str(run_id),))
                fields = [(str(run_id), name, data) for name, data in state.items()]
                db.executemany("INSERT INTO states VALUES (?, ?, ?)", fields)
            db.executemany("INSERT OR REPLACE INTO answered VALUES (?, ?, ?)", replies)
            if survived:
                db.executemany("DELETE FROM crashes WHERE run = ? AND message = ?", survived)
        for run, message in survived:
            del self._crashes[run, message]
        for run, message, _ in replies:
            self._answered.setdefault(run, {})[message] = None
        self._known.update(run for run, _, _ in replies)

    def _drop_old_replies(self) -> None:
        old = [
            (run, message)
            for run, messages in self._answered.items()
            for message in list(messages)[: max(0, len(messages) - MOST_REPLIES)]
        ]
        if not old:
            return
        with self._transaction() as db:
            db.executemany("DELETE FROM answered WHERE run = ? AND message = ?", old)
        for run, message in old:
            del self._answered[run][message]

    def state_of(self, run_id: int) -> dict[bytes, bytes] | None:
        """Return the fields of a run's state as of the last commit; None if it never had any."""
        return dict(self._select(_STATE, str(run_id))) or None

    # Runs.

    def keep_only(self, run_ids: Iterable[int]) -> None:
        """Forget the runs that have been absent for long. Costs nothing if no run came, went or is due."""
        with self._using:
            self._keep_only({str(run_id) for run_id in run_ids}, time.time())

    def _keep_only(self, present: set[str], now: float) -> None:
        # A clock that was set back must not make an absence longer than it is.
        since = {run: min(now, self._absent.get(run, now)) for run in self._known - present}
        if since == self._absent and all(now - at <= FORGET_AFTER for at in since.values()):
            return
        gone = {run for run, at in since.items() if now - at > FORGET_AFTER}
        with self._transaction() as db:
            db.execute("DELETE FROM runs")
            db.executemany("INSERT INTO runs VALUES (?, ?)", [item for item in since.items() if item[0] not in gone])
            for table in ("states", "answered", "crashes") if gone else ():
                db.executemany(f"DELETE FROM {table} WHERE run = ?", [(run,) for run in gone])
        self._absent = {run: at for run, at in since.items() if run not in gone}
        self._known -= gone
        for run in gone:
            self._answered.pop(run, None)
        self._crashes = {key: count for key, count in self._crashes.items() if key[0] not in gone}

    # Dead messages.

    def set_aside(self, run_id: int, message_id: str, fields: Fields, crashes: int) -> None:
        """Keep a message that killed the node too often, so that the reason can be found."""
        with self._transaction(lasting=True) as db:
            db.execute(
                "INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?)",
                (message_id, str(run_id), join_fields(fields), crashes, time.time()),
            )


class ForeignJournal:
    """The journal of a node that another process may be running.

    Args:
        path: the file.

    Raises:
        ConfigError: from every method: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def dead(self) -> list[tuple[str, int, dict[bytes, bytes], int, float]]:
        """Return what was set aside: message id, run id, fields, crashes, and Unix time in seconds."""
        with self._using("ro") as db:
            rows = db.execute("SELECT message, run, fields, crashes, at FROM dead").fetchall()
        return [(message, int(run), split_fields(data), crashes, at) for message, run, data, crashes, at in rows]

    def forget(self, message_id: str) -> None:
        """Delete a message that was set aside."""
        with self._using("rw") as db, db:
            db.execute("DELETE FROM dead WHERE message = ?", (message_id,))

    def state_of(self, run_id: int) -> dict[bytes, bytes] | None:
        """As `Journal.state_of`."""
        with self._using("ro") as db:
            return dict(db.execute(_STATE, (str(run_id),)).fetchall()) or None

    @contextmanager
    def _using(self, mode: str) -> Iterator[sqlite3.Connection]:
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as db:
                yield db
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"the journal {self._path} cannot be used: {error}") from None
