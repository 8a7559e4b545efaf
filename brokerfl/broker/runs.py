"""Runs: which there are, and who is attached.

Owns `P:runs`, an index of them. It must not know messages, what the run's books hold, or how a run ends.

A run that has ended is remembered by its owner key and `P:runs` alone, longer than a ServerApp of it can be cut off and
return.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from redis.client import Pipeline

from brokerfl.broker.books import summary_commands, summary_of
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import execute_unless_changed, found_or_none, map_errors
from brokerfl.broker.fields import read_hash
from brokerfl.broker.gather import Gather
from brokerfl.broker.keys import MOST_RETENTION, Keys, milliseconds, parse_id
from brokerfl.broker.ownership import STOPPED, Ownership, ownership_in
from brokerfl.broker.stream import batches
from brokerfl.common import RedisAuthError, RunLost

#: A member's score in `P:runs` is the time of the run's creation in milliseconds or, after its end, the negative time
#: of its end. Half a millisecond more marks a run that was stopped. (A double can hold that: the time needs 41 of its
#: 53 bits.)
_STOPPED_MARK = 0.5

#: Most bytes of a run's frame that a node reads. It has a run config of up to 64 KiB.
_LONGEST_FRAME = 256 * 1024

#: Members that a new run looks at, and seconds after which a run that was entered there has its keys, if it lives.
_TIDIED, _SETTLED = 100, 3600.0


def prune(pipe: Pipeline, keys: Keys, now: float) -> None:
    """Forget the runs that ended longer ago than the longest retention. ``now`` is Redis TIME in seconds."""
    pipe.zremrangebyscore(keys.runs, -milliseconds(now - MOST_RETENTION), "(0")


def ask_for_oldest(pipe: Pipeline, keys: Keys, now: float) -> None:
    """Put into ``pipe`` the question for the oldest members that have not ended, which `tidy` looks at."""
    pipe.zrangebyscore(keys.runs, 0, milliseconds(now - _SETTLED), start=0, num=_TIDIED)


def tidy(connection: Connection, oldest: Sequence[bytes]) -> None:
    """Take runs whose keys expired out of `P:runs`, of the oldest that have not ended, and note which of them have.

    Every new run does, so that the index does not grow with those that nobody ended; who only looks changes nothing.

    Args:
        connection: to the index.
        oldest: its members, as `ask_for_oldest` gets them.
    """
    index = connection.keys.runs
    with map_errors(connection.url, index), connection.at(index).redis.pipeline(transaction=True) as removal:
        for _ in range(2):  # what the first look notes changes the index; what is left then is for the next run
            removal.watch(index)  # a run that ends from here on keeps its mark
            scores = removal.zmscore(index, [*oldest])
            oldest = [member for member, score in zip(oldest, scores, strict=True) if score is not None and score >= 0]
            expired = _expired(connection, oldest) if oldest else []
            if not expired:
                return
            removal.multi()
            removal.zrem(index, *expired)
            if execute_unless_changed(removal):
                return


def mark_as_ended(pipe: Pipeline, keys: Keys, run_id: int, tombstone: Ownership) -> None:
    """Put into ``pipe`` that the index says when a run ended."""
    stopped = _STOPPED_MARK if tombstone.token == STOPPED else 0
    pipe.zadd(keys.runs, {str(run_id): -(tombstone.sequence + stopped)}, xx=True)


def has_ended(connection: Connection, run_id: int) -> bool:
    """Return whether a run is known to have ended: `MOST_RETENTION` later, nobody knows."""
    key = connection.keys.owner(run_id)
    with map_errors(connection.url):
        owner = connection.at(key).redis.get(key)
    return owner is not None and ownership_in(owner).is_over


def ended_among(connection: Connection, run_ids: Iterable[int]) -> set[int]:
    """Return those of ``run_ids`` that `P:runs` marks as ended; none if this process may not read it."""
    asked = list(run_ids)
    if not asked:
        return set()
    try:
        index = connection.keys.runs
        with map_errors(connection.url, index):
            redis = connection.at(index).redis
            scores = [score for some in batches(map(str, asked)) for score in redis.zmscore(index, some)]
    except RedisAuthError:
        return set()
    return {run_id for run_id, score in zip(asked, scores, strict=True) if score is not None and score < 0}


def absent(connection: Connection, run_id: int) -> str:
    """Return why a run cannot be found, in words."""
    if has_ended(connection, run_id):
        return f"run {run_id} has already ended"
    return f"there is no run {run_id} under the prefix {connection.keys.prefix!r}; see brokerfl runs"


def going_on(connection: Connection) -> list[int]:
    """Return the runs that have not ended, as far as the index knows; the keys of some may have expired."""
    index = connection.keys.runs
    with map_errors(connection.url, index):
        members = connection.at(index).redis.zrangebyscore(index, 0, "+inf")
    return [run_id for run_id in map(parse_id, members) if run_id is not None]


def _expired(connection: Connection, members: Sequence[bytes]) -> list[bytes]:
    """Return those of these members of the index whose keys expired; what has ended is marked there."""
    keys, ids = connection.keys, {member: parse_id(member) for member in members}
    known = {member: run_id for member, run_id in ids.items() if run_id is not None}
    gather = Gather(connection)
    for run_id in known.values():
        gather.at(keys.owner(run_id)).get(keys.owner(run_id))
        for command in summary_commands(keys, run_id):
            gather.at(command[1]).execute_command(*command)  # type: ignore[no-untyped-call]
    answers = iter(gather.execute(raise_on_error=False))
    expired = [member for member, run_id in ids.items() if run_id is None]
    for (member, run_id), *found in zip(known.items(), *[answers] * 3, strict=True):
        owner, meta, nodes = (found_or_none(answer, connection.url) for answer in found)
        if summary_of(run_id, meta, nodes or 0) is not None:
            continue
        if (tombstone := _tombstone_in(owner)) is not None:
            mark_as_ended(gather.at(keys.runs), keys, run_id, tombstone)
        else:
            expired.append(member)
    gather.execute()
    return expired


def _tombstone_in(value: bytes | None) -> Ownership | None:
    try:
        owner = ownership_in(value) if value is not None else None
    except RunLost:  # somebody else's
        return None
    return owner if owner is not None and owner.is_over else None


def runs_of(connection: Connection, node_id: int) -> dict[int, Any]:
    """Return the frames, by run id, of the runs that contacted ``node_id`` and have not ended."""
    frames = read_hash(connection, connection.keys.node_runs(node_id), _LONGEST_FRAME)
    return {run_id: frame for field, frame in frames.items() if (run_id := parse_id(field)) is not None}


def forget_registry(connection: Connection) -> None:
    """Delete the registry of a prefix that is no longer used: its identity, nodes and runs, all of which have ended."""
    keys = connection.keys
    with map_errors(connection.url, keys.runs):
        members = connection.at(keys.runs).redis.zrange(keys.runs, 0, -1)
        runs = [run_id for run_id in map(parse_id, members) if run_id is not None]
        tombstones = [key for run_id in runs for key in (keys.owner(run_id), *keys.of_past(run_id))]
        gather = Gather(connection)
        for key in (*tombstones, keys.identity, keys.nodes, keys.runs):
            gather.at(key).unlink(key)
        gather.execute()
