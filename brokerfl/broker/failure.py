"""Failures: what redis-py's exceptions mean.

Owns the mapping to brokerfl's exceptions. It must not know which command failed.
"""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.client import Pipeline
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    ExecAbortError,
    InvalidResponse,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
    WatchError,
)

from brokerfl.broker.url import is_found
from brokerfl.common import (
    ConfigError,
    RedisAuthError,
    RedisOutOfMemory,
    RedisRefuses,
    RedisTLSError,
    RedisUnreachable,
)

#: What redis-py puts before the error of a pipeline: the command, with its data.
_PIPELINED = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)

#: Errors of a server that answers but cannot do it now: wait, then ask again. redis-py removes the code from the text
#: of those for which it has a class.
_PASSING_CLASSES = (ConnectionError, TimeoutError)
_PASSING = ("UNBLOCKED",)

#: Errors of a server that is not the one to ask, or not now. What it says to the next command says no more.
_ASTRAY_CLASSES = (ReadOnlyError, AskError, TryAgainError, ClusterDownError, BusyLoadingError)
_ASTRAY = ("READONLY ", "MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ", "MASTERDOWN ", "LOADING ")

#: What precedes the error that made a server refuse the EXEC.
_ABORTED = "Transaction discarded because of: "

#: Why a server takes no writes, and what to do, by the class or the code of its error.
_REFUSALS: tuple[tuple[type[Exception] | None, str, str], ...] = (
    (ReadOnlyError, "READONLY", "it is a replica: name its primary, or promote it with REPLICAOF NO ONE"),
    (MasterDownError, "MASTERDOWN", "it is a replica without its primary: name the primary, or start that"),
    (ClusterDownError, "CLUSTERDOWN", "its Cluster is down, or nobody serves this slot: look at CLUSTER INFO"),
    (MovedError, "MOVED", "the slot has moved to another server"),
    (AskError, "ASK", "the slot is being moved to another server"),
    (TryAgainError, "TRYAGAIN", "the slot is being moved to another server"),
    (None, "MISCONF", "it cannot save its data: look at its log and at its disk"),
    (None, "NOREPLICAS", "it has too few replicas: start them, or lower its min-replicas-to-write"),
    (BusyLoadingError, "LOADING", "it is still loading its data"),
    (None, "BUSY ", "a script keeps it busy: wait, or end that with SCRIPT KILL"),
)

#: The same for a server that was found, and not named.
_FOUND = dict.fromkeys(("READONLY", "MASTERDOWN"), "it is a replica now; looking for the new primary")


class AstrayError(ConnectionError):
    """The socket is closed: its server answered that it is not the one to ask, or not now.

    An error as that of a broken connection, since whoever sent the command knows as little about its effect.

    Attributes:
        answer: what it answered.
    """

    def __init__(self, answer: Exception) -> None:
        super().__init__(str(answer))
        self.answer = answer


def astray(error: Exception) -> AstrayError | None:
    """Return what to raise for an answer of a server that is not the one to ask; None if it is."""
    if isinstance(error, _ASTRAY_CLASSES):
        return AstrayError(error)
    text = str(error)
    if isinstance(error, ExecAbortError) and text.startswith(_ABORTED):
        return astray(ResponseError(text.removeprefix(_ABORTED)))
    is_one = text.startswith(_ASTRAY) or (text.startswith("UNBLOCKED") and "state changed" in text)
    return AstrayError(error) if is_one and isinstance(error, ResponseError) else None


@contextmanager
def map_errors(url: str = "Redis", *keys: str) -> Iterator[None]:
    """Turn redis-py's exceptions into brokerfl's; others pass unchanged.

    Args:
        url: of the server, for the texts.
        keys: keys of the registry that are used: if one has another type, the error names them.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        mapped = translate(error, url)
        if mapped is None and keys and "WRONGTYPE" in str(error):
            mapped = foreign(url, *keys)
        if mapped is None and isinstance(error, ResponseError):
            mapped = meaning(error, url)
        if mapped is None:
            raise
        raise mapped from error


def foreign(url: str, *keys: str) -> ConfigError:
    """Return the error of a key of the registry that brokerfl has not written."""
    return ConfigError(
        f"{' or '.join(keys)} at {url} is not what brokerfl keeps there: another program uses this prefix; "
        "choose another --prefix, or delete the key"
    )


def meaning(error: Exception, url: str) -> Exception:
    """Return the brokerfl exception to raise for an error that Redis answered."""
    return translate(error, url) or RedisRefuses(f"Redis at {url} answers with an error: {error}")


def translate(error: BaseException, url: str = "Redis") -> Exception | None:
    """Return the brokerfl exception that ``error`` means; None if there is none."""
    if isinstance(error, WatchError) and isinstance(error.__context__, AstrayError):
        error = error.__context__
    if isinstance(error, AstrayError):
        error = error.answer
    text = _PIPELINED.sub("", str(error))
    if isinstance(error, WatchError) and not _is_changed(error):
        return RedisUnreachable(f"Redis at {url} does not answer: {text}")
    if _is_tls(error):
        return RedisTLSError(f"no TLS connection to {url}: {_tls_reason(error)}")
    if isinstance(error, AuthenticationError | AuthenticationWrongNumberOfArgsError) or text.startswith(
        ("NOAUTH", "WRONGPASS")
    ):
        if "HELLO must be called" in text or "Authentication required" in text:
            text = "it asks for a password (redis://:password@host or redis://user:password@host)"
        return RedisAuthError(f"{url} refuses the login: {text}")
    if isinstance(error, NoPermissionError) or text.startswith("NOPERM"):
        return RedisAuthError(f"{url} denies a permission that brokerfl needs: {text}")
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return RedisOutOfMemory(f"{url} is full (maxmemory): {text}")
    for kind, code, reason in _REFUSALS:
        if (kind and isinstance(error, kind)) or text.startswith(code):
            reason = _FOUND.get(code, reason) if is_found(url) else reason
            return RedisRefuses(f"Redis at {url} takes no writes: {reason}")
    if isinstance(error, InvalidResponse):
        return RedisRefuses(f"{url} does not answer as Redis does; is something else on this port? ({text})")
    if isinstance(error, (*_PASSING_CLASSES, OSError)) or text.startswith(_PASSING):
        return RedisUnreachable(f"Redis at {url} does not answer: {text or type(error).__name__}")
    return None


def found_or_none(answer: Any, url: str) -> Any:
    """Return what was read; None if the key has another type.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    if isinstance(answer, Exception):
        error = translate(answer, url)
        if error is not None:
            raise error from answer
        return None
    return answer


def execute_unless_changed(pipe: Pipeline) -> bool:
    """Execute the MULTI of ``pipe``; return whether it was executed: False means that a watched key changed.

    Raises:
        WatchError, RedisError, OSError: as redis-py, for `map_errors`.
    """
    try:
        pipe.execute()
    except WatchError as error:
        if not _is_changed(error):
            raise
        return False
    return True


def _is_changed(error: WatchError) -> bool:
    """Whether a watched key changed, so that EXEC did nothing.

    redis-py also raises WatchError when the connection breaks after a WATCH, even in the middle of EXEC. Then it is
    unknown whether EXEC was executed, and repeating it might push twice.
    """
    return not isinstance(error.__context__, ConnectionError | TimeoutError)


def _is_tls(error: BaseException) -> bool:
    """Whether the two sides cannot agree on TLS; an interrupted handshake is only a broken connection."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # an app may build a cycle of causes
        seen.add(id(cause))
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return False
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    return "[SSL" in text and "EOF" not in text


def _tls_reason(error: BaseException) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the server's certificate is not trusted; check --ca-cert ({text})"
    if "CERTIFICATE_REQUIRED" in text:
        return "the server requires a client certificate: give --cert and --key"
    if "PEM lib" in text or "KEY_VALUES_MISMATCH" in text or "NO_CERTIFICATE_OR_CRL" in text:
        return (
            "a file given with --ca-cert, --cert or --key is not a PEM file, or certificate and key do not match "
            f"({text})"
        )
    if "WRONG_VERSION_NUMBER" in text:
        return "the server does not speak TLS on this port; use redis:// or the TLS port"
    return text
