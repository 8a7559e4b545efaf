"""The receiver: brings what is in the outboxes into the book, and takes out of Redis what is of no use any more.

Owns which replies are to be deleted. It must not know who waits, or what happens in an outage.
"""

from collections.abc import Iterable, Sequence
from logging import DEBUG
from typing import Any

from brokerfl.broker.outbox import Outboxes, Reply, Settled
from brokerfl.common import log
from brokerfl.server.book import Book
from brokerfl.wire.message import message_id_of
from brokerfl.wire.payload import entries_of


class Receiver:
    """Reads the outboxes of one run. One thread at a time reads; any may say what is to be deleted.

    Args:
        outboxes: the run's.
        book: what the replies are matched with.
    """

    def __init__(self, outboxes: Outboxes, book: Book) -> None:
        self._outboxes = outboxes
        self._book = book
        self._freed: list[Settled] = []
        self._dropped: list[Settled] = []

    def reset(self) -> None:
        """Read everything again: Redis may have forgotten, and ids come anew."""
        with self._book.changed:
            self._book.answers.doubt()
            self._outboxes.reset()

    def wait(self, block: float | None) -> set[int] | None:
        """Return the nodes that rang; see `Outboxes.wait`."""
        return self._outboxes.wait(block)

    def read(self, node_ids: Iterable[int]) -> None:
        """Bring what is new in these nodes' outboxes into the book, and delete the replies that were settled."""
        nodes = set(node_ids)
        with self._book.changed:
            freed, self._freed = self._freed, []
        if not nodes and not freed:
            return
        replies, is_deleted = self._outboxes.read(nodes, freed)
        self._match(replies)
        if not is_deleted:
            self.free(freed)

    def read_more(self, nodes: Sequence[int], results: Iterable[Any]) -> None:
        """Bring into the book what a verdict found when it looked into outboxes once more."""
        self._match(self._outboxes.found_more(nodes, results))

    def _match(self, replies: Iterable[Reply]) -> None:
        with self._book.changed:  # with the cursors: who looks meanwhile, for a last time, sees what is not matched yet
            for node_id, entry_id, fields in replies:
                if not self._outboxes.advance(node_id, entry_id):
                    continue
                message_id, data = message_id_of(fields), entries_of(fields)
                unfit = self._book.answers.answer(node_id, entry_id, message_id, fields, data)  # type: ignore[arg-type]
                if unfit is not None:
                    self._dropped.append(unfit)
                    log(DEBUG, "Dropped a reply of node %s that fits no open message", node_id)

    def unsettled(self) -> int:
        """Return how many replies the app has that stay in Redis until the run moves on."""
        return len(self._book.answers.handed_over())

    # What goes.

    def free(self, replies: Iterable[Settled]) -> None:
        """Replies were settled: they go with the next look at the outboxes."""
        with self._book.changed:
            self._freed += replies

    def drop(self, replies: Iterable[Settled]) -> None:
        """Replies fit nothing: they go with the next transaction, for only the run's owner may delete them."""
        with self._book.changed:
            self._dropped += replies

    def dropped(self) -> list[Settled]:
        """Return what is to go with a transaction; should that fail, it is to be given to `drop` again."""
        with self._book.changed:
            dropped, self._dropped = self._dropped, []
            return dropped
