"""The requests of operators, as a run's ServerApp heeds them: it pushes nothing any more, it cancels messages.

Owns when Redis is asked for them. It must not know what a push is, or how a message is cancelled.

A message that is to be cancelled stays so until it leaves the book: a resumed app that pushes it again gets the same
Error again.
"""

from logging import INFO

from brokerfl.broker.fence import RedisForgot
from brokerfl.broker.requests import asked_to_cancel
from brokerfl.broker.transactions import Transactions
from brokerfl.common import RedisError, log
from brokerfl.server.book import Book
from brokerfl.server.progress import Progress
from brokerfl.server.session import Session
from brokerfl.server.verdict import Verdicts


class Requests:
    """Looks what operators ask of one run."""

    def __init__(self, session: Session, book: Book, progress: Progress, verdicts: Verdicts) -> None:
        self._session = session
        self._transactions: Transactions = session.transactions
        self._book = book
        self._progress = progress
        self._verdicts = verdicts

    def look(self) -> None:
        """Ask Redis, and heed what is asked for; if Redis does not answer now, the next look does.

        Raises:
            RunError: the run is over for this process.
        """
        owner = self._transactions.owner
        try:
            if not self._progress.is_draining and owner.books.is_drained():
                self._progress.is_draining = True
                log(INFO, "Run %s is being drained: its app can push nothing any more", owner.run.run_id)
            self._cancel(asked_to_cancel(owner.connection, owner.run.run_id))
        except RedisForgot:
            self._session.distrust()
        except RedisError:
            return

    def _cancel(self, asked: set[str]) -> None:
        if not asked or self._session.is_stale:  # the next look comes after the comparison
            return
        self._verdicts.call_off(asked)
        if gone := self._book.left(asked):
            self._transactions.heeded(gone)
