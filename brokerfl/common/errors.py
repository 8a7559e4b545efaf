"""The exceptions that a user may catch, all derived from `BrokerflError`.

Owns their names and hierarchy. It must not know which code raises them, nor whose errors they replace.
"""

from collections.abc import Sequence

# ruff: noqa: N818  (the names say what happened; only the families end in Error)


class BrokerflError(Exception):
    """Any error that brokerfl raises on purpose, except TypeError and ValueError for a wrong argument.

    Attributes:
        message_ids: raised by a push, of which a part had been accepted already: the ids of the messages in order, ""
            for those that were not pushed. Otherwise empty.
    """

    message_ids: Sequence[str] = ()


class ConfigError(BrokerflError):
    """An option, an environment variable or a configuration is invalid."""


class CredentialsError(ConfigError):
    """A credentials file, a request or a grant cannot be used: its rights, its owner, or what is in it."""


class AppLoadError(BrokerflError):
    """The app ``module:attribute`` was not found, has the wrong type, or raised on import."""


class MissingExtra(BrokerflError):
    """An optional package is not installed; the text names the extra that provides it."""


class FrameError(BrokerflError, ValueError):
    """Bytes from Redis cannot be decoded: they are malformed, or written by another version."""


class MessageTooLarge(BrokerflError, ValueError):
    """A message is larger than the limit; nothing of it was sent."""


class RedisError(BrokerflError):
    """Redis cannot be used. brokerfl raises one of the subclasses in place of redis-py's exceptions."""


class RedisUnreachable(RedisError):
    """No connection: refused, timed out, unknown host, broken, or the server cannot answer right now.

    Trying again may help.
    """


class RedisRefuses(RedisUnreachable):
    """It answers, but takes no writes now, or something else answers in its place; the text says what to do."""


class RedisAuthError(RedisError):
    """The user name or password is wrong or missing, or the user lacks a permission."""


class RedisTLSError(RedisError):
    """The TLS handshake failed: a certificate is wrong or missing, or only one side speaks TLS."""


class RedisTooOld(RedisError):
    """The server is older than Redis 7.0 or Valkey 7.2."""


class RedisOutOfMemory(RedisError):
    """The server reached its ``maxmemory`` and refuses to store more."""


class InsecureURL(RedisError):
    """A plain-text URL names another machine, and ``--insecure`` was not given."""


class OutageLimit(BrokerflError):
    """Redis was unreachable for longer than the limit; the run is detached and can be resumed."""


class JournalError(BrokerflError):
    """A node's journal cannot be read or written: the disk is full, or the file is damaged."""


class NodeNameTaken(BrokerflError):
    """Another live process uses this node's name."""


class NodeNotFound(BrokerflError):
    """No node is called so, or several are."""


class NodeOnline(BrokerflError):
    """The node is online, and only one that is offline can be forgotten."""


class RunError(BrokerflError):
    """The run cannot continue in this process, or does not exist."""


class RunNotFound(RunError):
    """No run has this id or name, several may be meant, or it has ended."""


class MessageNotFound(BrokerflError):
    """The run has no such message that is not settled, or several may be meant."""


class RunAttached(RunError):
    """Another live ServerApp is attached to this run."""


class RunStopped(RunError):
    """The run was stopped."""


class RunLost(RunError):
    """The run's keys are gone from Redis: it ended elsewhere, it expired, or the server lost its data."""


class RunFenced(RunError):
    """Another ServerApp took over the run; this one can write nothing more."""


class RecordMissing(RunError):
    """The run has recorded nothing, or no model."""


class RunDiverged(RunError):
    """The app does not do what the run has recorded of it, so that it cannot go on from there."""


class PortInUse(BrokerflError):
    """Another process listens on the port."""
