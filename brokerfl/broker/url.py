"""Redis URLs: which are accepted, what one says, and how it is shown without its passwords.

Owns that syntax. It must not know how a connection is made.
"""

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from urllib.parse import parse_qs, unquote

from brokerfl.common import ConfigError, InsecureURL

#: A URL up to its password, and a password among its parameters (unix:///path?password=…).
_PASSWORD = re.compile(r"^((?>(?:[^:/?#@]+://)?)[^:@]*):.*@", re.DOTALL)
_QUERY_PASSWORD = re.compile(r"([?&](?:sentinel_)?password=)[^&#]*")

_PARTS = re.compile(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?", re.DOTALL)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:,\[\]\s]*)(?::([0-9]*))?")

Address = tuple[str, int]


class Kind(Enum):
    """What a URL leads to."""

    SERVER = "redis"
    SOCKET = "unix"
    SENTINEL = "redis+sentinel"
    CLUSTER = "redis+cluster"


#: Which parameters a URL may have, and the port that its hosts have by default.
_PARAMETERS = {
    Kind.SERVER: ("db", "username", "password"),
    Kind.SOCKET: ("db", "username", "password"),
    Kind.SENTINEL: ("db", "username", "password", "sentinel_username", "sentinel_password"),
    Kind.CLUSTER: ("username", "password"),
}
_PORTS = {Kind.SERVER: 6379, Kind.SOCKET: 0, Kind.SENTINEL: 26379, Kind.CLUSTER: 6379}

_SCHEMES = {
    **{kind.value: (kind, False) for kind in Kind},
    **{kind.value.replace("redis", "rediss"): (kind, True) for kind in Kind if kind is not Kind.SOCKET},
}


@dataclass(frozen=True)
class RedisURL:
    """What a URL says.

    Attributes:
        shown: the URL without its passwords.
        kind: what is at the hosts.
        is_tls: whether every connection is one of TLS.
        is_insecure: whether plain text to another machine is allowed.
        hosts: of the server, of Sentinels, or of some servers of the Cluster; of a Unix socket its path, and 0.
        username, password: for the servers that hold the data; None if there is none.
        database: its number.
        service: what Sentinels call the primary and its replicas.
        sentinel_username, sentinel_password: for the Sentinels.
    """

    shown: str
    kind: Kind
    is_tls: bool
    is_insecure: bool
    hosts: tuple[Address, ...]
    username: str | None = None
    password: str | None = None
    database: int = 0
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def check_host(self, host: str, announced: str = "") -> None:
        """Check that this host may be reached.

        Raises:
            InsecureURL: over plain text, and it is another machine.
        """
        if self.kind is Kind.SOCKET or self.is_tls or self.is_insecure or is_loopback(host):
            return
        raise InsecureURL(
            f"{self.shown} is plain text to another machine{announced}: models and passwords could be read on the way. "
            f"Use {self.kind.value.replace('redis', 'rediss')}://, or pass --insecure if you trust the network"
        )


def masked(url: str) -> str:
    """Return ``url`` with its passwords, if any, replaced by ``***``.

    The URL may be malformed, so everything up to the last @ counts, no matter what the password contains.
    """
    return _QUERY_PASSWORD.sub(r"\1***", _PASSWORD.sub(r"\1:***@", url))


def is_found(url: str) -> bool:
    """Whether the server that is meant has to be found first: Sentinels or a Cluster know it."""
    return "+" in url.partition("://")[0]


def parse_url(url: str, insecure: bool) -> RedisURL:
    """Return what a Redis URL says.

    Raises:
        ConfigError: it cannot be read; the text never contains a password.
        InsecureURL: plain text to another machine, and ``insecure`` is false.
    """
    shown = f"the Redis URL {masked(url)}"
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _SCHEMES or not url.lower().startswith(f"{scheme.lower()}://"):
        raise ConfigError(
            f"{shown} must start with redis://, rediss:// (TLS) or unix://, e.g. redis://127.0.0.1:6379, "
            "or with redis+sentinel:// or redis+cluster:// (rediss+… with TLS)"
        )
    kind, is_tls = _SCHEMES[scheme.lower()]
    unreadable = f"{shown} cannot be read (in a password write / as %2F, ? as %3F, # as %23, @ as %40, [ as %5B)"
    found = _PARTS.fullmatch(rest)
    assert found is not None, "it matches any text"
    authority, path, query, fragment = (part or "" for part in found.groups())
    login, _, names = authority.rpartition("@")
    if kind is not Kind.SOCKET and (fragment or "@" in path + query or "[" in login):
        raise ConfigError(unreadable)
    hosts = _hosts(unreadable, names, kind)
    parameters = _parameters(shown, query, kind)
    username, _, password = (unquote(part) or None for part in login.partition(":"))
    service, database = _path(shown, path, kind)
    parsed = RedisURL(
        masked(url),
        kind,
        is_tls,
        insecure,
        ((unquote(path), 0),) if kind is Kind.SOCKET else hosts,
        parameters.get("username", username),
        parameters.get("password", password),
        _number(shown, parameters.get("db", database)),
        service,
        parameters.get("sentinel_username"),
        parameters.get("sentinel_password"),
    )
    for host, _ in hosts:
        parsed.check_host(host)
    return parsed


def _hosts(unreadable: str, names: str, kind: Kind) -> tuple[Address, ...]:
    """Return hosts and ports; one that is not named is this machine."""
    hosts = []
    parts = names.split(",") if kind in (Kind.SENTINEL, Kind.CLUSTER) else [names]
    for name in parts:
        found = _HOST.fullmatch(name)
        port = int(found[2] or _PORTS[kind]) if found else -1
        if found is None or not 0 <= port < 2**16 or (not found[1] and len(parts) > 1):
            raise ConfigError(f"{unreadable}: look at the host and the port, a number up to 65535")
        hosts.append((unquote(found[1]).strip("[]").lower() or "localhost", port))
    return tuple(hosts)


def _parameters(shown: str, query: str, kind: Kind) -> dict[str, str]:
    found = parse_qs(query, keep_blank_values=True)
    allowed = _PARAMETERS[kind]
    for name in found:
        if name not in allowed:
            raise ConfigError(f"{shown} has the unknown parameter {name!r}; the allowed ones are {', '.join(allowed)}")
    return {name: values[0] for name, values in found.items() if values[0]}


def _path(shown: str, path: str, kind: Kind) -> tuple[str, str]:
    """Return the service and the database that the path names."""
    if kind is Kind.SOCKET:
        if not path:
            raise ConfigError(f"{shown} names no socket: write unix:///path/to/redis.sock")
        return "", ""
    words = path.strip("/").split("/")
    service = unquote(words.pop(0)) if kind is Kind.SENTINEL else ""
    if kind is Kind.SENTINEL and not service:
        raise ConfigError(
            f"{shown} names no service: write redis+sentinel://host/SERVICE, as in `sentinel monitor SERVICE …`"
        )
    database = "/".join(words)
    if database and not database.isdecimal():
        raise ConfigError(f"{shown} cannot be read: the database {database!r} is not a number")
    if kind is Kind.CLUSTER and database.strip("0"):
        raise ConfigError(f"{shown} names database {database}, but a Cluster has only database 0")
    return service, database


def _number(shown: str, database: str) -> int:
    if database and not database.isdecimal():
        raise ConfigError(f"{shown} cannot be read: the database {database!r} is not a number")
    return int(database or 0)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
