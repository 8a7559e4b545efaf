"""The session: one run's way to Redis, through outages.

Owns whether the run is over for this process, how long Redis may be unreachable, when to compare with it, and that a
transaction takes effect once even if its answer is lost. It must not know what a transaction does, or who waits for
replies.

Locks are taken in this order: `Pusher._pushing`, `Session.writing`, `Fence._lock`, `Book.changed`, `Blobs._counting`.
The last two are never held while a thread waits for Redis. Whoever collects (`wait`) holds none of them.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tenacity

from brokerfl.broker.fence import RedisForgot, Transaction
from brokerfl.broker.liveness import Liveness
from brokerfl.broker.patience import OutOfTime, holding, time_is_up
from brokerfl.broker.room import Room, room_for
from brokerfl.broker.transactions import Transactions
from brokerfl.common import OutageLimit, RedisOutOfMemory, RedisUnreachable, RunLost
from brokerfl.server.diary import Diary
from brokerfl.server.names import Names
from brokerfl.server.receive import Receiver
from brokerfl.server.reconcile import Reconciler

Answer = TypeVar("Answer")

#: Seconds a ServerApp waits while Redis is unreachable before it detaches.
OUTAGE_LIMIT = 600.0

#: Seconds that a push waits for room in a full Redis before it gives up, for each transaction and each window of an
#: upload: settled replies make room.
FULL_PATIENCE = 5.0

#: Most bytes a second that are sent in vain while Redis does not say whether they fit.
RATE = 1_000_000.0


class Session:
    """Reaches Redis for one run. Safe to share between threads.

    Args:
        transactions: the transactions of the run's owner.
        receiver: a comparison resets its cursors, and a transaction deletes what it dropped.
        liveness: a lost connection voids what it saw.
        reconciler: compares the run with Redis.
        outage_limit: seconds to wait while Redis is unreachable.

    Attributes:
        writing: held from before a transaction until its outcome is in the book, so that book and Redis are not
            compared in between.
        compared_at: local monotonic time of the last comparison.
        on_full: called when Redis is full.
        diary: notes what happens in the run.
        is_full: a thread waits because Redis has no room for what it writes.
        is_short: the heartbeat saw that Redis has no room for what its nodes will write.
        names: what nodes are called.
    """

    def __init__(
        self,
        transactions: Transactions,
        receiver: Receiver,
        liveness: Liveness,
        reconciler: Reconciler,
        outage_limit: float = OUTAGE_LIMIT,
    ) -> None:
        self.writing = threading.RLock()
        self.compared_at = 0.0
        self.on_full: Callable[[], None] = lambda: None
        self.is_full = self.is_short = False
        self.names = Names(transactions.owner.connection)
        self.transactions = transactions
        self.diary = Diary(transactions.owner)
        self._connection = transactions.owner.connection
        self._fence = transactions.owner.fence
        self._owner_key = self._connection.keys.owner(transactions.owner.run.run_id)
        self._receiver = receiver
        self._liveness = liveness
        self._reconciler = reconciler
        self._outage_limit = outage_limit
        self._losses = self._connection.losses
        self._is_stale = False
        self._down_since: float | None = None
        self._over: Exception | None = None

    # Whether the run is over.

    def end(self, reason: Exception) -> None:
        """The run is over for this process: from now on everything raises ``reason``. The first call counts."""
        if self._over is None:
            self._over = reason

    @property
    def is_over(self) -> bool:
        """Whether the run is over for this process."""
        return self._over is not None

    def check(self) -> None:
        """Raise the reason if the run is over for this process."""
        if self._over is not None:
            raise self._over

    # Outages.

    @property
    def is_stale(self) -> bool:
        """Whether Redis may have forgotten something since the last comparison."""
        return self._is_stale or self._connection.losses != self._losses

    @property
    def down_since(self) -> float | None:
        """Local monotonic time since which Redis has been unreachable; None while it answers."""
        return self._down_since

    def distrust(self) -> None:
        """Compare before doing anything else: Redis has forgotten something."""
        self._is_stale = True

    def is_up(self, *, wrote: bool = False) -> None:
        """Redis answered: an outage, if there was one, is over."""
        self._down_since = None
        self._connection.note_up(wrote=wrote)

    def reconnect(self, error: Exception) -> None:
        """Wait until Redis answers again, or until this thread's time is up.

        Raises:
            OutageLimit: Redis was unreachable for too long.
            RunError: the run is over for this process.
        """
        self.check()
        if isinstance(error, OutOfTime):
            return
        self._is_stale = True
        now = time.monotonic()
        self._down_since = self._down_since or now
        limit = self._down_since + self._outage_limit
        answers = now < limit and self._connection.wait_until_up(limit, lambda: self.is_over, error)
        self.check()  # before Redis is asked again
        if not answers and time.monotonic() >= limit:
            raise OutageLimit(f"Redis was unreachable for more than {self._outage_limit:g} s: {error}") from error

    def through_outage(self, ask: Callable[[], Answer]) -> Answer:
        """Return what ``ask`` returns, asking again after an outage.

        Raises:
            OutageLimit: Redis was unreachable for too long.
            RedisUnreachable: it still was when this thread's time was up.
        """
        while True:
            try:
                answer = ask()
                self.is_up()
                return answer
            except RedisForgot:
                self.distrust()
            except RedisUnreachable as error:
                self.reconnect(error)
                if time_is_up():
                    raise

    def with_room(self, action: Callable[[], Answer], wanted: Mapping[str, int] | None = None) -> Answer:
        """Return what ``action`` returns, repeating it while Redis is full: what this run or others settle makes room.

        Once it was refused, it is repeated only when there seems to be room: what it sends may be large. Call it
        without holding `writing`, so that other threads can settle in the meantime.

        Args:
            action: writes.
            wanted: how many bytes, as for `room_for`; by default hardly any.

        Raises:
            RedisOutOfMemory: there was no room for `FULL_PATIENCE` seconds.
        """
        try:
            return action()
        except RedisOutOfMemory as error:
            self.on_full()
            try:
                self.is_full = True
                return self._when_there_is_room(action, wanted or {self._owner_key: 0}, error)
            finally:
                self.is_full = False

    def _when_there_is_room(
        self, action: Callable[[], Answer], wanted: Mapping[str, int], refusal: RedisOutOfMemory
    ) -> Answer:
        tried_at = time.monotonic()

        def again() -> Answer:
            nonlocal tried_at
            self.through_outage(lambda: self._receiver.read(()))  # delete what is settled
            room = self.through_outage(lambda: room_for(self._connection, wanted))
            is_early = time.monotonic() - tried_at < sum(wanted.values()) / RATE
            if room is Room.NONE or (room is Room.PERHAPS and is_early):
                raise refusal
            tried_at = time.monotonic()
            return action()

        retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
            stop=tenacity.stop_after_delay(FULL_PATIENCE),
            retry=tenacity.retry_if_exception_type(RedisOutOfMemory),
            sleep=time.sleep,
            reraise=True,
        )
        try:
            return retrying(again)
        except RedisOutOfMemory as error:
            kept = self._receiver.unsettled()
            if not kept:
                raise
            raise RedisOutOfMemory(
                f"{error}; {kept} replies that were handed over stay in Redis until the run moves on: "
                "push the next group in smaller parts, or call driver.checkpoint() first"
            ) from error

    # Comparing.

    def reconcile(self, *, always: bool = False) -> None:
        """Compare with Redis if a connection was lost since the last comparison, or if ``always``.

        A connection that redis-py repaired counts as lost, too.

        Raises:
            RunStopped, RunFenced, RunLost: the run is over for this process.
            RedisForgot, RedisUnreachable, RedisOutOfMemory: try again.
        """
        with self.writing:
            if not self.is_stale and not always:
                return
            losses = self._connection.losses
            self._is_stale = True
            self._receiver.reset()
            self._liveness.reconnected()
            self.compared_at = time.monotonic()
            self._reconciler.restore()
            self._reconciler.compare()
            self._losses, self._is_stale = losses, False
            self._connection.note_up()

    def reconcile_in_time(self, patience: float) -> bool:
        """Like `reconcile`, but wait ``patience`` seconds for another writer; return whether book and Redis agree."""
        if not self.is_stale:
            return True
        try:
            holding(self.writing, self.reconcile, patience)
            return True
        except OutOfTime:
            return False

    def when_quiet(self, action: Callable[[], None]) -> None:
        """Call ``action`` if no thread is writing or comparing, and no comparison is due."""
        if self.writing.acquire(blocking=False):
            try:
                if not self.is_stale:
                    action()
            finally:
                self.writing.release()

    def take_up(self) -> None:
        """Compare a resumed run with Redis. Nothing is restored, because this process remembers nothing."""
        try:
            with self.writing:
                self._reconciler.compare()
        except (RedisUnreachable, RedisOutOfMemory, RedisForgot):
            self.distrust()  # tried again before anything else

    # Writing.

    def transact(
        self,
        make: Callable[[], Transaction],
        was_executed: Callable[[], bool] = lambda: False,
        *,
        frees: bool = False,
        instead: Callable[[], Transaction] | None = None,
    ) -> list[Any] | None:
        """Run a fenced transaction, through an outage if necessary; delete dropped replies in the same transaction.

        Args:
            make: makes it. Called before each attempt, after a comparison with Redis.
            was_executed: after an outage, says whether the transaction took effect before the connection broke.
            frees: it only deletes.
            instead: makes what is repeated after an outage instead of a comparison, which would write again what was
                deleted at the end of the run.

        Returns:
            The results that the transaction asks for, or None if it was executed but its results are lost.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over for this process.
            RedisOutOfMemory: Redis is full; nothing was written.
            RedisUnreachable: this thread's time was up; unknown whether it was written.
        """
        dropped, is_uncertain = self._receiver.dropped(), False
        try:
            with self.writing:
                while True:
                    try:
                        # Ask before the comparison, which writes the books as they were before this transaction.
                        if is_uncertain and self._has_taken_effect(was_executed):
                            return None
                        self._repeat(instead) if instead else self._reconcile_unless_full(frees)
                        transaction = self.transactions.dropping(dropped, make())
                        is_uncertain = True
                        results = self._fence.execute(transaction)
                        self.is_up(wrote=True)
                        return results
                    except RedisForgot:
                        self.distrust()
                        is_uncertain = False
                    except RedisUnreachable as error:
                        self.reconnect(error)
                        if time_is_up():
                            raise
        except BaseException:
            self._receiver.drop(dropped)
            raise

    def _reconcile_unless_full(self, frees: bool) -> None:
        """A transaction that only deletes need not wait until there is room for what Redis forgot: it makes room."""
        try:
            self.reconcile()
        except RedisOutOfMemory:
            if not frees:
                raise

    def _repeat(self, make: Callable[[], Transaction]) -> None:
        """Repeat a transaction that Redis may have forgotten."""
        if self.is_stale:
            losses = self._connection.losses
            self._reconciler.identify()
            self._fence.execute(make(), reclaims=True)
            self._losses, self._is_stale = losses, False

    def _has_taken_effect(self, was_executed: Callable[[], bool]) -> bool:
        """Return whether a transaction took effect although its answer was lost; from then on it no longer can."""
        try:
            self._fence.seal()
        except RunLost:  # this transaction may have ended the run
            if was_executed():
                return True
            raise
        return was_executed()
