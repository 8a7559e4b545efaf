"""The outboxes: how a reply reaches the run, and how the run hears of it.

Owns the streams `P:{N}:out:R` and `P:{N}:data:R`, and the bell `P:bell:{run:R}`. It must not know what a reply says, or
which message is open.

Each node has its own outbox: the key says who wrote an entry, and a hostile node can spoil only its own. The bell is
read from a cursor, so no reader takes another's ring; a ring carries no information, so a lost or forged one costs only
time.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from redis.client import Pipeline
from redis.exceptions import ResponseError

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import found_or_none, map_errors, translate
from brokerfl.broker.inbox import remove_message
from brokerfl.broker.keys import BELL_LENGTH, Keys, parse_id
from brokerfl.broker.mend import is_forged, is_spoilt, mend
from brokerfl.broker.sockets import Command, commands_of
from brokerfl.broker.stream import LAST, entries, entries_of_one, place_of
from brokerfl.common import RedisOutOfMemory, RedisUnreachable, log
from brokerfl.wire.frame import Fields


@dataclass(frozen=True)
class Outgoing:
    """A finished reply, and the inbox entries it answers: more than one if the message was sent again."""

    run_id: int
    inbox_entries: tuple[str, ...]
    fields: Fields


def publish(connection: Connection, node_id: int, replies: Iterable[Outgoing]) -> list[bool]:
    """Put replies into the outboxes, remove their messages from the inboxes, and ring, in one transaction.

    A full Redis refuses XADD but not XDEL: without a MULTI a message could be removed although its reply was refused.

    An outbox that somebody with this node's rights made useless refuses the reply, but the message is gone: so the
    outbox is replaced at once, and the reply added.

    Returns:
        For each reply whether it was published; False means that its run is over.

    Raises:
        RedisUnreachable: unknown whether it happened; repeating is safe, because a second reply is dropped.
        RedisOutOfMemory: nothing happened.
    """
    batch = list(replies)
    results = _publish(connection, node_id, batch)
    spoilt = [at for at, result in enumerate(results) if is_spoilt(result)]
    if spoilt:
        for run_id in dict.fromkeys(batch[at].run_id for at in spoilt):
            mend(connection, connection.keys.outbox(node_id, run_id), keep=True)
        again = _publish(connection, node_id, [batch[at] for at in spoilt])
        for at, result in zip(spoilt, again, strict=True):
            results[at] = result
    return [isinstance(entry, bytes) for entry in results]


def _publish(connection: Connection, node_id: int, batch: list[Outgoing]) -> list[Any]:
    """Return what became of each reply."""
    keys, pipe = connection.keys, connection.sockets.pipe()
    for reply in batch:
        pipe.xadd(keys.outbox(node_id, reply.run_id), reply.fields, nomkstream=True)  # type: ignore[arg-type]
    for reply in batch:
        remove_message(pipe, keys, node_id, reply.run_id, *reply.inbox_entries)
    for run_id in dict.fromkeys(reply.run_id for reply in batch):
        pipe.xadd(keys.bell(run_id), {"n": str(node_id)}, maxlen=BELL_LENGTH, nomkstream=True)
    with map_errors(connection.url):
        return connection.sockets.transact(commands_of(pipe))[: len(batch)]


Reply = tuple[int, str, dict[bytes, bytes]]

#: A reply to delete: node id, entry id, and the entries of its payload in the data stream.
Settled = tuple[int, str, tuple[str, ...]]

#: The field of a data stream's entry that holds a chunk.
CHUNK_FIELD = b"d"


class Outboxes:
    """The outboxes of one run, as its ServerApp reads them.

    Several threads may read at once: `advance`, which one of them calls at a time, says which reply is new. A ring that
    two of them hear, or that gets lost between them, costs only time.

    Args:
        connection: to the run's Redis.
        run_id: the run.
    """

    def __init__(self, connection: Connection, run_id: int) -> None:
        self._connection = connection
        self._run_id = run_id
        self._bell = connection.keys.bell(run_id)
        self._is_refused = False
        self.generation = 0
        self.reset()

    def reset(self) -> None:
        """Forget the cursors: after a reconnect everything is read again; known replies are recognised.

        What a thread reads meanwhile is of an older generation: it is as true, but it must not move the new cursors.
        """
        self.generation += 1
        self._bell_cursor = "0"
        self._cursors: dict[int, str] = {}
        self._heard: list[int | None] = []

    def wait(self, block: float | None) -> set[int] | None:
        """Return the nodes that rang, waiting up to ``block`` seconds for the first; None does not wait.

        Returns:
            None if a ring did not come from a node: look at the owner.
        """
        if not self._heard and not self._listen(block):
            return None
        heard, self._heard = self._heard, []
        return None if None in heard else {node for node in heard if node is not None}

    def _listen(self, block: float | None) -> bool:
        """Read who rang; return whether there is a bell."""
        if self._bell_cursor == LAST and mend(self._connection, self._bell, keep=False):
            self._bell_cursor = "0"
        with map_errors(self._connection.url):
            [response] = self._connection.sockets.exchange([_read({self._bell: self._bell_cursor}, block)])
        if isinstance(response, ResponseError):
            error = translate(response, self._connection.url)
            if error is not None:
                raise error from response
            time.sleep(block or 0.0)  # the key of the bell has another type: sweeps work without it
            return False
        for _, entry_id, fields in entries(response):
            self._hear(entry_id, fields)
        return True

    def _hear(self, entry_id: str, fields: Mapping[bytes, bytes]) -> None:
        self._bell_cursor = entry_id
        self._heard.append(parse_id(fields.get(b"n", b"")))

    def read(self, node_ids: Iterable[int], settled: Iterable[Settled] = ()) -> tuple[list[Reply], bool]:
        """Read the outboxes of ``node_ids``, and delete settled replies.

        New rings are read in the same round trip.

        Args:
            node_ids: the nodes.
            settled: replies to delete in the same round trip.

        Returns:
            What is new as (node id, entry id, fields), new until `advance`; and whether everything was deleted.
        """
        keys, nodes = self._connection.keys, list(node_ids)
        pipe = self._connection.sockets.pipe()
        remove_replies(pipe, self._connection, self._run_id, settled)
        streams = {keys.outbox(node, self._run_id): self._cursors.get(node, "0") for node in nodes}
        asked = [{**streams, self._bell: self._bell_cursor}] if nodes else []
        with map_errors(self._connection.url):
            answers = self._connection.sockets.exchange([*commands_of(pipe), *map(_read, asked)])
            deleted, results = answers[: len(pipe)], answers[len(pipe) :]
            if results and isinstance(results[0], ResponseError):
                # A node that changed the type of its outbox must not stop the others: one XREAD each.
                asked = [{key: cursor} for key, cursor in asked[0].items()]
                results = self._connection.sockets.exchange([*map(_read, asked)])
        by_key = dict(zip(streams, nodes, strict=True))
        replies = [reply for response in results for reply in self._take(response, by_key)]
        return replies, self._is_done(deleted)

    def _is_done(self, deleted: list[Any]) -> bool:
        """Whether nothing has to be repeated: Redis may be unable to write now, but an ACL that forbids it is final."""
        errors = [translate(answer, self._connection.url) for answer in deleted if isinstance(answer, Exception)]
        refusal = next(filter(None, errors), None)
        if refusal is not None and not self._is_refused:
            log(WARNING, "Settled replies cannot be deleted: %s", refusal)
        self._is_refused = refusal is not None
        return not isinstance(refusal, RedisUnreachable)

    def _take(self, response: Any, nodes: Mapping[str, int]) -> Iterator[Reply]:
        found = found_or_none(response, self._connection.url)
        for key, entry_id, fields in entries(found):
            if key == self._bell:
                self._hear(entry_id, fields)
            else:
                yield nodes[key], entry_id, fields

    def read_more(self, pipe: Pipeline, node_id: int) -> None:
        """Put a last look into one outbox into ``pipe``: a reply there wins over a verdict."""
        outbox = self._connection.keys.outbox(node_id, self._run_id)
        pipe.xrange(outbox, f"({self._cursors.get(node_id, '0')}", "+")

    @staticmethod
    def found_more(node_ids: Iterable[int], results: Iterable[Any]) -> Iterator[Reply]:
        """Yield what `read_more` found, as `read` returns it."""
        for node_id, found in zip(node_ids, results, strict=True):
            for entry_id, fields in entries_of_one(found if isinstance(found, list) else ()):
                yield node_id, entry_id, fields

    def advance(self, node_id: int, entry_id: str, generation: int) -> bool:
        """Note that a reply was read; False if it was already, by another thread that read it as well.

        What has a forged id, and what follows it, is read again each time: it is recognised, or deleted.
        """
        if generation != self.generation or is_forged(entry_id):  # behind which nothing that is real would be read
            return True
        if place_of(entry_id) <= place_of(self._cursors.get(node_id, "0-0")):
            return False
        self._cursors[node_id] = entry_id
        return True


def _read(streams: Mapping[str, str], block: float | None = None) -> Command:
    blocking = () if block is None else ("BLOCK", max(1, round(block * 1000)))
    return "XREAD", *blocking, "STREAMS", *streams, *streams.values()


def remove_replies(pipe: Pipeline, connection: Connection, run_id: int, settled: Iterable[Settled]) -> None:
    """Put into ``pipe`` the deletion of replies and of their payloads."""
    outboxes: dict[int, list[str]] = {}
    data: dict[int, list[str]] = {}
    for node, entry_id, data_entries in settled:
        outboxes.setdefault(node, []).append(entry_id)
        if data_entries:
            data.setdefault(node, []).extend(data_entries)
    for node, ids in outboxes.items():
        pipe.xdel(connection.keys.outbox(node, run_id), *ids)
    for node, ids in data.items():
        pipe.xdel(connection.keys.data(node, run_id), *ids)


def trim_data(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, needed_from: str) -> None:
    """Put into ``pipe`` the deletion of chunks that belong to no reply, left by an interrupted upload.

    Args:
        pipe: the transaction after which nothing before ``needed_from`` is needed.
        keys: the key names.
        node_id: the node.
        run_id: the run.
        needed_from: the first entry that may still be needed; "" for none.
    """
    if needed_from:
        pipe.xtrim(keys.data(node_id, run_id), minid=needed_from, approximate=False)
    else:
        pipe.xtrim(keys.data(node_id, run_id), maxlen=0, approximate=False)


def add_data(
    connection: Connection, node_id: int, run_id: int, chunks: Iterable[memoryview]
) -> list[str | None] | None:
    """Put chunks of a large reply into the node's data stream, before the reply names them.

    Returns:
        The entry of each; or None if the run is over. None in place of an entry means that the chunk may be accepted if
        it is added again: Redis is full, or the stream took no more entries and is replaced, without what it held.

    Raises:
        RedisUnreachable, RedisAuthError: unknown which of them Redis has.
    """
    key = connection.keys.data(node_id, run_id)
    with map_errors(connection.url):
        answers = connection.sockets.exchange(
            [("XADD", key, "NOMKSTREAM", "*", CHUNK_FIELD, chunk) for chunk in chunks]
        )
    is_mended = any(map(is_spoilt, answers)) and mend(connection, key, keep=False)
    added: list[str | None] = []
    for answer in answers:
        if is_mended and is_spoilt(answer):
            added.append(None)
            continue
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
    ids = list(entry_ids)
    if ids:
        with map_errors(connection.url):
            connection.sockets.exchange([("XDEL", connection.keys.data(node_id, run_id), *ids)])


def read_data(connection: Connection, node_id: int, run_id: int, entry_ids: Iterable[str]) -> Iterator[bytes | None]:
    """Yield the chunks that `add_data` put into these entries; None for one that is gone."""
    key = connection.keys.data(node_id, run_id)
    commands = [("XRANGE", key, entry_id, entry_id) for entry_id in entry_ids]
    with map_errors(connection.url):
        for answer in connection.sockets.stream(commands):
            match found_or_none(answer, connection.url):
                case [[_, [field, chunk]]] if field == CHUNK_FIELD:
                    yield chunk
                case _:
                    yield None
