"""The journal: what a node must not forget when it is killed.

Owns one SQLite file in the node's directory for each Redis that the node served, and all SQL. It must not know Redis,
ClientApp, or what a reply says.

    states     the `context.state` of each run, as encoded fields
    answered   the ids that were executed, with their replies; large payloads are not among them
    crashes    the messages during which the node was killed, and how often
    dead       messages that killed the node too often
    runs       since when a run has been absent from Redis

What is no longer needed leaves in small steps (`tidy`), and the file shrinks with it.

State, answered id and reply are written in one transaction, so that no redelivery applies a change of the state twice.
Several executions may share one. SQLite's WAL needs no fsync to survive kill -9 (https://www.sqlite.org/wal.html); only
a change of the state is worth one, for power failures. A file next to it says which messages are being executed
(`running`).
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brokerfl.client.answered import Answered
from brokerfl.client.aside import Aside
from brokerfl.client.database import open_database
from brokerfl.client.folder import Folder
from brokerfl.client.running import RunningFile
from brokerfl.client.trouble import trouble
from brokerfl.wire.frame import Fields, join_fields, split_fields

#: Seconds that a run's state and replies are kept after the run has vanished from Redis. If Redis forgot its last
#: writes, the run returns when its ServerApp restores it, which may take as long as its outage limit.
FORGET_AFTER = 3600.0

#: The same for a run that has ended: a Redis that is killed forgets about a second, and with it the end of a run.
FORGET_ENDED = 60.0

#: Rows and pages that leave in one step, while which a message waits, and the most steps in a row. A row has up to
#: 64 KiB, a page 4 KiB.
_ROWS, _PAGES, _STEPS = 64, 1024, 32

_STATE = "SELECT field, data FROM states WHERE run = ?"


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
        aside: what was set aside, as of the last `tidy`.

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
        self._answered = Answered(in_memory=folder is None)
        self.aside = Aside()
        self._gone: set[str] = set()  # runs that are forgotten, whose rows have not left yet
        self._known: set[str] = set()
        self._absent: dict[str, float] = {}

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
            try:
                if self._folder is not None:
                    path = self._folder.path / f"{identity.hex()}.db"
                    self._path = str(path)
                    strange = not path.exists() and any(self._folder.path.glob("*.db"))
                    self._folder.guard(path)
                    self._running = RunningFile(path.with_suffix(".running"))
                self._db = open_database(self._path)
                self._count_crashes()
                self._load()
                self.aside = Aside()
                self.aside.look(self._db)
            except (sqlite3.Error, OSError) as error:
                raise self._trouble("cannot be opened", error) from None
            return strange

    def _load(self) -> None:
        db = self._open_db
        self._crashes = {(run, message): count for run, message, count in db.execute("SELECT * FROM crashes")}
        self._answered.clear()
        self._gone.clear()
        for run, message, size in db.execute("SELECT run, message, length(reply) FROM answered ORDER BY rowid"):
            self._answered.add(run, message, size)
        self._known = {run for (run,) in db.execute("SELECT DISTINCT run FROM states")}
        self._known.update(self._answered.runs, (run for run, _ in self._crashes))
        self._absent = dict(db.execute("SELECT run, absent_since FROM runs"))

    def free(self) -> int:
        """Return the free bytes of the disk; 0 in memory, or if that is unknown."""
        return 0 if self._folder is None else self._folder.free()

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

    def _trouble(self, failed: str, error: Exception) -> Exception:
        return trouble("the node's journal", self._path, failed, error)

    @property
    def _open_db(self) -> sqlite3.Connection:
        assert self._db is not None, "the journal was not opened"
        return self._db

    def _select(self, query: str, *values: str) -> list[Any]:
        try:
            with self._using:
                return self._open_db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._trouble("cannot be read", error) from error

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
            raise self._trouble("cannot be written", error) from error

    # Messages.

    def has_answered(self, run_id: int, message_id: str) -> bool:
        """Return whether a message was executed."""
        return (str(run_id), message_id) in self._answered

    def reply_to(self, run_id: int, message_id: str) -> dict[bytes, bytes] | None:
        """Return the reply to a message that was executed; None if it was not."""
        if not self.has_answered(run_id, message_id):
            return None
        found = self._select("SELECT reply FROM answered WHERE run = ? AND message = ?", str(run_id), message_id)
        return split_fields(found[0][0]) if found else None

    def begin(self, run_id: int, message_id: str, worker: int = 0) -> int:
        """Note what a worker is about to execute; return how often the node was killed during that message."""
        self._note(f"{run_id} {message_id}", worker)
        return self._crashes.get((str(run_id), message_id), 0) if self._crashes else 0

    def forgive(self, worker: int = 0) -> None:
        """The worker's execution is over: it is not to blame if the node is killed from here on."""
        self._note("", worker)

    def _note(self, text: str, worker: int) -> None:
        if (running := self._running) is not None:
            try:
                running.note(text, worker)
            except OSError as error:
                raise self._trouble("cannot be written", error) from error

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
            self._drop_old_replies()

    def _commit(self, answers: Sequence[Answer]) -> None:
        states = {answer.run_id: answer.state for answer in answers if answer.state is not None}
        replies = [(str(answer.run_id), answer.message_id, join_fields(answer.reply)) for answer in answers]
        survived = [(run, message) for run, message, _ in replies if (run, message) in self._crashes]
        back = [(run,) for run in {run for run, _, _ in replies} & self._gone]
        with self._transaction(lasting=bool(states)) as db:
            for table in ("states", "answered") if back else ():  # what is left of it is not the run as it is now
                db.executemany(f"DELETE FROM {table} WHERE run = ?", back)
            for run_id, state in states.items():
                db.execute("DELETE FROM states WHERE run = ?", (str(run_id),))
                fields = [(str(run_id), name, data) for name, data in state.items()]
                db.executemany("INSERT INTO states VALUES (?, ?, ?)", fields)
            db.executemany("INSERT OR REPLACE INTO answered VALUES (?, ?, ?)", replies)
            if survived:
                db.executemany("DELETE FROM crashes WHERE run = ? AND message = ?", survived)
        for run, message in survived:
            del self._crashes[run, message]
        for run, message, reply in replies:
            self._answered.add(run, message, len(reply))
        self._known.update(run for run, _, _ in replies)
        self._gone.difference_update(run for (run,) in back)

    def _drop_old_replies(self) -> None:
        if old := self._answered.drop_old():
            with self._transaction() as db:
                db.executemany("DELETE FROM answered WHERE run = ? AND message = ?", old)

    def state_of(self, run_id: int) -> dict[bytes, bytes] | None:
        """Return the fields of a run's state as of the last commit; None if it never had any."""
        return None if str(run_id) in self._gone else dict(self._select(_STATE, str(run_id))) or None

    # Runs.

    def keep_only(self, run_ids: Iterable[int]) -> None:
        """Note which runs are absent, and forget those that have been for long. Costs nothing if nothing changed."""
        with self._using:
            now, present = time.time(), {str(run_id) for run_id in run_ids}
            # A clock that was set back must not make an absence longer than it is.
            self._forget({run: min(now, self._absent.get(run, now)) for run in self._known - present}, now, set())

    def _forget(self, since: dict[str, float], now: float, ended: set[str]) -> None:
        gone = {run for run, at in since.items() if now - at > (FORGET_ENDED if run in ended else FORGET_AFTER)}
        if since == self._absent and not gone:
            return
        left = {run: at for run, at in since.items() if run not in gone}
        with self._transaction() as db:
            db.execute("DELETE FROM runs")
            db.executemany("INSERT INTO runs VALUES (?, ?)", left.items())
            db.executemany("DELETE FROM crashes WHERE run = ?", [(run,) for run in gone])
        self._absent = left
        self._known -= gone
        self._gone |= gone
        for run in gone:
            self._answered.forget(run)
        self._crashes = {key: count for key, count in self._crashes.items() if key[0] not in gone}

    def absent(self) -> set[int]:
        """Return the runs that are absent from Redis and not forgotten yet."""
        return {int(run) for run in self._absent}

    def tidy(self, ended: Iterable[int] = ()) -> None:
        """Forget runs that have been absent for long, and give up some of the room that nothing needs.

        Call it now and then. It takes many small steps, so that no message has to wait.

        Args:
            ended: those of the `absent` runs that have ended.
        """
        with self._using:
            if self._db is not None:
                self.aside.look(self._db)
                self._forget(self._absent, time.time(), {str(run_id) for run_id in ended})
        for _ in range(_STEPS):
            if not self._take_a_step():
                return

    def _take_a_step(self) -> bool:
        """Delete some rows, or give up some pages; return whether there was anything to do."""
        with self._using:
            if self._db is not None and self._gone:
                self._delete_some(next(iter(self._gone)))
                return True
            if self._db is None or self._select("PRAGMA freelist_count")[0][0] < _PAGES // 4:
                return False
            self._select(f"PRAGMA incremental_vacuum({_PAGES})")
            return True

    def _delete_some(self, run: str) -> None:
        with self._transaction() as db:
            for table in ("states", "answered"):
                some = f"SELECT rowid FROM {table} WHERE run = ? LIMIT {_ROWS}"
                if db.execute(f"DELETE FROM {table} WHERE rowid IN ({some})", (run,)).rowcount:
                    return
        self._gone.discard(run)

    # Dead messages.

    def set_aside(self, run_id: int, message_id: str, fields: Fields, crashes: int) -> None:
        """Keep a message that killed the node too often, so that the reason can be found."""
        with self._transaction(lasting=True) as db:
            self.aside.put(db, run_id, message_id, fields, crashes)
