"""Runs: which there are, and who is attached.

Owns `P:runs`, an index of them. It must not know messages, what the run's books hold, or how a run ends.

    running   a ServerApp holds the lease
    detached  no ServerApp does; the keys stay for the retention time
    stopping  it was stopped; the keys are deleted as soon as its ServerApp detaches, or the lease lapses
    ending    it has ended, but whoever deleted its keys died; resuming or stopping it deletes the rest
    completed, stopped   only its owner key and `P:runs` remember it, longer than a ServerApp of it can be cut off and
              return
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis.client import Pipeline

from brokerfl.broker.books import Summary, summary_commands, summary_of
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import execute_unless_changed, found_or_none, map_errors
from brokerfl.broker.fields import read_hash
from brokerfl.broker.gather import Gather
from brokerfl.broker.keys import MOST_RETENTION, RETENTION, Keys, milliseconds, parse_id
from brokerfl.broker.ownership import STOPPED, Ownership, ownership_in
from brokerfl.broker.process import describe, text_of
from brokerfl.broker.rules import allows
from brokerfl.broker.stream import batches
from brokerfl.common import RedisAuthError, RunLost

#: A member's score in `P:runs` is the time of the run's creation in milliseconds or, after its end, the negative time
#: of its end. Half a millisecond more marks a run that was stopped. (A double can hold that: the time needs 41 of its
#: 53 bits.)
_STOPPED_MARK = 0.5

#: The index, as the rules call it.
INDEX = "P:runs[:r]"

#: Most bytes of a run's frame that a node reads. It has a run config of up to 64 KiB.
_LONGEST_FRAME = 256 * 1024

#: Members of `P:runs` that are looked at in one round trip.
_AT_ONCE = 1000

#: Members that a new run looks at, and seconds after which a run that was entered there has its keys, if it lives.
_TIDIED, _SETTLED = 100, 3600.0


@dataclass(frozen=True)
class RunInfo:
    """What Redis knows about a run. Times are Unix seconds, 0 if unknown; an ended run has only the first three."""

    run_id: int
    status: str
    ended_at: float = 0.0
    created_at: float = 0.0
    app: str = ""
    holder: str = ""
    nodes: int = 0
    messages: int = 0
    replies: int = 0


def prune(pipe: Pipeline, index: str, now: float) -> None:
    """Forget the runs that ended longer ago than the longest retention. ``now`` is Redis TIME in seconds."""
    pipe.zremrangebyscore(index, -milliseconds(now - MOST_RETENTION), "(0")


def tidy(connection: Connection, now: float) -> None:
    """Take runs whose keys expired out of `P:runs`, of the oldest that have not ended, and note which of them have.

    Every new run does, so that the index does not grow with those that nobody ended; who only looks changes nothing.

    Args:
        connection: to the index.
        now: Redis TIME in seconds.
    """
    index = connection.keys.runs
    redis = connection.at(index).redis
    with map_errors(connection.url, index), redis.pipeline(transaction=True) as removal:
        for _ in range(2):  # what the first look notes changes the index; what is left then is for the next run
            removal.watch(index)  # a run that ends from here on keeps its mark
            oldest = redis.zrangebyscore(index, 0, milliseconds(now - _SETTLED), start=0, num=_TIDIED)
            expired = _look_at(connection, oldest)[1] if oldest else []
            if not expired:
                return
            removal.multi()
            removal.zrem(index, *expired)
            if execute_unless_changed(removal):
                return


def mark_as_ended(pipe: Pipeline, keys: Keys, run_id: int, tombstone: Ownership) -> None:
    """Put into ``pipe`` that the index says when a run ended."""
    stopped = _STOPPED_MARK if tombstone.token == STOPPED else 0
    pipe.zadd(keys.index_of(run_id), {str(run_id): -(tombstone.sequence + stopped)}, xx=True)


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
    by_index: dict[str, list[int]] = {}
    for run_id in asked:
        by_index.setdefault(connection.keys.index_of(run_id), []).append(run_id)
    ended = set[int]()
    try:
        for index, run_ids in by_index.items():
            with map_errors(connection.url, index):
                redis = connection.at(index).redis
                scores = [score for some in batches(map(str, run_ids)) for score in redis.zmscore(index, some)]
            ended.update(run for run, score in zip(run_ids, scores, strict=True) if score is not None and score < 0)
    except RedisAuthError:
        return set()
    return ended


def absent(connection: Connection, run_id: int) -> str:
    """Return why a run cannot be found, in words."""
    if has_ended(connection, run_id):
        return f"run {run_id} has already ended"
    return f"there is no run {run_id} under the prefix {connection.keys.prefix!r}; see brokerfl runs"


def list_runs(connection: Connection) -> list[RunInfo]:
    """Return the runs that have not ended and those that ended within a day, newest first.

    Runs whose keys expired are removed from `P:runs` by a user who may do that.
    """
    now = connection.read_time()
    runs = [run for index in connection.keys.indexes for run in _listed(connection, index, now)]
    return sorted(runs, key=lambda run: run.created_at or run.ended_at, reverse=True)


def _listed(connection: Connection, index: str, now: float) -> list[RunInfo]:
    """Return the runs of one index, whose time is ``now``."""
    redis, tidies = connection.at(index).redis, allows(connection.role, "zrem", INDEX)
    with map_errors(connection.url, index):
        if tidies:
            prune(redis, index, now)
        with redis.pipeline(transaction=True) as removal:
            # A run that ends from here on keeps its mark.
            if tidies:
                removal.watch(index)
            with redis.pipeline(transaction=False) as pipe:
                pipe.zrangebyscore(index, "-inf", -milliseconds(now - RETENTION), withscores=True)
                pipe.zrangebyscore(index, 0, "+inf")
                ended, going_on = pipe.execute()
            looks = [_look_at(connection, going_on[at : at + _AT_ONCE]) for at in range(0, len(going_on), _AT_ONCE)]
            runs, expired = [run for found, _ in looks for run in found], [each for _, gone in looks for each in gone]
            if expired and tidies:
                removal.multi()
                for batch in batches(expired):
                    removal.zrem(index, *batch)
                execute_unless_changed(removal)
    for member, score in ended:
        run_id = parse_id(member)
        if run_id is not None and -score / 1000 <= now + MOST_RETENTION:  # else somebody else's
            runs.append(RunInfo(run_id, "stopped" if score % 1 else "completed", -score / 1000))
    return runs


def run_ids(connection: Connection, *, ended: bool = False) -> list[int]:
    """Return the ids of the runs that the index has: of those that have not ended, or of all."""
    found: list[bytes] = []
    for index in connection.keys.indexes:
        with map_errors(connection.url, index):
            found += connection.at(index).redis.zrangebyscore(index, "-inf" if ended else 0, "+inf")
    return [run_id for run_id in map(parse_id, found) if run_id is not None]


def _look_at(connection: Connection, members: list[bytes]) -> tuple[list[RunInfo], list[bytes]]:
    """Return what Redis knows about runs that have not ended, and those of them whose keys expired.

    What has ended although the index does not say so is marked there.
    """
    keys, ids = connection.keys, {member: parse_id(member) for member in members}
    known = {member: run_id for member, run_id in ids.items() if run_id is not None}
    gather = Gather(connection)
    for run_id in known.values():
        for key in (keys.owner(run_id), keys.run_lease(run_id)):
            gather.at(key).get(key)
        for command in summary_commands(keys, run_id):
            gather.at(command[1]).execute_command(*command)  # type: ignore[no-untyped-call]
    answers = iter(gather.execute(raise_on_error=False))
    runs, expired = [], [member for member, run_id in ids.items() if run_id is None]
    for (member, run_id), *found in zip(known.items(), *[answers] * 4, strict=True):
        owner, lease, meta, nodes = (found_or_none(answer, connection.url) for answer in found)
        summary = summary_of(run_id, meta, nodes or 0)
        if summary is not None:
            runs.append(_run_info(summary, lease))
        elif (tombstone := _tombstone_in(owner)) is not None:
            if allows(connection.role, "zadd", INDEX):
                mark_as_ended(gather.at(keys.index_of(run_id)), keys, run_id, tombstone)
            status = "stopped" if tombstone.token == STOPPED else "completed"
            runs.append(RunInfo(run_id, status, tombstone.sequence / 1000))
        else:
            expired.append(member)
    gather.execute()
    return runs, expired


def _tombstone_in(value: bytes | None) -> Ownership | None:
    try:
        owner = ownership_in(value) if value is not None else None
    except RunLost:  # somebody else's
        return None
    return owner if owner is not None and owner.is_over else None


def _run_info(summary: Summary, lease: bytes | None) -> RunInfo:
    is_detached = summary.status == "running" and lease is None
    return RunInfo(
        summary.run.run_id,
        "detached" if is_detached else summary.status,
        created_at=summary.run.created_at,
        app=summary.run.app,
        holder=describe(text_of(lease).partition(":")[2]) if lease else "",
        nodes=summary.nodes,
        messages=summary.messages,
        replies=summary.replies,
    )


def runs_of(connection: Connection, node_id: int) -> dict[int, Any]:
    """Return the frames, by run id, of the runs that contacted ``node_id`` and have not ended.

    Each realm has a hash; what is there of a run of another realm, somebody else wrote.
    """
    keys, found = connection.keys, dict[int, Any]()
    for realm in keys.realms:
        for name, frame in read_hash(connection, keys.node_runs(node_id, realm), _LONGEST_FRAME).items():
            run_id = parse_id(name)
            if run_id is not None and keys.realm_of(run_id) == realm:
                found[run_id] = frame
    return found


def forget_registry(connection: Connection) -> None:
    """Delete the registry of a prefix that is no longer used: its identity, nodes and runs, all of which have ended."""
    keys = connection.keys
    with map_errors(connection.url, keys.runs):
        members = [member for index in keys.indexes for member in connection.at(index).redis.zrange(index, 0, -1)]
        runs = [run_id for run_id in map(parse_id, members) if run_id is not None]
        tombstones = [key for run_id in runs for key in (keys.owner(run_id), *keys.of_past(run_id))]
        gather = Gather(connection)
        for key in (*tombstones, keys.identity, keys.nodes, *keys.indexes):
            gather.at(key).unlink(key)
        gather.execute()
