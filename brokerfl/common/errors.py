"""The exceptions a user may catch, all under `BrokerflError`.

Owns their names and their tree. It must not know which code raises them, nor whose errors they replace.
"""

# ruff: noqa: N818  (the names say what happened; only the families end in Error)


class BrokerflError(Exception):
    """Any error that brokerfl raises on purpose, but for the TypeError or ValueError of a wrong argument."""


class ConfigError(BrokerflError):
    """An option, an environment variable or a configuration text cannot be used as it is."""


class AppLoadError(BrokerflError):
    """The app ``module:attribute`` was not found, has the wrong type, or raised while it was imported."""


class MissingExtra(BrokerflError):
    """A package is not installed that only some features need; the text names the extra to install."""


class FrameError(BrokerflError, ValueError):
    """Bytes that arrived from Redis cannot be decoded: malformed, or written by another version."""


class MessageTooLarge(BrokerflError, ValueError):
    """A message holds more bytes than the limit; nothing of it was sent."""


class RedisError(BrokerflError):
    """Redis cannot be used. What redis-py raises never leaves brokerfl; one of the subclasses does."""


class RedisUnreachable(RedisError):
    """No connection: refused, timed out, host unknown, broken, or the server cannot serve just now.

    Trying again may help.
    """


class RedisAuthError(RedisError):
    """User name or password are wrong or missing, or this user lacks a right."""


class RedisTLSError(RedisError):
    """The TLS handshake failed: a certificate is wrong or missing, or only one side speaks TLS."""


class RedisTooOld(RedisError):
    """The server is older than Redis 7.0 or Valkey 7.2."""


class RedisOutOfMemory(RedisError):
    """The server reached its ``maxmemory`` and refuses to store more."""


class InsecureURL(RedisError):
    """A plain-text URL names a host that is not this machine, and ``--insecure`` was not given."""


class OutageLimit(BrokerflError):
    """Redis was away for longer than the limit; the run is detached and can be resumed."""


class JournalError(BrokerflError):
    """A node cannot write what it must not forget: the disk is full, or the file is damaged."""


class NodeNameTaken(BrokerflError):
    """Another process that is alive serves as the node of this name."""


class RunError(BrokerflError):
    """The run cannot go on in this process, or there is no such run."""


class RunNotFound(RunError):
    """There is no run with this id, or it has ended."""


class RunAttached(RunError):
    """Another ServerApp that is alive runs this run."""


class RunStopped(RunError):
    """Somebody stopped the run."""


class RunLost(RunError):
    """The run's keys are gone from Redis: ended elsewhere, expired, or the server lost its data."""


class RunFenced(RunError):
    """Another ServerApp took the run over; this one may write nothing more."""


class PortInUse(BrokerflError):
    """Another process listens on the port that a server was to use."""
