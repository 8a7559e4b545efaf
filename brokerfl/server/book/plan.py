"""What a plan of the `book` takes into account beside the messages themselves.

Owns which contents are needed, and which chunks of replies nobody needs. It must not know Redis or threads.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from brokerfl.broker.stream import place_of
from brokerfl.server.book.message import OpenMessage
from brokerfl.server.book.state import NEW
from brokerfl.wire.frame import Fields
from brokerfl.wire.run import LedgerEntry

#: Milliseconds by which the clock of Redis may be set back: by so much the chunks of a reply may seem to be older than
#: the message that it answers.
CLOCK_STEP = 60_000


class Sending(NamedTuple):
    """A message that a commit is to send: a new one, or an orphan that is lost."""

    message: OpenMessage
    entry: LedgerEntry  # what the ledger is to hold of it: an orphan may get another content
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


def needed_from(gone: Sequence[OpenMessage], by_node: Mapping[int, Mapping[str, OpenMessage]]) -> dict[int, str]:
    """Return nodes that may have left chunks that belong to no reply, and from which entry on one may be needed.

    Such as a node that died in the middle of an upload, or whose connection was cut. A large reply that goes, or one
    that never came, tells where to look. An open message may have chunks from when it came into its inbox; where that
    is not known, its node is left alone.

    Returns:
        By node the first entry of its data stream that may be needed; "" for none.
    """
    leaving = {message.message_id for message in gone}
    suspects = {
        message.node_id for message in gone if message.data_entries or message.spares or not message.outbox_entry
    }
    found: dict[int, str] = {}
    for node_id in suspects:
        left = [message for message in by_node.get(node_id, {}).values() if message.message_id not in leaving]
        if all(message.began for message in left):
            places = [place for message in left for place in _chunk_places(message)]
            found[node_id] = "{}-{}".format(*min(places)) if places else ""
    return found


def _chunk_places(message: OpenMessage) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of a reply are or, for one that is to come, from where on they can be."""
    began, _ = place_of(message.began or "")
    yield max(0, began - CLOCK_STEP), 0
    for _, _, entries in message.copies:
        yield from map(place_of, entries)
