"""The collector: brings replies and verdicts into the ledger, and lets any number of threads wait for them.

Owns waiting, sweeps and reconnects of a ServerApp. It must not know the Message classes or how a push is made.

One thread at a time collects for all: the first that waits blocks on the bell, the others wait for it. So an app with
one thread pays for no hand-over between threads, and one with many opens no more connections.
"""

import threading
import time
from collections.abc import Callable, Iterable
from logging import DEBUG, WARNING
from typing import Any, TypeVar

from brokerfl.broker.connection import Connection, Pipeline
from brokerfl.broker.fence import Fence, Forgotten
from brokerfl.broker.inbox import remove_message, ring
from brokerfl.broker.ledger import Ledger, OpenMessage
from brokerfl.broker.nodes import absent_nodes
from brokerfl.broker.outbox import Outboxes, Settled, remove_replies
from brokerfl.common import Error, ErrorCode, OutageLimit, RedisOutOfMemory, RedisUnreachable, RunError, log
from brokerfl.server.liveness import Liveness
from brokerfl.server.reconcile import Reconciler
from brokerfl.wire.frame import data_entry_of
from brokerfl.wire.message import message_id_of

Answer = TypeVar("Answer")

#: Seconds between two sweeps while somebody waits: they catch lost rings, lapsed leases and expired messages.
SWEEP = 1.0

#: Seconds a ServerApp waits for a Redis that is away before it detaches.
OUTAGE_LIMIT = 600.0


class Collector:
    """Waits for the replies of one run.

    Attributes:
        ledger: the run's messages; touch it only while holding `lock`.
        lock: the ledger's.
        writing: held from the start of a transaction until the ledger says what became of it: nobody may compare the
            ledger with Redis in between. Taken before `lock`.
    """

    def __init__(
        self,
        connection: Connection,
        run_id: int,
        fence: Fence,
        ledger: Ledger,
        liveness: Liveness,
        reconciler: Reconciler,
        outage_limit: float = OUTAGE_LIMIT,
        contacted: Iterable[int] = (),
    ) -> None:
        self.ledger = ledger
        self.lock = ledger.lock
        self.writing = threading.RLock()
        self._connection = connection
        self._run_id = run_id
        self._fence = fence
        self._liveness = liveness
        self._reconciler = reconciler
        self._outage_limit = outage_limit
        self._outboxes = Outboxes(connection, run_id)
        self._contacted = set(contacted)
        self._losses = connection.losses
        self._is_stale = False
        self._is_full = False
        self._was_cut = False
        self._collecting = False
        self._swept = time.monotonic()
        self._down_since: float | None = None
        self._over: Exception | None = None
        self._settled: list[Settled] = []
        self._dropped: list[Settled] = []

    # Who is part of the run, and whether it goes on.

    def contact(self, node_ids: Iterable[int]) -> None:
        """These nodes are about to hold keys of this run; called before they do, lest a first ring is passed over."""
        self._contacted.update(node_ids)

    @property
    def contacted(self) -> set[int]:
        """The nodes that hold keys of this run."""
        return set(self._contacted)

    def end(self, reason: Exception) -> None:
        """The run is over for this process: every wait, now and later, raises ``reason``."""
        with self.lock:
            if self._over is None:
                self._over = reason
            self.lock.notify_all()

    @property
    def is_over(self) -> bool:
        """Whether the run is over for this process."""
        return self._over is not None

    def check(self) -> None:
        """Raise what `end` was told, if it was."""
        if self._over is not None:
            raise self._over

    # Waiting.

    def next(self, message_ids: set[str], until: float | None) -> OpenMessage | None:
        """Take the first reply to one of ``message_ids``; wait for it until the local monotonic time ``until``.

        Removes from ``message_ids`` what can no longer be answered because another call took it.

        Returns:
            None when none is left to wait for, or at ``until``.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over for this process.
        """
        taken = -1
        with self.lock:
            while True:
                message = self.ledger.take(message_ids)
                if message is not None:
                    message_ids.discard(message.message_id)
                    return message
                self.check()
                if self.ledger.taken != taken:  # another call may have taken what this one waits for
                    taken = self.ledger.taken
                    message_ids.intersection_update([i for i in message_ids if self.ledger.waits(i)])
                left = SWEEP if until is None else until - time.monotonic()
                if not message_ids or left <= 0:
                    return None
                self._wait(min(left, SWEEP), until)

    def _wait(self, seconds: float, until: float | None) -> None:
        """Wait for a change, as the collector if there is none. Called and left with the lock held."""
        if self._collecting:
            self.lock.wait(seconds)
        else:
            self._lead(lambda: self._collect(seconds, until))

    def poll(self) -> None:
        """Take in what is there now, without waiting. Does nothing while another thread collects."""
        with self.lock:
            self.check()
            if not self._collecting:
                self._lead(lambda: self._collect(None, time.monotonic()))

    def _lead(self, collect: Callable[[], None]) -> None:
        self._collecting = True
        try:
            self.lock.release()
            try:
                collect()
            except (RunError, OutageLimit) as error:
                self._over = self._over or error
                raise
            finally:
                self.lock.acquire()
        finally:
            self._collecting = False
            self.lock.notify_all()

    # Collecting; one thread at a time, without the lock.

    def _collect(self, block: float | None, until: float | None) -> None:
        try:
            if not self._reconcile_in_time(block):
                return
            rung = self._outboxes.wait(block)
            if rung is None or time.monotonic() - self._swept >= SWEEP:
                self._sweep()
            else:
                self._read(rung & self._contacted)
            self._down_since = None
        except Forgotten:
            self._is_stale = True
        except RedisOutOfMemory as error:
            self._wait_for_room(error, block)
        except RedisUnreachable as error:
            self._reconnect(error, until)

    def _reconcile_in_time(self, block: float | None) -> bool:
        """Compare with Redis if there is a reason; not while another thread repeats a transaction for minutes."""
        if self._connection.losses == self._losses and not self._is_stale:
            return True
        if not self.writing.acquire(timeout=block or 0.0):
            return False
        try:
            self.reconcile()
            return True
        finally:
            self.writing.release()

    def _wait_for_room(self, error: Exception, block: float | None) -> None:
        """What Redis forgot cannot be written again as long as it is full."""
        if not self._is_full:
            log(WARNING, "%s; waiting until there is room", error)
        self._is_full = True
        with self.lock:
            self.lock.wait(block or 0.0)

    def _read(self, node_ids: set[int]) -> None:
        with self.lock:
            settled, self._settled = self._settled, []
        if not node_ids and not settled:
            return
        replies = self._outboxes.read(node_ids, settled)
        with self.lock:
            for node, entry_id, fields in replies:
                self._match(node, entry_id, fields)

    def _match(self, node: int, entry_id: str, fields: dict[bytes, bytes]) -> None:
        if not self.ledger.answer(node, entry_id, message_id_of(fields), fields):  # type: ignore[arg-type]
            data_entry, message = data_entry_of(fields), self.ledger.find(message_id_of(fields))
            if message is not None and message.data_entry == data_entry and message.node_id == node:
                data_entry = ""  # a second copy of the reply that counts: the payload is still needed
            self._dropped.append((node, entry_id, data_entry))
            log(DEBUG, "Dropped a reply of node %s that fits no open message", node)

    def _sweep(self) -> None:
        """Look at everything that no ring tells of."""
        self._fence.look()
        with self.lock:
            owing = self.ledger.open_nodes()
        absences = absent_nodes(self._connection, owing)
        self._read(set(owing))
        gone = self._liveness.unavailable(absences)
        now = self._connection.time() * 1000
        with self.lock:
            failed = [
                (message, _verdict(message, now))
                for message in self.ledger.awaited()
                if message.entry.deadline <= now
                or (message.node_id in gone and not message.entry.waits)
                or (message.is_lost and message.fields is None)
            ]
        if failed:
            self.fail(failed)
        self._swept = time.monotonic()

    def fail(self, failed: list[tuple[OpenMessage, Error]]) -> None:
        """Take the messages back from the inboxes, then look into the outboxes once more: a reply there wins.

        Raises:
            RunStopped, RunFenced, Forgotten, RedisUnreachable: not all of it may have happened; it can be repeated.
        """
        nodes = list(dict.fromkeys(message.node_id for message, _ in failed))

        def build(pipe: Pipeline) -> None:
            for message, _ in failed:
                take_back(pipe, self._connection, self._run_id, message)
            for node in nodes:
                ring(pipe, self._connection.keys, node)
            for node in nodes:
                self._outboxes.read_more(pipe, node)

        results = self._fence.execute(build, frees=True)
        with self.lock:
            for node, found in zip(nodes, results[-len(nodes) :], strict=True):
                for entry_id, fields in found if isinstance(found, list) else ():
                    self._outboxes.advance(node, entry_id.decode())
                    self._match(node, entry_id.decode(), fields)
            for message, error in failed:
                self.ledger.fail(message.message_id, error)
            self.lock.notify_all()

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Answer open messages with Error 3 and take them back.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
        """
        self.check()
        with self.lock:
            wanted = set(message_ids)
            failed = [
                (message, Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message was cancelled"))
                for message in self.ledger.awaited()
                if message.message_id in wanted
            ]
        if failed:
            self.through_outage(lambda: self._fail_reconciled(failed))

    def _fail_reconciled(self, failed: list[tuple[OpenMessage, Error]]) -> None:
        try:
            self.reconcile()
            self.fail(failed)
        except Forgotten:
            self._is_stale = True
            self._fail_reconciled(failed)

    def _reconnect(self, error: Exception, until: float | None) -> None:
        self._is_stale = self._was_cut = True
        self.check()
        now = time.monotonic()
        self._down_since = self._down_since or now
        limit = self._down_since + self._outage_limit
        is_up = now < limit and self._connection.wait_until_up(
            limit if until is None else min(limit, until), lambda: self._over is not None
        )
        if not is_up and time.monotonic() >= limit:
            raise OutageLimit(f"Redis was away for more than {self._outage_limit:g} s: {error}") from error

    def reconcile(self, *, always: bool = False) -> None:
        """Compare with Redis if a connection was lost since the last time, even one that redis-py mended unseen.

        Args:
            always: also when there seems to be no reason.

        Raises:
            RunStopped, RunFenced, RunLost: the run is over for this process.
            Forgotten, RedisUnreachable, RedisOutOfMemory: to be repeated.
        """
        with self.writing:
            losses = self._connection.losses
            if losses == self._losses and not self._is_stale and not always:
                return
            self._is_stale = True
            self._outboxes.reset()
            self._liveness.reconnected()
            self._swept = 0.0
            self._reconciler.restore(self._contacted, was_cut=self._was_cut or losses != self._losses)
            self._reconciler.compare(self._contacted, self._read)
            self._losses, self._was_cut, self._is_stale, self._is_full = losses, False, False, False

    def take_up(self) -> None:
        """A resumed run: see what is there. Nothing is written, for this process remembers nothing.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over for this process.
        """
        try:
            with self.writing:
                self._reconciler.compare(self._contacted, self._read)
        except (RedisUnreachable, RedisOutOfMemory, Forgotten):
            self._is_stale = True  # done again before anything else is

    def through_outage(self, ask: Callable[[], Answer]) -> Answer:
        """Return what ``ask`` returns, asking again after an outage.

        Raises:
            OutageLimit: Redis was away too long.
        """
        while True:
            try:
                answer = ask()
                self._down_since = None
                return answer
            except RedisUnreachable as error:
                self._reconnect(error, None)

    # Writing.

    def transact(
        self, build: Callable[[Pipeline], None], executed: Callable[[], bool], *, frees: bool = False
    ) -> list[Any] | None:
        """Run a fenced transaction, through an outage if need be; take out what was dropped in the same one.

        Args:
            build: puts the commands into the MULTI.
            executed: asked after an outage whether it had been executed before the connection broke.
            frees: the commands only delete; see `Fence.execute`.

        Returns:
            The results of ``build``'s commands, or None when it was executed but its results are lost.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over for this process.
            RedisOutOfMemory: Redis is full; nothing was written.
        """
        count, uncertain = 0, False
        with self.lock:
            dropped, self._dropped = self._dropped, []

        def with_dropped(pipe: Pipeline) -> None:
            nonlocal count
            build(pipe)
            count = len(pipe)
            remove_replies(pipe, self._connection, self._run_id, dropped)

        with self.writing:
            while True:
                try:
                    # Before the comparison, which writes the ledger as it was before this transaction.
                    if uncertain and self._was_executed(executed):
                        return None
                    self.reconcile()
                    uncertain = True
                    results = self._fence.execute(with_dropped, frees=frees)[:count]
                    self._down_since = None
                    return results
                except Forgotten:
                    self._is_stale, uncertain = True, False
                except RedisUnreachable as error:
                    self._reconnect(error, None)
                except RedisOutOfMemory:
                    with self.lock:
                        self._dropped += dropped
                    raise

    def _was_executed(self, executed: Callable[[], bool]) -> bool:
        """Return whether a transaction took effect whose answer was lost; afterwards it cannot any more."""
        try:
            self._fence.seal()
        except Forgotten:  # it may have been the one that ended the run
            if executed():
                return True
            raise
        return executed()

    def reopen(self, message: OpenMessage) -> bool:
        """The payload of a reply is missing: drop it, if its message can be pushed again."""
        with self.lock:
            outbox_entry = message.outbox_entry
            if not self.ledger.reopen(message):
                return False
            self._dropped.append((message.node_id, outbox_entry, ""))
            return True

    def forget(self, settled: list[OpenMessage]) -> None:
        """A commit took these out of the ledger: their outbox entries go with the next look at the outboxes."""
        with self.lock:
            self.ledger.remove(settled)
            self._settled += [
                (message.node_id, message.outbox_entry, message.data_entry)
                for message in settled
                if message.outbox_entry
            ]


def take_back(pipe: Pipeline, connection: Connection, run_id: int, message: OpenMessage) -> None:
    """Put into ``pipe`` that a message is not to be executed any more."""
    if message.inbox_entries:
        remove_message(pipe, connection.keys, message.node_id, run_id, *message.inbox_entries)


def _verdict(message: OpenMessage, now: float) -> Error:
    if message.entry.deadline <= now:
        return Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message expired before a reply came")
    if message.is_lost and message.fields is None:
        reason = "Redis lost the message, and the resumed ServerApp did not push it again"
        return Error(ErrorCode.MESSAGE_UNAVAILABLE, reason)
    return Error(ErrorCode.NODE_UNAVAILABLE, f"node {message.node_id} is unavailable: its lease lapsed")
