"""Waiting: lets any number of threads wait for replies.

Owns which thread reads the bell, and when to sweep. It must not know the Message classes, how a push is made, or how an
outage is waited out.

One thread at a time collects for all: the first that waits blocks on the bell, the others wait for that thread. So an
app with one thread has no hand-offs between threads, and an app with many opens no extra connections.
"""

import time
from logging import WARNING

from brokerfl.broker.fence import RedisForgot
from brokerfl.common import OutageLimit, RedisOutOfMemory, RedisUnreachable, RunError, log
from brokerfl.server.book import Book, OpenMessage, Wanted
from brokerfl.server.progress import Activity, Progress
from brokerfl.server.receive import Receiver
from brokerfl.server.session import Session
from brokerfl.server.verdict import Verdicts
from brokerfl.wire.status import Phase

#: An iterator looks through all ids that it waits for after so many takes by others, as a part of them.
_LOOK = 16

#: Seconds between sweeps while a thread waits: they catch lost rings, lapsed leases and expired messages.
SWEEP = 1.0


class Waits:
    """Waits for the replies of one run, in any thread.

    Attributes:
        answers: the replies.
    """

    def __init__(
        self, book: Book, session: Session, receiver: Receiver, verdicts: Verdicts, progress: Progress
    ) -> None:
        self._lock, self._changed = book.lock, book.changed
        self.answers = book.answers
        self._book = book
        self._session = session
        self._receiver = receiver
        self._verdicts = verdicts
        self._progress = progress
        self._leader: object | None = None  # of the thread that collects
        self._is_full = False
        self._swept = time.monotonic()

    def end(self, reason: Exception) -> None:
        """The run is over for this process: from now on every wait raises ``reason``."""
        self._session.end(reason)
        with self._lock:
            self._changed.notify_all()

    def next(self, wanted: Wanted, until: float | None) -> OpenMessage | None:
        """Take the first reply to a wanted message; wait for it until the local monotonic time ``until``.

        Removes from ``wanted`` what was found, and what another call took. None means that none is left, or time is up.
        """
        with self._lock:
            message = self._take(wanted)
        if message is not None:
            return message
        waits: list[Activity] = []
        is_over = False
        try:
            message = self._next(wanted, until, waits)
            is_over = message is None or not wanted.ids
            return message
        finally:
            for activity in waits:
                self._progress.finish(activity, is_over=is_over)

    def _next(self, wanted: Wanted, until: float | None, waits: list[Activity]) -> OpenMessage | None:
        """Like `next`; put into ``waits`` that it waits, if it does."""
        while True:
            with self._lock:
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
                seconds = min(left, SWEEP)
                if not waits:
                    waits.append(self._progress.begin(Phase.REPLIES))
                if self._leader is not None:
                    self._changed.wait(seconds)
                    continue
            self._lead(seconds)

    def _take(self, wanted: Wanted) -> OpenMessage | None:
        message = self.answers.take_left(wanted) if wanted.left else None
        if message is not None:
            return message
        message = self.answers.take(wanted)
        if message is not None:
            wanted.ids.discard(message.message_id)
            wanted.seen += wanted.seen == self.answers.takes - 1
        return message

    def _leave_out(self, wanted: Wanted) -> None:
        """Remove from ``wanted`` what another call took, or what left the book."""
        if (self.answers.takes - wanted.seen) * _LOOK > len(wanted.ids):
            wanted.seen = self.answers.takes
            gone = [each for each in wanted.ids if not self.answers.waits(each)]
            wanted.ids.difference_update(gone)
            wanted.left += self.answers.left(gone)

    def poll(self) -> None:
        """Collect what has arrived, without waiting. Does nothing while another thread collects."""
        self._session.check()
        self._lead(None)

    def _lead(self, block: float | None) -> None:
        """Collect, unless another thread does."""
        me = object()
        try:
            with self._lock:
                self._leader = self._leader or me
            if self._leader is me:
                self._collect(block)
        except BaseException as error:
            if isinstance(error, RunError | OutageLimit):
                self._session.end(error)
            self.answers.put_back()  # for a signal handler's exception may have interrupted a step
            raise
        finally:
            if self._leader is me:  # no call comes before this, so no signal handler either
                self._leader = None
                with self._lock:
                    self._changed.notify_all()

    # Collecting; one thread at a time, without the lock.

    def _collect(self, block: float | None) -> None:
        try:
            if not self._session.reconcile_in_time(block or 0.0):
                return
            rung = self._receiver.wait(block)
            is_due = time.monotonic() - self._swept >= SWEEP or self._session.compared_at > self._swept
            if rung is None or is_due:
                self._sweep()
                if rung is None:
                    self._progress.rung()
            else:
                self._receiver.read(self._book.contacts.among(rung))
            if lacking := self._receiver.lacking():
                self._verdicts.supply(lacking)
            self._session.is_up()
            if self._is_full:
                self._is_full = self._session.is_full = False
        except RedisForgot:
            self._session.distrust()
        except RedisOutOfMemory as error:
            self._do_without_room(error, block)
        except RedisUnreachable as error:
            self._session.reconnect(error)

    def _sweep(self) -> None:
        self._verdicts.sweep()
        self._swept = time.monotonic()

    def _do_without_room(self, error: Exception, block: float | None) -> None:
        """While Redis is full, what it forgot cannot be restored; still receive replies and pass verdicts."""
        if not self._is_full:
            log(WARNING, "%s; waiting until there is room", error)
        self._is_full = self._session.is_full = True
        try:
            self._sweep()
        except (RedisUnreachable, RedisForgot):
            return  # the next turn handles it
        with self._lock:
            self._changed.wait(block or 0.0)
