"""The nodes that a run has contacted, and so may hold keys of it.

Owns which these are. It must not know Redis, or whether a node still exists.
"""

from collections.abc import Iterable

from brokerfl.server.book.index import Index

#: So many contacted nodes are no reason to look which of them have vanished.
_FEW = 64


class Contacts:
    """The nodes of one run. Guarded by the book's lock.

    Args:
        nodes: those of which Redis knows.
        index: the messages.

    Attributes:
        reached: those that may hold keys; also those of a transaction that seems to have failed.
        known: those of transactions that were executed.
    """

    def __init__(self, nodes: Iterable[int], index: Index) -> None:
        self._index = index
        self.reached = set(nodes)
        self.known = set(self.reached)
        self._most = _FEW

    def all(self) -> set[int]:
        """Return the nodes that may hold keys."""
        with self._index.lock:
            return set(self.reached)

    def among(self, node_ids: Iterable[int]) -> set[int]:
        """Return which of these nodes may hold keys."""
        with self._index.lock:
            return self.reached.intersection(node_ids)

    def crowd(self) -> list[int]:
        """Return the nodes without a message, if there are twice as many as when some were last forgotten."""
        with self._index.lock:
            if len(self.reached) <= self._most:
                return []
            idle = [node for node in self.reached if node not in self._index.by_node]
            if not idle:  # else each commit would look at all of them
                self.forget(())
            return idle

    def forget(self, nodes: Iterable[int]) -> None:
        """These hold no keys any more; the others of the `crowd` still exist."""
        with self._index.lock:
            self.reached.difference_update(nodes)
            self.known.difference_update(nodes)
            self._most = 2 * len(self.reached) + _FEW
