"""What a plan of the `book` considers besides the messages themselves.

Owns which contents and which chunks of replies are no longer needed. It must not know Redis or threads.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from brokerfl.broker.clock import CLOCK_STEP
from brokerfl.broker.stream import place_of
from brokerfl.server.book.message import OpenMessage
from brokerfl.server.book.state import NEW
from brokerfl.wire.frame import Fields
from brokerfl.wire.run import LedgerEntry

#: Places of messages that have left, beside some for each that has not, are thrown away from this number on.
_MOST_PLACES = 64


class Sending(NamedTuple):
    """A message that a commit sends: a new one, or an orphan that Redis lost."""

    message: OpenMessage
    entry: LedgerEntry  # its future entry in the ledger: an orphan may get another content
    fields: Fields

    @property
    def is_new(self) -> bool:
        """Whether the ledger does not hold it yet."""
        return self.message.state in NEW


def idle(
    contents: Collection[bytes], needs: Mapping[bytes, int], sending: Iterable[Sending], gone: Iterable[OpenMessage]
) -> tuple[bytes, ...]:
    """Return which of ``contents`` nothing needs when these messages are sent or gone; ``needs`` counts before that."""
    if not contents:
        return ()
    more: Counter[bytes] = Counter(one.entry.content_key for one in sending)
    more.subtract(one.message.entry.content_key for one in sending if not one.is_new)
    more.subtract(message.entry.content_key for message in gone)
    return tuple(each for each in contents if needs.get(each, 0) + more[each] <= 0)


class Places:
    """Where the chunks of the replies of each node begin. Guarded by the book's lock.

    A node may have died in the middle of an upload, or lost its connection. A large reply that leaves, or one that
    never came, says which nodes to look at. An open message may have chunks from when it entered its inbox; if that is
    unknown, its node is skipped.

    Args:
        by_node: the messages in the book, by node and id.
    """

    def __init__(self, by_node: Mapping[int, Mapping[str, OpenMessage]]) -> None:
        self._by_node = by_node
        self._slack = CLOCK_STEP
        self._places: dict[int, list[tuple[tuple[int, int], str]]] = {}  # heaps; also of messages that have left
        self._unknown: dict[int, set[str]] = {}

    def note(self, message: OpenMessage) -> None:
        """It entered, or entered its inbox, or has a reply."""
        node_id, unknown = message.node_id, self._unknown.setdefault(message.node_id, set())
        if not message.began:
            unknown.add(message.message_id)
            return
        unknown.discard(message.message_id)
        places = self._places.setdefault(node_id, [])
        place = max(0, place_of(message.began)[0] - self._slack), 0
        if message.data_entries or message.spares:
            place = min([place, *_chunk_places(message)])
        heappush(places, (place, message.message_id))
        if len(places) > _MOST_PLACES + 4 * len(self._by_node[node_id]):
            places[:] = [(place, each) for place, each in places if each in self._by_node[node_id]]
            heapify(places)

    def leave(self, message: OpenMessage) -> None:
        """It has left."""
        if message.node_id not in self._by_node:
            self._places.pop(message.node_id, None)
            self._unknown.pop(message.node_id, None)
        else:
            self._unknown[message.node_id].discard(message.message_id)

    def needed_from(self, gone: Iterable[OpenMessage], slack: int) -> dict[int, str]:
        """Return the nodes that may have left chunks of no reply, and what of their data streams may be needed.

        Args:
            gone: the messages that leave.
            slack: milliseconds by which chunks may seem to be older than the message they answer: Redis' clock is set
                back.

        Returns:
            For each node the first entry of its data stream that may be needed when these are gone; "" for none.
        """
        self._set(slack)
        leaving: dict[int, set[str]] = {}
        suspects = set()
        for message in gone:
            leaving.setdefault(message.node_id, set()).add(message.message_id)
            if message.data_entries or message.spares or not message.outbox_entry:
                suspects.add(message.node_id)
        found: dict[int, str] = {}
        for node_id in suspects:
            unknown = self._unknown.get(node_id, set())
            if len(unknown) <= len(leaving[node_id]) and unknown <= leaving[node_id]:
                first = self._first(node_id, leaving[node_id])
                found[node_id] = "{}-{}".format(*first) if first else ""
        return found

    def _set(self, slack: int) -> None:
        if slack != self._slack:  # the clock was set
            self._slack = slack
            self._places.clear()
            for messages in self._by_node.values():
                for message in messages.values():
                    self.note(message)

    def _first(self, node_id: int, leaving: Collection[str]) -> tuple[int, int] | None:
        places, messages = self._places.get(node_id, []), self._by_node.get(node_id, {})
        aside = []
        while places and (places[0][1] in leaving or places[0][1] not in messages):
            former = heappop(places)
            if former[1] in messages:  # it leaves only if the transaction is executed
                aside.append(former)
        first = places[0][0] if places else None
        for each in aside:
            heappush(places, each)
        return first


def _chunk_places(message: OpenMessage) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of a reply are."""
    for _, _, entries in message.copies:
        yield from map(place_of, entries)
