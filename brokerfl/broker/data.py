"""The data streams: the chunks of large replies.

Owns the streams `P:{N}:data:R`. It must not know what a chunk holds.
"""

from collections.abc import Iterable, Iterator

from redis.client import Pipeline

from brokerfl.broker.connection import Connection
from brokerfl.broker.echoes import Echo
from brokerfl.broker.failure import found_or_none, map_errors, translate
from brokerfl.broker.keys import Keys
from brokerfl.broker.mend import is_spoilt, mend
from brokerfl.broker.oversize import MOST_CHUNK
from brokerfl.broker.stream import batches
from brokerfl.common import RedisOutOfMemory

#: The field of a data stream's entry that holds a chunk.
CHUNK_FIELD = b"d"


def trim_data(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, needed_from: str) -> None:
    """Put into ``pipe`` the deletion of chunks that belong to no reply, left by an interrupted upload.

    Args:
        pipe: the transaction after which nothing before ``needed_from`` is needed.
        keys: the key names.
        node_id: the node.
        run_id: the run.
        needed_from: the first entry that may still be needed.
    """
    pipe.xtrim(keys.data(node_id, run_id), minid=needed_from, approximate=False)


#: A reply to delete: node id, entry id, and the entries of its payload in the data stream.
Settled = tuple[int, str, tuple[str, ...]]


def remove_chunks(keys: Keys, run_id: int, settled: Iterable[Settled]) -> tuple[Echo, ...]:
    """Return the deletion of the payloads of replies that are deleted."""
    found: dict[int, list[str]] = {}
    for node, _, entries in settled:
        if entries:
            found.setdefault(node, []).extend(entries)
    return tuple(
        (keys.ctl(node), lambda pipe, node=node, batch=batch: pipe.xdel(keys.data(node, run_id), *batch))
        for node, ids in found.items()
        for batch in batches(ids)
    )


class DataReplaced(Exception):  # noqa: N818  (it says what is so)
    """The data stream took no more entries and is replaced, without what it held."""


def add_data(
    connection: Connection, node_id: int, run_id: int, chunks: Iterable[memoryview]
) -> list[str | None] | None:
    """Put chunks of a large reply into the node's data stream, before the reply names them.

    Returns:
        The entry of each; or None if the run is over. None in place of an entry means that Redis is full.

    Raises:
        DataReplaced: all chunks have to be added again.
        RedisUnreachable, RedisAuthError: unknown which of them Redis has.
    """
    key = connection.keys.data(node_id, run_id)
    with map_errors(connection.url):
        answers = connection.at(key).sockets.exchange(
            [("XADD", key, "NOMKSTREAM", "*", CHUNK_FIELD, chunk) for chunk in chunks]
        )
    if any(map(is_spoilt, answers)) and mend(connection, key, keep=False):
        raise DataReplaced
    added: list[str | None] = []
    for answer in answers:
        if isinstance(translate(answer, connection.url) if isinstance(answer, Exception) else None, RedisOutOfMemory):
            added.append(None)
            continue
        entry = found_or_none(answer, connection.url)
        if entry is None:  # the stream is gone, or the key has another type
            return None
        added.append(entry.decode())
    return added


def remove_data(connection: Connection, node_id: int, run_id: int, entry_ids: Iterable[str]) -> None:
    """Delete chunks that no reply names.

    Raises:
        RedisUnreachable, RedisAuthError: unknown which of them Redis still has.
    """
    key = connection.keys.data(node_id, run_id)
    commands = [("XDEL", key, *ids) for ids in batches(entry_ids)]
    if commands:
        with map_errors(connection.url):
            connection.at(key).sockets.exchange(commands)


def read_data(connection: Connection, node_id: int, run_id: int, entry_ids: Iterable[str]) -> Iterator[bytes | None]:
    """Yield the chunks that `add_data` put into these entries; None for one that is gone, or is none."""
    key = connection.keys.data(node_id, run_id)
    commands = [("XRANGE", key, entry_id, entry_id) for entry_id in entry_ids]
    with map_errors(connection.url):
        for answer in connection.at(key).sockets.stream(commands, [MOST_CHUNK] * len(commands)):
            match found_or_none(answer, connection.url):
                case [[_, [field, chunk]]] if field == CHUNK_FIELD:
                    yield chunk
                case _:
                    yield None
