"""Presence: who is registered and who is online, asked of Redis with few commands.

Owns the questions that are asked again and again about many nodes. What a node wrote itself is never read here, because
it may have any size: it is asked whether a key exists, and how long a field is. It must not know what a node says.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.gather import Gather
from brokerfl.broker.keys import parse_id
from brokerfl.broker.rules import allows
from brokerfl.broker.stream import batches

#: Members of the registry that are looked at in one round trip: anybody may have put any number of them there.
_AT_ONCE = 1000

#: Keys in one EXISTS. Only if some of them exist and some do not, each is asked about.
_TOGETHER = 32


def members(connection: Connection) -> Iterator[list[int]]:
    """Yield the ids in the registry, about 1,000 at a time and some perhaps twice. Removes what is no id."""
    key, cursor = connection.keys.nodes, -1
    while cursor != 0:
        with map_errors(connection.url, key):
            redis = connection.at(key).redis
            cursor, found = redis.sscan(key, max(0, cursor), count=_AT_ONCE)
            ids = {member: parse_id(member) for member in found}
            if allows(connection.role, "srem", "P:nodes"):
                for rubbish in batches(member for member, node in ids.items() if node is None):
                    redis.srem(key, *rubbish)
        yield [node for node in ids.values() if node is not None]


def registered(connection: Connection, node_ids: Iterable[int]) -> set[int]:
    """Return which of ``node_ids`` are registered, online or not."""
    asked = list(node_ids)
    if not asked:
        return set()
    registry = connection.keys.nodes
    with map_errors(connection.url, registry):
        redis = connection.at(registry).redis
        known = [each for some in batches(map(str, asked)) for each in redis.smismember(registry, some)]
    return {node for node, there in zip(asked, known, strict=True) if there}


def online_among(connection: Connection, node_ids: Iterable[int]) -> set[int]:
    """Return which of ``node_ids`` hold their lease now. Also sets the clock."""
    return _existing(connection, connection.keys.node_lease, list(node_ids))


def count_online(connection: Connection) -> int:
    """Return how many registered nodes are online now: two commands for 1,000 of them.

    A node that the registry names twice while it grows is counted twice: `online_nodes` is exact.
    """
    total = 0
    for ids in members(connection):
        if ids:
            with map_errors(connection.url):
                gather = Gather(connection)
                for leases in connection.by_slot(map(connection.keys.node_lease, ids)):
                    for batch in batches(leases):
                        gather.at(batch[0]).exists(*batch)
                total += sum(gather.execute())
    return total


def online_nodes(connection: Connection) -> list[int]:
    """Return the ids of the nodes whose lease is held now, in ascending order; remove those that have left nothing."""
    found: set[int] = set()
    for ids in members(connection):
        online = online_among(connection, ids)
        offline = [node for node in ids if node not in online]
        remove(connection, set(offline) - _existing(connection, connection.keys.node_info, offline))
        found |= online
    return sorted(found)


def remove(connection: Connection, node_ids: Iterable[int]) -> None:
    """Take nodes of which nothing is left out of the registry. One that registers now enters with its next renewal.

    A user who may only read leaves that to others.
    """
    if not allows(connection.role, "srem", "P:nodes"):
        return
    gone = [str(node) for node in node_ids]
    if gone:
        registry = connection.keys.nodes
        with map_errors(connection.url, registry):
            for batch in batches(gone):
                connection.at(registry).redis.srem(registry, *batch)


@dataclass(frozen=True)
class Absence:
    """A node without a lease. ``comes_back`` is true for a named node, which may be restarted."""

    node_id: int
    comes_back: bool


def absent_nodes(connection: Connection, node_ids: Iterable[int]) -> list[Absence]:
    """Return those of ``node_ids`` that hold no lease now. Also sets the clock."""
    asked = list(node_ids)
    online = online_among(connection, asked)
    absent = [node for node in asked if node not in online]
    if not absent:
        return []
    with map_errors(connection.url):
        gather = Gather(connection)
        for info in map(connection.keys.node_info, absent):
            gather.at(info).hstrlen(info, "name")
        lengths = gather.execute(raise_on_error=False)  # what is no hash has no name
    return [
        Absence(node, comes_back=isinstance(length, int) and length > 0)
        for node, length in zip(absent, lengths, strict=True)
    ]


def _existing(connection: Connection, key_of: Callable[[int], str], node_ids: Sequence[int]) -> set[int]:
    """Return the nodes whose key exists. Sets the clock after each look, for a step may have ended lifetimes."""
    if not node_ids:
        return set()
    nodes = {key_of(node): node for node in node_ids}
    parts = connection.by_slot(nodes)
    groups = [part[at : at + _TOGETHER] for part in parts for at in range(0, len(part), _TOGETHER)]
    with map_errors(connection.url):
        counts = _counted(connection, groups)
        found = [key for group, count in zip(groups, counts, strict=True) if count == len(group) for key in group]
        mixed = [key for group, count in zip(groups, counts, strict=True) if 0 < count < len(group) for key in group]
        one_by_one = _counted(connection, [[key] for key in mixed]) if mixed else []
        found += [key for key, there in zip(mixed, one_by_one, strict=True) if there]
    return {nodes[key] for key in found}


def _counted(connection: Connection, groups: Iterable[Sequence[str]]) -> list[int]:
    """Return how many keys of each group exist."""
    asked_at, gather = time.monotonic(), Gather(connection)
    for group in groups:
        gather.at(group[0]).exists(*group)
    gather.at(connection.keys.identity).time()
    *counts, now = gather.execute()
    connection.clock.set(now, asked_at)
    return counts
