"""Nodes: their ids, the registry, and the lease that says who is online.

Owns `P:nodes`, and each node's info, lease and doorbell as the node itself writes them. It must not know messages.
"""

import json
import platform
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from logging import WARNING

from brokerfl import __version__
from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import execute_unless_changed, map_errors, translate
from brokerfl.broker.fields import read_fields
from brokerfl.broker.gather import Gather
from brokerfl.broker.identity import LONGEST_IDENTITY, ensure_identity
from brokerfl.broker.keys import (
    BELL_LENGTH,
    GROUP,
    LEASE,
    MOST_RETENTION,
    REALM_DIGITS,
    RETENTION,
    RUN_DIGITS,
    Keys,
    milliseconds,
)
from brokerfl.broker.lease import await_lapse, say_lapsed
from brokerfl.broker.mend import is_forged, mend
from brokerfl.broker.node_info import LONGEST_FIELD, PAUSED, SHOWN, STATUS, NodeInfo, node_info_of
from brokerfl.broker.origins import info_of
from brokerfl.broker.oversize import MOST_ABOUT
from brokerfl.broker.presence import members, online_among, remove
from brokerfl.broker.process import home_of, is_dead, new_token, text_of
from brokerfl.broker.rules import allows
from brokerfl.common import ConfigError, NodeNameTaken, RedisRefuses, log
from brokerfl.wire.origin import Origin
from brokerfl.wire.status import LONGEST_TOLD, About, NodeStatus, encode_status


def node_id_of(prefix: str, name: str) -> int:
    """Return the id of the node ``name``: the first 8 bytes of a sha256, so that it has the same id after a restart."""
    number = int.from_bytes(sha256(f"{prefix}\0{name}".encode()).digest()[:8], "big")
    return number if number > 1 else number + 2  # 0 and 1 are taken: nobody, and the ServerApp


def new_id() -> int:
    """Return a random uint64 that is neither 0 nor 1."""
    return secrets.randbelow(2**64 - 2) + 2


def new_run_id(keys: Keys) -> int:
    """Return a random id of a run, in the realm of this ServerApp if it has one."""
    realm, rest = keys.realms[0], RUN_DIGITS - REALM_DIGITS
    return int(f"{realm}{secrets.randbelow(10**rest):0{rest}}") if realm else new_id()


class Registration:
    """This process's claim to one node id: taken by `register`, kept by `renew`, given up by `leave`.

    Args:
        connection: to the registry's Redis.
        name: the node's name; "" for an unnamed node, whose id is random and never used again.
        labels: shown to operators.
        lease: seconds after which a silent node counts as offline.
        home: the identity of the state directory that this process has locked; "" for none.
        origin: where the node's app comes from; None for that of a script.

    Attributes:
        identity: the identity of the Redis data set, as last seen.
        renewed_at: local monotonic time at which the lease was last renewed.
        is_paused: whether an operator paused the node, as last seen.

    Raises:
        ConfigError: the name, or all labels together, have more than 8,192 bytes.
    """

    def __init__(
        self,
        connection: Connection,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        lease: float = LEASE,
        home: str = "",
        origin: Origin | None = None,
    ) -> None:
        self._connection = connection
        self.origin = origin
        self.name = name
        self.labels = dict(labels or {})
        self.lease = lease
        self.node_id = node_id_of(connection.keys.prefix, name) if name else new_id()
        self.identity = b""
        self._home = home
        self._token = new_token(home)
        self._since = 0.0
        self.renewed_at = 0.0
        self.is_paused = False
        for what in ("name", "labels"):
            if (size := len(self._info()[what].encode())) > LONGEST_FIELD:
                raise ConfigError(f"the node's {what} would take {size} bytes; at most {LONGEST_FIELD} are shown")

    def register(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Take the lease and enter the registry.

        The lease of a dead process of this host, or of one that used this node's state directory, is taken over at
        once. Any other is watched for one lease time: if it is renewed, the name is taken; otherwise the lease is free.

        Raises:
            NodeNameTaken: a living process holds the name.
            RedisRefuses: it is not in the registry, and may not enter itself.
        """
        self._connection.introduce(f"brokerfl-node:{self.name or self.node_id}")
        lease = self._connection.keys.node_lease(self.node_id)
        while not self._take_lease():
            await_lapse(self._connection, lease, f"Node {self.name!r}", self._refusal, stop)
            if stop():
                return
        self._since = self._connection.read_time()
        self._enter()
        self.renewed_at = time.monotonic()

    def _refusal(self, holder: str) -> Exception:
        return NodeNameTaken(f"the name {self.name!r} is in use by {holder}: give each node its own --name")

    def _take_lease(self, *, had_it: bool = False) -> bool:
        """Take the lease if it is free; return whether this process holds it. Heartbeat and loop may try at once.

        Args:
            had_it: this process held it before, so if it is free, it lapsed.
        """
        lease = self._connection.keys.node_lease(self.node_id)
        redis = self._connection.at(lease).redis
        with map_errors(self._connection.url), redis.pipeline() as pipe:
            while True:
                pipe.watch(lease)
                holder = pipe.get(lease)
                if holder == self._token.encode():
                    return True
                if holder is not None and not self._is_gone(text_of(holder)):
                    return False
                pipe.multi()
                pipe.set(lease, self._token, px=milliseconds(self.lease))
                if execute_unless_changed(pipe):
                    if had_it and holder is None:
                        say_lapsed("this node", self.lease, "ServerApps took the node for lost")
                    return True

    def _is_gone(self, holder: str) -> bool:
        """A holder that used this state directory is dead too, because this process has locked the directory."""
        return is_dead(holder) or (self._home != "" and home_of(holder) == self._home)

    def _enter(self, status: NodeStatus | None = None) -> None:
        keys, node, told = self._connection.keys, self.node_id, self._told(status or NodeStatus())
        with map_errors(self._connection.url, keys.identity, keys.nodes, keys.node_info(node), keys.ctl(node)):
            identity = ensure_identity(self._connection)
            with self._connection.at(keys.ctl(node)).redis.pipeline(transaction=True) as pipe:
                pipe.hget(keys.node_info(node), "home")
                pipe.hexists(keys.node_info(node), PAUSED)
                pipe.hset(keys.node_info(node), mapping=self._info())
                # What its former process said holds until the first heartbeat.
                (pipe.hsetnx if status is None else pipe.hset)(keys.node_info(node), STATUS, told)
                for ctl in keys.doorbells(node):
                    pipe.xgroup_create(ctl, GROUP, id="0", mkstream=True)
                for key, lives in self._lifetimes():
                    pipe.pexpire(key, lives)
                home, paused, *results = pipe.execute(raise_on_error=False)
            for error in (home, paused, *results):
                if isinstance(error, Exception) and not str(error).startswith("BUSYGROUP"):
                    raise error
            self._join()
        self.identity, self.is_paused = identity, bool(paused)
        if home and text_of(home) != self._home:
            log(
                WARNING,
                "Node %r used another state directory before: its context.state of current runs is not in this one, "
                "and messages that it had answered may be executed again",
                self.name,
            )

    def _told(self, status: NodeStatus) -> bytes:
        """Return a status that repeats the info, unless that is too long to be told."""
        texts = {name: text for name, text in self._info().items() if name in SHOWN}
        is_short = all(len(text) <= LONGEST_TOLD for text in texts.values())
        return encode_status(replace(status, about=About(**texts) if is_short else About()))

    def _join(self) -> None:
        """Enter the registry, unless an operator entered this node: then it need not be allowed to."""
        registry, node = self._connection.keys.nodes, str(self.node_id)
        redis = self._connection.at(registry).redis
        if redis.sismember(registry, node):
            return
        if not allows(self._connection.role, "sadd", "P:nodes"):
            raise RedisRefuses(f"node {self.name!r} is not registered: the operator has to do that")
        redis.sadd(registry, node)

    def _info(self) -> dict[str, str]:
        return {
            "name": self.name,
            "labels": json.dumps(self.labels),
            "version": __version__,
            "python": platform.python_version(),
            "since": repr(self._since),
            "home": self._home,
            **info_of(self.origin),
        }

    def _lifetimes(self) -> tuple[tuple[str, int], ...]:
        """Return how long what the node keeps in the registry lives from now on, in milliseconds."""
        keys, node = self._connection.keys, self.node_id
        lives = ((keys.node_info(node), MOST_RETENTION), *((ctl, RETENTION) for ctl in keys.doorbells(node)))
        return tuple((key, milliseconds(seconds if self.name else self.lease)) for key, seconds in lives)

    def renew(self, status: NodeStatus | None = None) -> bool:
        """Renew lease and registry, and set the clock. Returns False if another process holds the id now.

        PEXPIRE is allowed when memory is full, and the lease is read in the same round trip. A full Redis refuses the
        status, and nothing else.

        Args:
            status: what the node says of itself; None leaves what it last said.
        """
        keys, node, asked_at = self._connection.keys, self.node_id, time.monotonic()
        lease, info, doorbells = keys.node_lease(node), keys.node_info(node), keys.doorbells(node)
        with map_errors(self._connection.url):
            gather = Gather(self._connection)
            gather.at(lease).get(lease)
            gather.at(lease).pexpire(lease, milliseconds(self.lease))
            gather.at(info).hexists(info, "name")  # a status alone makes no info
            gather.at(info).exists(*doorbells)
            gather.at(keys.identity).getrange(keys.identity, 0, LONGEST_IDENTITY)
            gather.at(keys.nodes).sismember(keys.nodes, str(node))
            gather.at(keys.identity).time()
            gather.at(info).hexists(info, PAUSED)
            if status is not None:
                gather.at(info).hset(info, STATUS, self._told(status))
            for key, lives in self._lifetimes():
                gather.at(key).pexpire(key, lives)
            holder, _, *known, identity, is_member, now, paused = gather.execute(raise_on_error=False)[:8]
        if isinstance(holder, Exception):
            raise translate(holder, self._connection.url) or holder
        if isinstance(now, tuple):
            self._connection.clock.set(now, asked_at)
        is_ours = holder == self._token.encode()
        # A Redis that forgot its last writes may still have the lease of a predecessor.
        if holder is not None and not is_ours and not self._is_gone(text_of(holder)):
            return False
        # What a Redis that forgot everything means is said elsewhere.
        if not is_ours and not self._take_lease(had_it=identity == self.identity):
            return False
        self.is_paused = paused == 1
        if not is_ours or known != [1, len(doorbells)] or identity != self.identity or not is_member:
            self._enter(status)
        for ctl in doorbells:
            if self._is_spoilt(ctl):
                self._replace_doorbell(ctl)
        self.renewed_at = time.monotonic()
        return True

    def _is_spoilt(self, ctl: str) -> bool:
        """Whether somebody rang with an id of the end of time, or with more bytes than brokerfl."""
        with map_errors(self._connection.url):
            [answer] = self._connection.at(ctl).sockets.exchange([("XINFO", "STREAM", ctl)], [MOST_ABOUT])
        if isinstance(answer, Exception):
            return isinstance(answer, OversizeError)
        about = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
        return is_forged(text_of(about[b"last-generated-id"]))

    def _replace_doorbell(self, ctl: str) -> None:
        """It takes no more rings, or has what is not read. The new one begins with one for all that were lost."""
        if mend(self._connection, ctl, keep=False):
            with map_errors(self._connection.url):
                self._connection.at(ctl).redis.xadd(ctl, {"r": ""}, maxlen=BELL_LENGTH, nomkstream=True)

    def is_due(self) -> bool:
        """Whether the lease may have lapsed unnoticed: this process was frozen, or Redis was unreachable."""
        return time.monotonic() - self.renewed_at > self.lease / 2

    def leave(self) -> None:
        """Give up the lease; an unnamed node also leaves the registry, because its id is never used again."""
        keys, node = self._connection.keys, self.node_id
        redis = self._connection.at(keys.node_lease(node)).redis
        with map_errors(self._connection.url):
            if redis.get(keys.node_lease(node)) != self._token.encode():
                return
            gone = keys.of_node(node) if not self.name else ()
            redis.unlink(keys.node_lease(node), *gone)
            if not self.name and allows(self._connection.role, "srem", "P:nodes"):
                self._connection.at(keys.nodes).redis.srem(keys.nodes, str(node))


def list_nodes(connection: Connection) -> list[NodeInfo]:
    """Return every registered node, online ones first, and remove those whose info is gone from the registry.

    Malformed keys of one node do not affect the others; a field longer than `LONGEST_FIELD` counts as empty.
    """
    found: dict[int, NodeInfo] = {}
    for ids in members(connection):
        found.update((info.node_id, info) for info in _look_at(connection, ids))
    return sorted(found.values(), key=lambda info: (not info.online, info.node_id))


def read_node(connection: Connection, node_id: int) -> NodeInfo | None:
    """Return what `list_nodes` says of one node; None if it is not registered."""
    return next(iter(_look_at(connection, [node_id])), None)


def _look_at(connection: Connection, node_ids: list[int]) -> list[NodeInfo]:
    online = online_among(connection, node_ids)
    infos = read_fields(connection, list(map(connection.keys.node_info, node_ids)), SHOWN, LONGEST_FIELD)
    known = {
        node: info
        for node, info in zip(node_ids, infos, strict=True)
        if node in online or any(value is not None for value in info)
    }
    remove(connection, set(node_ids) - known.keys())
    return [node_info_of(node, node in online, info) for node, info in known.items()]
