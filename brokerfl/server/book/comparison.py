"""The comparison of a book with the inboxes: what Redis has lost, and what it has that nobody wants.

Owns how entries and messages are matched. It must not know Redis.
"""

from collections.abc import Iterable

from brokerfl.broker.change import Parcel
from brokerfl.server.book.index import Index
from brokerfl.server.book.message import OpenMessage
from brokerfl.server.book.state import State


def compare(
    index: Index, seen: Iterable[tuple[int, str, str]]
) -> tuple[list[Parcel], list[Parcel], list[tuple[int, str]]]:
    """Note which messages are in the inboxes. Called with the book's lock held.

    Args:
        index: the messages.
        seen: every inbox entry, as node id, entry id and message id.

    Returns:
        What to send again: open messages that Redis lost, if their fields are at hand; and those whose large replies it
        lost, which their nodes hold in memory for a while. And the entries (node id, entry id) that belong to neither.
    """
    owed, in_doubt = index.owed(), index.in_doubt()
    found: dict[str, list[str]] = {message.message_id: [] for message in (*owed, *in_doubt)}
    strays = []
    for node_id, entry_id, message_id in seen:
        if message_id in found and index.messages[message_id].node_id == node_id:
            found[message_id].append(entry_id)
        else:
            strays.append((node_id, entry_id))
    for message in owed:
        index.note(message, message.find(found[message.message_id]))
    lost = [message for message in owed if message.state is State.LOST]
    doubtful = [message for message in in_doubt if not found[message.message_id]]
    return _parcels(lost), _parcels(doubtful), strays


def _parcels(messages: Iterable[OpenMessage]) -> list[Parcel]:
    return [message.parcel(fields) for message in messages if (fields := message.fields) is not None]
