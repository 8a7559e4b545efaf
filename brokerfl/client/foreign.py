"""The journal of a node that another process may be running.

Owns what is read and deleted there, for `brokerfl dead`. It must not know what a message says.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from brokerfl.common import ConfigError
from brokerfl.wire.frame import first_fields, split_fields

#: Seconds to wait for a node that is writing.
_PATIENCE = 10.0

#: Bytes of a message that are read to list it: id and header come first, and have less.
_HEAD = 256 * 1024


class SetAside(NamedTuple):
    """What a list shows of a message that was set aside, without its content.

    Attributes:
        message_id: its id.
        run_id: its run.
        head: the fields that come first.
        size: of all fields, in bytes.
        crashes: how often it killed the node.
        at: Unix time in seconds.
    """

    message_id: str
    run_id: int
    head: dict[bytes, bytes]
    size: int
    crashes: int
    at: float


class ForeignJournal:
    """The journal of a node that another process may be running.

    Args:
        path: the file.

    Raises:
        ConfigError: from every method: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def dead(self) -> list[SetAside]:
        """Return what was set aside. Contents of any size are not read."""
        found = []
        with self._using("ro") as db:
            rows = db.execute("SELECT rowid, message, run, crashes, at FROM dead").fetchall()
            for row, message_id, run, crashes, at in rows:
                try:
                    with db.blobopen("dead", "fields", row, readonly=True) as blob:
                        head, size = first_fields(blob.read(_HEAD)), len(blob)
                except sqlite3.OperationalError:  # it was forgotten in the meantime
                    continue
                found.append(SetAside(message_id, int(run), head, size, crashes, at))
        return found

    def fields_of(self, message_id: str) -> dict[bytes, bytes]:
        """Return the whole message; nothing if it was forgotten in the meantime."""
        with self._using("ro") as db:
            row = db.execute("SELECT fields FROM dead WHERE message = ?", (message_id,)).fetchone()
        return {} if row is None else split_fields(row[0])

    def forget(self, message_id: str) -> None:
        """Delete a message that was set aside."""
        with self._using("rw") as db, db:
            db.execute("DELETE FROM dead WHERE message = ?", (message_id,))

    def state_of(self, run_id: int) -> dict[bytes, bytes] | None:
        """As `Journal.state_of`."""
        with self._using("ro") as db:
            return dict(db.execute("SELECT field, data FROM states WHERE run = ?", (str(run_id),)).fetchall()) or None

    @contextmanager
    def _using(self, mode: str) -> Iterator[sqlite3.Connection]:
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as db:
                yield db
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"the journal {self._path} cannot be used: {error}") from None
