"""The receiver: brings replies from the outboxes into the book, and deletes from Redis those no longer needed.

Owns which replies are to be deleted. It must not know who waits, or what happens in an outage.
"""

from collections.abc import Iterable
from functools import partial

from brokerfl.broker.data import Settled
from brokerfl.broker.outbox import Outboxes, Reply
from brokerfl.common.logger import trace
from brokerfl.server.book import Book
from brokerfl.wire.manifest import entries_of
from brokerfl.wire.message import message_id_of


class Receiver:
    """Reads the outboxes of one run, in any thread. The book's lock guards the cursors and both lists."""

    def __init__(self, outboxes: Outboxes, book: Book) -> None:
        self._outboxes = outboxes
        self._book = book
        self._freed: list[Settled] = []
        self._dropped: dict[Settled, None] = {}

    def reset(self) -> None:
        """Read everything again next time: Redis may have forgotten entries, and reused their ids."""
        with self._book.lock:
            self._book.answers.doubt()
            self._outboxes.reset()

    def wait(self, block: float | None) -> set[int] | None:
        """Return the nodes that rang; see `Outboxes.wait`."""
        return self._outboxes.wait(block)

    def lacking(self) -> set[int]:
        """Return the nodes that lack a content; see `Outboxes.lacking`."""
        return self._outboxes.lacking()

    def has_silent(self) -> bool:
        """Return whether rings get lost; see `Outboxes.has_silent`."""
        return self._outboxes.has_silent()

    def read(self, node_ids: Iterable[int]) -> None:
        """Bring what is new in these nodes' outboxes into the book, and delete settled replies."""
        nodes = set(node_ids)
        with self._book.lock:
            freed, self._freed, generation = self._freed, [], self._outboxes.generation
        if not nodes and not freed:
            return
        is_deleted = False
        try:
            is_deleted = self._outboxes.read(nodes, partial(self._match, generation=generation), freed)
        finally:
            if not is_deleted:
                self.free(freed)

    def _match(self, replies: Iterable[Reply], generation: int) -> None:
        with self._book.lock:  # cursors and book change together: a last look must see what is not matched yet
            for node_id, entry_id, fields in replies:
                if not self._outboxes.is_new(node_id, entry_id, generation):
                    continue
                message_id, data = message_id_of(fields), entries_of(fields)
                unfit = self._book.answers.answer(node_id, entry_id, message_id, fields, data)  # type: ignore[arg-type]
                if unfit is not None:
                    self._dropped[unfit] = None
                    text = "Dropped a reply that matches no open message"
                    trace("dropped", text, node=node_id, message_id=message_id)
                self._outboxes.advance(node_id, entry_id, generation)  # last: what interrupts this has it matched again

    def unsettled(self) -> int:
        """Return how many replies were handed over and stay in Redis until the run moves on."""
        return len(self._book.answers.handed_over())

    # Deleting.

    def free(self, replies: Iterable[Settled]) -> None:
        """Delete settled replies with the next read of the outboxes."""
        with self._book.lock:
            self._freed += replies

    def drop(self, replies: Iterable[Settled]) -> None:
        """Delete unneeded replies with the next transaction: unlike settled ones, another owner may need them."""
        with self._book.lock:
            self._dropped.update(dict.fromkeys(replies))

    def dropped(self) -> list[Settled]:
        """Return what the next transaction is to delete; if that fails, pass it to `drop` again."""
        with self._book.lock:
            dropped, self._dropped = self._dropped, {}
            return list(dropped)
