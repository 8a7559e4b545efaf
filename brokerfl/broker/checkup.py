"""The checkup: what may be wrong between this process and its Redis, looked at one thing after the other.

Owns what is looked at, and what counts as a problem: what loses messages, stops nodes or ServerApps, or will. It must
not know how that is shown. Each primary of a Cluster is looked at. Of what this user may not ask it is said so.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from redis.exceptions import ResponseError

from brokerfl.broker.capacity import ServerMemory, memory_in
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.memory import info_of
from brokerfl.broker.nodes import list_nodes
from brokerfl.broker.permissions import refused_commands
from brokerfl.broker.presence import members
from brokerfl.broker.rules import allows
from brokerfl.broker.servers import Server
from brokerfl.broker.settings import (
    SCARCE,
    Saving,
    object_to_memory,
    object_to_policy,
    object_to_saving,
    object_to_users,
    saving_of,
)
from brokerfl.common.text import sized

#: How many PINGs the median is of, and the seconds that one may take: a round of small messages needs some.
_PINGS, _SLOW = 20, 0.1

#: Seconds by which this machine's clock and that of Redis may differ: deadlines do not depend on it, times shown do.
_SKEW = 5.0

#: What models and replies take besides: allocator, keys, buffers.
_SPARE = 1.1

_SECTIONS = ("server", "memory", "persistence", "replication")


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What was found in one respect, and what to do about it, if anything."""

    check: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Need:
    """What Redis is to hold: so many runs at once, each with so many nodes and a model of so many bytes."""

    model: int
    nodes: int
    runs: int = 1

    @property
    def bytes(self) -> int:
        """One broadcast and the replies of all nodes, for each run."""
        return self.runs * (1 + self.nodes) * self.model


@dataclass(frozen=True)
class _Primary:
    """A primary: what its INFO says, and what it is called in findings."""

    server: Server
    info: Mapping[str, Any]
    suffix: str

    @property
    def memory(self) -> ServerMemory:
        return memory_in(self.server.place, self.info)


def look_over(connection: Connection, need: Need | None = None) -> list[Finding]:
    """Return what was found, in the order in which a reader needs it.

    Args:
        connection: to Redis, whose version was checked.
        need: what Redis is to hold; None if that is unknown.

    Raises:
        RedisUnreachable, RedisAuthError: Redis does not answer, or not to this user.
    """
    servers = connection.primaries()
    primaries = [
        _Primary(server, info_of(server, connection, *_SECTIONS), f" ({server.place})" if servers[1:] else "")
        for server in servers
    ]
    return list(_look(connection, primaries, need))


def _look(connection: Connection, primaries: Sequence[_Primary], need: Need | None) -> Iterator[Finding]:
    yield from (_version(primary) for primary in primaries)
    yield _tls(connection, primaries)
    yield from (_latency(connection, primary) for primary in primaries)
    yield _clocks(connection)
    for look in (_saving, _eviction, _replicas):
        for primary in primaries:
            with map_errors(connection.url):
                yield look(connection, primary)
    yield from (_memory(primary, need, len(primaries)) for primary in primaries)
    yield _permissions(connection)
    if allows(connection.role, "acl|dryrun"):
        yield from (_users(connection, primary) for primary in primaries)
    yield _prefix(connection)
    if allows(connection.role, "sscan", "P:nodes"):  # which a node may not
        yield _registry(connection)


def _version(primary: _Primary) -> Finding:
    info = primary.info
    if not info:
        return Finding(
            f"server{primary.suffix}", Status.WARNING, "INFO may not be asked", "allow this user INFO: +info in its ACL"
        )
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version", info.get("redis_version"))
    return Finding(f"server{primary.suffix}", Status.OK, f"{name} {version} at {primary.server.place}")


def _tls(connection: Connection, primaries: Iterable[_Primary]) -> Finding:
    if connection.url.startswith("rediss"):
        return Finding("tls", Status.OK, "connections are encrypted")
    if all(primary.server.is_local for primary in primaries):
        return Finding("tls", Status.OK, "none; Redis is on this machine")
    return Finding(
        "tls", Status.WARNING, "none: models and passwords can be read on the way", "use rediss:// if you can"
    )


def _latency(connection: Connection, primary: _Primary) -> Finding:
    times = []
    with map_errors(connection.url):
        for _ in range(_PINGS):
            began = time.perf_counter()
            primary.server.redis.ping()
            times.append(time.perf_counter() - began)
    typical = median(times)
    text = f"{typical * 1000:.2g} ms (median of {_PINGS} PINGs, slowest {max(times) * 1000:.2g} ms)"
    if typical <= _SLOW:
        return Finding(f"latency{primary.suffix}", Status.OK, text)
    return Finding(
        f"latency{primary.suffix}", Status.WARNING, text, "each round takes some round trips: bring Redis nearer"
    )


def _clocks(connection: Connection) -> Finding:
    asked = time.time()
    skew = connection.read_time() - (asked + time.time()) / 2
    text = f"the clock of Redis is {abs(skew):.1f} s {'ahead' if skew >= 0 else 'behind'}"
    if abs(skew) <= _SKEW:
        return Finding("clocks", Status.OK, text)
    return Finding(
        "clocks", Status.WARNING, text, "set both by NTP; messages expire in time, but times that are shown are wrong"
    )


def _saving(connection: Connection, primary: _Primary) -> Finding:
    check, info = f"persistence{primary.suffix}", primary.info
    if not info:
        return _unknown(check)
    failed = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"]
    if failed:
        return Finding(
            check, Status.PROBLEM, f"Redis cannot save its data ({', '.join(failed)})", "look at its log and its disk"
        )
    may_ask = allows(connection.role, "config|get")
    saving = saving_of(primary.server.redis if may_ask else None, info)
    objection = object_to_saving(saving, "Redis")
    if objection is not None:
        return Finding(check, Status.WARNING, objection.what, objection.advice)
    if saving is Saving.SNAPSHOTS:
        return Finding(
            check,
            Status.WARNING,
            "only snapshots (RDB): a restart loses what came after the last one",
            "set appendonly yes",
        )
    return Finding(check, Status.OK, f"{saving.value}; its last write was fine")


def _eviction(connection: Connection, primary: _Primary) -> Finding:
    check = f"eviction{primary.suffix}"
    if not primary.info:
        return _unknown(check)
    objection, memory = object_to_policy(primary.info, "Redis"), primary.memory
    if objection is None:
        return Finding(check, Status.OK, "noeviction")
    status = Status.PROBLEM if memory.most else Status.WARNING  # without a limit nothing is evicted
    return Finding(check, status, objection.what, "a full Redis deletes messages: set it to noeviction")


def _replicas(connection: Connection, primary: _Primary) -> Finding:
    check, info = f"replicas{primary.suffix}", primary.info
    if not info:
        return _unknown(check)
    count = int(info.get("connected_slaves", 0))
    if int(info.get("min_slaves_good_slaves", 1)) == 0:
        return Finding(
            check,
            Status.PROBLEM,
            f"{count} connected, none of them in time: Redis may take no writes",
            "start a replica, or lower min-replicas-to-write",
        )
    if count == 0 and connection.may_fail_over:
        return Finding(check, Status.WARNING, "none: nothing takes the place of this primary", "start a replica")
    return Finding(check, Status.OK, f"{count} connected")


def _memory(primary: _Primary, need: Need | None, servers: int) -> Finding:
    check = f"memory{primary.suffix}"
    if not primary.info:
        return _unknown(check)
    memory = primary.memory
    most = memory.most or int(primary.info.get("total_system_memory", 0))
    limit = "maxmemory" if memory.most else "the machine's memory; there is no maxmemory"
    text = f"{sized(memory.used)} of {sized(most)} in use ({limit})"
    if need is not None:
        wanted = round(need.bytes * _SPARE / servers)
        text += f"; {need.runs} * (1 + {need.nodes}) * {sized(need.model)} need {sized(wanted)}"
        if wanted > most:
            return Finding(check, Status.PROBLEM, text, "raise maxmemory, settle replies as you fold them, or run less")
    if memory.is_full:
        return Finding(check, Status.PROBLEM, text, "Redis is full: brokerfl runs shows who has data there")
    objection = object_to_memory(primary.info, "Redis")
    if objection is not None:
        return Finding(check, Status.WARNING, text, objection.advice)
    if need is not None and most and wanted > most * SCARCE:
        return Finding(check, Status.WARNING, text, "that is hardly enough")
    return Finding(check, Status.OK, text)


def _permissions(connection: Connection) -> Finding:
    refused = refused_commands(connection)
    if not refused:
        whose = "nodes and ServerApps do" if connection.role is None else f"its role does: {connection.role}"
        return Finding("permissions", Status.OK, f"this user may do what {whose}")
    return Finding(
        "permissions",
        Status.PROBLEM,
        f"this user may not use {', '.join(refused)} under the prefix {connection.keys.prefix!r}",
        "ACL SETUSER, as docs/configuration.md shows",
    )


def _users(connection: Connection, primary: _Primary) -> Finding:
    check, appends = f"users{primary.suffix}", bool(primary.info.get("aof_enabled", 1))
    with map_errors(connection.url):
        try:
            objection = object_to_users(primary.server.redis, connection.keys.prefix, appends=appends)
        except ResponseError:
            return Finding(check, Status.WARNING, "unknown: ACL may not be asked")
    if objection is None:
        return Finding(check, Status.OK, "a restart keeps what they may do")
    return Finding(check, Status.PROBLEM, objection.what, objection.advice)


def _prefix(connection: Connection) -> Finding:
    key = connection.keys.identity
    with map_errors(connection.url, key):
        identity = connection.at(key).redis.getrange(key, 0, 32)
    prefix = connection.keys.prefix
    if not identity:
        return Finding(
            "prefix",
            Status.WARNING,
            f"nothing is there yet under the prefix {prefix!r}",
            "start a node; if there are some, they have another --prefix, or another Redis",
        )
    return Finding("prefix", Status.OK, f"{prefix!r}, data set {identity.decode(errors='replace')}")


def _registry(connection: Connection) -> Finding:
    before = {node for ids in members(connection) for node in ids}
    nodes = list_nodes(connection)
    stale = len(before - {node.node_id for node in nodes})
    online = sum(node.online for node in nodes)
    text = f"{len(nodes)} nodes: {online} online, {len(nodes) - online} offline"
    text += f"; {stale} stale entries were removed" if stale else ""
    if online:
        return Finding("nodes", Status.OK, text)
    return Finding("nodes", Status.WARNING, text, "brokerfl-node client:app starts one")


def _unknown(check: str) -> Finding:
    return Finding(check, Status.WARNING, "unknown: INFO may not be asked")
