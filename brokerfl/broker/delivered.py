"""What was delivered: questions about the messages that a node was given and has not removed from its inboxes.

Owns what Redis answers to them. It must not know what a message says, or what is in one: no content is read.
"""

from collections.abc import Iterable, Mapping

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors, meaning, translate
from brokerfl.broker.keys import GROUP
from brokerfl.broker.stream import place_of

#: Most entries that one question returns.
MOST_PENDING = 1000


def is_wanted(connection: Connection, node_id: int, run_id: int, entry_ids: Iterable[str]) -> bool:
    """Return whether a delivered message should still be executed: it was not taken back, and its run continues."""
    inbox = connection.keys.inbox(node_id, run_id)
    with map_errors(connection.url), connection.redis.pipeline(transaction=False) as pipe:
        for entry_id in entry_ids:
            pipe.xpending_range(inbox, GROUP, min=entry_id, max=entry_id, count=1)
        answers = pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and not is_missing(answer):
            raise meaning(answer, connection.url)
    return any(isinstance(answer, list) and answer for answer in answers)


def was_forgotten(connection: Connection, node_id: int, run_id: int, entry_ids: Iterable[str]) -> bool | None:
    """Return whether Redis forgot that it delivered these entries; None if it has no such inbox."""
    with map_errors(connection.url):
        [answer] = connection.sockets.exchange([("XINFO", "GROUPS", connection.keys.inbox(node_id, run_id))])
    if isinstance(answer, Exception):
        error = translate(answer, connection.url)
        if error is not None:
            raise error from answer
        return None
    groups = [dict(zip(group[::2], group[1::2], strict=True)) if isinstance(group, list) else group for group in answer]
    delivered = [place_of(group[b"last-delivered-id"].decode()) for group in groups if group[b"name"] == GROUP.encode()]
    return not delivered or max(map(place_of, entry_ids)) > delivered[0]


def pending_entries(connection: Connection, node_id: int, run_id: int) -> set[str]:
    """Return the entries, at most `MOST_PENDING`, for which `is_wanted` is true; none if the run is over."""
    command = ("XPENDING", connection.keys.inbox(node_id, run_id), GROUP, "-", "+", MOST_PENDING)
    with map_errors(connection.url):
        [answer] = connection.sockets.exchange([command])
    if isinstance(answer, Exception):
        if not is_missing(answer):
            raise meaning(answer, connection.url)
        return set()
    return {entry[0].decode() for entry in answer}


def with_others(connection: Connection, known: Mapping[str, set[str]]) -> set[str]:
    """Return those of these inboxes from which the node was given other entries than the known ones."""
    commands = [("XPENDING", inbox, GROUP, "-", "+", MOST_PENDING) for inbox in known]
    with map_errors(connection.url):
        answers = connection.sockets.exchange(commands) if commands else []
    return {
        inbox
        for inbox, answer in zip(known, answers, strict=True)
        if isinstance(answer, Exception)  # which whoever reads the inbox meets, too
        or len(answer) >= MOST_PENDING
        or not known[inbox] >= {entry[0].decode() for entry in answer}
    }


def is_missing(error: Exception) -> bool:
    """Redis 7.0 answers UNBLOCKED to a blocked read, newer ones NOGROUP; fakeredis has a text of its own."""
    text = str(error)
    return text.startswith(("NOGROUP", "UNBLOCKED", "WRONGTYPE")) or "requires the key to exist" in text
