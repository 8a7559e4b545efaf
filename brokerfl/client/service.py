"""The service: what happens to a message between its turn and its published reply.

Owns the path from the worklist through the executor to the publisher, and the order in which these drop what belongs
to another Redis. It must not know how messages are read, or who holds the lease.
"""

import time
from dataclasses import replace
from logging import INFO

from brokerfl.broker.clock import Clock
from brokerfl.client.executor import Executor, LackingContent
from brokerfl.client.gate import Withheld
from brokerfl.client.publisher import Publisher
from brokerfl.client.runner import InterruptedExecution
from brokerfl.client.site import Site
from brokerfl.client.wanted import Wanted
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import RedisOutOfMemory, RedisUnreachable, log
from brokerfl.common.log_context import log_context
from brokerfl.common.logger import trace
from brokerfl.wire.frame import Fields
from brokerfl.wire.status import NodeStatus


class Service:
    """Has messages executed, and their replies published.

    Args:
        worklist: what was received and is not published yet.
        executor: executes it.
        publisher: publishes it.
        wanted: says, just before its execution, whether a message is still wanted.
        site: what the site decides.

    Attributes:
        executor, publisher, site: as given.
        pace: seconds that the last execution took; slow before the first one.
    """

    def __init__(
        self, worklist: Worklist, executor: Executor, publisher: Publisher, wanted: Wanted, site: Site
    ) -> None:
        self.pace = 1.0
        self._worklist = worklist
        self.executor = executor
        self.publisher = publisher
        self.site = site
        self._wanted = wanted

    @property
    def is_full(self) -> bool:
        """Whether a reply waits for room in a full Redis."""
        return self.executor.is_full or self.publisher.is_full

    def status(self, clock: Clock) -> NodeStatus:
        """Return what the node says of itself; ``clock`` is what is known of Redis' clock."""
        disk, paused = self.executor.free_disk(), self._worklist.is_paused
        status = self.executor.activity.status(
            clock, self._worklist.queued, disk, is_paused=paused, is_full=self.is_full
        )
        aside = self.executor.aside
        held = self.site.held()
        status = replace(status, withheld=len(held), withheld_runs=tuple(held)) if held else status
        return replace(status, dead=aside.count, latest_dead=aside.latest)

    def keep_only(self, frames: dict[int, bytes]) -> None:
        """Serve these runs: add new ones, and drop what is queued for those that are over."""
        self.executor.keep_only(frames)
        self._worklist.keep_only(frames)

    def start_afresh(self, identity: bytes) -> bool:
        """Serve another Redis data set from now on. Arguments, result and errors are those of the executor."""
        self._worklist.clear()  # first: what a worker still executes is neither noted nor published
        self.publisher.clear()
        return self.executor.start_afresh(identity)

    def work(self, work: Work, worker: int = 0) -> None:
        """Execute one message that the worklist handed out, have its reply published, and release its run.

        Raises:
            RedisUnreachable, RedisOutOfMemory: it was put back, or its reply waits for the publisher's `flush`.
            JournalError: the node cannot continue.
        """
        with log_context(run=work.run_id, node=self.publisher.node_id, message=work.message_id):
            judged = tuple(work.entries)
            try:
                reply = self._execute(work, worker)
            except (RedisUnreachable, RedisOutOfMemory) as error:  # its entry is known: no drain would queue it again
                trace("waiting", "Waits for Redis: %s", error)
                self._worklist.release(work, put_back=True)
                raise
            except InterruptedExecution:  # a named node executes it when it is started again
                self._worklist.release(work, put_back=True)
                return
            except LackingContent as error:
                self._lack(work, error)
                return
            except Withheld as error:
                trace("withheld", "Waits at the gate of this site: %s", error)
                self._worklist.park(work)
                if not self.site.holds(work.run_id):  # it was let in just now
                    self.site.wake()
                return
            try:
                if reply is None:
                    self._worklist.give_up(work, judged)
                else:
                    self.publisher.put(work, reply, more=self._worklist.has_more(work))
            finally:
                self._worklist.release(work)

    def _lack(self, work: Work, error: LackingContent) -> None:
        """Leave a message in its inbox until its run, which hears of it, has written its content again and rings."""
        log(INFO, "A message of run %s waits for its content: %s", work.run_id, error)
        try:
            self._wanted.lack(work)
        finally:
            self._worklist.forget(work)
            self._worklist.release(work)

    def _execute(self, work: Work, worker: int) -> Fields | None:
        started = time.monotonic()
        if not self._wanted.was_wanted(work):
            if not self.executor.has_answered(work):  # it was answered while its entry was read again
                log(INFO, "A message of run %s was cancelled before it was executed", work.run_id)
            return None
        try:
            reply = self.executor.execute(work, worker, self.publisher.commit)
        finally:
            self.executor.activity.end(worker)
        self.pace = max(1e-6, time.monotonic() - started)
        return reply
