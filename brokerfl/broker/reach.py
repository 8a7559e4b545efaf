"""The reach: which inboxes a node's blocking read waits for, and which of the others may have something new.

Owns that. It must not know messages, or how an inbox is read.

    near    the doorbell and what shares its slot, as far as one command takes it: the read waits for them
    crowd   what shares its slot, but has no room there: nobody rings for them, so they are looked at again and again
    far     what is in other slots: for them, each message rings
"""

import time
from collections.abc import Iterable, Sequence

from brokerfl.broker.connection import Connection
from brokerfl.broker.stream import MOST_ARGUMENTS, batches

#: Most streams that one command reads, doorbells included: each takes two arguments.
MOST_STREAMS = (MOST_ARGUMENTS - 10) // 2

#: Seconds from one look at the crowd to the next.
_LOOK = 0.5


class Reach:
    """What one node's read reaches. One thread at a time.

    Args:
        connection: to where the inboxes are.
        doorbells: all in one slot.

    Attributes:
        far: the inboxes in other slots.
        due: of those that are not near: those that may have new entries.
    """

    def __init__(self, connection: Connection, doorbells: Sequence[str]) -> None:
        self._connection = connection
        self._doorbells = doorbells
        self.far: set[str] = set()
        self._crowd: set[str] = set()
        self.due: set[str] = set()
        self._next = 0.0

    def divide(self, inboxes: Iterable[str]) -> None:
        """These are all inboxes now. Those that were near or unknown before may have new entries."""
        far, here, before = set[str](), list[str](), self.far | self._crowd
        for key in inboxes:
            here.append(key) if self._connection.shares_slot(key, self._doorbells[0]) else far.add(key)
        self.far, self._crowd = far, {*here[MOST_STREAMS - len(self._doorbells) :]}
        others = self.far | self._crowd
        self.due = (self.due & others) | (others - before)

    def doubt(self) -> None:
        """Any inbox may have new entries."""
        self.due = self.far | self._crowd

    def look(self) -> None:
        """If it is time to look at the crowd, it is due."""
        if self._crowd and time.monotonic() >= self._next:
            self.due |= self._crowd
            self._next = time.monotonic() + _LOOK

    def next(self, inboxes: Iterable[str]) -> list[str]:
        """Return those of these inboxes that are near or due."""
        return [key for key in inboxes if key in self.due or not (key in self.far or key in self._crowd)]

    def patience(self, block: float) -> float:
        """Return for how many seconds, at most ``block``, a read may wait until it is time to look at the crowd."""
        return min(block, max(0.001, self._next - time.monotonic())) if self._crowd else block

    def parts(self, streams: Iterable[str]) -> list[list[str]]:
        """Return streams divided into those that one command reads; near ones are together."""
        return [part for keys in self._connection.by_slot(streams) for part in batches(keys, MOST_STREAMS)]
