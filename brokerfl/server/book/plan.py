"""What a plan of the `book` considers besides the messages themselves.

Owns which contents and which chunks of replies are no longer needed. It must not know Redis or threads.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from brokerfl.broker.stream import place_of
from brokerfl.server.book.message import OpenMessage
from brokerfl.server.book.state import NEW
from brokerfl.wire.frame import Fields
from brokerfl.wire.run import LedgerEntry


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
    more: Counter[bytes] = Counter(one.entry.digest for one in sending)
    more.subtract(one.message.entry.digest for one in sending if not one.is_new)
    more.subtract(message.entry.digest for message in gone)
    return tuple(name for name in contents if needs.get(name, 0) + more[name] <= 0)


def needed_from(
    gone: Sequence[OpenMessage], by_node: Mapping[int, Mapping[str, OpenMessage]], slack: int
) -> dict[int, str]:
    """Return the nodes that may have left chunks of no reply, and the first entry that may still be needed.

    A node may have died in the middle of an upload, or lost its connection. A large reply that leaves, or one that
    never came, says which nodes to look at. An open message may have chunks from when it entered its inbox; if that is
    unknown, its node is skipped.

    Args:
        gone: the messages that leave.
        by_node: all messages.
        slack: milliseconds by which chunks may seem to be older than the message they answer: Redis' clock is set back.

    Returns:
        For each node the first entry of its data stream that may be needed; "" for none.
    """
    leaving = {message.message_id for message in gone}
    suspects = {
        message.node_id for message in gone if message.data_entries or message.spares or not message.outbox_entry
    }
    found: dict[int, str] = {}
    for node_id in suspects:
        left = [message for message in by_node.get(node_id, {}).values() if message.message_id not in leaving]
        if all(message.began for message in left):
            places = [place for message in left for place in _chunk_places(message, slack)]
            found[node_id] = "{}-{}".format(*min(places)) if places else ""
    return found


def _chunk_places(message: OpenMessage, slack: int) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of a reply are, and the earliest place where those of a future reply can be."""
    began, _ = place_of(message.began or "")
    yield max(0, began - slack), 0
    for _, _, entries in message.copies:
        yield from map(place_of, entries)
