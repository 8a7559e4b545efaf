"""Messages that were set aside because they killed the node too often: how many there are, and which are the latest.

Owns the table ``dead`` of a journal, as the node itself writes it; `foreign` reads the table from another process, and
deletes from it. It must not know who is told of them.
"""

import sqlite3
import time

from brokerfl.wire.frame import Fields, join_fields
from brokerfl.wire.status import Dead

#: Messages that the node tells of, the latest.
_TOLD = 4


class Aside:
    """What a node has set aside.

    Attributes:
        count: how many messages.
        latest: the latest of them, the last one first.
    """

    def __init__(self) -> None:
        self.count = 0
        self._has_news = False
        self.latest: tuple[Dead, ...] = ()

    def put(self, db: sqlite3.Connection, run_id: int, message_id: str, fields: Fields, crashes: int) -> None:
        """Set a message aside."""
        self._has_news = True
        row = (message_id, str(run_id), join_fields(fields), crashes, time.time())
        db.execute("INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?)", row)

    def look(self, db: sqlite3.Connection) -> None:
        """See what is there. Rows are large: they are read only when there are others than at the last look."""
        [(count,)] = db.execute("SELECT count(*) FROM dead")
        if self._has_news or count != self.count:
            rows = db.execute("SELECT run, message, crashes, at FROM dead ORDER BY at DESC LIMIT ?", (_TOLD,))
            self.latest = tuple(Dead(int(run), message, crashes, at) for run, message, crashes, at in rows)
            self.count, self._has_news = count, False
