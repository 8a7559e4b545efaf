"""Runs: which there are, who is attached, how one is stopped, and that nothing of it remains.

Owns `P:runs`, and how a run is stopped and deleted. It must not know messages, or what the run's books hold.

    running   a ServerApp holds the lease
    detached  no ServerApp does; the keys stay for the retention time
    stopping  it was stopped; the keys are deleted as soon as its ServerApp detaches, or the lease lapses
    completed, stopped   only `P:runs` remembers it, longer than a ServerApp of it can be cut off and return
"""

import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.client import Pipeline

from brokerfl.broker.blobs import chunks_of, remove_blobs
from brokerfl.broker.books import Summary, ask_summary, nodes_of, note_stop, read_frame, summary_of
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import execute_unless_changed, found_or_none, map_errors
from brokerfl.broker.fence import STOP, Build, Fence, RedisForgot, Slot, Transaction
from brokerfl.broker.fields import read_hash
from brokerfl.broker.keys import BELL_LENGTH, LEASE, MOST_RETENTION, RETENTION, Keys, milliseconds, parse_id
from brokerfl.broker.process import describe, is_dead, new_token, text_of
from brokerfl.common import RedisAuthError, RedisOutOfMemory, RunNotFound
from brokerfl.wire.run import Run

#: A member's score in `P:runs` is the time of the run's creation in milliseconds or, after its end, the negative time
#: of its end. Half a millisecond more marks a run that was stopped. (A double can hold that: the time needs 41 of its
#: 53 bits.)
_STOPPED_MARK = 0.5

#: Most bytes of a run's frame that a node reads. It has a run config of up to 64 KiB.
_LONGEST_FRAME = 256 * 1024

#: Members of `P:runs` that are looked at in one round trip.
_AT_ONCE = 1000


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


def prune(pipe: Pipeline, keys: Keys, now: float) -> None:
    """Forget the runs that ended longer ago than the longest retention. ``now`` is Redis TIME in seconds."""
    pipe.zremrangebyscore(keys.runs, -milliseconds(now - MOST_RETENTION), "(0")


@dataclass(frozen=True)
class Footprint:
    """What a run may have in Redis outside its own slot: the nodes it contacted, and the chunks it broadcast."""

    nodes: Collection[int] = ()
    chunks: Collection[bytes] = ()


def leave_nodes(pipe: Pipeline, keys: Keys, run_id: int, node_ids: Iterable[int]) -> None:
    """Put the deletion of what a run has at these nodes into ``pipe``."""
    for node_id in node_ids:
        pipe.unlink(*keys.of_node_and_run(node_id, run_id))
        pipe.hdel(keys.node_runs(node_id), str(run_id))


def deletion(connection: Connection, run_id: int, footprint: Footprint, *, stopped: bool) -> Transaction:
    """Return the deletion of every key of a run, and the mark that it has ended.

    The run's own keys come behind the others, so that a deletion that breaks off can be begun again. The mark is last,
    for it takes memory: what went before has made room for it.
    """
    keys = connection.keys

    def mark(pipe: Pipeline) -> None:
        ended_at = milliseconds(connection.clock.time() + connection.clock.skew) + (_STOPPED_MARK if stopped else 0)
        pipe.zadd(keys.runs, {str(run_id): -ended_at}, xx=True)

    steps: tuple[tuple[Slot, Build], ...] = (
        (Slot.OWN, lambda pipe: remove_blobs(pipe, keys, run_id, footprint.chunks)),
        (Slot.NODE, lambda pipe: leave_nodes(pipe, keys, run_id, footprint.nodes)),
        (Slot.RUN, lambda pipe: pipe.unlink(keys.run_lease(run_id), *keys.of_run(run_id))),
        (Slot.OWN, mark),
    )
    return Transaction("delete", steps, frees=True)


def read_run(connection: Connection, run_id: int) -> Run:
    """Return a run that has not ended.

    Raises:
        RunNotFound: there is no such run, or it has ended.
        FrameError: it was created by another version.
    """
    run = read_frame(connection, run_id)
    if run is None:
        raise RunNotFound(absent(connection, run_id))
    return run


def has_ended(connection: Connection, run_id: int) -> bool:
    """Return whether `P:runs` marks the run as ended."""
    with map_errors(connection.url):
        score = connection.redis.zscore(connection.keys.runs, str(run_id))
    return score is not None and score < 0


def ended_among(connection: Connection, run_ids: Iterable[int]) -> set[int]:
    """Return those of ``run_ids`` that `P:runs` marks as ended; none if this process may not read it."""
    asked = list(run_ids)
    if not asked:
        return set()
    try:
        with map_errors(connection.url, connection.keys.runs):
            scores = connection.redis.zmscore(connection.keys.runs, list(map(str, asked)))
    except RedisAuthError:
        return set()
    return {run_id for run_id, score in zip(asked, scores, strict=True) if score is not None and score < 0}


def stop_run(connection: Connection, run_id: int, *, patience: float = 2 * LEASE) -> None:
    """Stop a run, whether or not a ServerApp is attached, and delete all of it.

    The bell tells an attached ServerApp, which detaches; its waits end with `RunStopped`. If it does not detach, wait
    until its lease lapses.

    Args:
        connection: to the run's Redis.
        run_id: the run.
        patience: seconds to wait for a ServerApp that keeps renewing its lease.

    Raises:
        RunNotFound: there is no such run, or it has ended.
    """
    try:
        fence = _take_over_to_stop(connection, run_id)
        _await_release(connection, run_id, patience)
    except RedisOutOfMemory:  # a full Redis accepts no new owner, but deletes the old one with all the rest
        fence = None
    footprint = Footprint(nodes_of(connection, run_id), chunks_of(connection, run_id))
    delete = deletion(connection, run_id, footprint, stopped=True)
    if fence is not None:
        with suppress(RedisForgot):  # the ServerApp ended it meanwhile
            fence.execute(delete)
    else:
        with map_errors(connection.url), connection.redis.pipeline(transaction=False) as pipe:
            delete.build(pipe)
            pipe.execute(raise_on_error=False)


def _await_release(connection: Connection, run_id: int, patience: float) -> None:
    """Wait until the ServerApp has detached: it gave up its lease, it is dead, or the lease lapsed."""
    lease = connection.keys.run_lease(run_id)
    until = time.monotonic() + patience
    with map_errors(connection.url):
        while (holder := connection.redis.get(lease)) is not None and time.monotonic() < until:
            if is_dead(text_of(holder).partition(":")[2]):
                return
            time.sleep(0.05)


def _take_over_to_stop(connection: Connection, run_id: int) -> Fence:
    keys = connection.keys
    with map_errors(connection.url), connection.redis.pipeline(transaction=True) as pipe:
        while True:
            pipe.watch(keys.owner(run_id))
            owner = pipe.get(keys.owner(run_id))
            if owner is None:
                raise RunNotFound(absent(connection, run_id))
            fence = Fence(connection, run_id, int(owner.partition(b":")[0]) + 1, f"{STOP}/{new_token()}")
            pipe.multi()
            pipe.set(keys.owner(run_id), fence.value, keepttl=True)
            note_stop(pipe, keys, run_id)
            pipe.xadd(keys.bell(run_id), {"n": ""}, maxlen=BELL_LENGTH, nomkstream=True)
            if execute_unless_changed(pipe):
                return fence


def absent(connection: Connection, run_id: int) -> str:
    """Return why a run cannot be found, in words."""
    if has_ended(connection, run_id):
        return f"run {run_id} has already ended"
    return f"there is no run {run_id} under the prefix {connection.keys.prefix!r}; see brokerfl runs"


def list_runs(connection: Connection) -> list[RunInfo]:
    """Return the runs that have not ended and those that ended within a day, newest first.

    Runs whose keys expired are removed from `P:runs`.
    """
    keys, now = connection.keys, connection.read_time()
    with map_errors(connection.url, keys.runs):
        with connection.redis.pipeline(transaction=False) as pipe:
            prune(pipe, keys, now)
            pipe.execute()
        with connection.redis.pipeline(transaction=True) as removal:
            # A run that ends from here on keeps its mark.
            removal.watch(keys.runs)
            with connection.redis.pipeline(transaction=False) as pipe:
                pipe.zrangebyscore(keys.runs, "-inf", -milliseconds(now - RETENTION), withscores=True)
                pipe.zrangebyscore(keys.runs, 0, "+inf")
                ended, going_on = pipe.execute()
            looks = [_look_at(connection, going_on[at : at + _AT_ONCE]) for at in range(0, len(going_on), _AT_ONCE)]
            runs, expired = [run for found, _ in looks for run in found], [each for _, gone in looks for each in gone]
            if expired:
                removal.multi()
                removal.zrem(keys.runs, *expired)
                execute_unless_changed(removal)
    for member, score in ended:
        run_id = parse_id(member)
        if run_id is not None and -score / 1000 <= now + MOST_RETENTION:  # else somebody else's
            runs.append(RunInfo(run_id, "stopped" if score % 1 else "completed", -score / 1000))
    return sorted(runs, key=lambda run: run.created_at or run.ended_at, reverse=True)


def _look_at(connection: Connection, members: list[bytes]) -> tuple[list[RunInfo], list[bytes]]:
    """Return what Redis knows about runs that have not ended, and those of them whose keys expired."""
    keys, ids = connection.keys, {member: parse_id(member) for member in members}
    known = {member: run_id for member, run_id in ids.items() if run_id is not None}
    with connection.redis.pipeline(transaction=False) as pipe:
        for run_id in known.values():
            pipe.get(keys.run_lease(run_id))
            ask_summary(pipe, keys, run_id)
        answers = pipe.execute(raise_on_error=False)
    runs, expired = [], [member for member, run_id in ids.items() if run_id is None]
    for (member, run_id), *found in zip(known.items(), answers[::3], answers[1::3], answers[2::3], strict=True):
        lease, meta, nodes = (found_or_none(answer, connection.url) for answer in found)  # None: of another type
        summary = summary_of(run_id, meta or {}, nodes or 0)
        if summary is None:
            expired.append(member)
        else:
            runs.append(_run_info(summary, lease))
    return runs, expired


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
    """Return the frames, by run id, of the runs that contacted ``node_id`` and have not ended."""
    frames = read_hash(connection, connection.keys.node_runs(node_id), _LONGEST_FRAME)
    return {run_id: frame for field, frame in frames.items() if (run_id := parse_id(field)) is not None}


def forget_registry(connection: Connection) -> None:
    """Delete the registry of a prefix that is no longer used: its identity, nodes and runs."""
    with map_errors(connection.url):
        connection.redis.unlink(connection.keys.identity, connection.keys.nodes, connection.keys.runs)
