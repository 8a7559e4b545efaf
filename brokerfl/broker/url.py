"""Redis URLs: which are accepted, and how one is shown without its password.

Owns that syntax. It must not know how a connection is made.
"""

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qs, urlsplit

from brokerfl.common import ConfigError, InsecureURL

#: A URL up to its password, and a password among its parameters (unix:///path?password=…).
_PASSWORD = re.compile(r"^((?>(?:[^:/?#@]+://)?)[^:@]*):.*@", re.DOTALL)
_QUERY_PASSWORD = re.compile(r"([?&]password=)[^&#]*")

_PARAMETERS = ("db", "username", "password")


def masked(url: str) -> str:
    """Return ``url`` with its password, if any, replaced by ``***``.

    The URL may be malformed, so everything up to the last @ counts, no matter what the password contains.
    """
    return _QUERY_PASSWORD.sub(r"\1***", _PASSWORD.sub(r"\1:***@", url))


def check_url(url: str, insecure: bool) -> SplitResult:
    """Return the parts of a Redis URL.

    Raises:
        ConfigError: it cannot be read; the text never contains the password.
        InsecureURL: plain text to another machine, and ``insecure`` is false.
    """
    shown = f"the Redis URL {masked(url)}"
    unreadable = f"{shown} cannot be read (in a password write / as %2F, ? as %3F, # as %23, @ as %40, [ as %5B)"
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:  # its text may hold a part of the password
        raise ConfigError(f"{unreadable}: look at the host and the port, a number up to 65535") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(f"{shown} must start with redis://, rediss:// (TLS) or unix://, e.g. redis://127.0.0.1:6379")
    if parts.scheme == "unix":
        if not parts.path:
            raise ConfigError(f"{shown} names no socket: write unix:///path/to/redis.sock")
    else:
        if parts.fragment or "@" in parts.path + parts.query:
            raise ConfigError(unreadable)
        database = parts.path.strip("/")
        if database and not database.isdecimal():
            raise ConfigError(f"{shown} cannot be read: the database {database!r} is not a number")
    for name in set(parse_qs(parts.query, keep_blank_values=True)).difference(_PARAMETERS):
        raise ConfigError(f"{shown} has the unknown parameter {name!r}; the allowed ones are {', '.join(_PARAMETERS)}")
    if parts.scheme == "redis" and not insecure and not _is_loopback(parts.hostname or "localhost"):
        raise InsecureURL(
            f"{masked(url)} is plain text to another machine: models and passwords could be read on the way. "
            "Use rediss://, or pass --insecure if you trust the network"
        )
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
