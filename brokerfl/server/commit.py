"""The commit: one fenced transaction in which new messages enter a run's book and settled ones leave it.

Owns what belongs into a commit, and that the book is told when it was executed. It must not know how messages are made,
or how replies are waited for.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from logging import INFO

from brokerfl.broker.books import Parcel
from brokerfl.broker.fence import Transaction
from brokerfl.common import BrokerflError, Context, Error, ErrorCode, RedisOutOfMemory, log
from brokerfl.server.book import Applied, Book, OpenMessage, Sending
from brokerfl.server.receive import Receiver
from brokerfl.server.session import Session
from brokerfl.server.upload import Uploader
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.record import encode_content


class Committer:
    """Changes the book of one run together with its books in Redis; one commit at a time, from any thread.

    Args:
        session: the transactions.
        book: the run's messages.
        receiver: deletes the replies that were settled.
        uploader: brings large contents to Redis.
        context: the ServerApp's; its state is saved by every commit.
    """

    def __init__(self, session: Session, book: Book, receiver: Receiver, uploader: Uploader, context: Context) -> None:
        self._session = session
        self._transactions = session.transactions
        self._book = book
        self._receiver = receiver
        self._uploader = uploader
        self._context = context
        self._run_id = context.run_id

    def commit(
        self, sending: Sequence[Sending] = (), contents: Collection[EncodedContent] = (), *, moves_on: bool = False
    ) -> None:
        """Send messages; if the run moves on, save the state and settle what was handed over.

        Args:
            sending: the messages; none of them for a checkpoint.
            contents: the large ones of theirs, which were uploaded.
            moves_on: even if no group is new.
        """
        while not self._session.with_room(lambda: self._commit(sending, contents, moves_on)):
            for content in contents:
                self._uploader.upload(content)

    def _commit(self, sending: Sequence[Sending], contents: Collection[EncodedContent], moves_on: bool) -> bool:
        """As `commit`, without waiting for room; return False, and do nothing, where Redis lost a content."""
        with self._session.writing:
            if contents:  # else a full Redis would refuse the comparison, and what only settles makes room
                self._session.through_outage(self._session.reconcile)
            if not all(map(self._uploader.has, contents)):
                return False
            if moves_on or not sending or self._book.is_new_group({one.entry.group_id for one in sending}):
                self._move_on(sending)
            else:
                self._execute(sending)
            return True

    def _move_on(self, sending: Sequence[Sending]) -> None:
        # Before the state is looked at: what another thread is handed later has not taught it anything.
        settled = self._book.answers.handed_over()
        # What nobody adopted is given up once the resumed app has both seen a reply and gone on.
        cancelled = self._book.orphans() if sending and settled else []
        state = EncodedContent(encode_content(self._context.state))
        if state.name != self._book.state_name:
            self._uploader.upload(state, patient=False)
            self._execute(sending, settled, cancelled, state)
        elif sending or settled:
            self._execute(sending, settled, cancelled)

    def settle(self, message_ids: Sequence[str]) -> None:
        """Settle replies that were handed over; save nothing."""
        self._session.check()
        with self._session.writing:
            settled = self._book.answers.handed_over_of(message_ids)
            if settled:
                self._execute(settled=settled)
        self._session.through_outage(lambda: self._receiver.read(()))

    def cancel_orphans(self) -> None:
        """Take out of the book what nobody has adopted since the resume."""
        with self._session.writing:
            orphans = self._book.orphans()
            if orphans:
                self._execute(cancelled=orphans)

    def free_idle(self) -> None:
        """Delete what was uploaded for a push that failed; what cannot be deleted now goes with the next commit."""
        with suppress(BrokerflError), self._session.writing:
            is_any_idle = bool(self._book.plan(contents=self._uploader.names))
            self._book.discard()
            if is_any_idle:
                self._execute()

    def _execute(
        self,
        sending: Sequence[Sending] = (),
        settled: Sequence[OpenMessage] = (),
        cancelled: Sequence[OpenMessage] = (),
        state: EncodedContent | None = None,
    ) -> None:
        """Plan, act, apply."""

        def plan() -> Transaction:
            change = self._book.plan(sending, settled, cancelled, state, self._uploader.names)
            return self._transactions.commit(change)

        try:
            results = self._session.transact(plan, self._was_executed, frees=not sending and state is None)
        except BaseException:
            self._book.discard()
            raise
        self._transactions.saved(self._book.under_way)
        applied = self._book.apply(results)
        self._receiver.free(applied.freed)
        if cancelled:
            log(INFO, "Run %s: %s messages that were not pushed again are cancelled", self._run_id, len(cancelled))
        try:
            self._follow_up(applied)
        except RedisOutOfMemory:  # they are in the ledger: a comparison sends them when there is room
            self._session.distrust()

    def _was_executed(self) -> bool:
        """Return whether a transaction took effect whose answer was lost: one EXEC does all of it or nothing."""
        change = self._book.under_way
        probe = next(iter(change.new + change.leaving), None)
        if probe is None:
            # Nothing of it can be counted twice: neither the context, nor a message sent again under its id.
            return False
        return self._transactions.owner.books.has(probe) == bool(change.new)

    # Sending once more.

    def _follow_up(self, applied: Applied) -> None:
        """Where an inbox was gone, contact the node again and repeat; once."""
        refused = list(applied.refused)
        if applied.vanished:
            again = self._send(applied.vanished)
            refused += [*again.refused, *((parcel, Exception("it vanished")) for parcel in again.vanished)]
        if refused:
            self._book.answers.fail((parcel.message_id, _refusal(parcel, problem)) for parcel, problem in refused)

    def _send(self, parcels: Sequence[Parcel]) -> Applied:
        results = self._session.transact(lambda: self._transactions.send(parcels))
        assert results is not None, "never executed unseen: it is repeated until its results are here"
        return self._book.sent(parcels, results)

    def send_again(self, message: OpenMessage) -> bool:
        """The payload of a reply that was taken is missing: use another copy, else have it made again, if possible."""
        former = self._book.answers.use_spare(message)
        if former is not None:
            self._receiver.drop([former])
            return True
        with self._session.writing:
            reopened = self._book.answers.reopen(message)
            if reopened is None:
                return False
            former, parcel = reopened
            self._receiver.drop([former])
            try:
                self._follow_up(Applied([parcel], [], []))
            except RedisOutOfMemory:
                self._session.distrust()  # the next comparison finds it missing, and sends it when there is room
            return True


def _refusal(parcel: Parcel, problem: Exception) -> Error:
    return Error(ErrorCode.NODE_UNAVAILABLE, f"the inbox of node {parcel.node_id} takes no message: {problem}")
