"""The patience of a call: until when a thread may wait for a Redis that is silent.

Owns that time, which is the thread's own. It must not know what is waited for.

An app's timeout says when its call is to return, whatever Redis does. A server that answers, however slowly, is never
cut short; one that says nothing is left a `STEP` after the time is up, and is not asked again in the same call.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from brokerfl.common import RedisUnreachable

Answer = TypeVar("Answer")

#: Seconds of silence that are allowed when the time is up. A Redis that does not answer within them is not slow.
STEP = 1.0


class OutOfTime(RedisUnreachable):
    """Nothing is known about Redis: the time of the call was up before it could be asked."""


class _Thread(threading.local):
    until: float | None = None
    is_spent = False


_thread = _Thread()


def within(until: float | None, action: Callable[[], Answer]) -> Answer:
    """Return what ``action`` returns; its waits for a silent Redis end at the local monotonic time ``until``.

    Not a context manager: an exception that a signal handler raises would leave the time behind for other calls.
    """
    former, was_spent = _thread.until, _thread.is_spent
    if until is None or (former is not None and former <= until):
        return action()
    try:
        _thread.until, _thread.is_spent = until, False
        return action()
    finally:
        _thread.until, _thread.is_spent = former, was_spent


def time_left(most: float | None = None) -> float | None:
    """Return how many seconds a wait for Redis that begins now may take, at most ``most``; None for no limit."""
    until = _thread.until
    if until is None:
        return most
    left = max(0.0, until - time.monotonic()) + STEP
    return left if most is None else min(most, left)


def ends_at(timeout: float | None) -> float | None:
    """Return the local monotonic time at which ``timeout`` seconds have passed; None if there is no timeout."""
    return None if timeout is None else time.monotonic() + timeout


def end_of(until: float) -> float:
    """Return until when this thread may wait: until ``until``, or until its time is up."""
    return until if _thread.until is None else min(until, _thread.until)


def time_is_up() -> bool:
    """Whether this thread's time is up."""
    return _thread.until is not None and time.monotonic() >= _thread.until


def spend() -> None:
    """Redis was silent for as long as this thread could wait: it need not be asked again in the same call."""
    _thread.is_spent = time_is_up()


def is_spent() -> bool:
    """Whether this thread has waited for a silent Redis until its time was up."""
    return _thread.is_spent


def holding(lock: threading.RLock, action: Callable[[], Answer], most: float | None = None) -> Answer:
    """Return what ``action`` returns under a lock, which another thread may hold while it waits for Redis.

    Args:
        lock: the lock.
        action: what to do.
        most: seconds to wait for the lock; None for as long as this thread may wait.

    Raises:
        OutOfTime: the other thread did not release it in time.
    """
    left = time_left(most)
    try:
        if not lock.acquire(timeout=-1 if left is None else left):
            raise OutOfTime("Redis keeps another thread waiting")
        return action()
    finally:  # an exception of a signal handler may come right behind the acquisition
        try:  # noqa: SIM105  (nor may one come before the release)
            lock.release()
        except RuntimeError:  # it was not acquired
            pass
