"""The client of one server: what redis-py is told about its sockets, and what a socket does when it is connected.

Owns redis-py's settings. It must not know which server is the one to ask.
"""

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection as TCPConnection
from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.credentials import CredentialProvider
from redis.exceptions import ReadOnlyError, ResponseError
from redis.retry import Retry

from brokerfl.broker.bounded import bounded
from brokerfl.broker.failure import AstrayError
from brokerfl.broker.packer import Packer
from brokerfl.broker.sockets import Command
from brokerfl.broker.url import Address, Kind, RedisURL
from brokerfl.common import ConfigError

#: Seconds a blocking read blocks. redis-py raises TimeoutError when a block outlasts the socket's timeout.
BLOCK = 2.0
_SOCKET_TIMEOUT = BLOCK + 5.0
_CONNECT_TIMEOUT = 5.0

#: Seconds that one of several is given to say who the primary is. Another one is asked then.
_LOOK_UP_TIMEOUT = 2.0

#: When TCP probes a silent peer, how often (seconds) and how many times, as in redis-py; and after how many
#: milliseconds without an acknowledgement it gives up.
_TCP_OPTIONS = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}

#: Characters of a socket's name.
_LONGEST_NAME = 128

#: A repeated XADD is a duplicate and a repeated XREADGROUP strands a batch: the loops retry, not the client.
NO_RETRY = Retry(NoBackoff(), 0)

_CLASSES: dict[Kind, Any] = {Kind.SOCKET: UnixDomainSocketConnection}


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


def client_name(name: str) -> str:
    """Return a name as Redis takes it: printable ASCII without blanks, and not endless."""
    return re.sub(r"[^!-~]", "_", name)[:_LONGEST_NAME]


class Clients:
    """Makes clients of servers that one URL leads to.

    Args:
        url: what the user's URL says.
        tls: files for TLS.
        credentials: asked at each connect, instead of the user name and the password of the URL.
        name: of their sockets, for CLIENT LIST; it may change.
    """

    def __init__(self, url: RedisURL, tls: TLS, credentials: CredentialProvider | None = None, name: str = "") -> None:
        self.url = url
        self.name = name
        self._tls = tls
        self._credentials = credentials
        self._kind: Any = SSLConnection if url.is_tls else _CLASSES.get(url.kind, TCPConnection)
        self._asked = bounded(self._kind)

    def make(
        self, address: Address, reconnected: Callable[[], None], went_astray: Callable[[], None]
    ) -> tuple[redis.Redis, Callable[[], None]]:
        """Return a client of the server at ``address``, and what ends all its connections for ever.

        Args:
            address: host and port, or a path and 0.
            reconnected: called when a socket that was connected before is connected again.
            went_astray: called when the server is not the one to ask.
        """
        greeting = _Greeting(self, reconnected, went_astray)
        pool = redis.ConnectionPool(
            connection_class=bounded(self._kind, went_astray),
            **self._options(address, _SOCKET_TIMEOUT, _CONNECT_TIMEOUT),
            **self._login(),
            db=self.url.database,
            redis_connect_func=greeting,
        )
        pool.connection_kwargs["command_packer"] = Packer(pool.get_encoder().encode)
        # Not `from_pool`: a client that is not used any more would disconnect sockets that threads still read from.
        return redis.Redis(connection_pool=pool), greeting.retire

    def ask(self, address: Address, command: Command) -> Any:
        """Return what one of the hosts of the URL, or a server of its Cluster, answers to a command.

        Raises:
            RedisError: no answer, or an error.
        """
        login = self._login()
        if self.url.kind is Kind.SENTINEL:
            login = {"username": self.url.sentinel_username, "password": self.url.sentinel_password}
        options = self._options(address, _LOOK_UP_TIMEOUT, _LOOK_UP_TIMEOUT)
        asked = self._asked(**options, **login)
        try:
            asked.connect()
            asked.send_command(*command)
            return asked.read_response()
        finally:
            asked.disconnect()

    def _options(self, address: Address, timeout: float, connect_timeout: float) -> dict[str, Any]:
        options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": connect_timeout,
            "retry": NO_RETRY,
        }
        if self.url.kind is Kind.SOCKET:
            return {**options, "path": address[0]}
        tls = self._tls.options() if self.url.is_tls else {}
        return {**options, "host": address[0], "port": address[1], **_tcp_options(), **tls}

    def _login(self) -> dict[str, Any]:
        if self._credentials is not None:
            return {"credential_provider": self._credentials}
        return {"username": self.url.username, "password": self.url.password}


def _tcp_options() -> dict[str, Any]:
    there = {getattr(socket, name): value for name, value in _TCP_OPTIONS.items() if hasattr(socket, name)}
    return {"socket_keepalive": True, "socket_keepalive_options": there}


class _Greeting:
    """Called when a socket is connected: does what redis-py does, notes reconnects, and looks at who answers."""

    def __init__(self, clients: Clients, reconnected: Callable[[], None], went_astray: Callable[[], None]) -> None:
        self._clients = clients
        self._url = clients.url
        self._reconnected = reconnected
        self._went_astray = went_astray
        self._known: WeakSet[Any] = WeakSet()
        self._is_retired = False
        self._lock = threading.Lock()

    def __call__(self, connected: Any) -> None:
        if connected in self._known and not connected.was_cut:
            self._reconnected()
        connected.was_cut = False
        with self._lock:
            self._known.add(connected)
        connected.handshake_metadata = None
        try:
            self._greet(connected)
        except BaseException:  # redis-py does so only after an error of its own
            connected.disconnect()
            raise

    def _greet(self, connected: Any) -> None:
        if self._is_retired:
            raise AstrayError(ReadOnlyError("it is not the primary any more"))
        try:
            connected.on_connect()
        except ResponseError:  # a Sentinel knows no SELECT
            self._check(connected)
            raise
        self._check(connected)
        self._introduce(connected)

    def _introduce(self, connected: Any) -> None:
        """Say who this is. redis-py's own ``client_name`` fails if an ACL forbids it."""
        if self._clients.name:
            with suppress(ResponseError):
                connected.send_command("CLIENT", "SETNAME", self._clients.name, check_health=False)
                connected.read_response()

    def _check(self, connected: Any) -> None:
        """Check by its answer to HELLO, which every user may send, that the server is one of those that are meant."""
        hello = {_text(name): _text(value) for name, value in (connected.handshake_metadata or {}).items()}
        if self._url.kind in (Kind.SERVER, Kind.SOCKET):
            if hello.get("mode") in ("cluster", "sentinel"):
                raise ConfigError(_other_url(self._url, hello["mode"]))
        elif hello.get("role", "master") != "master":
            self._went_astray()
            raise AstrayError(ReadOnlyError("it is a replica"))

    def retire(self) -> None:
        """End all connections, also those that threads read from, and let nobody connect again."""
        with self._lock:
            self._is_retired = True
            known = list(self._known)
        for connected in known:
            connected.cut()


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _other_url(url: RedisURL, mode: str) -> str:
    host, port = url.hosts[0]
    place = f"{f'[{host}]' if ':' in host else host}:{port}"
    what, rest = ("a Sentinel", f"{place}/SERVICE") if mode == "sentinel" else ("a server of a Cluster", place)
    scheme = f"redis{'s' if url.is_tls else ''}+{mode}"
    return f"the server at {url.shown} is {what}: write {scheme}://{rest}, with the user name and password, if any"
