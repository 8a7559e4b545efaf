"""The memory: how much of it servers use, and how much a run holds.

Owns how that is read: in two round trips, from samples where exact numbers are dear, and without what this user may
not ask. It must not know what is done about a Redis that is full.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from brokerfl.broker.books import nodes_command, nodes_in
from brokerfl.broker.capacity import ServerMemory as ServerMemory
from brokerfl.broker.capacity import info_in, memory_in
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import found_or_none, map_errors, translate
from brokerfl.broker.servers import Server
from brokerfl.broker.sockets import Command
from brokerfl.broker.stream import batches
from brokerfl.common import FrameError, RedisAuthError
from brokerfl.wire.manifest import CHUNK, decode_manifest

#: Most chunks of a broadcast whose length is asked for; the others count as these do.
_SAMPLE = 256

#: Of how many chunks of a stream the size is looked at: that of the first one, which may be small, must not count for
#: much.
_SAMPLES = "100"

#: Most nodes of a run whose streams are measured; the others count as these do.
_NODES = 200

#: Runs that are measured together.
_RUNS = 100


@dataclass(frozen=True)
class RunMemory:
    """How much memory a run holds, in bytes, as sampled.

    Attributes:
        contents: the chunks of large messages and of a large state, each once.
        inboxes: the messages that nodes have not finished.
        outboxes: the replies that are not settled, without their chunks.
        chunks: those of large replies.
        context: the saved `context.state`, as far as it is small.
        books: all else: ledger, events, log.
        repliers: from how many nodes there are replies.
    """

    contents: int = 0
    inboxes: int = 0
    outboxes: int = 0
    chunks: int = 0
    context: int = 0
    books: int = 0
    repliers: int = 0

    @property
    def replies(self) -> int:
        """The replies that are not settled, with their chunks."""
        return self.outboxes + self.chunks

    @property
    def total(self) -> int:
        """All of it."""
        return self.contents + self.inboxes + self.replies + self.context + self.books


def memory_of_server(connection: Connection) -> list[ServerMemory]:
    """Return what each primary says of its memory: one on a single server. One that does not say is left out.

    Raises:
        RedisUnreachable: a server does not answer.
    """
    found = []
    for server in connection.primaries():
        answer = info_of(server, connection.url, "memory")
        if answer:
            found.append(memory_in(server.place, answer))
    return found


def info_of(server: Server, url: str, *sections: str) -> Mapping[str, Any]:
    """Return some sections of a server's INFO in one round trip; nothing if it may not be asked.

    Raises:
        RedisUnreachable: it does not answer.
    """
    with map_errors(url):
        answers = server.sockets.exchange([("INFO", section) for section in sections])
    for answer in answers:
        if isinstance(answer, Exception):
            error = translate(answer, url)
            if error is not None and not isinstance(error, RedisAuthError):
                raise error from answer
    return info_in(answers)


def memory_of_run(connection: Connection, run_id: int, node_ids: Collection[int]) -> RunMemory:
    """Return how much memory a run holds, in two round trips; nothing of a run that is not there.

    What may not be asked counts as much as its number of entries suggests.

    Args:
        connection: to its Redis.
        run_id: the run.
        node_ids: the nodes that may hold keys of it: `books.nodes_of`.

    Raises:
        RedisUnreachable: Redis does not answer.
    """
    [found] = _measure(connection, {run_id: [*node_ids]})
    return found


def memory_of_runs(connection: Connection, run_ids: Iterable[int]) -> dict[int, RunMemory]:
    """Return how much memory each of these runs holds, in three round trips for each hundred of them.

    Errors are those of `memory_of_run`.
    """
    found: dict[int, RunMemory] = {}
    for some in batches(run_ids, _RUNS):
        with map_errors(connection.url):
            commands = [nodes_command(connection.keys, run) for run in some]
            answers = connection.scatter([(command[1], [command]) for command in commands])
        members = [found_or_none(answer, connection.url) or () for [answer] in answers]
        nodes = {run: [*nodes_in(each)] for run, each in zip(some, members, strict=True)}
        found |= zip(some, _measure(connection, nodes), strict=True)
    return found


def _measure(connection: Connection, nodes: Mapping[int, Sequence[int]]) -> list[RunMemory]:
    """Return what runs hold, of which these nodes may hold keys: many of them are measured for all."""
    keys = connection.keys
    asked: list[tuple[str, Sequence[Command]]] = []
    for run, of_run in nodes.items():
        manifests = keys.blobs(run)
        asked.append((manifests, [("HVALS", manifests)]))
        asked += [(key, [("MEMORY", "USAGE", key)]) for key in keys.of_run(run)]
        for node in _sampled(of_run, _NODES):
            for key in keys.of_node_and_run(node, run):
                asked.append((key, [("MEMORY", "USAGE", key, "SAMPLES", _SAMPLES), ("XLEN", key)]))
    with map_errors(connection.url):
        answers = iter(connection.scatter(asked))
    chunks: dict[int, list[bytes]] = {}
    found = {}
    for run, of_run in nodes.items():
        [encoded] = next(answers)
        chunks[run] = _chunks_in(encoded if isinstance(encoded, list) else ())
        books = {key: _number(next(answers)[0]) for key in keys.of_run(run)}
        streams = [[_size(*next(answers)) for _ in range(3)] for _ in _sampled(of_run, _NODES)]
        found[run] = _of_streams(streams, len(of_run), books.pop(keys.context(run)), sum(books.values()))
    contents = _contents(connection, chunks)
    return [replace(memory, contents=contents[run]) for run, memory in found.items()]


def _of_streams(streams: Sequence[Sequence[int]], nodes: int, context: int, books: int) -> RunMemory:
    """Return what a run holds besides its contents, by inbox, outbox and chunks of some of its nodes."""
    if not streams:
        return RunMemory(context=context, books=books)
    share = nodes / len(streams)
    inboxes, outboxes, chunks = (round(sum(sizes) * share) for sizes in zip(*streams, strict=True))
    repliers = round(sum(outbox + data > 0 for _, outbox, data in streams) * share)
    return RunMemory(0, inboxes, outboxes, chunks, context, books, repliers)


def _sampled(every: Sequence[Any], most: int) -> Sequence[Any]:
    """Return at most so many, evenly chosen."""
    return every[:: -(-len(every) // most) or 1]


def _number(answer: Any) -> int:
    return answer if isinstance(answer, int) else 0


def _size(usage: Any, length: Any) -> int:
    """Return the bytes of a stream: of an empty one none, and of one that may not be measured so many chunks."""
    entries = _number(length)
    return 0 if not entries else _number(usage) or entries * CHUNK


def _contents(connection: Connection, chunks: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
    """Return the bytes of the chunks of each run."""
    samples = [(run, connection.keys.blob(run, chunk)) for run in chunks for chunk in _sampled(chunks[run], _SAMPLE)]
    lengths: dict[int, list[int]] = {run: [] for run in chunks}
    if samples:
        with map_errors(connection.url):
            answers = connection.scatter([(key, [("STRLEN", key)]) for _, key in samples])
        for (run, _), [length] in zip(samples, answers, strict=True):
            lengths[run].append(_number(length))
    return {run: round(sum(lengths[run]) * len(chunks[run]) / max(1, len(lengths[run]))) for run in chunks}


def _chunks_in(encoded: Iterable[bytes]) -> list[bytes]:
    chunks: dict[bytes, None] = {}
    for manifest in encoded:
        with suppress(FrameError):  # of another version
            chunks |= dict.fromkeys(decode_manifest(manifest).chunks)
    return [*chunks]
