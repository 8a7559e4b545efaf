"""The servers: for each key the client and the sockets of the primary that has it now.

Owns which server is used, and when that is looked up. It must not know what is asked of it.

There is one `Server` for each primary. A look-up that finds other primaries counts as a loss, as a broken connection
does: the new one may lack the last writes of the old one.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, Protocol

import redis
from redis.exceptions import ClusterDownError, RedisError

from brokerfl.broker.client import Clients
from brokerfl.broker.failure import map_errors, meaning
from brokerfl.broker.patience import OutOfTime, holding
from brokerfl.broker.sockets import Command, Sockets, exchange_all
from brokerfl.broker.stream import MOST_ARGUMENTS
from brokerfl.broker.topology import Cluster, Sentinels, Topology
from brokerfl.broker.url import Address, Kind, is_loopback
from brokerfl.common import BrokerflError

#: Seconds that a look-up holds if no server says that it is not the one to ask: a primary that was cut off does not.
FRESH = 30.0

#: There is no limit: a heartbeat must get a socket, however many workers or Drivers have one.
_MOST_SOCKETS = 2**31


class Server:
    """One primary.

    Args:
        client: of redis-py.
        sockets: made by default.
        end: ends all connections for ever.

    Attributes:
        redis: the redis-py client. Its calls raise redis-py's errors: wrap them in `map_errors`.
        sockets: the same server, for the commands of the message path.
    """

    def __init__(
        self, client: redis.Redis, sockets: Sockets | None = None, end: Callable[[], None] = lambda: None
    ) -> None:
        # Any, because redis-py annotates every answer as the union of what any server and protocol may answer.
        self.redis: Any = client
        self.redis.connection_pool.max_connections = _MOST_SOCKETS
        self.sockets = sockets or Sockets(client)
        self._end = end

    @property
    def place(self) -> str:
        """Host and port, or the path of a socket."""
        known = self.redis.connection_pool.connection_kwargs
        return str(known.get("path") or f"{known.get('host', '')}:{known.get('port', '')}")

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, as far as its address tells."""
        known = self.redis.connection_pool.connection_kwargs
        return "path" in known or is_loopback(str(known.get("host", "")))

    def introduce(self, name: str) -> None:
        """Give the idle sockets a name; whoever refuses it, or does not answer, is let be."""
        with suppress(RedisError):
            self.redis.client_setname(name)
            self.sockets.introduce(name)

    def reset(self) -> None:
        """Close the idle sockets."""
        self.sockets.close()
        self.redis.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close all sockets."""
        self.redis.connection_pool.disconnect()

    def retire(self) -> None:
        """It is no primary any more: whoever waits for it, or holds one of its sockets, has lost the connection."""
        self._end()
        self.reset()


class Servers(Protocol):
    """What a connection asks for a server. Safe to share between threads.

    Attributes:
        lost: called when a connection was lost, or another server took the place of one.
        divide: whether keys of one command must share a slot, as on a Cluster.
    """

    lost: Callable[[], None]
    divide: bool

    def at(self, key: str) -> Server:
        """Return the primary that has ``key``.

        Raises:
            RedisUnreachable: there is none now; also as for `refresh`.
        """

    def refresh(self) -> None:
        """Look up the primaries. If nobody answers, those that are known stay.

        Raises:
            RedisUnreachable, RedisAuthError, RedisTLSError, ConfigError, InsecureURL: none was ever known.
        """

    def all(self) -> Iterable[Server]:
        """Return all primaries that are known."""


class OneServer:
    """The one server of a plain URL.

    Args:
        client: of redis-py.
        sockets: its sockets; made by default.
    """

    divide = False

    def __init__(self, client: redis.Redis, sockets: Sockets | None = None) -> None:
        self.lost: Callable[[], None] = lambda: None
        self._server = Server(client, sockets)

    @classmethod
    def named_by(cls, clients: Clients) -> "OneServer":
        """Return the server that a URL names."""
        client, _ = clients.make(clients.url.hosts[0], lambda: made.lost(), lambda: None)
        made = cls(client)
        return made

    def at(self, key: str) -> Server:
        """Return it."""
        return self._server

    def refresh(self) -> None:
        """Nobody else is to be found."""

    def all(self) -> Iterable[Server]:
        """Return it."""
        return (self._server,)


class FoundServers:
    """The primaries that Sentinels or a Cluster name.

    Args:
        clients: makes the clients.
    """

    def __init__(self, clients: Clients) -> None:
        self.lost: Callable[[], None] = lambda: None
        self.divide = clients.url.kind is Kind.CLUSTER
        self._clients = clients
        kind = Sentinels if clients.url.kind is Kind.SENTINEL else Cluster
        self._finder = kind(clients.url, clients.ask)
        self._lock = threading.RLock()
        self._is_astray = True  # until the first look-up
        self._until = 0.0
        self._known: tuple[Topology, dict[Address, Server]] | None = None  # replaced as a whole

    def at(self, key: str) -> Server:
        """Return the primary that has ``key``."""
        if self._is_astray or time.monotonic() >= self._until:
            self.refresh()
        assert self._known is not None, "it was looked up"
        topology, servers = self._known
        address = topology.primary_of(key)
        if address is None:
            self._is_astray = True
            raise meaning(ClusterDownError("Hash slot not served"), self._clients.url.shown)
        return servers[address]

    def refresh(self) -> None:
        """Look up the primaries, unless another thread is doing so and there is something to go on with."""
        if self._known is None:
            with map_errors(self._clients.url.shown):
                holding(self._lock, self._look_up)
        else:
            with suppress(OutOfTime):
                holding(self._lock, self._look_up, 0.0)

    def all(self) -> Iterable[Server]:
        """Return all primaries that are known."""
        return () if self._known is None else self._known[1].values()

    def went_astray(self) -> None:
        """A server is not the one to ask: look up before the next command."""
        self._is_astray = True
        self.lost()

    def _look_up(self) -> None:
        self._is_astray, self._until = False, time.monotonic() + FRESH
        try:
            topology = self._finder.find()
        except (RedisError, BrokerflError):
            if self._known is None:
                self._is_astray = True
                raise
            return
        if self._known is None or self._known[0] != topology:
            self._adopt(topology)

    def _adopt(self, topology: Topology) -> None:
        former: dict[Address, Server] = {} if self._known is None else self._known[1]
        servers = {address: former.get(address) or self._make(address) for address in topology.primaries}
        is_first, self._known = self._known is None, (topology, servers)
        if not is_first:
            self.lost()
        for address, server in former.items():
            if address not in servers:
                server.retire()

    def _make(self, address: Address) -> Server:
        client, end = self._clients.make(address, lambda: self.lost(), self.went_astray)
        return Server(client, end=end)


def scatter(
    servers: Servers, asked: Sequence[tuple[str, Sequence[Command]]], everywhere: Sequence[Command] = ()
) -> list[list[Any]]:
    """Send commands to the primaries of their keys, all before the first answer is read.

    Args:
        servers: the servers.
        asked: keys, and the commands for the primary of each, in order. A command has at most `MOST_ARGUMENTS`.
        everywhere: commands for all primaries, in the same round trip.

    Returns:
        The answers for each key, in the order in which they were asked for; then those of each primary.

    Raises:
        RedisError: of the first server that did not answer; the others have, as far as they could.
    """
    parts: dict[int, tuple[Sockets, list[int], list[Command]]] = {}
    for place, (key, commands) in enumerate(asked):
        assert all(len(command) <= MOST_ARGUMENTS for command in commands), "cut it with `batches`"
        sockets = servers.at(key).sockets
        _, places, together = parts.setdefault(id(sockets), (sockets, [], []))
        places.append(place)
        together.extend(commands)
    if everywhere:
        for server in servers.all():
            parts.setdefault(id(server.sockets), (server.sockets, [], []))[2].extend(everywhere)
    answers = exchange_all([(sockets, together) for sockets, _, together in parts.values()])
    found: list[list[Any]] = [[] for _ in asked]
    for (_, places, _), answered in zip(parts.values(), answers, strict=True):
        rest = iter(answered)
        for place in places:
            found[place] = [next(rest) for _ in asked[place][1]]
        if everywhere:
            found.append([*rest])
    return found


def stream(servers: Servers, commands: Sequence[Command], most: Sequence[int] = ()) -> Iterator[Any]:
    """Send commands, each to the primary of its first key; yield the answers in their order.

    Each is yielded when it arrives, so that only one of each server is in memory at a time. For ``most`` see
    `Sockets.stream`.

    Raises:
        RedisError: a server did not answer.
    """
    parts: dict[Sockets, tuple[list[Command], list[int]]] = {}
    order: list[Sockets] = []
    for command, limit in zip_longest(commands, most):
        order.append(servers.at(command[command.index("STREAMS") + 1 if command[0] == "XREADGROUP" else 1]).sockets)
        those, limits = parts.setdefault(order[-1], ([], []))
        those.append(command)
        limits += () if limit is None else (limit,)
    answers = {sockets: sockets.stream(those, limits) for sockets, (those, limits) in parts.items()}
    try:
        for sockets in order:
            yield next(answers[sockets])
    finally:
        for each in answers.values():
            each.close()
