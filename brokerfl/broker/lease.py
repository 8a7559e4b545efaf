"""Leases: whether the holder of one is alive. Owns that question for nodes and runs; must not know what is held.

A lease whose holder is a dead process of this host is free at once. Any other is watched for one lease time: if it is
renewed, its holder is alive; otherwise it lapses.
"""

import time
from collections.abc import Callable
from logging import INFO, WARNING

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.process import describe, text_of
from brokerfl.common import log


def holder_of(connection: Connection, key: str) -> str:
    """Return who holds a lease, in words."""
    with map_errors(connection.url):
        value = connection.at(key).redis.get(key)
    return describe(text_of(value).rpartition(":")[2]) if value else "nobody"


def await_lapse(
    connection: Connection,
    key: str,
    what: str,
    refusal: Callable[[str], Exception],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Return when the lease ``key`` has lapsed, or ``stop`` returns true.

    Args:
        connection: to the lease's Redis.
        key: its name.
        what: what is leased, for the log.
        refusal: makes the exception to raise, given the holder in words.
        stop: called every 0.2 seconds.

    Raises:
        Exception: what ``refusal`` made: the holder renewed it.
    """
    log(INFO, "%s is held by %s; waiting to see whether it is alive", what, holder_of(connection, key))
    last: int | None = None
    while not stop():
        with map_errors(connection.url):
            left = int(connection.at(key).redis.pttl(key))
        if left < 0:
            return
        if last is not None and left > last:
            raise refusal(holder_of(connection, key))
        last = left
        time.sleep(min(0.2, left / 1000))


def say_lapsed(whose: str, lease: float, meanwhile: str) -> None:
    """Say that a lease lapsed although its holder lives, for how many seconds at least, and what that meant."""
    log(
        WARNING,
        "The lease of %s lapsed: it was not renewed for more than %g s, since the process, its machine, the network or "
        "Redis stood still; meanwhile %s",
        whose,
        lease,
        meanwhile,
    )
