"""The publisher: has what was executed noted in the journal, and puts the replies into the outboxes.

Owns what was executed and is not published yet, and that nothing is published before journal and audit file have it.
It must not know what a reply says, or how the journal notes it.

Group commit: while one publish is in flight, replies gather for the next, which is one transaction of the journal and
one of Redis. A worker with nothing else to do publishes at once, in its own thread; one with more work leaves it to the
publisher's thread, which waits a moment. So gathering hardly delays a reply, and never the last one. If the process is
killed before an execution is noted, the message is executed again, with the state as it was before.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import INFO

from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import discard_message
from brokerfl.broker.outbox import Outgoing, publish
from brokerfl.broker.room import Room
from brokerfl.client.audit import Receipt
from brokerfl.client.journal import Answer
from brokerfl.client.stop import Stop
from brokerfl.client.waiting import NoRoomError, WaitingRoom
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import RedisOutOfMemory, RedisUnreachable, log
from brokerfl.common.log_context import log_context
from brokerfl.common.logger import trace
from brokerfl.wire.frame import Fields, size_of

#: Seconds that a reply waits for others if its worker has more work: a tiny message takes about 0.1 ms to execute, and
#: publishing many costs little more than publishing one.
GATHER = 0.002

#: Most replies that gather: beyond that, no worker continues while Redis is full or unreachable.
MOST_GATHERED = 256


class Publisher:
    """Publishes the replies of one node.

    Args:
        connection: to Redis.
        node_id: the node.
        worklist: told what is published.
        stop: ends waiting for a full Redis; told of errors that the thread cannot wait out.
        note: notes answers in the journal, in one transaction.

    Attributes:
        node_id: as given.
        account: called with what the audit file has to have before replies are published; raises JournalError.
    """

    def __init__(
        self,
        connection: Connection,
        node_id: int,
        worklist: Worklist,
        stop: Stop,
        note: Callable[[Sequence[Answer]], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self.node_id = node_id
        self._worklist = worklist
        self._stop = stop
        self._waiting = WaitingRoom(connection, stop.is_set)
        self._note = note
        self.account: Callable[[Sequence[Receipt]], None] = lambda _: None
        # The first `_noted` of them are in the journal. Threads append; all else is under a lock.
        self._executed: list[tuple[Work, Fields]] = []
        self._noted = 0
        self._publishing, self._committing, self._starting = (threading.Lock() for _ in range(3))
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"publisher of node {node_id}", daemon=True)

    @property
    def is_full(self) -> bool:
        """Whether finished replies wait for room in a full Redis."""
        return self._waiting.is_full

    def put(self, work: Work, reply: Fields, more: bool) -> None:
        """Publish a reply: at once, or in the publisher's thread if there is ``more`` work and few have gathered.

        Raises:
            RedisUnreachable: it is unknown whether it was published; `flush` repeats it.
            JournalError: it cannot be noted.
        """
        self._executed.append((work, reply))
        if not more or len(self._executed) >= MOST_GATHERED:
            self.flush()
            return
        if work.answer is not None and work.answer.is_shared:
            self.commit()
        if self._thread.ident is None:
            self._start()
        self._wake.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread.ident is None:  # else another worker was faster
                self._thread.start()

    def commit(self) -> None:
        """Note everything that was executed in the journal.

        Raises:
            JournalError: it cannot be written.
        """
        with self._committing:
            batch = self._executed[self._noted :]
            self._note([work.answer for work, _ in batch if work.answer is not None and not work.is_lost])
            self._noted += len(batch)

    def flush(self) -> None:
        """Note and publish everything that was executed.

        Raises:
            RedisUnreachable, RedisOutOfMemory: what is not published is kept.
            JournalError: something cannot be noted; it is not published.
        """
        with self._publishing:
            while self._executed:
                self.commit()
                self._publish(self._executed[: self._noted])

    def _publish(self, noted: list[tuple[Work, Fields]]) -> None:
        batch = [(work, reply) for work, reply in noted if not work.is_lost]
        self.account([work.receipt for work, _ in batch if work.receipt is not None])
        outgoing = [Outgoing(work.run_id, tuple(work.entries), reply) for work, reply in batch]
        taken = self._publish_when_there_is_room(outgoing) if batch else []
        with self._committing:
            del self._executed[: len(noted)]
            self._noted -= len(noted)
        for (work, _), sent, is_published in zip(batch, outgoing, taken, strict=True):
            if is_published:
                trace("published", "Published the reply", run=work.run_id, message_id=work.message_id)
                self._remove_late(work, self._worklist.done(work, sent.inbox_entries))
            else:
                log(INFO, "Run %s is over; a late reply was dropped", work.run_id)
                self._worklist.give_up(work, sent.inbox_entries)

    def _remove_late(self, work: Work, entries: list[str]) -> None:
        for entry in entries:
            with suppress(RedisUnreachable):  # it stays pending, and the next drain finds it
                discard_message(self._connection, self.node_id, work.run_id, entry)

    def _publish_when_there_is_room(self, outgoing: Sequence[Outgoing]) -> list[bool]:
        """A full Redis exerts back-pressure: the reply waits here, and so does the next message."""
        with suppress(RedisOutOfMemory):
            return publish(self._connection, self.node_id, outgoing)
        wanted: dict[str, int] = {}
        for reply in outgoing:
            outbox = self._connection.keys.outbox(self.node_id, reply.run_id)
            wanted[outbox] = wanted.get(outbox, 0) + size_of(reply.fields)

        def again(_: Room) -> list[bool]:
            try:
                return publish(self._connection, self.node_id, outgoing)
            except RedisOutOfMemory as error:
                raise NoRoomError(str(error), sum(wanted.values())) from error

        return self._waiting.when_there_is_room(again, wanted)

    def _run(self) -> None:
        with log_context(node=self.node_id):
            self._publish_until_closed()

    def _publish_until_closed(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closed.wait(GATHER):
                return
            try:
                self._flush_through_outage()
            except Exception as error:
                self._stop.fail(error)
                return

    def _flush_through_outage(self) -> None:
        while not self._closed.is_set():
            try:
                return self.flush()
            except RedisUnreachable:
                self._connection.wait_until_up(float("inf"), lambda: self._closed.is_set() or self._stop.is_set())
                if self._stop.is_set():
                    return  # `close` makes the last attempt
            except RedisOutOfMemory:
                return  # only when the node is stopping

    def close(self) -> None:
        """Publish what is left, and end the thread.

        Raises:
            RedisUnreachable, RedisOutOfMemory: something could not be published.
        """
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def clear(self) -> None:
        """Drop what was executed: it belongs to another Redis."""
        with self._publishing, self._committing:
            self._executed.clear()
            self._noted = 0
