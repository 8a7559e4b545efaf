"""The handover: gives replies out to the app.

Owns when a reply counts as handed over, so that a commit may settle it: not before the app has it for good. It must not
know how replies are waited for, or what becomes of them then.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from brokerfl.broker.ledger import Ledger, OpenMessage
from brokerfl.common import Message
from brokerfl.server.collector import Collector, Wanted
from brokerfl.server.fetch import Fetcher


class Handover:
    """Gives out the replies of one run. Safe to use from many threads.

    Args:
        ledger: the run's messages.
        collector: waits for replies.
        fetcher: makes a Message of each.
    """

    def __init__(self, ledger: Ledger, collector: Collector, fetcher: Fetcher) -> None:
        self._ledger = ledger
        self._collector = collector
        self._fetcher = fetcher

    def each(self, message_ids: set[str], until: float | None) -> Iterator[Message]:
        """Yield replies as they come; each is handed over when the iterator goes past it, or is left.

        Args:
            message_ids: to what.
            until: local monotonic time at which to end; None waits for all.

        Raises:
            RunError, OutageLimit: the run is over.
        """
        wanted = Wanted(message_ids)
        while (found := self._next(wanted, until)) is not None:
            message, only = found[0], [found[1]]
            del found  # it may be half of what the app's memory holds
            try:
                yield only.pop()
            finally:  # the loop may also have been left by break: the app has the reply
                with self._ledger.lock:
                    self._ledger.hand(message)

    def all(self, message_ids: set[str], until: float | None) -> list[Message]:
        """Return what `each` yields; handed over whole.

        Raises:
            RunError, OutageLimit: the run is over; nothing was handed over.
        """
        wanted, replies = Wanted(message_ids), []
        with self._taking() as taken:
            while (found := self._next(wanted, until)) is not None:
                taken.append(found[0])
                replies.append(found[1])
        return replies

    def here(self, message_ids: set[str]) -> list[Message]:
        """Return the replies that are here now; handed over whole.

        Raises:
            RunError, OutageLimit: the run is over; nothing was handed over.
        """
        replies: list[Message] = []
        with self._taking() as taken:
            while True:
                with self._ledger.lock:
                    message = self._ledger.take(message_ids)
                if message is None:
                    return replies
                message_ids.discard(message.message_id)
                decoded = self._fetcher.decode(message, time.monotonic())
                if decoded is not None:
                    replies.append(decoded)
                    taken.append(message)

    def _next(self, wanted: Wanted, until: float | None) -> tuple[OpenMessage, Message] | None:
        """Return the next reply, which is taken and not handed over yet; None when there is none left, or no time."""
        while (message := self._collector.next(wanted, until)) is not None:
            decoded = self._fetcher.decode(message, until)
            if decoded is not None:
                return message, decoded
            wanted.ids.add(message.message_id)
            if until is not None and time.monotonic() >= until:
                break
        return None

    @contextmanager
    def _taking(self) -> Iterator[list[OpenMessage]]:
        """What is put into the list is handed over at the end of the block: until then no other thread settles it.

        If the block fails the app has not got it, and it can be taken again.
        """
        taken: list[OpenMessage] = []
        try:
            yield taken
        except BaseException:
            with self._ledger.lock:
                for message in reversed(taken):
                    self._ledger.put_back(message)
            raise
        with self._ledger.lock:
            for message in taken:
                self._ledger.hand(message)
