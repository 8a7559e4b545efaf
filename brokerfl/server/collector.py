"""The collector: lets any number of threads wait for replies, and passes the verdicts where none will come.

Owns waiting and sweeps. It must not know the Message classes, how a push is made, or how an outage is waited out.

One thread at a time collects for all: the first that waits blocks on the bell, the others wait for it. So an app with
one thread pays for no hand-over between threads, and one with many opens no more connections.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import WARNING

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.connection import Connection, Pipeline
from brokerfl.broker.fence import Fence, Forgotten
from brokerfl.broker.inbox import ring
from brokerfl.broker.ledger import Ledger, OpenMessage
from brokerfl.broker.nodes import absent_nodes
from brokerfl.common import Error, ErrorCode, OutageLimit, RedisOutOfMemory, RedisUnreachable, RunError, log
from brokerfl.server.delivery import take_back
from brokerfl.server.intake import Intake
from brokerfl.server.link import Link
from brokerfl.server.liveness import Liveness

#: Seconds between two sweeps while somebody waits: they catch lost rings, lapsed leases and expired messages.
SWEEP = 1.0


@dataclass
class Wanted:
    """The messages whose replies one iterator waits for. ``seen``: how many takes of the ledger it has considered."""

    ids: set[str]
    seen: int = -1


class Collector:
    """Waits for the replies of one run.

    Args:
        connection: where the run lives.
        run_id: the run.
        fence: this ServerApp's right to write.
        ledger: the run's messages.
        intake: reads the outboxes.
        link: through which Redis is reached.
        liveness: judges which nodes are gone.
        blobs: what the run has broadcast.
    """

    def __init__(
        self,
        connection: Connection,
        run_id: int,
        fence: Fence,
        ledger: Ledger,
        intake: Intake,
        link: Link,
        liveness: Liveness,
        blobs: Blobs,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._fence = fence
        self._ledger = ledger
        self._lock = ledger.lock
        self._intake = intake
        self._link = link
        self._liveness = liveness
        self._blobs = blobs
        self._collecting = False
        self._is_full = False
        self._swept = time.monotonic()

    def end(self, reason: Exception) -> None:
        """The run is over for this process: every wait, now and later, raises ``reason``."""
        self._link.end(reason)
        with self._lock:
            self._lock.notify_all()

    # Waiting.

    def next(self, wanted: Wanted, until: float | None) -> OpenMessage | None:
        """Take the first reply to a message that is wanted; wait for it until the local monotonic time ``until``.

        Removes from ``wanted`` what was found, and what another call took.

        Returns:
            None when none is left to wait for, or at ``until``.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over for this process.
        """
        with self._lock:
            while True:
                message = self._ledger.take(wanted.ids)
                if message is not None:
                    wanted.ids.discard(message.message_id)
                    wanted.seen += wanted.seen == self._ledger.taken - 1
                    return message
                self._link.check()
                if wanted.seen != self._ledger.taken:  # another call may have taken what this one waits for
                    wanted.seen = self._ledger.taken
                    wanted.ids.intersection_update([i for i in wanted.ids if self._ledger.waits(i)])
                left = SWEEP if until is None else until - time.monotonic()
                if not wanted.ids or left <= 0:
                    return None
                self._wait(min(left, SWEEP), until)

    def _wait(self, seconds: float, until: float | None) -> None:
        """Wait for a change, as the collector if there is none. Called and left with the lock held."""
        if self._collecting:
            self._lock.wait(seconds)
        else:
            self._lead(lambda: self._collect(seconds, until))

    def poll(self) -> None:
        """Take in what is there now, without waiting. Does nothing while another thread collects."""
        with self._lock:
            self._link.check()
            if not self._collecting:
                self._lead(lambda: self._collect(None, time.monotonic()))

    def _lead(self, collect: Callable[[], None]) -> None:
        self._collecting = True
        try:
            self._lock.release()
            try:
                collect()
            except (RunError, OutageLimit) as error:
                self._link.end(error)
                raise
            finally:
                self._lock.acquire()
        finally:
            self._collecting = False
            self._lock.notify_all()

    # Collecting; one thread at a time, without the lock.

    def _collect(self, block: float | None, until: float | None) -> None:
        try:
            if not self._link.reconcile_in_time(block or 0.0):
                return
            rung = self._intake.wait(block)
            is_due = time.monotonic() - self._swept >= SWEEP or self._link.compared_at > self._swept
            if rung is None or is_due:
                self._sweep()
            else:
                self._intake.read(rung & self._ledger.contacted)
            self._link.is_up()
            self._is_full = False
        except Forgotten:
            self._link.distrust()
        except RedisOutOfMemory as error:
            self._do_without_room(error, block)
        except RedisUnreachable as error:
            self._link.reconnect(error, until)

    def _do_without_room(self, error: Exception, block: float | None) -> None:
        """What Redis forgot cannot be written again as long as it is full; replies come and verdicts are passed."""
        if not self._is_full:
            log(WARNING, "%s; waiting until there is room", error)
        self._is_full = True
        try:
            self._sweep()
        except (RedisUnreachable, Forgotten):
            return  # the next turn sees to it
        with self._lock:
            self._lock.wait(block or 0.0)

    def _sweep(self) -> None:
        """Look at everything that no ring tells of."""
        self._fence.look()
        with self._lock:
            owing = self._ledger.open_nodes()
        absences = absent_nodes(self._connection, owing)
        self._intake.read(owing)
        gone = self._liveness.unavailable(absences)
        now = self._connection.time() * 1000
        with self._lock:
            failed = [
                (message, verdict)
                for message in self._ledger.awaited()
                if (verdict := _verdict(message, now, gone)) is not None
            ]
        if failed:
            self._fail(failed)
        self._link.when_quiet(self._blobs.release)
        self._swept = time.monotonic()

    def _fail(self, failed: list[tuple[OpenMessage, Error]]) -> None:
        """Take the messages back from the inboxes, then look into the outboxes once more: a reply there wins."""
        nodes = list(dict.fromkeys(message.node_id for message, _ in failed))

        def build(pipe: Pipeline) -> None:
            for message, _ in failed:
                take_back(pipe, self._connection, self._run_id, message)
            for node in nodes:
                ring(pipe, self._connection.keys, node)
            self._intake.read_more(pipe, nodes)

        results = self._fence.execute(build, frees=True)
        with self._lock:
            self._intake.take_more(nodes, results[-len(nodes) :])
            for message, error in failed:
                self._ledger.fail(message.message_id, error)
            self._lock.notify_all()

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Answer open messages with Error 3 and take them back.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
            RedisOutOfMemory: Redis is full and forgot something that has to be written first.
        """
        self._link.check()
        wanted = set(message_ids)

        def fail() -> None:
            self._link.reconcile()
            with self._lock:
                open_ones = [message for message in self._ledger.awaited() if message.message_id in wanted]
            if open_ones:
                reason = Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message was cancelled")
                self._fail([(message, reason) for message in open_ones])

        self._link.through_outage(fail)


def _verdict(message: OpenMessage, now: float, gone: set[int]) -> Error | None:
    """Return why no reply will come; None while one may."""
    if message.entry.deadline <= now:
        return Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message expired before a reply came")
    if message.is_lost and message.fields is None:
        reason = "Redis lost the message, and the resumed ServerApp did not push it again"
        return Error(ErrorCode.MESSAGE_UNAVAILABLE, reason)
    if message.node_id in gone and not message.entry.waits:
        return Error(ErrorCode.NODE_UNAVAILABLE, f"node {message.node_id} is unavailable: its lease lapsed")
    return None
