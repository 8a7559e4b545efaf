"""Waiting: lets any number of threads wait for replies.

Owns which thread reads the bell, and when to sweep. It must not know the Message classes, how a push is made, or how an
outage is waited out.

One thread at a time collects for all: the first that waits blocks on the bell, the others wait for that thread. So an
app with one thread has no hand-offs between threads, and an app with many opens no extra connections.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import WARNING

from brokerfl.broker.fence import RedisForgot
from brokerfl.common import OutageLimit, RedisOutOfMemory, RedisUnreachable, RunError, log
from brokerfl.server.book import Book, OpenMessage
from brokerfl.server.receive import Receiver
from brokerfl.server.session import Session
from brokerfl.server.verdict import Verdicts

#: An iterator looks through all ids that it waits for after so many takes by others, as a part of them.
_LOOK = 16

#: Seconds between sweeps while a thread waits: they catch lost rings, lapsed leases and expired messages.
SWEEP = 1.0


@dataclass
class Wanted:
    """The messages whose replies one iterator waits for. Only for the thread that drives it."""

    ids: set[str]
    seen: float = -math.inf  # the book's takes when nobody else had taken one of ``ids``
    left: list[str] = field(default_factory=list)  # those that have left the book


class Waits:
    """Waits for the replies of one run, in any thread."""

    def __init__(self, book: Book, session: Session, receiver: Receiver, verdicts: Verdicts) -> None:
        self._changed = book.changed
        self._answers = book.answers
        self._book = book
        self._session = session
        self._receiver = receiver
        self._verdicts = verdicts
        self._is_collecting = False
        self._is_full = False
        self._swept = time.monotonic()

    def end(self, reason: Exception) -> None:
        """The run is over for this process: from now on every wait raises ``reason``."""
        self._session.end(reason)
        with self._changed:
            self._changed.notify_all()

    def next(self, wanted: Wanted, until: float | None) -> OpenMessage | None:
        """Take the first reply to a wanted message; wait for it until the local monotonic time ``until``.

        Removes from ``wanted`` what was found, and what another call took. None means that none is left, or time is up.
        """
        with self._changed:
            while True:
                message = self._take(wanted)
                if message is not None:
                    return message
                self._session.check()
                self._leave_out(wanted)
                if wanted.left:
                    continue
                left = SWEEP if until is None else until - time.monotonic()
                if not wanted.ids or left <= 0:
                    return None
                self._wait(min(left, SWEEP), until)

    def _take(self, wanted: Wanted) -> OpenMessage | None:
        while wanted.left:
            message = self._answers.take_left(wanted.left.pop())
            if message is not None:
                return message
        message = self._answers.take(wanted.ids)
        if message is not None:
            wanted.ids.discard(message.message_id)
            wanted.seen += wanted.seen == self._answers.takes - 1
        return message

    def _leave_out(self, wanted: Wanted) -> None:
        """Remove from ``wanted`` what another call took, or what left the book."""
        if (self._answers.takes - wanted.seen) * _LOOK > len(wanted.ids):
            wanted.seen = self._answers.takes
            gone = [each for each in wanted.ids if not self._answers.waits(each)]
            wanted.ids.difference_update(gone)
            wanted.left += self._answers.left(gone)

    def _wait(self, seconds: float, until: float | None) -> None:
        """Wait for a change; collect if no other thread does. Called with the lock held once, which is given up."""
        if self._is_collecting:
            self._changed.wait(seconds)
        else:
            self._lead(lambda: self._collect(seconds, until))

    def poll(self) -> None:
        """Collect what has arrived, without waiting. Does nothing while another thread collects."""
        with self._changed:
            self._session.check()
            if not self._is_collecting:
                self._lead(lambda: self._collect(None, time.monotonic()))

    def _lead(self, collect: Callable[[], None]) -> None:
        self._is_collecting = True
        try:
            self._changed.release()
            try:
                collect()
            except (RunError, OutageLimit) as error:
                self._session.end(error)
                raise
            finally:
                self._changed.acquire()
        finally:
            self._is_collecting = False
            self._changed.notify_all()

    # Collecting; one thread at a time, without the lock.

    def _collect(self, block: float | None, until: float | None) -> None:
        try:
            if not self._session.reconcile_in_time(block or 0.0):
                return
            rung = self._receiver.wait(block)
            is_due = time.monotonic() - self._swept >= SWEEP or self._session.compared_at > self._swept
            if rung is None or is_due:
                self._sweep()
            else:
                self._receiver.read(self._book.contacted_among(rung))
            self._session.is_up()
            self._is_full = False
        except RedisForgot:
            self._session.distrust()
        except RedisOutOfMemory as error:
            self._do_without_room(error, block)
        except RedisUnreachable as error:
            self._session.reconnect(error, until)

    def _sweep(self) -> None:
        self._verdicts.sweep()
        self._swept = time.monotonic()

    def _do_without_room(self, error: Exception, block: float | None) -> None:
        """While Redis is full, what it forgot cannot be restored; still receive replies and pass verdicts."""
        if not self._is_full:
            log(WARNING, "%s; waiting until there is room", error)
        self._is_full = True
        try:
            self._sweep()
        except (RedisUnreachable, RedisForgot):
            return  # the next turn handles it
        with self._changed:
            self._changed.wait(block or 0.0)
