"""The commit: one fenced transaction in which new messages enter a run's books and settled ones leave them.

Owns what belongs into that transaction, and what is noted when it was executed. It must not know how messages are made,
or how replies are waited for.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from logging import INFO
from typing import Any, TypeVar

import tenacity

from brokerfl.broker.attachment import Attachment
from brokerfl.broker.blobs import Blobs
from brokerfl.broker.connection import Connection, Pipeline
from brokerfl.broker.failure import map_errors
from brokerfl.broker.inbox import ring
from brokerfl.broker.keys import milliseconds
from brokerfl.broker.ledger import Ledger, OpenMessage
from brokerfl.broker.outbox import trim_data
from brokerfl.broker.saved import SavedContext
from brokerfl.common import Context, Error, ErrorCode, RedisOutOfMemory, log
from brokerfl.server.delivery import Delivery, take_back
from brokerfl.server.intake import Intake
from brokerfl.server.link import Link
from brokerfl.server.upload import Uploader
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.record import encode_content

Answer = TypeVar("Answer")

#: Seconds that a push waits for room in a full Redis, for each transaction and each window of an upload, before it
#: gives up: nodes' replies that are settled make some.
FULL_PATIENCE = 5.0


@dataclass
class Change:
    """What a transaction does to the books.

    Attributes:
        pushed: messages that enter, or are sent once more.
        settled: messages whose replies the app has: they leave.
        cancelled: messages that nobody adopted: they leave.
        state: the ServerApp's, where it is another one than the last commit saved.
    """

    pushed: list[OpenMessage] = field(default_factory=list)
    settled: list[OpenMessage] = field(default_factory=list)
    cancelled: list[OpenMessage] = field(default_factory=list)
    state: EncodedContent | None = None

    def __bool__(self) -> bool:
        return bool(self.pushed or self.gone or self.state is not None)

    @property
    def entered(self) -> list[OpenMessage]:
        """What enters for the first time, until it has."""
        return [message for message in self.pushed if not message.pushed]

    @property
    def gone(self) -> list[OpenMessage]:
        """What leaves."""
        return self.settled + self.cancelled


class Committer:
    """Changes the books of one run; one transaction at a time.

    Args:
        connection: where the run lives.
        context: the ServerApp's; its state is saved by every commit.
        saved: what the last commit saved.
        attachment: this ServerApp's hold on the run.
        ledger: the run's messages.
        intake: what goes with a commit.
        link: the transactions.
        delivery: puts messages into inboxes.
        blobs: what the run has broadcast.

    Attributes:
        uploader: brings large contents to Redis.
    """

    def __init__(
        self,
        connection: Connection,
        context: Context,
        saved: SavedContext,
        attachment: Attachment,
        ledger: Ledger,
        intake: Intake,
        link: Link,
        delivery: Delivery,
        blobs: Blobs,
    ) -> None:
        self._connection = connection
        self._run_id = context.run_id
        self._context = context
        self._saved = saved
        self._attachment = attachment
        self._ledger = ledger
        self._intake = intake
        self._link = link
        self._delivery = delivery
        self._blobs = blobs
        self.uploader = Uploader(link, blobs, self._when_there_is_room)

    def commit(
        self, pushed: list[OpenMessage], contents: Collection[EncodedContent] = (), moves_on: bool = False
    ) -> None:
        """Enter messages; if the run moves on, save the state and take out what was handed over.

        Args:
            pushed: the messages; none of them for a checkpoint.
            contents: the large ones of theirs, which were uploaded.
            moves_on: the run moves on, even if no group is new.

        Raises:
            RunError, OutageLimit, RedisOutOfMemory, MessageTooLarge: nothing was changed.
        """
        while not self._when_there_is_room(lambda: self._commit(pushed, contents, moves_on)):
            for content in contents:
                self.uploader.upload(content)

    def _commit(self, pushed: list[OpenMessage], contents: Collection[EncodedContent], moves_on: bool) -> bool:
        """As `commit`, without waiting for room; return False, and do nothing, where Redis lost a content."""
        with self._link.writing:
            if contents:  # else a full Redis would refuse the comparison, and what only settles makes room
                self._link.through_outage(self._link.reconcile)
            if not all(map(self.uploader.has, contents)):
                return False
            change = self._plan(pushed, moves_on)
            if change.state is not None:
                self.uploader.upload(change.state, patient=False)
            if change:
                self._execute(change)
            return True

    def give_up_orphans(self) -> None:
        """Take out of the books what nobody has adopted since the resume.

        Raises:
            RunError, OutageLimit: the run is over.
        """
        with self._link.writing:
            with self._ledger.lock:
                change = Change(cancelled=self._ledger.orphans())
            if change:
                self._execute(change)

    def settle(self, message_ids: Iterable[str]) -> None:
        """Take replies that were handed over out of the books, and out of Redis; save nothing.

        Raises:
            RunError, OutageLimit: the run is over.
        """
        with self._link.writing:
            with self._ledger.lock:
                change = Change(settled=self._ledger.handed(message_ids))
            if change:
                self._execute(change)
        self._link.through_outage(lambda: self._intake.read(()))

    def _plan(self, pushed: list[OpenMessage], moves_on: bool) -> Change:
        ledger, change = self._ledger, Change(pushed)
        with ledger.lock:
            moves_on = moves_on or not pushed or ledger.is_new_group({message.entry.group_id for message in pushed})
            if not moves_on:
                return change
            change.settled = ledger.settled()
            # What nobody adopted is given up once the resumed app has both seen a reply and gone on.
            change.cancelled = ledger.orphans() if pushed and change.settled else []
        state = EncodedContent(encode_content(self._context.state))
        change.state = state if self._saved.differs(state) else None
        return change

    def _execute(self, change: Change) -> None:
        pushed, state, ledger, blobs = change.pushed, change.state, self._ledger, self._blobs
        with ledger.lock:
            # Before the push, for a reply may be faster than its answer.
            new_groups = ledger.add(pushed)
            first = {message.node_id for message in pushed} - ledger.contacted
            ledger.contacted |= first
        entering, leaving = self._contents_of(change)
        blobs.take(entering)
        blobs.give_up(leaving)
        idle = blobs.idle()
        sent: list[OpenMessage] = []

        def build(pipe: Pipeline) -> None:
            nonlocal sent
            self._write_ledger(pipe, change)
            if state is not None:
                self._saved.write(pipe, state)
            blobs.remove(pipe, idle)
            # One that was adopted may have been answered since: a comparison came first.
            sent = [message for message in pushed if message.fields is not None]
            for message in sent:  # of one that was adopted, the content may be another now
                take_back(pipe, self._connection, self._run_id, message)
            self._delivery.deliver(pipe, sent, first)

        try:
            results = self._link.transact(build, lambda: self._is_executed(change), frees=not pushed and state is None)
        except BaseException:
            blobs.take(leaving)
            blobs.give_up(entering)
            with ledger.lock:
                ledger.withdraw(pushed, new_groups)
            raise
        blobs.removed(idle)
        self._note(change)
        if results is None:  # a first entry may be another than a comparison finds
            for message in sent:
                message.began = None
        elif sent:
            try:
                self._note_entries(sent, results[len(results) - len(sent) :])
            except RedisOutOfMemory:  # they are in the ledger: a comparison delivers them when there is room
                self._link.distrust()

    def _contents_of(self, change: Change) -> tuple[list[bytes], list[bytes]]:
        """Return the names of the contents that are needed once more, and once less."""
        entering = [message.entry.digest for message in change.pushed if message.needs != message.entry.digest]
        leaving = [message.needs for message in change.gone]
        leaving += [message.needs for message in change.pushed if message.needs not in (b"", message.entry.digest)]
        if change.state is not None:
            entering.append(change.state.name)
            leaving.append(self._saved.name)
        return entering, leaving

    def _note(self, change: Change) -> None:
        """The transaction was executed."""
        ledger, cancelled = self._ledger, change.cancelled
        with ledger.lock:
            ledger.pushed += len(change.entered)
            ledger.replied += len(change.settled)
            for message in change.pushed:
                message.pushed, message.is_lost, message.needs = True, False, message.entry.digest
        if change.state is not None:
            self._saved.committed(change.state)
        self._intake.forget(change.gone)
        if cancelled:
            log(INFO, "Run %s: %s messages that were not pushed again are cancelled", self._run_id, len(cancelled))

    def _when_there_is_room(self, action: Callable[[], Answer]) -> Answer:
        """A full Redis is back-pressure for a while: replies that are settled, here or in another run, make room.

        To be called without `Link.writing`, so that other threads may settle meanwhile.
        """
        retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
            stop=tenacity.stop_after_delay(FULL_PATIENCE),
            retry=tenacity.retry_if_exception_type(RedisOutOfMemory),
            before_sleep=lambda _: self._link.through_outage(lambda: self._intake.read(())),  # delete what is settled
            sleep=time.sleep,
            reraise=True,
        )
        try:
            return retrying(action)
        except RedisOutOfMemory as error:
            with self._ledger.lock:
                kept = len(self._ledger.settled())
            if not kept:
                raise
            raise RedisOutOfMemory(
                f"{error}; {kept} replies that this run was given stay in Redis until it moves on: "
                "push the next group in smaller parts, or call driver.checkpoint() first"
            ) from error

    def _write_ledger(self, pipe: Pipeline, change: Change) -> None:
        keys, run = self._connection.keys, self._run_id
        if change.pushed:
            pipe.hset(keys.ledger(run), mapping={message.message_id: message.encode() for message in change.pushed})
            pipe.hset(keys.meta(run), "messages", self._ledger.pushed + len(change.entered))
            # A hash vanishes when it is empty, and comes back without a lifetime.
            pipe.pexpire(keys.ledger(run), milliseconds(self._attachment.retention))
        if change.gone:
            pipe.hdel(keys.ledger(run), *(message.message_id for message in change.gone))
            with self._ledger.lock:
                leftovers = self._ledger.leftovers(change.gone, change.entered)
            for node, needed_from in leftovers.items():
                trim_data(pipe, keys, node, run, needed_from)
        if change.settled:
            # Outside a MULTI best effort: a full Redis refuses to count, and lets us delete.
            pipe.hset(keys.meta(run), "replies", self._ledger.replied + len(change.settled))
        if change.pushed or change.settled:
            pipe.pexpire(keys.meta(run), milliseconds(self._attachment.retention))
        for message in change.cancelled:
            take_back(pipe, self._connection, run, message)
        for node in {message.node_id for message in change.cancelled}:
            ring(pipe, keys, node)

    def _is_executed(self, change: Change) -> bool:
        """Return whether a transaction took effect whose answer was lost: one EXEC does all of it or nothing."""
        new = next(iter(change.entered), None)
        if new is None and not change.gone:
            # Nothing of it can be counted twice: neither the context, nor a message pushed again under its id.
            return False
        probe = new or change.gone[0]
        with map_errors(self._connection.url):
            there = self._connection.redis.hexists(self._connection.keys.ledger(self._run_id), probe.message_id)
        return bool(there) == (new is not None)

    def deliver_again(self, message: OpenMessage) -> None:
        """Send a message once more, under its id.

        Raises:
            RunError, OutageLimit: the run is over.
            RedisOutOfMemory: Redis is full; nothing was sent.
        """
        self._note_entries([message], [None])
        message.is_lost = False

    def _note_entries(self, pushed: list[OpenMessage], results: list[Any]) -> None:
        """Note each message's inbox entry; where the inbox was gone, contact the node again and repeat."""
        gone = self._take_results(pushed, results)
        if gone:
            nodes = {message.node_id for message in gone}
            again = self._link.transact(lambda pipe: self._delivery.deliver(pipe, gone, nodes), lambda: False)
            assert again is not None, "never executed unseen: it is repeated until its results are here"
            for message in self._take_results(gone, again[-len(gone) :]):
                self._give_up(message, "it vanished")

    def _take_results(self, pushed: list[OpenMessage], results: list[Any]) -> list[OpenMessage]:
        """Note what became of each XADD; return the messages whose inbox was gone."""
        gone = []
        for message, result in zip(pushed, results, strict=True):
            if result is None:
                gone.append(message)
            elif isinstance(result, Exception):  # somebody with the node's rights made another thing of its inbox
                self._give_up(message, result)
            else:
                message.inbox_entries = (*message.inbox_entries, result.decode())
                if message.began == "":
                    message.began = message.inbox_entries[0]
        return gone

    def _give_up(self, message: OpenMessage, problem: Any) -> None:
        reason = f"the inbox of node {message.node_id} takes no message: {problem}"
        with self._ledger.lock:
            self._ledger.fail(message.message_id, Error(ErrorCode.NODE_UNAVAILABLE, reason))
            self._ledger.lock.notify_all()
