"""The connection: TLS, timeouts, the server's version and clock, and waiting for a Redis that is unreachable.

Owns the client's settings. It must not know what keys mean.
"""

import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any
from weakref import WeakSet

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline as Pipeline
from redis.connection import HiredisRespSerializer, PythonRespSerializer
from redis.exceptions import (
    InvalidResponse,
    ResponseError,
)
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from brokerfl.broker.bounded import bounded
from brokerfl.broker.clock import Clock
from brokerfl.broker.failure import map_errors, translate
from brokerfl.broker.keys import DEFAULT_PREFIX, Keys
from brokerfl.broker.patience import end_of, is_spent
from brokerfl.broker.sockets import Sockets
from brokerfl.broker.url import check_url, masked
from brokerfl.common import (
    ConfigError,
    RedisRefuses,
    RedisTooOld,
    RedisUnreachable,
    log,
)

#: Seconds a blocking read blocks. redis-py raises TimeoutError when a block outlasts the socket's timeout.
BLOCK = 2.0
_SOCKET_TIMEOUT = BLOCK + 5.0
_CONNECT_TIMEOUT = 5.0

#: When TCP probes a silent peer, how often (seconds) and how many times, as in redis-py; and after how many
#: milliseconds without an acknowledgement it gives up.
_TCP_OPTIONS = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}

#: Bytes from which on redis-py's packer does not copy an argument, as in redis-py itself.
_CUTOFF = 6000

#: A repeated XADD is a duplicate and a repeated XREADGROUP strands a batch: the loops retry, not the client.
NO_RETRY = Retry(NoBackoff(), 0)

#: There is no limit: a heartbeat must get a socket, however many workers or Drivers have one.
_MOST_SOCKETS = 2**31

#: NOMKSTREAM came with 6.2, PEXPIRE GT with 7.0; 7.0.15 is the oldest server that the tests use.
OLDEST_SERVER = (7, 0)

#: Seconds. If the next failure comes this soon after an answer, the outage was not over, and the pauses grow.
_FLAP = 1.0


@dataclass(frozen=True)
class TLS:
    """Paths of PEM files: the trusted CA and, for mutual TLS, the client's certificate and key."""

    ca_cert: str | None = None
    cert: str | None = None
    key: str | None = None

    def options(self) -> dict[str, Any]:
        """Return them under redis-py's names."""
        named = {"ssl_ca_certs": self.ca_cert, "ssl_certfile": self.cert, "ssl_keyfile": self.key}
        return {name: path for name, path in named.items() if path is not None}


class Connection:
    """A client of one Redis, with the keys of one prefix. Safe to share between threads.

    Attributes:
        redis: the redis-py client. Its calls raise redis-py's errors: wrap them in `map_errors`.
        sockets: the same server, for the commands of the message path.
        clock: what is known about the server's clock.
        keys: the keys under the prefix.
        url: its URL, without the password.
        persists: whether the server keeps an append-only file, as far as known. If it is killed, it then forgets only
            its last writes, which are repeated from memory.
        losses: how often one of its sockets was reconnected. redis-py does so silently if it finds one broken before a
            command; what Redis knows must then be compared.
    """

    def __init__(self, client: redis.Redis, keys: Keys, url: str = "") -> None:
        # Any, because redis-py annotates every answer as the union of what any server and protocol may answer.
        self.redis: Any = client
        client.connection_pool.max_connections = _MOST_SOCKETS
        self.sockets = Sockets(client)
        self.keys = keys
        self.url = url
        self.persists = True
        self.losses = 0
        self.clock = Clock()
        self._waiting = threading.Lock()
        self._up_at = 0.0
        self._down_since: float | None = None
        self._is_refused = False
        self._flaps = 0

    def __repr__(self) -> str:
        return f"<Connection {self.url} prefix={self.keys.prefix}>"

    def read_time(self) -> float:
        """Ask Redis for its TIME; return it in seconds, and tell the clock."""
        asked = time.monotonic()
        with map_errors(self.url):
            answer = self.redis.time()
        return self.clock.set(answer, asked)

    def check_server(self) -> None:
        """Check the server's version and settings.

        Raises:
            RedisTooOld: it is older than `OLDEST_SERVER`.
            ConfigError: it does not have this database, or speaks another protocol.
            RedisUnreachable, RedisAuthError, RedisTLSError: no connection or login.
        """
        with map_errors(self.url):
            self._ping()
            try:
                info = self.redis.info("server") | self.redis.info("memory") | self.redis.info("persistence")
            except ResponseError:  # fakeredis has no INFO, and a managed Redis or an ACL may forbid it
                info = {}
        version = str(info.get("redis_version", "7.0"))
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
            raise RedisTooOld(
                f"the server at {self.url} is Redis {version}; brokerfl needs 7.0 or newer (or Valkey 7.2)"
            )
        self.persists = bool(info.get("aof_enabled", 1))
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            log(
                WARNING,
                "maxmemory-policy of %s is %s: Redis may evict messages. Set it to noeviction.",
                self.url,
                policy,
            )
        self.read_time()

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
        with map_errors(self.url):
            self.redis.pexpire(self.keys.identity, 1, gt=True)
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
        self.sockets.close()
        self.redis.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close all sockets."""
        self.redis.close()


def connect(
    url: str,
    *,
    prefix: str = DEFAULT_PREFIX,
    tls: TLS | None = None,
    insecure: bool = False,
    check: bool = True,
) -> Connection:
    """Return a connection to the Redis at ``url``.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user name, password and database number.
        prefix: the start of every key.
        tls: files for ``rediss://``.
        insecure: allow plain text to another machine.
        check: check the server at once (`Connection.check_server`).

    Raises:
        ConfigError: the URL cannot be read, or TLS files are given for a plain URL.
        InsecureURL: plain text to another machine.
        RedisUnreachable, RedisAuthError, RedisTLSError, RedisTooOld: as for `Connection.check_server`.
    """
    tls = tls or TLS()
    parts = check_url(url, insecure)
    _check_tls(url, parts.scheme, tls)
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=_SOCKET_TIMEOUT,
            socket_connect_timeout=_CONNECT_TIMEOUT,
            **({} if parts.scheme == "unix" else _tcp_options()),
            retry=NO_RETRY,
            **(tls.options() if parts.scheme == "rediss" else {}),
        )
    except ValueError as error:
        raise ConfigError(f"the Redis URL {masked(url)} cannot be read: {error}") from None
    client.connection_pool.connection_class = bounded(client.connection_pool.connection_class)
    connection = Connection(client, Keys(prefix), masked(url))
    client.connection_pool.connection_kwargs["redis_connect_func"] = _Greeting(connection)
    client.connection_pool.connection_kwargs["command_packer"] = _Packer(client.connection_pool.get_encoder().encode)
    if check:
        connection.check_server()
    return connection


def _tcp_options() -> dict[str, Any]:
    there = {getattr(socket, name): value for name, value in _TCP_OPTIONS.items() if hasattr(socket, name)}
    return {"socket_keepalive": True, "socket_keepalive_options": there}


class _Greeting:
    """Called when a socket is connected: does what redis-py does, and counts reconnects."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: WeakSet[Any] = WeakSet()

    def __call__(self, connected: Any) -> None:
        if connected in self._known and not connected.was_cut:
            self._connection.losses += 1
        connected.was_cut = False
        self._known.add(connected)
        connected.on_connect()


class _Packer:
    """Packs commands with hiredis if it is installed, but a chunk with redis-py's own packer, which does not copy it.

    hiredis takes only bytes, so a memoryview is copied twice (850 MB/s; 7 GB/s without).
    """

    def __init__(self, encode: Callable[[Any], Any]) -> None:
        self._plain = PythonRespSerializer(_CUTOFF, encode)
        self._fast = HiredisRespSerializer() if HIREDIS_AVAILABLE else self._plain

    def pack(self, *args: Any) -> Any:
        packer = self._plain if memoryview in map(type, args) else self._fast
        return packer.pack(*args)


def _check_tls(url: str, scheme: str, tls: TLS) -> None:
    if scheme != "rediss" and tls != TLS():
        raise ConfigError(f"certificates are given but {masked(url)} is not a TLS URL: write rediss://")
    if tls.key is not None and tls.cert is None:
        raise ConfigError("--key is given without --cert: mutual TLS needs both")
