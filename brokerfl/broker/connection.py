"""The connection: the server's version and clock, and waiting for a Redis that is unreachable.

Owns how a command of ours reaches Redis and goes on after an outage. It must not know what keys mean.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from logging import INFO, WARNING
from typing import Any

from redis.client import Pipeline as Pipeline
from redis.crc import key_slot
from redis.credentials import CredentialProvider
from redis.exceptions import InvalidResponse, ResponseError

from brokerfl.broker.client import BLOCK as BLOCK
from brokerfl.broker.client import TLS as TLS
from brokerfl.broker.client import Clients, client_name
from brokerfl.broker.clock import Clock
from brokerfl.broker.failure import map_errors, translate
from brokerfl.broker.keys import DEFAULT_PREFIX, Keys
from brokerfl.broker.patience import end_of, is_spent
from brokerfl.broker.proxy import parse_proxy
from brokerfl.broker.rules import Role, allows
from brokerfl.broker.servers import FoundServers, OneServer, Server, Servers, scatter, stream
from brokerfl.broker.settings import objections
from brokerfl.broker.sockets import Command, Sockets
from brokerfl.broker.url import is_found, parse_url
from brokerfl.common import (
    ConfigError,
    RedisRefuses,
    RedisTooOld,
    RedisUnreachable,
    log,
)

#: NOMKSTREAM came with 6.2, PEXPIRE GT with 7.0; 7.0.15 is the oldest server that the tests use.
OLDEST_SERVER = (7, 0)

#: Seconds. If the next failure comes this soon after an answer, the outage was not over, and the pauses grow.
_FLAP = 1.0


class Connection:
    """A client of one Redis, with the keys of one prefix. Safe to share between threads.

    Args:
        servers: where the keys are.
        keys: the keys under the prefix.
        url: for errors and logs, without the password.
        clients: what makes its clients, if it is to be told the name of this process.
        role: what its user may do, also an attribute; None if that is unknown, and may be everything.

    Attributes:
        clients: what makes its clients; None for a server without sockets.
        clock: what is known about the server's clock.
        keys: the keys under the prefix.
        url: its URL, without the password.
        persists: whether a Redis that is killed forgets only its last writes, which are repeated from memory, as far
            as known: it keeps an append-only file, or a replica takes its place.
        losses: how often one of its sockets was reconnected, a server was not the one to ask, or another one took its
            place. redis-py reconnects silently if it finds a socket broken before a command; what Redis knows must
            then be compared.
    """

    def __init__(
        self, servers: Servers, keys: Keys, url: str = "", clients: Clients | None = None, role: Role | None = None
    ) -> None:
        self.clients, self._servers = clients, servers
        self._servers.lost = self._count_loss
        self.keys, self.url, self.role = keys, url, role
        self.persists = True
        self.losses = 0
        self.clock = Clock()
        self._waiting = threading.Lock()
        self._up_at = 0.0
        self._down_since: float | None = None
        self._is_refused = False
        self._flaps = 0

    def _count_loss(self) -> None:
        self.losses += 1

    def at(self, key: str) -> Server:
        """Return the server that has a key: on a Cluster the primary of its slot, elsewhere always the one primary.

        Ask again for each command: another one may have taken its place.

        Raises:
            RedisUnreachable: it is not known where the key is.
        """
        return self._servers.at(key)

    def primaries(self) -> list[Server]:
        """Return all primaries: one, unless it is a Cluster.

        Raises:
            RedisUnreachable: it is not known where they are.
        """
        self._servers.at(self.keys.identity)
        return [*self._servers.all()]

    @property
    def is_divided(self) -> bool:
        """Whether keys of one command must share a slot, as on a Cluster."""
        return self._servers.divide

    @property
    def may_fail_over(self) -> bool:
        """Whether a replica takes the place of a primary that is lost: Sentinels or a Cluster see to that."""
        return is_found(self.url)

    def shares_slot(self, key: str, other: str) -> bool:
        """Return whether two keys may be in one command."""
        return not self._servers.divide or key_slot(key.encode()) == key_slot(other.encode())

    def by_slot(self, keys: Iterable[str]) -> list[list[str]]:
        """Return keys divided into those that may be in one command."""
        if not self._servers.divide:
            return [found] if (found := [*keys]) else []
        parts: dict[int, list[str]] = {}
        for key in keys:
            parts.setdefault(key_slot(key.encode()), []).append(key)
        return [*parts.values()]

    def scatter(
        self, asked: Sequence[tuple[str, Sequence[Command]]], everywhere: Sequence[Command] = ()
    ) -> list[list[Any]]:
        """Send commands to the servers of their keys, all before the first answer is read; see `servers.scatter`."""
        return scatter(self._servers, asked, everywhere)

    def stream(self, commands: Sequence[Command], most: Sequence[int] = ()) -> Iterator[Any]:
        """Send commands to the servers of their keys, and yield each answer when it arrives; see `servers.stream`."""
        return stream(self._servers, commands, most)

    @property
    def redis(self) -> Any:
        """The redis-py client of the server that has the registry. Its calls raise redis-py's errors: `map_errors`."""
        return self._servers.at(self.keys.identity).redis

    @property
    def sockets(self) -> Sockets:
        """The same server, for the commands of the message path."""
        return self._servers.at(self.keys.identity).sockets

    def introduce(self, name: str) -> None:
        """Name all sockets from now on, and those that are idle, for CLIENT LIST. A server may refuse that.

        Args:
            name: what Redis does not take in it becomes ``_``.
        """
        if self.clients is not None:
            self.clients.name = client_name(name)
            for server in self._servers.all():
                server.introduce(self.clients.name)

    def __repr__(self) -> str:
        return f"<Connection {self.url} prefix={self.keys.prefix}>"

    def read_time(self) -> float:
        """Ask Redis for its TIME; return it in seconds, and tell the clock."""
        asked = time.monotonic()
        with map_errors(self.url):
            answer = self.redis.time()
        return self.clock.set(answer, asked)

    def check_server(self, *, warn: bool = True) -> None:
        """Check the server's version and, to ``warn``, its settings.

        Raises:
            RedisTooOld: it is older than `OLDEST_SERVER`.
            ConfigError: it does not have this database, or speaks another protocol.
            RedisUnreachable, RedisAuthError, RedisTLSError: no connection or login.
        """
        self._servers.refresh()
        with map_errors(self.url):
            self._ping()
            info = self._info()
        version = str(info.get("redis_version", "7.0"))
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
            raise RedisTooOld(
                f"the server at {self.url} is Redis {version}; brokerfl needs 7.0 or newer (or Valkey 7.2)"
            )
        self.persists = self.may_fail_over or bool(info.get("aof_enabled", 1))
        if warn:
            with map_errors(self.url):
                redis = self.redis if allows(self.role, "config|get") else None
                for objection in objections(redis, info, self.url, may_restart=not self.may_fail_over):
                    log(WARNING, "%s", objection)
        self.read_time()

    def _info(self) -> dict[str, Any]:
        """Return what the server says of itself; nothing if it may not be asked. fakeredis has no INFO."""
        if not allows(self.role, "info"):
            return {}
        try:
            return {**self.redis.info("server"), **self.redis.info("memory"), **self.redis.info("persistence")}
        except ResponseError:
            return {}

    def _ping(self) -> None:
        try:
            self.redis.ping()
        except (ResponseError, InvalidResponse) as error:
            text = str(error)
            if "unknown command" in text and "HELLO" in text:  # that came with 6.0
                raise RedisTooOld(
                    f"the server at {self.url} is older than Redis 6; brokerfl needs 7.0 or newer (or Valkey 7.2)"
                ) from None
            if isinstance(error, ResponseError) and translate(error) is not None:
                raise
            raise ConfigError(f"the server at {self.url} cannot be used: {text}") from None

    def wait_until_up(
        self, until: float, stop: Callable[[], bool] = lambda: False, because: Exception | None = None
    ) -> bool:
        """Wait with jittered back-off until Redis answers again; log the outage once, and its end once.

        Args:
            until: local monotonic time at which to give up.
            stop: called before each attempt; true gives up.
            because: what Redis did. If that is no silence, it is logged when it comes again after an answer.

        Returns:
            Whether Redis answers.

        Raises:
            RedisAuthError, RedisTLSError: it answers, but refuses the login or the connection.
        """
        until = end_of(until)
        patience = min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
        if not self._waiting.acquire(timeout=patience):
            return False
        try:  # a second thread finds that Redis answers, and logs nothing
            if stop() or is_spent():  # it may have waited long for its turn, or for an answer
                return False
            self._wait_out_flaps(until, because)
            self._probe()
            self.note_up()
            return True
        except RedisUnreachable as error:
            if self._down_since is None:
                self._down_since = time.monotonic()
                self._is_refused = isinstance(error, RedisRefuses)
                until_when = "that is over" if self._is_refused else "it answers again"
                log(WARNING, "%s; waiting until %s", str(error).rstrip("."), until_when)
            return self._wait_for_answer(until, stop)
        finally:
            self._up_at = time.monotonic()
            self._waiting.release()

    def note_up(self, *, wrote: bool = True) -> None:
        """Redis answered: an outage, if one was logged, is over; one that only refuses writes, if this was a write."""
        if self._down_since is None or (self._is_refused and not wrote):
            return
        log(INFO, "Redis at %s is back after %.1f s", self.url, time.monotonic() - self._down_since)
        self._down_since = None

    def _wait_out_flaps(self, until: float, because: Exception | None) -> None:
        """Back off from a server that answers the probe but fails the next command."""
        now = time.monotonic()
        self._flaps = self._flaps + 1 if now - self._up_at < _FLAP else 0
        if self._flaps == 1 and isinstance(because, RedisRefuses):
            log(WARNING, "%s; trying again", because)
        if self._flaps:
            pause = random.uniform(0.0, min(_FLAP * 0.9, 0.02 * 2 ** min(self._flaps, 10)))
            time.sleep(max(0.0, min(pause, until - now)))

    def _probe(self) -> None:
        """TIME is answered even while data are loaded, and reads even by a replica. This changes nothing."""
        self._servers.refresh()
        with map_errors(self.url):
            self.at(self.keys.probe).redis.pexpire(self.keys.probe, 1)
        self.read_time()

    def _wait_for_answer(self, until: float, stop: Callable[[], bool]) -> bool:
        longest = 0.05
        while True:
            pause = random.uniform(0.0, longest)
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
            longest = min(2.0, 2 * longest)
            if stop() or time.monotonic() >= until:  # an attempt may last as long as a socket's timeout
                return False
            try:
                self._probe()
            except RedisUnreachable:
                continue
            self.note_up()
            return True

    def reset(self) -> None:
        """Close the idle sockets: if a signal interrupted a command, one may hold an answer that nobody waits for."""
        for server in self._servers.all():
            server.reset()

    def close(self) -> None:
        """Close all sockets."""
        for server in self._servers.all():
            server.close()


def connect(
    url: str,
    *,
    prefix: str = DEFAULT_PREFIX,
    tls: TLS | None = None,
    insecure: bool = False,
    check: bool = True,
    credentials: CredentialProvider | None = None,
    name: str = "",
    proxy: str | None = None,
    role: Role | None = None,
    realms: tuple[str, ...] = ("",),
) -> Connection:
    """Return a connection to the Redis at ``url``.

    Args:
        url: ``redis://`` or ``unix://`` with user name, password and database number, ``redis+sentinel://`` or
            ``redis+cluster://``; with ``rediss`` over TLS.
        prefix: the start of every key.
        tls: files for TLS.
        insecure: allow plain text to another machine.
        check: check the server at once (`Connection.check_server`).
        credentials: asked for the user name and the password at each connect, instead of the URL's.
        name: of this process, for CLIENT LIST.
        proxy: URL of an HTTP proxy through which every connection goes.
        role: of the user, if that is known: what it may not do is not tried.
        realms: see `Keys`.

    Raises:
        ConfigError: the URL cannot be read, TLS files are given for a plain URL, or there are two logins.
        InsecureURL: plain text to another machine.
        RedisUnreachable, RedisAuthError, RedisTLSError, RedisTooOld: as for `Connection.check_server`.
    """
    tls, parsed, keys = tls or TLS(), parse_url(url, insecure), Keys(prefix, realms)
    tls.check(parsed)
    if credentials is not None and (parsed.username or parsed.password):
        raise ConfigError(
            f"{parsed.shown} has a login, and --credentials or --credential-provider gives another: leave one out"
        )
    clients = Clients(parsed, tls, credentials, client_name(name), parse_proxy(proxy) if proxy else None)
    servers = FoundServers(clients) if is_found(parsed.shown) else OneServer.named_by(clients)
    connection = Connection(servers, keys, parsed.shown, clients, role)
    if check:
        connection.check_server()
    return connection
