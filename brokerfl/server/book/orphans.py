"""The orphans: messages that a former life of the run left open, by what a push would call them.

Owns which orphan a message that is pushed again stands for, and that no two messages adopt the same one. It must not
know what becomes of an orphan.
"""

from collections import OrderedDict
from typing import Any

from brokerfl.server.book.message import OpenMessage
from brokerfl.server.book.state import ORPHANS
from brokerfl.wire.run import LedgerEntry


class Orphans:
    """The orphans of one run, in the order of their pushes. Used under the book's lock."""

    def __init__(self) -> None:
        self._free: OrderedDict[str, OpenMessage] = OrderedDict()
        self._reserved: dict[str, OpenMessage] = {}
        self._by_name: dict[tuple[Any, ...], OrderedDict[str, OpenMessage]] = {}

    def add(self, orphan: OpenMessage) -> None:
        """A message is an orphan from now on."""
        self._free[orphan.message_id] = orphan
        for name in _names(orphan.entry):
            self._by_name.setdefault(name, OrderedDict())[orphan.message_id] = orphan

    def remove(self, message: OpenMessage) -> None:
        """A message is no orphan any more; one that is reserved stays so."""
        if self._free.pop(message.message_id, None) is not None:
            for name in _names(message.entry):
                del self._by_name[name][message.message_id]
                if not self._by_name[name]:
                    del self._by_name[name]

    def reserve(self, entry: LedgerEntry, now: float, *, exactly: bool) -> OpenMessage | None:
        """Return the orphan that a message stands for, and give it to nobody else.

        Args:
            entry: the message's: an orphan with equal content, else the oldest that is called the same.
            now: in milliseconds of Redis TIME. One that has expired without a reply is passed over.
            exactly: only one with equal content.
        """
        for name in _names(entry)[: 1 if exactly else 2] if self._free else ():
            for orphan in self._by_name.get(name, OrderedDict()).values():
                if not orphan.is_open or orphan.entry.deadline > now:
                    self.remove(orphan)
                    self._reserved[orphan.message_id] = orphan
                    return orphan
        return None

    def is_reserved(self, message: OpenMessage) -> bool:
        """Return whether a push is adopting it."""
        return message.message_id in self._reserved

    def unreserve(self) -> None:
        """The push is over: what it did not adopt is free again."""
        for orphan in self._reserved.values():
            if orphan.state in ORPHANS:
                self.add(orphan)
        self._reserved.clear()

    def free(self) -> list[OpenMessage]:
        """Return the orphans that nobody is adopting."""
        return list(self._free.values())


def _names(entry: LedgerEntry) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What an orphan is looked up by: first with its content, then without."""
    return (*entry.key, entry.digest), entry.key
