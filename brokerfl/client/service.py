"""The service: what becomes of a message between its turn and its published reply.

Owns the way from the worklist through executor and journal to the publisher. It must not know how messages are read, or
who holds the lease.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from logging import INFO

from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import Delivery, discard_message
from brokerfl.client.app import ClientAppCallable
from brokerfl.client.executor import Executor
from brokerfl.client.journal import Journal
from brokerfl.client.payloads import Payloads
from brokerfl.client.publisher import Publisher
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import RedisOutOfMemory, RedisUnreachable, UserConfig, log
from brokerfl.wire.frame import Fields


class Service:
    """Has messages executed with one ClientApp, and their replies published.

    Args:
        app: the ClientApp, or a function that takes its place.
        connection: the Redis in the middle.
        node_id: whose messages.
        node_config: given to every Context.
        journal: what the node must not forget.
        max_crashes: how often a message may kill the node before it is answered with Error 8.
        max_message: most bytes that a message may have.
        is_wanted: tells just before its execution whether a message is still to be executed.
        is_stopping: true gives up waiting for Redis.
        failed: called when the publisher's thread meets what it cannot wait out.

    Attributes:
        worklist: what was read and is not published.
        executor: executes it.
        payloads: fetches and uploads what is large of it.
        publisher: publishes it.
        pace: seconds that the last execution took; before the first one it counts as slow.
    """

    def __init__(
        self,
        app: ClientAppCallable,
        connection: Connection,
        node_id: int,
        node_config: UserConfig,
        journal: Journal,
        max_crashes: int,
        max_message: int,
        is_wanted: Callable[[Work], bool],
        is_stopping: Callable[[], bool],
        failed: Callable[[Exception], None],
    ) -> None:
        self._connection = connection
        self._node_id = node_id
        self._journal = journal
        self._is_wanted = is_wanted
        self._is_stopping = is_stopping
        self.pace = 1.0
        self.worklist = Worklist()
        self.publisher = Publisher(connection, node_id, self._settled, failed, is_stopping, journal.commit)
        self.payloads = Payloads(connection, node_id, is_stopping, max_message)
        self.executor = Executor(
            app, connection, node_id, node_config, journal, max_crashes, self.payloads, self.publisher.commit
        )

    def take_runs(self, frames: dict[int, bytes]) -> None:
        """Learn of new runs; drop what is queued for those that are over."""
        self.executor.take_runs(frames)
        self.worklist.keep_only(frames)

    def start_afresh(self, identity: bytes) -> bool:
        """From now on the messages come from another Redis data set.

        Args:
            identity: of the data set.

        Returns:
            Whether the journal knows other data sets, and not this one.

        Raises:
            JournalError: it cannot be opened.
        """
        self.worklist.clear()  # first: what a worker still executes is neither noted nor published
        self.publisher.clear()
        strange = self._journal.open(identity)
        self.executor.start_afresh()
        return strange

    def work(self, work: Work, worker: int = 0) -> None:
        """Execute one message that the worklist handed out, have its reply published, and release its run.

        Raises:
            RedisUnreachable, RedisOutOfMemory: it was put back, or its reply waits for the publisher's `flush`.
            JournalError: the node cannot go on.
        """
        judged = tuple(work.entries)
        try:
            reply = self._execute(work, worker)
        except (RedisUnreachable, RedisOutOfMemory):  # its entry is known, so a drain would not queue it again
            self.worklist.release(work, put_back=True)
            raise
        try:
            if reply is None:
                self._look_again(work, self.worklist.done(work, judged))
            else:
                self.publisher.put(work, reply, more=self.worklist.has_more(work))
        finally:
            self.worklist.release(work)

    def _execute(self, work: Work, worker: int) -> Fields | None:
        started = time.monotonic()
        if not self._is_wanted(work):
            if not self._journal.has_answered(work.run_id, work.message_id):  # while its entry was read once more
                log(INFO, "A message of run %s was cancelled before it was executed", work.run_id)
            return None
        reply = self.executor.execute(work, worker)
        self.pace = max(1e-6, time.monotonic() - started)
        return reply

    def _settled(self, work: Work, entries: tuple[str, ...], is_taken: bool) -> None:
        late = self.worklist.done(work, entries)
        if not is_taken:
            self._look_again(work, late)
            return
        for entry in late:
            with suppress(RedisUnreachable):  # then it stays pending, and the next drain finds it
                discard_message(self._connection, self._node_id, work.run_id, entry)

    def _look_again(self, work: Work, late: list[str]) -> None:
        """Redis forgot a message, and it was pushed again just when it was given up: that push is another matter."""
        for entry in () if work.is_lost else late:
            self.worklist.add(Delivery(work.run_id, entry, work.fields, is_old=True), work.message_id)
