"""What is seen of all runs and nodes at one moment, in two round trips.

Owns what is asked for a view, and how little: one field a node, two keys and two counts a run, one key a run that has
ended, whatever the number of runs and nodes. It changes nothing in Redis. It must not know what is concluded from it.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from brokerfl.broker.books import Summary, summary_commands, summary_of
from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.capacity import ServerMemory, info_in, memory_in
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import found_or_none, map_errors
from brokerfl.broker.fields import read_fields
from brokerfl.broker.keys import MOST_RETENTION, milliseconds, parse_id
from brokerfl.broker.node_info import LONGEST_FIELD, SHOWN, STATUS, NodeInfo, node_info_in, node_info_of
from brokerfl.broker.presence import members, online_among
from brokerfl.broker.process import describe, text_of
from brokerfl.broker.remains import past_command
from brokerfl.broker.sockets import Command
from brokerfl.broker.stream import MOST_ARGUMENTS
from brokerfl.wire.past import MAX_PAST_BYTES, Past, decode_past
from brokerfl.wire.status import MAX_STATUS_BYTES, NodeStatus, RunStatus, decode_status

#: Most runs that have not ended, and most that have, of which a view tells; the latest.
MOST_RUNS = 1000

#: Nodes that are read in the first round trip; the registry of a larger federation takes a few more.
_AT_ONCE = 2000

#: Most bytes of an answer: of a run's meta, of a lease.
_MOST_META, _MOST_LEASE = 256 * 1024, 512

_INFO: tuple[Command, ...] = tuple(
    ("INFO", section) for section in ("server", "memory", "clients", "stats", "persistence")
)


_UNKNOWN = ServerMemory("", 0, 0, "")


@dataclass(frozen=True)
class SeenServer:
    """One primary, as its INFO tells; 0 and "" for what it does not tell. Sizes are bytes.

    Attributes:
        product: ``Redis 7.0.15`` or ``Valkey 9.1.2``.
        memory: how much of it is in use.
        clients: how many clients are connected.
        operations: how many commands it executed in the last second.
        aof: whether it keeps an append-only file: ``ok``, ``off``, or ``failing`` if it could not write.
    """

    product: str = ""
    memory: ServerMemory = _UNKNOWN
    clients: int = 0
    operations: int = 0
    aof: str = ""


@dataclass(frozen=True)
class SeenRun:
    """One run.

    Attributes:
        summary: what its books say.
        holder: who has its lease, in words; "" if nobody has, so that it is detached.
        status: what its ServerApp last said.
    """

    summary: Summary
    holder: str = ""
    status: RunStatus | None = None


@dataclass(frozen=True)
class EndedRun:
    """A run that is over, and what remains of it, if anything does. ``ended_at`` is Unix time in seconds."""

    run_id: int
    ended_at: float
    was_stopped: bool
    past: Past | None = None


@dataclass(frozen=True)
class Seen:
    """All of it. ``at`` is Unix time by Redis' clock, in seconds."""

    at: float
    servers: tuple[SeenServer, ...]
    runs: tuple[SeenRun, ...]
    ended: tuple[EndedRun, ...]
    nodes: tuple[NodeInfo, ...]


def look(connection: Connection) -> Seen:
    """Look at everything: two round trips, and more only for thousands of nodes, or for those that say nothing.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    keys, asked_at = connection.keys, time.monotonic()
    registry: list[tuple[str, list[Command]]] = [
        (keys.identity, [("TIME",)]),
        (keys.runs, [
            ("ZRANGE", keys.runs, "+inf", 0, "BYSCORE", "REV", "LIMIT", 0, MOST_RUNS),
            ("ZRANGE", keys.runs, "-inf", "(0", "BYSCORE", "LIMIT", 0, MOST_RUNS, "WITHSCORES"),
        ]),
        (keys.nodes, [("SSCAN", keys.nodes, 0, "COUNT", _AT_ONCE)]),
    ]  # fmt: skip
    with map_errors(connection.url, keys.runs, keys.nodes):
        [now], [running, ended], [registered], *infos = connection.scatter(registry, _INFO)
        found = found_or_none(now, connection.url)
        at = connection.clock.set((int(found[0]), int(found[1])), asked_at) if found else connection.clock.time()
        runs = [run_id for member in found_or_none(running, connection.url) or () if (run_id := parse_id(member))]
        nodes = _registered(connection, found_or_none(registered, connection.url))
        over = [*_ended(found_or_none(ended, connection.url), at)]
        seen_runs, seen_nodes, pasts = _read(connection, runs, nodes, [each.run_id for each in over])
    return Seen(
        at,
        tuple(map(_server, infos)),
        tuple(seen_runs),
        tuple(replace(each, past=past) for each, past in zip(over, pasts, strict=True)),
        tuple(sorted(seen_nodes, key=lambda node: (not node.name, node.name, node.node_id))),
    )


def look_at_nodes(connection: Connection, node_ids: Sequence[int]) -> list[NodeInfo]:
    """Return what a few nodes say of themselves, in three round trips.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    return _look_up(connection, node_ids, online_among(connection, node_ids))


def _look_up(connection: Connection, node_ids: Sequence[int], online: Collection[int]) -> list[NodeInfo]:
    """Return what the registry says of nodes of which these are online; arguments and errors are those of `fields`."""
    if not node_ids:
        return []
    infos = read_fields(connection, list(map(connection.keys.node_info, node_ids)), SHOWN, LONGEST_FIELD)
    return [node_info_of(node, node in online, info) for node, info in zip(node_ids, infos, strict=True)]


def look_at_servers(connection: Connection) -> list[SeenServer]:
    """Return what the servers say of themselves, in one round trip; errors are those of `look_at_nodes`."""
    with map_errors(connection.url):
        return list(map(_server, connection.scatter([], _INFO)))


def _registered(connection: Connection, page: Any) -> list[int]:
    """Return the ids in the registry, of which this is the first page."""
    if not page:
        return []
    cursor, found = page
    if int(cursor) != 0:
        return [*dict.fromkeys(node for ids in members(connection) for node in ids)]
    return [node for member in found if (node := parse_id(member)) is not None]


def _read(
    connection: Connection, runs: Sequence[int], nodes: Sequence[int], over: Sequence[int]
) -> tuple[list[SeenRun], list[NodeInfo], list[Past | None]]:
    """The second round trip."""
    keys = connection.keys
    commands: list[Command] = []
    limits: list[int] = []

    def ask(command: Command, most: int) -> None:
        commands.append(command)
        limits.append(most)

    leases = [
        part[at : at + MOST_ARGUMENTS - 1]
        for part in connection.by_slot(map(keys.node_lease, nodes))
        for at in range(0, len(part), MOST_ARGUMENTS - 1)
    ]
    for part in leases:
        ask(("MGET", *part), _MOST_LEASE * len(part))
    for node in nodes:
        ask(("HGET", keys.node_info(node), STATUS), MAX_STATUS_BYTES)
    for run in runs:
        ask(("GET", keys.run_lease(run)), _MOST_LEASE)
        ask(("GET", keys.run_status(run)), MAX_STATUS_BYTES)
        for command in summary_commands(keys, run):
            ask(command, _MOST_META)
    for run in over:
        ask(past_command(keys, run), MAX_PAST_BYTES)
    answers = connection.stream(commands, limits) if commands else iter(())
    online = _online(connection, nodes, [(part, next(answers)) for part in leases])
    told = {node: node_info_in(node, node in online, _status(connection, next(answers))) for node in nodes}
    seen_runs = [_run(connection, run, [next(answers) for _ in range(4)]) for run in runs]
    pasts = [_past(connection, run, next(answers)) for run in over]
    asked = _look_up(connection, [node for node, info in told.items() if info is None], online)
    seen_nodes = [info for info in (*told.values(), *asked) if info is not None]
    known = [node for node in seen_nodes if node.online or node.name]
    return [run for run in seen_runs if run is not None], known, pasts


def _past(connection: Connection, run_id: int, answer: Any) -> Past | None:
    return decode_past(run_id, None if isinstance(answer, OversizeError) else found_or_none(answer, connection.url))


def _online(connection: Connection, nodes: Sequence[int], leases: Iterable[tuple[list[str], Any]]) -> set[int]:
    """Return the nodes that hold their lease."""
    found: set[str] = set()
    for part, values in leases:
        if isinstance(values, OversizeError):
            return online_among(connection, nodes)
        held = found_or_none(values, connection.url) or [None] * len(part)
        found.update(key for key, value in zip(part, held, strict=True) if value is not None)
    return {node for node in nodes if connection.keys.node_lease(node) in found}


def _status(connection: Connection, answer: Any) -> NodeStatus | None:
    """Return what a node says of itself; None if it says nothing, too much, or something else."""
    data = None if isinstance(answer, OversizeError) else found_or_none(answer, connection.url)
    return decode_status(NodeStatus, data) if isinstance(data, bytes) else None


def _run(connection: Connection, run_id: int, answers: Sequence[Any]) -> SeenRun | None:
    """Return a run; None if it has no books: it has expired, or its end is not in the index yet."""
    lease, status, meta, nodes = (
        None if isinstance(answer, OversizeError) else found_or_none(answer, connection.url) for answer in answers
    )
    summary = summary_of(run_id, meta, nodes or 0)
    if summary is None:
        return None
    holder = describe(text_of(lease).partition(":")[2]) if lease else ""
    return SeenRun(summary, holder, decode_status(RunStatus, status))


def _ended(answer: Any, now: float) -> Iterator[EndedRun]:
    """Yield the runs that have ended, the latest first."""
    pairs = answer or ()
    if pairs and not isinstance(pairs[0], list | tuple):  # RESP 2
        pairs = zip(pairs[::2], pairs[1::2], strict=True)
    for member, text in pairs:
        run_id, score = parse_id(member), -float(text)
        oldest, newest = milliseconds(now - MOST_RETENTION), milliseconds(now + MOST_RETENTION)
        if run_id is not None and oldest <= score <= newest:  # else somebody else's
            yield EndedRun(run_id, score / 1000, bool(score % 1))


def _server(answers: Sequence[Any]) -> SeenServer:
    """Return what INFO said, as far as it is allowed and understood."""
    found = info_in(answers)

    def number(name: str) -> int:
        value = found.get(name)
        return value if isinstance(value, int) else 0

    name = "Valkey" if "valkey_version" in found else "Redis"
    version = found.get(f"{name.lower()}_version")
    return SeenServer(
        f"{name} {version}" if version else "",
        memory_in("", found),
        number("connected_clients"),
        number("instantaneous_ops_per_sec"),
        _aof(found),
    )


def _aof(found: Mapping[str, str | int]) -> str:
    if found.get("aof_enabled") != 1:
        return "off" if found else ""
    return "failing" if found.get("aof_last_write_status") == "err" else "ok"
