"""The books of a run: what Redis holds of it besides its messages.

Owns the hashes `P:{run:R}:ledger` and `P:{run:R}:meta`, the set `P:{run:R}:nodes` and the list `P:{run:R}:groups`:
nothing else reads or writes them. It must not know a message's state, who may write, or what happens at a node.

    ledger   every message that was accepted and is not settled: id → entry
    meta     the run's frame, its status, and how many messages it pushed and replies it settled
    nodes    every node that may hold keys of the run
    groups   digests of the last groups that were pushed for the first time

A `Change` says what one commit does to a run; `Books.change` writes the part of it that concerns the books. The methods
put commands into a transaction, which `transactions` puts together.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.client import Pipeline

from brokerfl.broker.change import MOST_GROUPS, Change, Groups, Snapshot
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.fields import read_hash
from brokerfl.broker.keys import Keys, milliseconds, parse_id
from brokerfl.broker.stream import MOST_ARGUMENTS, batches
from brokerfl.common import FrameError
from brokerfl.wire.run import LedgerEntry, Run, decode_entry, decode_run, encode_entry, encode_run

#: The status of a run whose keys are being deleted.
_ENDING = b"ending"

#: Most bytes of an entry of the ledger that an operator looks at.
_MOST_ENTRY = 64 * 1024

#: The field of meta that says that the run is to push nothing any more.
_DRAINED = "drained"


class Books:
    """Writes the books of one run.

    Args:
        connection: to the run's Redis.
        run: the run.
        retention: seconds the books live after they were written.
    """

    def __init__(self, connection: Connection, run: Run, retention: float) -> None:
        self._connection = connection
        self._run = run
        keys, run_id = connection.keys, run.run_id
        self._ledger, self._meta, self._nodes = keys.ledger(run_id), keys.meta(run_id), keys.run_nodes(run_id)
        self._groups = keys.groups(run_id)
        self._lives = milliseconds(retention)
        self._is_drained = False

    def write(self, pipe: Pipeline, snapshot: Snapshot) -> None:
        """Write all of them again, without their lifetimes."""
        pipe.unlink(self._ledger)
        self._enter(pipe, snapshot.entries)
        pipe.hset(self._meta, mapping={"frame": encode_run(self._run), "status": "running"})
        pipe.hset(self._meta, mapping={"messages": snapshot.messages, "replies": snapshot.replies})
        if self._is_drained:
            pipe.hset(self._meta, _DRAINED, "1")
        for nodes in batches(map(str, snapshot.nodes)):
            pipe.sadd(self._nodes, *nodes)
        self._add_groups(pipe, Groups(tuple(snapshot.groups), is_all=True, is_full=True))

    def _add_groups(self, pipe: Pipeline, groups: Groups) -> None:
        if groups.is_all:
            pipe.unlink(self._groups)
        for digests in batches(groups.digests):
            pipe.rpush(self._groups, *digests)
        if groups.is_full:
            pipe.ltrim(self._groups, -MOST_GROUPS, -1)
        if groups.is_all:  # from then on it is never empty, and its lifetime is renewed with those of all keys
            pipe.pexpire(self._groups, self._lives)

    def write_frame(self, pipe: Pipeline) -> None:
        """Write the run's frame, which has changed."""
        pipe.hset(self._meta, "frame", encode_run(self._run))

    def change(self, pipe: Pipeline, change: Change) -> None:
        """Write what a commit changes. A hash vanishes when it is empty, and returns without a lifetime."""
        counts: dict[Any, Any] = {}
        if change.entered:
            self._enter(pipe, change.entered)
            pipe.pexpire(self._ledger, self._lives)
            counts["messages"] = change.messages
        for leaving in batches(change.leaving):
            pipe.hdel(self._ledger, *leaving)
        if change.settled:
            counts["replies"] = change.replies
        if counts:
            # Best effort outside a MULTI: a full Redis refuses to count, but still deletes.
            pipe.hset(self._meta, mapping=counts)
            pipe.pexpire(self._meta, self._lives)
        self.add_nodes(pipe, change.contacted)
        if change.groups:
            self._add_groups(pipe, change.groups)

    def add_nodes(self, pipe: Pipeline, node_ids: Iterable[int]) -> None:
        """Note that these nodes may hold keys of the run."""
        for node_id in node_ids:
            pipe.sadd(self._nodes, str(node_id))
            pipe.pexpire(self._nodes, self._lives)

    def remove_nodes(self, pipe: Pipeline, node_ids: Iterable[int]) -> None:
        """Note that these nodes hold no keys of the run any more."""
        for nodes in batches(map(str, node_ids)):
            pipe.srem(self._nodes, *nodes)

    def _enter(self, pipe: Pipeline, entries: Mapping[str, LedgerEntry]) -> None:
        for batch in batches(self._encoded(entries).items(), MOST_ARGUMENTS // 2 - 5):
            pipe.hset(self._ledger, mapping=dict(batch))

    def _encoded(self, entries: Mapping[str, LedgerEntry]) -> dict[Any, Any]:
        """Deadlines are by this process's clock, and in Redis by that of Redis, for whoever resumes the run."""
        skew = round(self._connection.clock.skew * 1000)
        return {
            message_id: encode_entry(entry._replace(deadline=entry.deadline + skew) if skew else entry)
            for message_id, entry in entries.items()
        }

    def is_drained(self) -> bool:
        """Return whether somebody asked that the run push nothing any more. Once seen, it is not forgotten."""
        with map_errors(self._connection.url):
            self._is_drained |= bool(self._connection.at(self._meta).redis.hexists(self._meta, _DRAINED))
        return self._is_drained

    def has(self, message_id: str) -> bool:
        """Return whether a message is in the ledger in Redis."""
        with map_errors(self._connection.url):
            return bool(self._connection.at(self._ledger).redis.hexists(self._ledger, message_id))


def read_books(connection: Connection, run_id: int) -> Snapshot:
    """Return what Redis holds of a run that is to be resumed.

    Raises:
        FrameError: its ledger was written by another version.
    """
    keys = connection.keys
    redis = connection.at(keys.ledger(run_id)).redis
    with map_errors(connection.url), redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.ledger(run_id))
        pipe.smembers(keys.run_nodes(run_id))
        pipe.lrange(keys.groups(run_id), 0, -1)
        pipe.hmget(keys.meta(run_id), "messages", "replies")
        ledger, members, groups, (messages, replies) = pipe.execute()
    skew, decoded = round(connection.clock.skew * 1000), {each.decode(): decode_entry(ledger[each]) for each in ledger}
    entries = {each: entry._replace(deadline=entry.deadline - skew) for each, entry in decoded.items()}
    nodes = nodes_in(members) | {entry.node_id for entry in entries.values()}
    return Snapshot(entries, nodes, int(messages or 0), int(replies or 0), groups)


def read_frame(connection: Connection, run_id: int) -> Run | None:
    """Return a run; None if Redis has no books of it.

    Raises:
        FrameError: it was created by another version.
    """
    meta = connection.keys.meta(run_id)
    with map_errors(connection.url):
        frame = connection.at(meta).redis.hget(meta, "frame")
    return None if frame is None else decode_run(run_id, frame)


def nodes_of(connection: Connection, run_id: int) -> set[int]:
    """Return the nodes that may hold keys of a run: those in its set, and those in its ledger."""
    keys = connection.keys
    with map_errors(connection.url):
        redis = connection.at(keys.run_nodes(run_id)).redis
        members, entries = redis.smembers(keys.run_nodes(run_id)), redis.hvals(keys.ledger(run_id))
    nodes = nodes_in(members)
    for entry in entries:
        with suppress(FrameError):
            nodes.add(decode_entry(entry).node_id)
    return nodes


def ledger_of(connection: Connection, run_id: int) -> dict[str, LedgerEntry]:
    """Return the messages of a run that are neither settled nor left behind, by id, for whoever only looks."""
    found = {}
    for message_id, entry in read_hash(connection, connection.keys.ledger(run_id), _MOST_ENTRY).items():
        with suppress(FrameError):
            found[message_id.decode(errors="replace")] = decode_entry(entry)
    return found


def nodes_command(keys: Keys, run_id: int) -> tuple[str, str]:
    """Return the command that asks for what `nodes_in` needs."""
    return "SMEMBERS", keys.run_nodes(run_id)


def nodes_in(members: Any) -> set[int]:
    """Return the nodes in a run's set of nodes."""
    return {node for member in members if (node := parse_id(member)) is not None}


def is_ending(connection: Connection, run_id: int) -> bool:
    """Return whether a run has begun to end."""
    meta = connection.keys.meta(run_id)
    with map_errors(connection.url):
        status = connection.at(meta).redis.hget(meta, "status")
    return bool(status == _ENDING)


def note_ending(pipe: Pipeline, keys: Keys, run_id: int) -> None:
    """Note that a run has begun to end."""
    pipe.hset(keys.meta(run_id), "status", _ENDING)


def note_stop(pipe: Pipeline, keys: Keys, run_id: int) -> None:
    """Note that somebody stopped a run."""
    pipe.hset(keys.meta(run_id), "status", "stopping")


def note_drain(pipe: Pipeline, keys: Keys, run_id: int) -> None:
    """Note that a run is to push nothing any more."""
    pipe.hset(keys.meta(run_id), _DRAINED, "1")


@dataclass(frozen=True)
class Summary:
    """What an operator sees of a run's books."""

    run: Run
    status: str
    nodes: int
    messages: int
    replies: int


#: The fields of meta that an operator sees.
_SUMMED = (b"frame", b"status", b"messages", b"replies")


def summary_commands(keys: Keys, run_id: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the two commands that ask for what `summary_of` needs."""
    return ("HMGET", keys.meta(run_id), *_SUMMED), ("SCARD", keys.run_nodes(run_id))


def summary_of(run_id: int, fields: Sequence[bytes | None] | None, nodes: int) -> Summary | None:
    """Return what the answers to `summary_commands` say; None if the run has no books."""
    meta = {name: value for name, value in zip(_SUMMED, fields or (), strict=False) if value is not None}
    if not meta:
        return None
    try:
        run = decode_run(run_id, meta.get(b"frame", b""))
    except FrameError:  # of another version: it can still be seen and stopped
        run = Run(run_id, "?", {}, 0.0)
    status = meta.get(b"status", b"?").decode(errors="replace")
    return Summary(run, status, nodes, *(parse_id(meta.get(name, b"0")) or 0 for name in (b"messages", b"replies")))
