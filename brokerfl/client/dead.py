"""Dead messages: what nodes set aside because it killed them too often, and the states that go with it.

Owns reading the journals that nodes keep, and may be using at this moment. It must not know ClientApp.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from brokerfl.client.folder import default_state_dir
from brokerfl.common import ConfigError
from brokerfl.wire.frame import split_fields

#: Seconds to wait for a node that is writing.
_PATIENCE = 10.0


@dataclass(frozen=True)
class DeadMessage:
    """A message that killed its node too often.

    Attributes:
        message_id: its id.
        run_id: its run.
        node_id: the node.
        fields: the message, as it came.
        crashes: how often it killed the node.
        at: Unix time in seconds at which it was set aside.
        journal: the file that holds it.
    """

    message_id: str
    run_id: int
    node_id: int
    fields: dict[bytes, bytes]
    crashes: int
    at: float
    journal: Path

    def read_state(self) -> dict[bytes, bytes] | None:
        """Return the fields of the run's state as its node has them now; None when it never had any.

        Raises:
            ConfigError: the journal cannot be read.
        """
        with _using(self.journal, "ro") as db:
            found = db.execute("SELECT field, data FROM states WHERE run = ?", (str(self.run_id),)).fetchall()
        return dict(found) or None

    def forget(self) -> None:
        """Delete it from the journal.

        Raises:
            ConfigError: the journal cannot be written.
        """
        with _using(self.journal, "rw") as db, db:
            db.execute("DELETE FROM dead WHERE message = ?", (self.message_id,))


def dead_messages(state_dir: Path | None = None) -> list[DeadMessage]:
    """Return the dead messages of all nodes that keep their state in one directory; the oldest first.

    Args:
        state_dir: as nodes are given it; None for the default one.

    Raises:
        ConfigError: a journal cannot be read.
    """
    files = (state_dir or default_state_dir()).glob("*/*.db")
    found = [message for file in files if file.parent.name.isdigit() for message in _read(file)]
    return sorted(found, key=lambda message: message.at)


def _read(journal: Path) -> Iterator[DeadMessage]:
    with _using(journal, "ro") as db:
        rows = db.execute("SELECT message, run, fields, crashes, at FROM dead").fetchall()
    for message, run, data, crashes, at in rows:
        yield DeadMessage(message, int(run), int(journal.parent.name), split_fields(data), crashes, at, journal)


@contextmanager
def _using(journal: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"{journal.absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as db:
            yield db
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"the journal {journal} cannot be used: {error}") from None
