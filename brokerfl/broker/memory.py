"""The memory: how much of it servers use, and how much a run holds.

Owns how that is read: in two round trips, from samples where exact numbers are dear, and without what this user may
not ask. It must not know what is done about a Redis that is full.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from brokerfl.broker.capacity import ServerMemory as ServerMemory
from brokerfl.broker.capacity import memory_in
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors, translate
from brokerfl.broker.rules import allows
from brokerfl.broker.servers import Server
from brokerfl.common import FrameError, RedisAuthError
from brokerfl.wire.manifest import CHUNK, decode_manifest

#: Most chunks of a broadcast whose length is asked for; the others count as these do.
_SAMPLE = 256

#: Of how many chunks of a stream the size is looked at: that of the first one, which may be small, must not count for
#: much.
_SAMPLES = "100"


@dataclass(frozen=True)
class RunMemory:
    """How much memory a run holds, in bytes, as sampled.

    Attributes:
        broadcast: the chunks of what it sends to many nodes, and of a large state.
        replies: the replies that are not settled, with their chunks.
        repliers: how many nodes these are from.
        messages: the messages in inboxes.
        books: all else.
    """

    broadcast: int = 0
    replies: int = 0
    repliers: int = 0
    messages: int = 0
    books: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.broadcast + self.replies + self.messages + self.books


def memory_of_server(connection: Connection) -> list[ServerMemory]:
    """Return what each primary says of its memory: one on a single server. One that does not say is left out.

    Raises:
        RedisUnreachable: a server does not answer.
    """
    found = []
    for server in connection.primaries():
        answer = info_of(server, connection, "memory")
        if answer:
            found.append(memory_in(server.place, answer))
    return found


def info_of(server: Server, connection: Connection, *sections: str) -> Mapping[str, Any]:
    """Return some sections of a server's INFO in one round trip; nothing if it may not be asked.

    Raises:
        RedisUnreachable: it does not answer.
    """
    if not allows(connection.role, "info"):
        return {}
    with map_errors(connection.url), server.redis.pipeline(transaction=False) as pipe:
        for section in sections:
            pipe.info(section)
        answers = pipe.execute(raise_on_error=False)
    merged: dict[str, Any] = {}
    for answer in answers:
        if isinstance(answer, Exception):
            error = translate(answer, connection.url)
            if error is not None and not isinstance(error, RedisAuthError):
                raise error from answer
        else:
            merged |= answer
    return merged


def memory_of_run(connection: Connection, run_id: int, node_ids: Collection[int]) -> RunMemory:
    """Return how much memory a run holds; nothing of a run that is not there.

    What may not be asked counts as much as its number of entries suggests.

    Args:
        connection: to its Redis.
        run_id: the run.
        node_ids: the nodes that may hold keys of it: `books.nodes_of`.

    Raises:
        RedisUnreachable: Redis does not answer.
    """
    keys, nodes = connection.keys, [*node_ids]
    books, manifests = keys.of_run(run_id), keys.blobs(run_id)
    streams = [key for node in nodes for key in keys.of_node_and_run(node, run_id)]
    asked: list[tuple[str, Sequence[tuple[str, ...]]]] = [(manifests, [("HVALS", manifests)])]
    asked += [(key, [("MEMORY", "USAGE", key)]) for key in books]
    asked += [(key, [("MEMORY", "USAGE", key, "SAMPLES", _SAMPLES), ("XLEN", key)]) for key in streams]
    with map_errors(connection.url):
        [encoded], *answers = connection.scatter(asked)
    in_books = sum(_number(usage) for [usage] in answers[: len(books)])
    sizes = [_size(usage, length) for usage, length in answers[len(books) :]]
    by_node = list(zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True))
    return RunMemory(
        broadcast=_broadcast(connection, run_id, encoded),
        replies=sum(outbox + data for _, outbox, data in by_node),
        repliers=sum(outbox + data > 0 for _, outbox, data in by_node),
        messages=sum(inbox for inbox, _, _ in by_node),
        books=in_books,
    )


def _number(answer: Any) -> int:
    return answer if isinstance(answer, int) else 0


def _size(usage: Any, length: Any) -> int:
    """Return the bytes of a stream: of an empty one none, and of one that may not be measured so many chunks."""
    entries = _number(length)
    return 0 if not entries else _number(usage) or entries * CHUNK


def _broadcast(connection: Connection, run_id: int, encoded: Any) -> int:
    chunks = _chunks_in(encoded if isinstance(encoded, list) else ())
    step = -(-len(chunks) // _SAMPLE) or 1
    sample = [connection.keys.blob(run_id, chunk) for chunk in chunks[::step]]
    if not sample:
        return 0
    with map_errors(connection.url):
        lengths = connection.scatter([(name, [("STRLEN", name)]) for name in sample])
    return round(sum(_number(length) for [length] in lengths) * len(chunks) / len(sample))


def _chunks_in(encoded: Iterable[bytes]) -> list[bytes]:
    chunks: dict[bytes, None] = {}
    for manifest in encoded:
        with suppress(FrameError):  # of another version
            chunks |= dict.fromkeys(decode_manifest(manifest).chunks)
    return [*chunks]
