"""The end of a run: its ServerApp ends it, or somebody stops it, and nothing of it remains.

Owns the order in which its keys go, and how a run is stopped. It must not know messages.

    close    the run is ending: inboxes, outboxes and ledger go, so that no node finds or publishes anything
    echoes   what it has at its nodes and in chunks goes, and the nodes look at their runs again
    delete   the rest goes; the owner key becomes a tombstone, which says that the run was not forgotten, and next to
             it remains what the run was (`remains`)

Who finds a run that is ending goes on there: close can be repeated.
"""

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import tenacity
from redis.client import Pipeline

from brokerfl.broker.blobs import chunks_of, remove_blobs
from brokerfl.broker.books import is_ending, nodes_of, note_ending, note_stop, read_frame
from brokerfl.broker.connection import Connection
from brokerfl.broker.contact import leave_node
from brokerfl.broker.echoes import Echo, send_echoes
from brokerfl.broker.events import Events, Page
from brokerfl.broker.failure import execute_unless_changed, map_errors
from brokerfl.broker.fence import Fence, RedisForgot, Transaction, watched_owner
from brokerfl.broker.keys import BELL_LENGTH, LEASE, MOST_RETENTION, Keys, milliseconds
from brokerfl.broker.ownership import ENDED, STOP, STOPPED, Ownership, ownership_in
from brokerfl.broker.process import is_dead, new_token, text_of
from brokerfl.broker.remains import Remains, read_remains, write_remains
from brokerfl.broker.runs import absent, mark_as_ended
from brokerfl.broker.stream import batches
from brokerfl.common import RedisOutOfMemory, RunLost, RunNotFound
from brokerfl.wire.run import Run


@dataclass(frozen=True)
class Footprint:
    """What a run may have in Redis outside its own slot: the nodes it contacted, and the chunks it broadcast."""

    nodes: Collection[int] = ()
    chunks: Collection[bytes] = ()

    def __or__(self, other: "Footprint") -> "Footprint":
        return Footprint({*self.nodes, *other.nodes}, {*self.chunks, *other.chunks})


def read_footprint(connection: Connection, run_id: int) -> Footprint:
    """Return what a run may have outside its slot, as its books say."""
    return Footprint(nodes_of(connection, run_id), chunks_of(connection, run_id))


def leave_nodes(keys: Keys, run_id: int, nodes: Collection[int]) -> tuple[Echo, ...]:
    """Return the deletion of what a run has in these nodes' slots."""
    return tuple((keys.ctl(node), lambda pipe, node=node: leave_node(pipe, keys, node, run_id)) for node in nodes)


def remove_streams(pipe: Pipeline, keys: Keys, run_id: int, nodes: Collection[int]) -> None:
    """Put the deletion of these nodes' inboxes and outboxes into ``pipe``."""
    for streams in batches(key for node in nodes for key in keys.of_node_in_run(node, run_id)):
        pipe.unlink(*streams)


def close(
    connection: Connection, run_id: int, footprint: Footprint, *, stopped: bool = False, pages: Sequence[Page] = ()
) -> Transaction:
    """Return what begins the end of a run; one that is ``stopped`` says so already. ``pages`` are its last events."""
    keys = connection.keys

    def run(pipe: Pipeline) -> None:
        remove_streams(pipe, keys, run_id, footprint.nodes)
        pipe.unlink(*keys.of_messages(run_id))
        if not stopped:
            note_ending(pipe, keys, run_id)
        Events(connection, run_id).add(pipe, pages)

    echoes = (*leave_nodes(keys, run_id, footprint.nodes), *remove_blobs(keys, run_id, footprint.chunks))
    return Transaction("close", run, echoes, frees=True)


def tombstone_of(connection: Connection, counter: int, *, stopped: bool) -> Ownership:
    """Return what says that a run has ended now.

    Args:
        connection: to its Redis.
        counter: that of its last owner.
        stopped: somebody stopped it.
    """
    ended_at = milliseconds(connection.clock.time() + connection.clock.skew)
    return Ownership(counter, STOPPED if stopped else ENDED, ended_at)


def delete(connection: Connection, run_id: int, tombstone: Ownership, remains: Remains | None = None) -> Transaction:
    """Return what ends a run that is closed. The first answer is whether there was room for the tombstone.

    Behind it comes what ``remains`` of the run, if there is room for that, too.
    """
    keys = connection.keys
    encoded = remains.encoded(keys, tombstone) if remains is not None else {}

    def run(pipe: Pipeline) -> None:
        pipe.unlink(keys.run_lease(run_id), *keys.of_run(run_id)[:-1])
        _write(pipe, keys, run_id, tombstone)
        write_remains(pipe, encoded)

    mark = (keys.index_of(run_id), lambda pipe: mark_as_ended(pipe, keys, run_id, tombstone))
    return Transaction("delete", run, (mark,), answers=1 + len(encoded), frees=True, ends=True)


def _write(pipe: Pipeline, keys: Keys, run_id: int, tombstone: Ownership) -> None:
    pipe.set(keys.owner(run_id), str(tombstone), px=milliseconds(MOST_RETENTION))


def bury(connection: Connection, run_id: int, tombstone: Ownership) -> None:
    """Write a tombstone for which there was no room: what was deleted may make some. If not, leave nothing."""
    owner = connection.keys.owner(run_id)

    def write() -> None:
        with map_errors(connection.url):
            _write(connection.at(owner).redis, connection.keys, run_id, tombstone)

    retrying = tenacity.Retrying(
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=0.5),
        stop=tenacity.stop_after_delay(1.0),
        retry=tenacity.retry_if_exception_type(RedisOutOfMemory),
        sleep=time.sleep,
        reraise=True,
    )
    try:
        retrying(write)
    except RedisOutOfMemory:
        with map_errors(connection.url):
            connection.at(owner).redis.unlink(owner, *connection.keys.of_past(run_id))


def finish(connection: Connection, run_id: int, fence: Fence, *, stopped: bool) -> None:
    """Delete what is left of a run whose ServerApp is gone.

    Raises:
        RunStopped, RunFenced, RunLost, RedisForgot, RedisUnreachable: somebody else does that, or it is to be repeated.
    """
    fence.execute(close(connection, run_id, read_footprint(connection, run_id), stopped=stopped))
    tombstone, remains = tombstone_of(connection, fence.counter, stopped=stopped), read_remains(connection, run_id)
    [answer, *_] = fence.execute(delete(connection, run_id, tombstone, remains))
    if isinstance(answer, Exception):
        bury(connection, run_id, tombstone)


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
    is_stopped = not is_ending(connection, run_id)
    try:
        fence = _take_over_to_stop(connection, run_id)
        _await_release(connection, run_id, patience)
    except RedisOutOfMemory:  # a full Redis accepts no new owner, but deletes the old one with all the rest
        _stop_unfenced(connection, run_id)
        return
    with suppress(RedisForgot, RunLost):  # the ServerApp ended it meanwhile
        finish(connection, run_id, fence, stopped=is_stopped)


def _stop_unfenced(connection: Connection, run_id: int) -> None:
    key = connection.keys.owner(run_id)
    with map_errors(connection.url):
        owner = connection.at(key).redis.get(key)
    counter = ownership_in(owner).counter if owner else 0
    closing = close(connection, run_id, read_footprint(connection, run_id), stopped=True)
    tombstone = tombstone_of(connection, counter, stopped=True)
    deletion = delete(connection, run_id, tombstone, read_remains(connection, run_id))
    for transaction in (closing, deletion):
        with map_errors(connection.url), connection.at(key).redis.pipeline(transaction=False) as pipe:
            transaction.run(pipe)
            answers = pipe.execute(raise_on_error=False)
        send_echoes(connection, transaction.echoes)
    if isinstance(answers[-deletion.answers], Exception):
        bury(connection, run_id, tombstone)


def _await_release(connection: Connection, run_id: int, patience: float) -> None:
    """Wait until the ServerApp has detached: it gave up its lease, it is dead, or the lease lapsed."""
    lease = connection.keys.run_lease(run_id)
    until = time.monotonic() + patience
    with map_errors(connection.url):
        while (holder := connection.at(lease).redis.get(lease)) is not None and time.monotonic() < until:
            if is_dead(text_of(holder).partition(":")[2]):
                return
            time.sleep(0.05)


def _take_over_to_stop(connection: Connection, run_id: int) -> Fence:
    keys = connection.keys
    redis = connection.at(keys.owner(run_id)).redis
    with map_errors(connection.url), redis.pipeline(transaction=True) as pipe:
        while True:
            former = watched_owner(pipe, connection, run_id)
            fence = Fence(connection, run_id, former.counter + 1, f"{STOP}/{new_token()}")
            pipe.multi()
            pipe.set(keys.owner(run_id), fence.value, keepttl=True)
            note_stop(pipe, keys, run_id)
            pipe.xadd(keys.bell(run_id), {"n": ""}, maxlen=BELL_LENGTH, nomkstream=True)
            if execute_unless_changed(pipe):
                return fence
