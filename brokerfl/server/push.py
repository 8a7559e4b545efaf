"""The push: messages into the ledger and the inboxes, in one fenced transaction.

Owns what is refused, what is adopted after a resume, and how a group moves the run on. It must not know how replies are
waited for.
"""

import threading
import time
from collections.abc import Callable, Iterator
from logging import INFO
from typing import Any

import tenacity

from brokerfl.broker.attachment import Attachment
from brokerfl.broker.connection import Connection, Pipeline, map_errors
from brokerfl.broker.inbox import ring
from brokerfl.broker.keys import milliseconds
from brokerfl.broker.ledger import Ledger, OpenMessage, State
from brokerfl.broker.nodes import registered
from brokerfl.broker.saved import SavedContext
from brokerfl.common import Context, Error, ErrorCode, Message, RedisOutOfMemory, log
from brokerfl.server.delivery import Delivery, take_back
from brokerfl.server.intake import Intake
from brokerfl.server.link import Link
from brokerfl.wire.frame import MAX_MESSAGE_BYTES, Fields
from brokerfl.wire.message import encode_message, new_message_id
from brokerfl.wire.record import digest_of, encode_content, frozen
from brokerfl.wire.run import LedgerEntry

#: Seconds a push waits for room in a full Redis before it gives up: nodes' replies that are settled make some.
FULL_PATIENCE = 5.0


class Pusher:
    """Pushes the messages of one run; one transaction at a time, from any thread.

    Args:
        connection: where the run lives.
        context: the ServerApp's; its state is saved by every commit.
        saved: what the last commit saved.
        attachment: this ServerApp's hold on the run.
        ledger: the run's messages.
        intake: what goes with a commit.
        link: the transactions.
        delivery: puts messages into inboxes.
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
        self._registered: set[int] = set()
        self._pushing = threading.Lock()

    def push(self, batch: list[Message], *, waits: bool = False) -> list[str]:
        """Push messages of this run; return their ids, ``""`` for those to unknown nodes and those that have expired.

        Args:
            batch: the messages.
            waits: they outlast their nodes' absence, and may go to nodes that are not registered yet.

        Raises:
            RunError, OutageLimit, RedisOutOfMemory, TypeError, ValueError, MessageTooLarge: nothing was pushed.
        """
        with self._pushing:
            self._link.check()
            if not waits:
                self._look_up({message.metadata.dst_node_id for message in batch})
            contents: dict[int, tuple[Fields, bytes]] = {}
            ids: list[str] = []
            pushed: list[OpenMessage] = []
            adopted: list[OpenMessage] = []
            try:
                for message in batch:
                    if _is_expired(message) or not (waits or self.is_registered(message.metadata.dst_node_id)):
                        ids.append("")
                        continue
                    made = self._adopt_or_make(message, contents, waits)
                    ids.append(made.message_id)
                    if made.pushed:
                        adopted.append(made)
                    if made.fields is not None and (not made.pushed or made.is_lost):
                        pushed.append(made)
                for part in _parts(pushed):
                    self._commit(part)
            except BaseException:
                with self._ledger.lock:
                    # Of a push in several parts the first ones may be in Redis: pushed again, they are adopted.
                    self._ledger.disown(adopted + [message for message in pushed if message.pushed])
                raise
            return ids

    def push_again(self, message: OpenMessage) -> bool:
        """Push a message again whose reply proved to be incomplete; return whether that is possible.

        Raises:
            RunError, OutageLimit: the run is over.
        """
        with self._pushing, self._link.writing:
            if not self._intake.reopen(message):
                return False
            try:
                self._note_entries([message], [None])
                message.is_lost = False
            except RedisOutOfMemory:
                self._link.distrust()  # the next comparison finds it missing, and delivers it when there is room
            return True

    def checkpoint(self) -> None:
        """Take what was handed over out of the ledger, and save the context.

        Raises:
            RunError, OutageLimit: the run is over.
            RedisOutOfMemory: Redis is full; nothing was saved.
        """
        with self._pushing:
            self._link.check()
            self._commit([])

    def is_registered(self, node_id: int) -> bool:
        """Return whether the registry knew the node when it was looked up."""
        return node_id in self._registered

    def _look_up(self, node_ids: set[int]) -> None:
        unknown = node_ids - self._registered
        if unknown:
            self._registered |= self._link.through_outage(lambda: registered(self._connection, unknown))

    def _adopt_or_make(self, message: Message, contents: dict[int, tuple[Fields, bytes]], waits: bool) -> OpenMessage:
        """Return the orphan that this message stands for, else a new one; its content is encoded once for all."""
        meta, key = message.metadata, id(message.content)
        if key not in contents:
            content = frozen(encode_content(message.content))
            contents[key] = content, digest_of(content)
        content, digest = contents[key]
        now = milliseconds(self._connection.time())
        with self._ledger.lock:
            entry = LedgerEntry(
                meta.dst_node_id,
                meta.group_id,
                meta.message_type,
                milliseconds(self._connection.time() + meta.ttl),
                self._ledger.next_sequence(),
                digest,
                waits,
            )
            made = self._ledger.adopt(entry, now) or OpenMessage(new_message_id(self._run_id), entry)
        if made.state is State.OPEN:
            # What was adopted keeps its first content, unless Redis should prove to have lost that.
            made.fields = encode_message(made.message_id, meta, content)
        return made

    def _commit(self, pushed: list[OpenMessage]) -> None:
        """One transaction: new entries enter the ledger and the inboxes; if the run moves on, settled ones leave it."""
        ledger = self._ledger
        with self._link.writing:
            with ledger.lock:
                moves_on = not pushed or ledger.is_new_group({message.entry.group_id for message in pushed})
                settled = ledger.settled() if moves_on else []
                # What nobody adopted is given up once the resumed app has both seen a reply and gone on.
                cancelled = ledger.orphans() if pushed and settled else []
            staged = self._saved.stage(encode_content(self._context.state)) if moves_on else None
            saves = staged is not None and staged.differs
            if not pushed and not settled and not saves:
                return
            with ledger.lock:
                # Before the push, for a reply may be faster than its answer.
                new_groups = ledger.add(pushed)
                first = {message.node_id for message in pushed} - ledger.contacted
                ledger.contacted |= first

            sent: list[OpenMessage] = []

            def build(pipe: Pipeline) -> None:
                nonlocal sent
                self._write_ledger(pipe, pushed, settled, cancelled)
                if staged is not None:
                    self._saved.write(pipe, staged)
                # One that was adopted may have been answered since: a comparison came first.
                sent = [message for message in pushed if message.fields is not None]
                self._delivery.deliver(pipe, sent, first)

            try:
                results = self._when_there_is_room(
                    lambda: self._link.transact(
                        build, lambda: self._is_executed(pushed, settled), frees=not pushed and not saves
                    ),
                    bool(pushed),
                )
            except BaseException:
                with ledger.lock:
                    ledger.withdraw(pushed, new_groups)
                raise
            with ledger.lock:
                ledger.pushed += sum(not message.pushed for message in pushed)
                ledger.replied += len(settled)
                for message in pushed:
                    message.pushed, message.is_lost = True, False
            if staged is not None:
                self._saved.committed(staged)
            self._intake.forget(settled + cancelled)
            if cancelled:
                log(INFO, "Run %s: %s messages that were not pushed again are cancelled", self._run_id, len(cancelled))
            if results is not None and sent:
                try:
                    self._note_entries(sent, results[len(results) - len(sent) :])
                except RedisOutOfMemory:  # they are in the ledger: a comparison delivers them when there is room
                    self._link.distrust()

    def _when_there_is_room(self, action: Callable[[], list[Any] | None], patient: bool) -> list[Any] | None:
        """A full Redis is back-pressure for a while: replies that are settled, here or in another run, make room."""
        retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
            stop=tenacity.stop_after_delay(FULL_PATIENCE if patient else 0.0),
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

    def _write_ledger(
        self, pipe: Pipeline, pushed: list[OpenMessage], settled: list[OpenMessage], cancelled: list[OpenMessage]
    ) -> None:
        keys, run = self._connection.keys, self._run_id
        if pushed:
            pipe.hset(keys.ledger(run), mapping={message.message_id: message.encode() for message in pushed})
            new = sum(not message.pushed for message in pushed)
            pipe.hset(keys.meta(run), "messages", self._ledger.pushed + new)
            # A hash vanishes when it is empty, and comes back without a lifetime.
            pipe.pexpire(keys.ledger(run), milliseconds(self._attachment.retention))
        if settled:
            pipe.hdel(keys.ledger(run), *(message.message_id for message in settled + cancelled))
            # Outside a MULTI best effort: a full Redis refuses to count, and lets us delete.
            pipe.hset(keys.meta(run), "replies", self._ledger.replied + len(settled))
        if pushed or settled:
            pipe.pexpire(keys.meta(run), milliseconds(self._attachment.retention))
        for message in cancelled:
            take_back(pipe, self._connection, run, message)
        for node in {message.node_id for message in cancelled}:
            ring(pipe, keys, node)

    def _is_executed(self, pushed: list[OpenMessage], settled: list[OpenMessage]) -> bool:
        """Return whether a transaction took effect whose answer was lost: one EXEC does all of it or nothing."""
        new = next((message for message in pushed if not message.pushed), None)
        if new is None and not settled:
            # Nothing of it can be counted twice: neither the context, nor a message pushed again under its id.
            return False
        probe = new or settled[0]
        with map_errors(self._connection.url):
            there = self._connection.redis.hexists(self._connection.keys.ledger(self._run_id), probe.message_id)
        return bool(there) == (new is not None)

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
        return gone

    def _give_up(self, message: OpenMessage, problem: Any) -> None:
        reason = f"the inbox of node {message.node_id} takes no message: {problem}"
        with self._ledger.lock:
            self._ledger.fail(message.message_id, Error(ErrorCode.NODE_UNAVAILABLE, reason))
            self._ledger.lock.notify_all()


def _parts(pushed: list[OpenMessage]) -> Iterator[list[OpenMessage]]:
    """Divide a push so that no transaction holds more than one message may.

    Redis keeps a MULTI in its query buffer, and cuts the connection at 1 GB of that (``client-query-buffer-limit``).
    """
    part: list[OpenMessage] = []
    size = 0
    for message in pushed:
        more = sum(map(len, (message.fields or {}).values()))
        if part and size + more > MAX_MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(message)
        size += more
    if part:
        yield part


def _is_expired(message: Message) -> bool:
    """Both times are of this process's clock, which thereby decides nothing about anyone else's."""
    return time.time() - message.metadata.created_at >= message.metadata.ttl
