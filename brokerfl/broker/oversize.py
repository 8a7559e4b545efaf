"""Oversize: how many bytes of a stream are read, and what is done with an entry that has more than brokerfl writes.

Owns the limits, and how the id of an entry is known that is not read. It must not know what entries say.
"""

import re
from collections.abc import Iterator, Sequence
from logging import WARNING

from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import found_or_none, map_errors
from brokerfl.broker.stream import entries_of_one
from brokerfl.common import log

#: Bytes of an answer that has several entries of inboxes or outboxes. brokerfl writes entries of up to 64 KiB, and
#: larger ones only for contents of so many chunks that their manifest is larger.
MOST_ANSWER = 64 * 1024 * 1024

#: Bytes. No entry of brokerfl takes more in an inbox or an outbox, manifest included.
MOST_ENTRY = 4 * 1024 * 1024

#: Bytes of an answer that describes a stream, with its first and its last entry.
MOST_ABOUT = 64 * 1024

#: Bytes of an answer that has one chunk. brokerfl writes half of that.
MOST_CHUNK = 2 * 1024 * 1024

#: Entries that are read at once where none is expected to be large.
_PAGE = 20

_ENTRY_ID = re.compile(rb"\r\n(\d+-\d+)\r\n")


def id_behind(connection: Connection, key: str, after: str) -> str | None:
    """Return the id of the first entry of a stream behind the id ``after``. Only its beginning is read."""
    [answer] = connection.at(key).sockets.exchange([("XRANGE", key, f"({after}", "+", "COUNT", 1)], [0])
    if isinstance(answer, OversizeError):
        found = _ENTRY_ID.search(answer.head)
        return found[1].decode() if found else None
    return next((entry_id for entry_id, _ in entries_of_one(found_or_none(answer, connection.url))), None)


def entries_at(connection: Connection, key: str, entry_ids: Sequence[str]) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    """Yield these entries of a stream, each read alone. One that is gone, or too large, has no fields."""
    commands = [("XRANGE", key, entry_id, entry_id) for entry_id in entry_ids]
    with map_errors(connection.url):
        answers = connection.stream(commands, [2 * MOST_ENTRY] * len(commands)) if commands else ()
        for entry_id, answer in zip(entry_ids, answers, strict=True):
            if isinstance(answer, OversizeError):
                warn(key, entry_id)
            found = found_or_none(answer, connection.url)
            yield entry_id, next((fields for _, fields in entries_of_one(found)), {})


def all_entries(connection: Connection, key: str) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    """Yield all entries of a stream; one that is too large has no fields. Nothing if the key is no stream."""
    after: str | None = "0-0"
    while after is not None:
        with map_errors(connection.url):
            command = ("XRANGE", key, f"({after}", "+", "COUNT", _PAGE)
            [answer] = connection.at(key).sockets.exchange([command], [2 * MOST_ENTRY])
            found = [*entries_of_one(found_or_none(answer, connection.url))]
            next_one = id_behind(connection, key, after) if isinstance(answer, OversizeError) else None
        yield from entries_at(connection, key, [next_one]) if next_one else found
        after = found[-1][0] if found else next_one


def warn(key: str, entry_id: str) -> None:
    """Say that an entry is not read."""
    log(WARNING, "Entry %s of %s has more bytes than brokerfl writes; it is not read", entry_id, key)
