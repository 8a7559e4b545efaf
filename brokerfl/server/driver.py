"""Driver: what a ServerApp sends messages and collects replies with.

Owns the public interface and the run's life. How a push is made is `push`'s business, how replies are waited for
`collector`'s, when one counts as handed over `handover`'s.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from brokerfl.broker.attachment import create_run, read_books, resume_run
from brokerfl.broker.blobs import Blobs
from brokerfl.broker.connection import Connection
from brokerfl.broker.fence import Forgotten
from brokerfl.broker.heartbeat import Heartbeat
from brokerfl.broker.keys import LEASE, OFFLINE_GRACE, RETENTION
from brokerfl.broker.ledger import Ledger
from brokerfl.broker.nodes import online_nodes
from brokerfl.broker.runs import Holdings, has_ended
from brokerfl.broker.saved import SavedContext
from brokerfl.common import (
    DEFAULT_TTL,
    SUPERLINK_NODE_ID,
    BrokerflError,
    Context,
    Message,
    Metadata,
    RecordSet,
    RunError,
    RunStopped,
    UserConfig,
)
from brokerfl.server.collector import Collector
from brokerfl.server.commit import Committer
from brokerfl.server.delivery import Delivery
from brokerfl.server.fetch import Fetcher
from brokerfl.server.handover import Handover
from brokerfl.server.intake import Intake
from brokerfl.server.link import OUTAGE_LIMIT, Link
from brokerfl.server.liveness import Liveness
from brokerfl.server.push import Pusher, check_message, check_metadata
from brokerfl.server.reconcile import Reconciler
from brokerfl.server.reply import refused_reply, unknown_reply
from brokerfl.wire.frame import MAX_MESSAGE_BYTES
from brokerfl.wire.message import is_message_id
from brokerfl.wire.run import Run

Answer = TypeVar("Answer")


class Driver:
    """Sends messages to nodes and collects their replies, for one run. Safe to use from many threads.

    A ServerApp's main function is given one; `brokerfl-server` and `brokerfl.testing` create it.

    Args:
        connection: the Redis in the middle.
        app: what was started, as the operator sees it; for a resumed run "", or the same.
        run_config: given to the Context of the ServerApp and of every node; for a resumed run None, or the same.
        resume: the id of a detached run to take up, in place of creating one.
        takeover: resume it even if its ServerApp seems alive; from then on that one may write nothing.
        lease: seconds after which a silent ServerApp counts as detached.
        retention: seconds a detached run keeps its messages; at most 30 days.
        offline_grace: seconds a named node may be offline before its open messages become Error 5.
        outage_limit: seconds to wait for a Redis that is away before `OutageLimit`.
        max_message: most bytes that a reply may have: what nodes may ask of this process's memory.
        max_run: most bytes of broadcast contents that the run may have in Redis at once; None for no limit.

    Attributes:
        context: the ServerApp's Context. Its state is saved in Redis by every push of a new group and every
            `checkpoint`, in the same transaction that settles replies; a resumed run has it back.

    Raises:
        RunNotFound, RunStopped: there is no run to resume.
        RunAttached: the run to be resumed has a ServerApp that lives.
        ConfigError: the run to be resumed has another run config, or is another app's; a run config beyond 64 KiB, or
            one that holds something else than booleans, numbers and strings; too long a retention.
        ValueError: the run config holds what cannot be sent.
    """

    def __init__(
        self,
        connection: Connection,
        app: str = "",
        run_config: UserConfig | None = None,
        *,
        resume: int | None = None,
        takeover: bool = False,
        lease: float = LEASE,
        retention: float = RETENTION,
        offline_grace: float = OFFLINE_GRACE,
        outage_limit: float = OUTAGE_LIMIT,
        max_message: int = MAX_MESSAGE_BYTES,
        max_run: int | None = None,
    ) -> None:
        self._connection = connection
        if resume is None:
            run, self._attachment = create_run(connection, app, run_config or {}, lease=lease, retention=retention)
        else:
            run, self._attachment = resume_run(
                connection, resume, run_config, app=app, takeover=takeover, lease=lease, retention=retention
            )
        self._run = run
        books = read_books(connection, run.run_id)
        self._ledger = ledger = Ledger()
        ledger.pushed, ledger.replied, ledger.contacted = books.messages, books.replies, books.nodes
        self._blobs = blobs = Blobs(connection, run.run_id, retention, max_run)
        saved = SavedContext(connection, run.run_id, retention)
        try:
            state = saved.load()
            if resume is not None:
                blobs.load()
        except BaseException:
            self._attachment.detach(Holdings())
            raise
        ledger.load(books.entries, blobs.knows)
        blobs.take([saved.name, *(entry.digest for entry in books.entries.values())])
        self.context = Context(
            run.run_id, SUPERLINK_NODE_ID, {}, state, dict(run.run_config), lambda: self._link.is_over
        )
        fence, liveness = self._attachment.fence, Liveness(offline_grace, lease)
        intake = Intake(connection, run.run_id, ledger)
        delivery = Delivery(connection, run, self._attachment)
        reconciler = Reconciler(
            connection, run.run_id, self._attachment, ledger, intake, saved, delivery, blobs, books.identity
        )
        self._link = Link(connection, fence, intake, liveness, reconciler, outage_limit)
        self._collector = Collector(connection, run.run_id, fence, ledger, intake, self._link, liveness, blobs)
        committer = Committer(
            connection, self.context, saved, self._attachment, ledger, intake, self._link, delivery, blobs
        )
        self._pusher = Pusher(connection, run.run_id, ledger, intake, self._link, committer, blobs)
        fetcher = Fetcher(connection, run.run_id, ledger, self._link, self._pusher, max_message)
        self._handover = Handover(ledger, self._collector, fetcher)
        self._closed = False
        self._heartbeat = Heartbeat(
            f"heartbeat of run {run.run_id}", min(lease / 3, retention / 4), self._renew, self._collector.end
        )
        self._heartbeat.start()
        if resume is not None:
            self._reach(lambda: self._attachment.renew_lifetimes(self._holdings()))
            self._link.take_up()

    def __repr__(self) -> str:
        return f"<Driver run={self._run.run_id} open={len(self._ledger)}>"

    @property
    def run(self) -> Run:
        """The run: run_id, app, run_config, created_at."""
        return self._run

    @property
    def connection(self) -> Connection:
        """The Redis in the middle."""
        return self._connection

    # Nodes.

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are online now, in ascending order.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
        """
        self._link.check()
        return self._reach(lambda: online_nodes(self._connection))

    def wait_for_nodes(self, n: int, timeout: float | None = None) -> list[int]:
        """Wait until at least ``n`` nodes are online and return their ids.

        Args:
            n: how many.
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: fewer came in time; the text says how many.
            RunStopped, RunLost, OutageLimit: the run is over.
        """
        until = _until(timeout)
        while True:
            found = self.get_node_ids()
            if len(found) >= n:
                return found
            left = 0.2 if until is None else min(0.2, until - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"{len(found)} of {n} nodes are online after {timeout:g} s")
            time.sleep(left)
            self._link.check()

    # Sending.

    def create_message(
        self, content: RecordSet, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message of this run, to be given to `push_messages`.

        Args:
            content: what to send. It is read when the message is pushed, not now.
            message_type: ``train``, ``evaluate`` or ``query``, with an action or without: ``train.warmup``.
            dst_node_id: which node.
            group_id: usually the round. Pushing a group that was never pushed before says that the run moves on:
                replies handed over so far leave Redis.
            ttl: seconds from the push after which the message counts as expired; 12 hours by default.

        Raises:
            ValueError: an impossible message type or ttl.
        """
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=dst_node_id,
            reply_to_message="",
            group_id=group_id,
            ttl=DEFAULT_TTL if ttl is None else float(ttl),
            message_type=message_type,
        )
        check_metadata(metadata)
        return Message(metadata, content=content)

    def push_messages(
        self, messages: Iterable[Message], *, deliver_when_online: bool = False, checkpoint: bool = False
    ) -> list[str]:
        """Send messages; return their ids in the same order, ``""`` where one was refused. The messages have them too.

        Refused are messages to a node that the registry does not know, messages whose ttl has passed, and all of them
        when the run is not running any more. Contents are frozen now: what the caller changes afterwards is not sent.

        In a resumed run, a message of the same group, node and type as one that is still open is that one: its id is
        returned, and the node does not execute it again.

        Args:
            messages: made by `create_message`.
            deliver_when_online: wait for nodes that are offline, or not registered yet, until the messages' ttl, in
                place of Error 5.
            checkpoint: the run moves on, whatever the group: as `checkpoint` does, in the transaction of the push. For
                apps whose groups do not tell rounds apart; so in a resumed run only a message of equal content is the
                one that is still open.

        Raises:
            TypeError, ValueError: something that is no message of this run or cannot be sent; nothing was pushed.
            MessageTooLarge: a content beyond `brokerfl.wire.frame.MAX_MESSAGE_BYTES`, or more than the run may have in
                Redis, or a group_id of more than about 48,000 bytes; nothing was pushed.
            RedisOutOfMemory: Redis is full; nothing was pushed.
            OutageLimit: Redis was away too long.
        """
        batch = [check_message(message, self._run.run_id) for message in messages]
        try:
            ids = self._pusher.push(batch, waits=deliver_when_online, moves_on=checkpoint)
        except RunError as error:
            self._collector.end(error)
            ids = [""] * len(batch)
        for message, message_id in zip(batch, ids, strict=True):
            message.metadata.message_id = message_id
        return ids

    def checkpoint(self) -> None:
        """Save `context.state` and let the replies handed over so far leave Redis, in one transaction.

        For asynchronous apps, which push one group for ever. Call it when what the replies taught is in the state.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
            RedisOutOfMemory, MessageTooLarge, TypeError, ValueError: there is no room for the state, or it cannot be
                encoded; nothing was saved.
        """
        self._pusher.checkpoint()

    def start_over(self) -> None:
        """Take back what a former life of the run left open, so that nothing pushed from now on adopts it.

        For a resumed app whose state says that it begins anew. In a new run there is nothing to take back.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
        """
        self._pusher.start_over()

    def settle(self, *replies: Message) -> None:
        """Let replies leave Redis now, before the run moves on, so that it need not hold those of all nodes at once.

        For apps that fold large replies. Nothing is saved: should this process die before the next commit, what it
        folded is gone with it, and the resumed app has these messages executed again when it pushes them again.

        Args:
            replies: that `replies` or `pull_messages` gave out; others are passed over.

        Raises:
            TypeError: something that is no message.
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
        """
        for reply in replies:
            if not isinstance(reply, Message):
                raise TypeError(f"settle takes replies, not {type(reply).__name__}")
        self._pusher.settle([reply.metadata.reply_to_message for reply in replies])

    def cancel_messages(self, message_ids: Iterable[str]) -> None:
        """Take messages back: each ends as an Error reply 3 at once, unless its reply is there.

        A node that has not begun does not execute it; one that has sees ``context.cancelled()``.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
            RedisOutOfMemory: Redis is full and forgot something that has to be written first; nothing was cancelled.
        """
        accepted, _ = self._sort(message_ids)
        self._collector.cancel(accepted)

    # Collecting.

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to ``message_ids`` that are here now; never blocks.

        An id that was pulled already yields nothing; one that no push of this run returned yields an Error reply.
        Whether a node is gone is seen while somebody looks: pull at least every 10 seconds, or wait with `replies`.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
        """
        wanted, foreign = self._sort(message_ids)
        self._collector.poll()
        replies = [unknown_reply(self._run.run_id, message_id) for message_id in foreign]
        return replies + self._handover.here(wanted)

    def replies(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield each reply to ``message_ids`` the moment it arrives, until all have come.

        A reply counts as handed over when the iterator goes past it, or when its loop's thread commits. A large one is
        fetched when it is its turn, and not kept: an app that folds replies needs memory for one at a time if it
        deletes each (``del reply``) before it asks for the next.

        Args:
            message_ids: as `push_messages` returned them; ``""`` is passed over.
            timeout: seconds for all of them; then the iteration ends. None waits until every message ended as a reply
                or as an Error reply.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
        """
        wanted, foreign = self._sort(message_ids)
        return self._iterate(wanted, foreign, _until(timeout))

    def _iterate(self, wanted: set[str], foreign: list[str], until: float | None) -> Iterator[Message]:
        for message_id in foreign:
            yield unknown_reply(self._run.run_id, message_id)
        yield from self._handover.each(wanted, until)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        deliver_when_online: bool = False,
        checkpoint: bool = False,
    ) -> list[Message]:
        """Push messages and wait for their replies, in the order in which they arrive.

        Every message ends as one reply here: a refused one as an Error reply too.

        Args:
            messages: as for `push_messages`.
            timeout: seconds; then what has come is returned. The rest can still be pulled, by id.
            deliver_when_online: as for `push_messages`.
            checkpoint: as for `push_messages`.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
            TypeError, ValueError, MessageTooLarge, RedisOutOfMemory: as `push_messages`.
        """
        batch = list(messages)
        ids = self.push_messages(batch, deliver_when_online=deliver_when_online, checkpoint=checkpoint)
        self._link.check()
        refused = [
            refused_reply(self._run.run_id, message, self._pusher.is_registered(message.metadata.dst_node_id))
            for message, message_id in zip(batch, ids, strict=True)
            if not message_id
        ]
        accepted, _ = self._sort(ids)
        return refused + self._handover.all(accepted, _until(timeout))

    def _sort(self, message_ids: Iterable[str]) -> tuple[set[str], list[str]]:
        """Divide ids into those this run once accepted and those it never did."""
        accepted, foreign = set(), []
        for message_id in dict.fromkeys(message_ids):
            if message_id in self._ledger or is_message_id(self._run.run_id, message_id):
                accepted.add(message_id)
                with self._ledger.lock:
                    self._ledger.claim(message_id)
            elif message_id != "":
                foreign.append(message_id)
        return accepted, foreign

    # The run's life.

    def _renew(self) -> None:
        try:
            try:
                self._attachment.renew(self._holdings)
                self._link.is_up()
                self._link.when_quiet(self._blobs.release)
            except Forgotten:
                self._link.reconcile(always=True)
        except RunError:
            self._attachment.detach(self._holdings())  # whoever stops the run waits for the lease
            raise
        except Forgotten:
            return  # forgotten twice: the next beat sees to it

    def _holdings(self) -> Holdings:
        with self._ledger.lock:
            return Holdings(set(self._ledger.contacted), self._blobs.digests())

    def _reach(self, ask: Callable[[], Answer]) -> Answer:
        """Ask Redis something that may be asked again, through an outage if need be."""
        return self._link.through_outage(ask)

    def end(self) -> None:
        """End the run: all its keys are deleted. What is pushed later is refused.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: it was over already, or Redis is away.
        """
        self._heartbeat.stop()
        if self._closed:
            return
        self._link.check()
        self._link.transact(
            lambda pipe: self._attachment.delete(pipe, self._holdings()),
            lambda: has_ended(self._connection, self._run.run_id),
            frees=True,
        )
        self._closed = True
        self._collector.end(RunStopped(f"run {self._run.run_id} has ended"))

    def abandon(self) -> None:
        """Every wait, now and later and in whatever thread, raises RunStopped. `detach` is still to come."""
        self._collector.end(RunStopped(f"this process has detached from run {self._run.run_id}"))

    def detach(self) -> None:
        """Let go of the run without ending it: its keys stay for the retention time. Redis may be away."""
        self._closed = True
        self.abandon()  # first, so that nobody goes on waiting for a Redis that is away, the heartbeat among them
        self._heartbeat.stop()
        with suppress(BrokerflError):  # the lease lapses by itself
            self._connection.reset()
            self._attachment.detach(self._holdings())


def _until(timeout: float | None) -> float | None:
    """Return the local monotonic time at which a wait of so many seconds ends; None for one that does not."""
    return None if timeout is None else time.monotonic() + timeout
