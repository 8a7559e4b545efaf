"""Pending: what a node was given and has not removed from its inboxes.

Owns what Redis answers about it. It must not know what a message says.
"""

from collections.abc import Iterable, Iterator, Mapping

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors, meaning, translate
from brokerfl.broker.keys import GROUP
from brokerfl.broker.oversize import MOST_ABOUT, entries_at
from brokerfl.broker.sockets import Command
from brokerfl.broker.stream import place_of

#: Most entries that one question returns.
MOST_PENDING = 1000

#: Entries whose ids are asked for before each is read.
_PAGE = 16


def is_wanted(connection: Connection, node_id: int, run_id: int, entry_ids: Iterable[str]) -> bool:
    """Return whether a delivered message should still be executed: it was not taken back, and its run continues."""
    inbox = connection.keys.inbox(node_id, run_id)
    with map_errors(connection.url), connection.at(inbox).redis.pipeline(transaction=False) as pipe:
        for entry_id in entry_ids:
            pipe.xpending_range(inbox, GROUP, min=entry_id, max=entry_id, count=1, consumername=str(node_id))
        answers = pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and not is_missing(answer):
            raise meaning(answer, connection.url)
    return any(isinstance(answer, list) and answer for answer in answers)


def was_forgotten(connection: Connection, node_id: int, run_id: int, entry_ids: Iterable[str]) -> bool | None:
    """Return whether Redis forgot that it delivered these entries; None if it has no such inbox."""
    inbox = connection.keys.inbox(node_id, run_id)
    with map_errors(connection.url):
        [answer] = connection.at(inbox).sockets.exchange([("XINFO", "GROUPS", inbox)], [MOST_ABOUT])
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
    return {*pending_ids(connection, connection.keys.inbox(node_id, run_id), node_id)}


def pending_ids(
    connection: Connection, key: str, node_id: int, after: str = "0-0", count: int = MOST_PENDING
) -> list[str]:
    """Return the first entries behind the id ``after`` that a stream has delivered to a node; none if it is gone."""
    with map_errors(connection.url):
        [answer] = connection.at(key).sockets.exchange([_question(key, node_id, after, count)])
    if isinstance(answer, Exception):
        if not is_missing(answer):
            raise meaning(answer, connection.url)
        return []
    return [entry_id.decode() for entry_id, *_ in answer]


def _question(key: str, node_id: int, after: str = "0-0", count: int = MOST_PENDING) -> Command:
    return ("XPENDING", key, GROUP, f"({after}", "+", count, node_id)  # only its own: others may have long names


def read_pending(
    connection: Connection, key: str, node_id: int, after: str
) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    """Yield what was delivered to a node behind the id ``after``, each read alone: see `entries_at`."""
    while ids := pending_ids(connection, key, node_id, after, _PAGE):
        yield from entries_at(connection, key, ids)
        after = ids[-1]


def with_others(connection: Connection, node_id: int, known: Mapping[str, set[str]]) -> set[str]:
    """Return those of these inboxes from which the node was given other entries than the known ones."""
    commands = [_question(inbox, node_id) for inbox in known]
    with map_errors(connection.url):
        answers = [*connection.stream(commands)]
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
