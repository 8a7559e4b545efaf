"""The arrival: a process that starts before its Redis does.

Owns how often it tries, and what it says meanwhile. It must not know how a connection is made, or what it is for.
"""

import time
from collections.abc import Callable
from logging import INFO, WARNING

import tenacity

from brokerfl.broker.connection import Connection
from brokerfl.common import RedisUnreachable, log

#: Seconds: the longest pause between two attempts, and from one line of the log to the next.
_LONGEST, _SAY_EVERY = 5.0, 60.0


def await_redis(connect: Callable[[], Connection]) -> Connection:
    """Return what ``connect`` returns once Redis answers. Waits forever; says so at once, and then every minute.

    Raises:
        RedisAuthError, RedisTLSError, ConfigError, …: what ``connect`` raises, if it is not RedisUnreachable.
    """
    began = time.monotonic()
    said = -_SAY_EVERY

    def say(state: tenacity.RetryCallState) -> None:
        nonlocal said
        waited = time.monotonic() - began
        if waited - said >= _SAY_EVERY and state.outcome is not None:
            said = waited
            log(WARNING, "%s; waiting for it (%.0f s so far)", str(state.outcome.exception()).rstrip("."), waited)

    retrying = tenacity.Retrying(
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=_LONGEST),
        retry=tenacity.retry_if_exception_type(RedisUnreachable),
        before_sleep=say,
        sleep=time.sleep,
        reraise=True,
    )
    connection = retrying(connect)
    if said >= 0:
        log(INFO, "Redis at %s answers after %.1f s", connection.url, time.monotonic() - began)
    return connection
