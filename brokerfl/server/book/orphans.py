"""The orphans: messages left unsettled before a resume, found by what a push of the same message has.

Owns which orphan a message adopts when it is pushed again, and that no two messages adopt the same one. It must not
know what happens to an orphan.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

from brokerfl.server.book.message import OpenMessage
from brokerfl.server.book.state import ORPHANS
from brokerfl.wire.run import LedgerEntry


class Match(NamedTuple):
    """Which orphans a message may adopt, besides that group, node and type are its own.

    Attributes:
        exactly: only one of equal content. Otherwise such a one comes first.
        after: with this, its place alone counts: the oldest that was pushed after the message of this number, no matter
            what its content is.
    """

    exactly: bool = False
    after: float | None = None


#: An orphan of any content.
ANY = Match()


class Orphans:
    """The orphans of one run, in the order of their pushes. Guarded by the book's lock."""

    def __init__(self) -> None:
        self._free: OrderedDict[str, OpenMessage] = OrderedDict()
        self._reserved: dict[str, OpenMessage] = {}
        self._by_name: dict[tuple[Any, ...], OrderedDict[str, OpenMessage]] = {}

    def add(self, orphan: OpenMessage) -> None:
        """From now on this message is an orphan."""
        self._free[orphan.message_id] = orphan
        for name in _names(orphan.entry):
            self._by_name.setdefault(name, OrderedDict())[orphan.message_id] = orphan

    def remove(self, message: OpenMessage) -> None:
        """This message is no longer an orphan; if it is reserved, it stays reserved."""
        if self._free.pop(message.message_id, None) is not None:
            for name in _names(message.entry):
                del self._by_name[name][message.message_id]
                if not self._by_name[name]:
                    del self._by_name[name]

    def reserve(self, entry: LedgerEntry, now: float, match: Match = ANY) -> OpenMessage | None:
        """Return the orphan that a message adopts, and reserve it; None if there is none.

        Args:
            entry: the message's. An orphan with equal content comes first, otherwise the oldest with the same key.
            now: milliseconds, by the clock of the deadlines. An orphan that expired without a reply is skipped.
            match: which orphans it may be.
        """
        exact, key = _names(entry)
        names, after = [exact] if match.exactly else [exact, key], -1.0
        if match.after is not None:
            names, after = [key], match.after
        for name in names if self._free else ():
            for orphan in self._by_name.get(name, OrderedDict()).values():
                if orphan.entry.sequence > after and (not orphan.is_open or orphan.entry.deadline > now):
                    self.remove(orphan)
                    self._reserved[orphan.message_id] = orphan
                    return orphan
        return None

    def is_reserved(self, message: OpenMessage) -> bool:
        """Return whether a push is adopting it."""
        return message.message_id in self._reserved

    def unreserve(self) -> None:
        """The push is over: orphans that it did not adopt are free again."""
        for orphan in self._reserved.values():
            if orphan.state in ORPHANS:
                self.add(orphan)
        self._reserved.clear()

    def free(self) -> list[OpenMessage]:
        """Return the orphans that no push is adopting."""
        return list(self._free.values())


def _names(entry: LedgerEntry) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what an orphan is found by: first with its content, then without."""
    return (*entry.key, entry.digest), entry.key
