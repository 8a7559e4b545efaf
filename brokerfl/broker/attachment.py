"""The attachment: a ServerApp's hold on its run, from the creation or a resume until it ends or lets go.

Owns how a run begins and how it changes hands. It must not know how messages travel.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis.client import Pipeline

from brokerfl.broker.blobs import expire_blobs
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import execute_unless_changed, map_errors
from brokerfl.broker.fence import STOP, Fence
from brokerfl.broker.keys import GROUP, LEASE, MOST_RETENTION, RETENTION, milliseconds, parse_id
from brokerfl.broker.lease import await_lapse
from brokerfl.broker.nodes import new_id
from brokerfl.broker.process import is_dead, new_token
from brokerfl.broker.runs import Holdings, absent, delete_run, prune, read_run
from brokerfl.common import ConfigError, RunAttached, RunNotFound, RunStopped, UserConfig
from brokerfl.wire.run import LedgerEntry, Run, decode_entry, encode_run


def create_run(
    connection: Connection,
    app: str,
    run_config: UserConfig,
    *,
    lease: float = LEASE,
    retention: float = RETENTION,
) -> tuple[Run, "Attachment"]:
    """Create a run with a random id and attach to it.

    Raises:
        ConfigError: the run config is too large, or the retention too long.
        ValueError: the run config holds what cannot be sent.
    """
    keys = connection.keys
    run = Run(new_id(), app, dict(run_config), connection.read_time())
    fence = Fence(connection, run.run_id, 1, new_token(), retention)
    attachment = Attachment(connection, run, fence, lease, retention)
    with map_errors(connection.url), connection.redis.pipeline(transaction=True) as pipe:
        pipe.set(keys.identity, secrets.token_hex(16), nx=True)
        prune(pipe, keys, run.created_at)
        pipe.set(keys.owner(run.run_id), fence.value)
        attachment.write(pipe, Holdings(), messages=0, replies=0)
        pipe.execute()
    return run, attachment


def resume_run(
    connection: Connection,
    run_id: int,
    run_config: UserConfig | None = None,
    *,
    app: str = "",
    takeover: bool = False,
    lease: float = LEASE,
    retention: float = RETENTION,
) -> tuple[Run, "Attachment"]:
    """Attach to a run whose ServerApp is gone; from then on the former one may write nothing.

    Args:
        connection: where the run lives.
        run_id: the run.
        run_config: what it is thought to have been started with; None is whatever it was.
        app: what it is thought to be a run of; "" is whatever it is.
        takeover: do not ask whether the former ServerApp lives.
        lease: as for `create_run`.
        retention: as for `create_run`.

    Raises:
        RunNotFound: no such run, or it has ended.
        RunAttached: another ServerApp that lives is attached to it.
        RunStopped: somebody stopped it.
        ConfigError: it was started with another run config, or is another app's, or the retention is too long.
    """
    run = read_run(connection, run_id)
    if run.app and app not in ("", run.app):
        raise ConfigError(
            f"run {run_id} is one of {run.app}, not of {app}: go to the directory of that app, or give --another-app "
            "if it only has another name now"
        )
    if run_config is not None and run_config != run.run_config:
        raise ConfigError(
            f"run {run_id} was started with the run config {run.run_config}, not {run_config}: "
            "resume it without one, or start a new run"
        )
    connection.read_time()

    def refusal(holder: str) -> Exception:
        return RunAttached(
            f"run {run_id} is run by another ServerApp, {holder}; --takeover takes it away from that one"
        )

    while (attachment := _try_to_attach(connection, run, takeover, lease, retention)) is None:
        await_lapse(connection, connection.keys.run_lease(run_id), f"Run {run_id}", refusal)
    return run, attachment


def _try_to_attach(
    connection: Connection, run: Run, takeover: bool, lease: float, retention: float
) -> "Attachment | None":
    """Take the run over in one transaction. Returns None when its lease is held by what may be alive."""
    keys, run_id = connection.keys, run.run_id
    with map_errors(connection.url), connection.redis.pipeline(transaction=True) as pipe:
        while True:
            pipe.watch(keys.owner(run_id))
            owner = pipe.get(keys.owner(run_id))
            if owner is None:
                raise RunNotFound(absent(connection, run_id))
            counter, _, token = owner.decode().partition(":")
            if token.startswith(STOP):
                raise RunStopped(f"run {run_id} was stopped; `brokerfl stop {run_id}` deletes what is left of it")
            holder = pipe.get(keys.run_lease(run_id))
            if holder is not None and not takeover and not is_dead(holder.decode().partition(":")[2]):
                return None
            fence = Fence(connection, run_id, int(counter) + 1, new_token(), retention)
            attachment = Attachment(connection, run, fence, lease, retention)
            pipe.multi()
            pipe.set(keys.owner(run_id), fence.value)
            pipe.set(keys.run_lease(run_id), fence.value, px=milliseconds(lease))
            attachment.expire(pipe, Holdings())
            if execute_unless_changed(pipe):
                return attachment


class Attachment:
    """A ServerApp's hold on its run: renews the lease and every lifetime, and lets go of it in one of three ways.

    Attributes:
        fence: through which every write of the run goes.

    Raises:
        ConfigError: the retention is longer than `MOST_RETENTION`.
    """

    def __init__(self, connection: Connection, run: Run, fence: Fence, lease: float, retention: float) -> None:
        if not retention <= MOST_RETENTION:
            raise ConfigError(
                f"a retention of {retention:g} s is too long: at most {MOST_RETENTION:.0f} s (30 days), for that long "
                "Redis knows that a run has ended"
            )
        self._connection = connection
        self._run_id = run.run_id
        self.run = run
        self.fence = fence
        self.lease = lease
        self.retention = retention
        self._renewed = time.monotonic()
        self._seen = time.monotonic()

    def write(self, pipe: Pipeline, holdings: Holdings, *, messages: int, replies: int) -> None:
        """Put into ``pipe`` all that is known of the run beside its ledger and its context. Safe to repeat.

        Args:
            pipe: the transaction that creates the run, or restores it where Redis forgot it.
            holdings: what it may have outside its own slot.
            messages: how many it has pushed.
            replies: how many a commit has settled.
        """
        keys, run_id = self._connection.keys, self._run_id
        pipe.zadd(keys.runs, {str(run_id): round(self.run.created_at * 1000)})
        pipe.hset(
            keys.meta(run_id),
            mapping={"frame": encode_run(self.run), "status": "running", "messages": messages, "replies": replies},
        )
        pipe.set(keys.run_lease(run_id), self.fence.value, px=milliseconds(self.lease))
        if holdings.nodes:
            pipe.sadd(keys.run_nodes(run_id), *map(str, holdings.nodes))
        pipe.xgroup_create(keys.bell(run_id), GROUP, id="0", mkstream=True)
        self.expire(pipe, holdings)

    def read_identity(self) -> bytes | None:
        """Return the identity of the Redis data set; None where it has none."""
        with map_errors(self._connection.url):
            return self._connection.redis.get(self._connection.keys.identity)  # type: ignore[no-any-return]

    def expire(self, pipe: Pipeline, holdings: Holdings) -> None:
        """Put into ``pipe`` the lifetime of every key of the run."""
        keys, lives = self._connection.keys, milliseconds(self.retention)
        for key in keys.of_run(self._run_id):
            pipe.pexpire(key, lives)
        for node in holdings.nodes:
            self.expire_node(pipe, node)
        expire_blobs(pipe, keys, self._run_id, holdings.chunks, self.retention)

    def expire_node(self, pipe: Pipeline, node_id: int) -> None:
        """Put into ``pipe`` the lifetimes of one node's keys for this run."""
        keys, lives = self._connection.keys, milliseconds(self.retention)
        for key in keys.of_node_and_run(node_id, self._run_id):
            pipe.pexpire(key, lives)
        # Shared with other runs, whose retention may be longer: GT never shortens, but needs a ttl to compare with.
        pipe.pexpire(keys.node_runs(node_id), lives, nx=True)
        pipe.pexpire(keys.node_runs(node_id), lives, gt=True)

    def renew(self, holdings: Callable[[], Holdings]) -> None:
        """Renew the lease, and every quarter of the retention time the lifetimes.

        Raises:
            RunStopped, RunFenced, RunLost: the run is no longer ours.
        """
        keys, run = self._connection.keys, self._run_id
        self.fence.look()
        with map_errors(self._connection.url):
            if not self._connection.redis.pexpire(keys.run_lease(run), milliseconds(self.lease)):
                # Gone after a long outage: only a fenced transaction may set it again.
                self.fence.execute(
                    lambda pipe: pipe.set(keys.run_lease(run), self.fence.value, px=milliseconds(self.lease))
                )
        if time.monotonic() - self._renewed > self.retention / 4:
            self.renew_lifetimes(holdings())
        self._seen = time.monotonic()

    def renew_lifetimes(self, holdings: Holdings) -> None:
        """Give every key of the run its whole lifetime again."""
        with map_errors(self._connection.url), self._connection.redis.pipeline(transaction=False) as pipe:
            self.expire(pipe, holdings)
            pipe.execute(raise_on_error=False)
        self._renewed = time.monotonic()

    def is_outlived(self) -> bool:
        """Whether this process was silent for so long that the run's keys may have expired, and its end forgotten."""
        return time.monotonic() - self._seen > self.retention

    def detach(self, holdings: Holdings) -> None:
        """Give up the lease and leave all else: the run is detached, or goes if it is being stopped.

        Its keys have the whole retention time from now on.
        """
        key = self._connection.keys.run_lease(self._run_id)
        with map_errors(self._connection.url):
            if self._connection.redis.get(key) == self.fence.value.encode():
                self.renew_lifetimes(holdings)
                self._connection.redis.unlink(key)

    def delete(self, pipe: Pipeline, holdings: Holdings) -> None:
        """Put into ``pipe`` the deletion of every key of the run, and that it has ended."""
        delete_run(pipe, self._connection, self._run_id, holdings, stopped=False)


@dataclass(frozen=True)
class Books:
    """What Redis holds of a run that is to be resumed.

    Attributes:
        identity: of the Redis data set.
        entries: the ledger, by message id.
        nodes: that may hold keys of the run.
        messages: how many the run has pushed.
        replies: how many a commit has settled.
    """

    identity: bytes
    entries: dict[str, LedgerEntry]
    nodes: set[int]
    messages: int
    replies: int


def read_books(connection: Connection, run_id: int) -> Books:
    """Return what Redis holds of a run.

    Raises:
        FrameError: its ledger was written by another version.
    """
    keys = connection.keys
    with map_errors(connection.url), connection.redis.pipeline(transaction=True) as pipe:
        pipe.get(keys.identity)
        pipe.hgetall(keys.ledger(run_id))
        pipe.smembers(keys.run_nodes(run_id))
        pipe.hmget(keys.meta(run_id), "messages", "replies")
        identity, ledger, members, (messages, replies) = pipe.execute()
    entries = {message_id.decode(): decode_entry(entry) for message_id, entry in ledger.items()}
    nodes = {node for member in members if (node := parse_id(member)) is not None}
    nodes |= {entry.node_id for entry in entries.values()}
    return Books(identity or b"", entries, nodes, int(messages or 0), int(replies or 0))
