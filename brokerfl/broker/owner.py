"""The owner of a run: a ServerApp, from the creation or resume of the run until it ends the run or detaches.

Owns how a run begins and changes its owner, its lease, and the lifetimes of its keys. It must not know how messages
travel.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from redis.client import Pipeline

from brokerfl.broker.blobs import expire_blobs
from brokerfl.broker.books import Books, is_ending
from brokerfl.broker.change import Snapshot
from brokerfl.broker.connection import Connection
from brokerfl.broker.contact import expire_at_node, expire_streams
from brokerfl.broker.echoes import Echo, send_echoes
from brokerfl.broker.ending import Footprint, finish, read_run
from brokerfl.broker.events import Events, Page
from brokerfl.broker.failure import execute_unless_changed, map_errors
from brokerfl.broker.fence import Fence, Transaction, watched_owner
from brokerfl.broker.gather import Gather
from brokerfl.broker.identity import ensure_identity, read_identity
from brokerfl.broker.keys import GROUP, LEASE, MOST_RETENTION, RETENTION, milliseconds
from brokerfl.broker.lease import await_lapse, say_lapsed
from brokerfl.broker.nodes import new_run_id
from brokerfl.broker.process import is_dead, new_token, text_of
from brokerfl.broker.rules import allows
from brokerfl.broker.runs import absent, ask_for_oldest, prune, tidy
from brokerfl.common import (
    BrokerflError,
    ConfigError,
    RedisOutOfMemory,
    RunAttached,
    RunNotFound,
    RunStopped,
    UserConfig,
)
from brokerfl.wire.event import Kind
from brokerfl.wire.guard import UNPROTECTED, Protection, RunGuard
from brokerfl.wire.origin import Origin
from brokerfl.wire.run import Run, extended


def create_run(
    connection: Connection,
    app: str,
    run_config: UserConfig,
    *,
    lease: float = LEASE,
    retention: float = RETENTION,
    origin: Origin | None = None,
    overrides: tuple[str, ...] | None = None,
    name: str = "",
    events: bool = True,
    protection: Protection = UNPROTECTED,
) -> "Owner":
    """Create a run with a random id in the connection's realm, and own it.

    Raises:
        ConfigError: the run config is too large, or the retention too long.
        ValueError: the run config holds a value that cannot be sent.
    """
    keys = connection.keys
    run = Run(new_run_id(keys), app, dict(run_config), connection.read_time(), origin, overrides, name)
    connection.introduce(f"brokerfl-server:{run.run_id}")
    fence = Fence(connection, run.run_id, 1, new_token(), retention)
    guard = protection.for_new(ensure_identity(connection) if protection.needs_data_set else b"", run.run_id)
    owner = Owner(connection, run, fence, lease, retention, guard)
    owner.events = Events(connection, run.run_id) if events else None
    redis = connection.at(keys.owner(run.run_id)).redis
    with map_errors(connection.url, keys.runs), redis.pipeline(transaction=True) as creation:
        creation.set(keys.owner(run.run_id), owner.fence.value)
        owner.write(creation, Snapshot(), Kind.STARTED)
        if allows(connection.role, "set", "P:id"):
            ensure_identity(connection)
        index = Gather(connection)  # first: a run that is not in the index is not seen
        prune(index.at(keys.runs), keys.runs, run.created_at)
        owner.enter(index.at(keys.runs))
        ask_for_oldest(index.at(keys.runs), keys, run.created_at)
        oldest = index.execute()[-1]
        creation.execute()
    if oldest:
        with suppress(BrokerflError):  # the next run does it
            tidy(connection, oldest)
    return owner


def resume_run(
    connection: Connection,
    run_id: int,
    run_config: UserConfig | None = None,
    *,
    app: str = "",
    takeover: bool = False,
    lease: float = LEASE,
    retention: float = RETENTION,
    origin: Origin | None = None,
    name: str | None = None,
    events: bool = True,
    protection: Protection = UNPROTECTED,
) -> "Owner":
    """Become the owner of a run whose ServerApp is gone; from then on the former owner can write nothing.

    Args:
        connection: to the run's Redis.
        run_id: the run.
        run_config: the expected run config, or one that only has more rounds; None accepts any.
        app: the expected app; "" accepts any.
        takeover: take the run even if its ServerApp seems to be alive.
        lease: seconds after which a silent ServerApp counts as gone.
        retention: seconds that the run's keys live without a ServerApp.
        origin: where the app comes from now; None keeps what the run says. Without ``app``, it may be another project.
        name: what the user calls the run now; None keeps its name.
        events: note what happens in the run.
        protection: who this process is: who started the run.

    Raises:
        RunNotFound: there is no such run, or it has ended.
        RunAttached: the run has a live ServerApp.
        RunStopped: the run was stopped.
        ConfigError: the run has another run config or belongs to another app, or the retention is too long.
        FrameError: it was created by another version, or belongs to another owner, or its frame was changed.
    """
    data_set = read_identity(connection) if protection.needs_data_set else b""
    guard, run = protection.for_old(data_set, read_run(connection, run_id))
    if run.app and app not in ("", run.app):
        raise ConfigError(
            f"run {run_id} belongs to {run.app}, not to {app}: use that app, or pass --another-app if it was only "
            "renamed"
        )
    if app and run.origin is not None and run.origin.is_foreign_to(origin):
        raise ConfigError(
            f"run {run_id} belongs to {run.origin}, not to {origin}: resume it in its own project, or pass "
            "--another-app if that was only renamed"
        )
    origin = run.origin if origin is None else replace(origin, app=run.app)
    renamed = replace(run, origin=origin, name=run.name if name is None else name)
    if run_config is not None and run_config != run.run_config:
        longer = extended(renamed, run_config)
        if longer is None:
            raise ConfigError(
                f"run {run_id} was started with the run config {run.run_config}, not {run_config}: "
                "resume it without a run config, or with more rounds and nothing else, or start a new run"
            )
        renamed = longer
    has_new_frame, run = renamed != run, renamed
    connection.introduce(f"brokerfl-server:{run_id}")
    connection.read_time()

    def refusal(holder: str) -> Exception:
        return RunAttached(f"run {run_id} has another ServerApp, {holder}; --takeover takes the run from it")

    while (owner := _try_to_take_over(connection, run, takeover, lease, retention, events, guard)) is None:
        await_lapse(connection, connection.keys.run_lease(run_id), f"Run {run_id}", refusal)
    if is_ending(connection, run_id):  # whoever ended it died before it had deleted everything
        finish(connection, run_id, owner.fence, stopped=False)
        raise RunNotFound(absent(connection, run_id))
    owner.has_new_frame = has_new_frame
    return owner


def _try_to_take_over(
    connection: Connection, run: Run, takeover: bool, lease: float, retention: float, events: bool, guard: RunGuard
) -> "Owner | None":
    """Take the run over in one transaction. Returns None if the holder of its lease may be alive."""
    keys, run_id = connection.keys, run.run_id
    redis = connection.at(keys.owner(run_id)).redis
    with map_errors(connection.url), redis.pipeline(transaction=True) as pipe:
        while True:
            former = watched_owner(pipe, connection, run_id)
            if former.is_stopping:
                raise RunStopped(f"run {run_id} was stopped; `brokerfl stop {run_id}` deletes what is left of it")
            holder = pipe.get(keys.run_lease(run_id))
            if holder is not None and not takeover and not is_dead(text_of(holder).partition(":")[2]):
                return None
            fence = Fence(connection, run_id, former.counter + 1, new_token(), retention)
            owner = Owner(connection, run, fence, lease, retention, guard)
            owner.events = Events(connection, run_id) if events else None
            pipe.multi()
            pipe.set(keys.owner(run_id), fence.value)
            pipe.set(keys.run_lease(run_id), fence.name, px=milliseconds(lease))
            if owner.events is not None:
                owner.events.open(pipe, Kind.RESUMED)
            owner.expire(pipe)
            if execute_unless_changed(pipe):
                return owner


class Owner:
    """This process as the owner of a run: renews the lease and all lifetimes, and detaches.

    Args:
        connection: to the run's Redis.
        run: the run.
        fence: checks every write of the run.
        lease: seconds after which a silent ServerApp counts as gone.
        retention: seconds that the run's keys live without a ServerApp.
        guard: what is done to what the run writes and reads; also an attribute.

    Attributes:
        books: the run's books.
        events: writes what happens in the run; None if nobody wants to know.
        has_new_frame: what the run says of itself changed when it was resumed: its nodes do not know yet.

    Raises:
        ConfigError: the retention is longer than `MOST_RETENTION`.
    """

    def __init__(
        self, connection: Connection, run: Run, fence: Fence, lease: float, retention: float, guard: RunGuard
    ) -> None:
        if not retention <= MOST_RETENTION:
            raise ConfigError(
                f"a retention of {retention:g} s is too long: the limit is {MOST_RETENTION:.0f} s (30 days), after "
                "which Redis forgets that a run has ended"
            )
        self.connection = connection
        self.run = run
        self.fence = fence
        self.lease = lease
        self.retention = retention
        self.guard = guard
        self.books = Books(connection, run, retention, self.guard)
        self.events: Events | None = None
        self.has_new_frame = False
        self._told = b""
        self._renewed = time.monotonic()
        self._seen = time.monotonic()

    def write(self, pipe: Pipeline, snapshot: Snapshot, what: Kind = Kind.RESTORED) -> None:
        """Put into ``pipe`` what the run has in its slot besides owner, context and manifests. Safe to repeat.

        Args:
            pipe: the transaction that creates the run, or restores it if Redis forgot it.
            snapshot: what its books hold.
            what: which of the two that is, for its events.
        """
        keys, run_id = self.connection.keys, self.run.run_id
        self.books.write(pipe, snapshot)
        pipe.set(keys.run_lease(run_id), self.fence.name, px=milliseconds(self.lease))
        pipe.set(keys.run_status(run_id), self._told)
        pipe.xgroup_create(keys.bell(run_id), GROUP, id="0", mkstream=True)
        if self.events is not None:
            self.events.open(pipe, what)
        self.expire(pipe)

    def enter(self, pipe: Pipeline) -> None:
        """Put into ``pipe`` that the run is in the index."""
        index, run_id = self.connection.keys.index_of(self.run.run_id), self.run.run_id
        pipe.zadd(index, {str(run_id): round(self.run.created_at * 1000)})

    @property
    def entry(self) -> Echo:
        """That the run is in the index."""
        return self.connection.keys.index_of(self.run.run_id), self.enter

    def read_identity(self) -> bytes | None:
        """Return the identity of the Redis data set; None if it has none."""
        return read_identity(self.connection) or None

    def expire(self, pipe: Pipeline) -> None:
        """Put into ``pipe`` the lifetimes of the keys in the run's slot."""
        for key in self.connection.keys.of_run(self.run.run_id):
            pipe.pexpire(key, milliseconds(self.retention))

    def expire_streams(self, pipe: Pipeline, node_ids: Iterable[int]) -> None:
        """Put into ``pipe`` the lifetimes of the inboxes and outboxes of these nodes."""
        for node_id in node_ids:
            expire_streams(pipe, self.connection.keys, node_id, self.run.run_id, self.retention)

    def expire_elsewhere(self, footprint: Footprint) -> tuple[Echo, ...]:
        """Return the lifetimes of what the run has outside its own slot."""
        keys, run_id, retention = self.connection.keys, self.run.run_id, self.retention
        at_nodes = (
            (keys.ctl(node), lambda pipe, node=node: expire_at_node(pipe, keys, node, run_id, retention))
            for node in footprint.nodes
        )
        return *at_nodes, *expire_blobs(keys, run_id, footprint.chunks, retention)

    def renew(self, footprint: Callable[[], Footprint], told: bytes = b"") -> None:
        """Renew the lease and, every quarter of the retention time, the lifetimes; look at the clock.

        Args:
            footprint: what the run may have outside its slot.
            told: what the ServerApp says of its run, as `wire.status` encodes it. A full Redis does not take it.

        Raises:
            RunStopped, RunFenced, RunLost: the run no longer belongs to this process.
        """
        key, lives = self.connection.keys.run_lease(self.run.run_id), milliseconds(self.lease)
        self._told = told
        self.fence.look()
        self.connection.read_time()
        with map_errors(self.connection.url):
            if not self.connection.at(key).redis.pexpire(key, lives):
                # Gone after a long outage: only a fenced transaction may set it again, and one thread says so.
                again = Transaction("renew", lambda pipe: pipe.set(key, self.fence.name, px=lives, nx=True), answers=1)
                if self.fence.execute(again) != [None]:
                    say_lapsed("this run", self.lease, "the run counted as detached")
        if time.monotonic() - self._renewed > self.retention / 4:
            self.renew_lifetimes(footprint())
        self._seen = time.monotonic()
        self._tell()

    def _tell(self) -> None:
        """Replace the status. It is never made anew here: the run may have ended in the meantime."""
        key = self.connection.keys.run_status(self.run.run_id)
        with suppress(RedisOutOfMemory), map_errors(self.connection.url):
            self.connection.at(key).redis.set(key, self._told, xx=True, px=milliseconds(self.retention))

    def renew_lifetimes(self, footprint: Footprint) -> None:
        """Give every key of the run its full lifetime again."""
        redis = self.connection.at(self.connection.keys.owner(self.run.run_id)).redis
        with map_errors(self.connection.url), redis.pipeline(transaction=False) as pipe:
            self.expire(pipe)
            self.expire_streams(pipe, footprint.nodes)
            pipe.execute(raise_on_error=False)
        send_echoes(self.connection, self.expire_elsewhere(footprint))
        self._renewed = time.monotonic()

    def is_outlived(self) -> bool:
        """Whether this process was silent so long that the run's keys may have expired, and its end be forgotten."""
        return time.monotonic() - self._seen > self.retention

    def detach(self, footprint: Footprint, pages: Sequence[Page] = (), lines: Sequence[str] = ()) -> None:
        """Give up the lease and keep everything else: the run is detached, or deleted if it is being stopped.

        Its keys have the full retention time from now on.

        Args:
            footprint: what the run may have outside its slot.
            pages: the last events to write.
            lines: the last lines of its log.
        """
        key = self.connection.keys.run_lease(self.run.run_id)
        with map_errors(self.connection.url):
            if self.connection.at(key).redis.get(key) == self.fence.name.encode():
                self.renew_lifetimes(footprint)
                if self.events is not None:
                    self.events.send(pages, lines)
                self.connection.at(key).redis.unlink(key)
        self.fence.close()
