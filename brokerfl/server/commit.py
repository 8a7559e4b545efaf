"""The commit: one fenced transaction in which new messages enter a run's book and settled ones leave it.

Owns what belongs in a commit, and tells the book when it was executed. It must not know how messages are made, or how
replies are awaited.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from logging import INFO

from brokerfl.broker.change import Parcel
from brokerfl.broker.fence import Transaction
from brokerfl.broker.patience import holding
from brokerfl.broker.presence import registered
from brokerfl.broker.steps import Recorded
from brokerfl.common import BrokerflError, Context, Error, ErrorCode, RedisOutOfMemory, RedisUnreachable, log
from brokerfl.server.book import Applied, Book, OpenMessage, Sending
from brokerfl.server.receive import Receiver
from brokerfl.server.session import Session
from brokerfl.server.upload import Uploader
from brokerfl.wire.frame import size_of
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.record import encode_content


class Committer:
    """Changes the book of one run together with its books in Redis; one commit at a time, from any thread."""

    def __init__(self, session: Session, book: Book, receiver: Receiver, uploader: Uploader, context: Context) -> None:
        self._diary = session.diary
        self._session = session
        self._transactions = session.transactions
        self._book = book
        self._receiver = receiver
        self._uploader = uploader
        self._context = context
        self._run_id = context.run_id

    def commit(
        self,
        sending: Sequence[Sending] = (),
        contents: Collection[EncodedContent] = (),
        *,
        moves_on: bool | None = None,
        steps: Recorded | None = None,
    ) -> None:
        """Send messages; if the run moves on, save the state and settle the replies that were handed over.

        Args:
            sending: the messages; none for a checkpoint.
            contents: the large contents of these and of the record, already uploaded.
            moves_on: whether the run moves on; None if a group is new, or nothing is sent.
            steps: the record of the run's steps, for a run that moves on; None leaves it as it is.
        """
        contents = [*contents, *self._book.kept.pending.uploads]
        owner_key = self._transactions.owner.connection.keys.owner(self._run_id)
        wanted = {owner_key: sum(size_of(one.fields) for one in sending)}
        while not self._session.with_room(lambda: self._commit(sending, contents, moves_on, steps), wanted):
            for content in contents:
                self._uploader.upload(content)

    def _commit(
        self,
        sending: Sequence[Sending],
        contents: Collection[EncodedContent],
        moves_on: bool | None,
        steps: Recorded | None,
    ) -> bool:
        """Like `commit`, but do not wait for room. If Redis lost a content, do nothing and return False."""
        with self._session.writing:
            if contents:  # without any, do not compare: a full Redis would refuse, and a commit that settles makes room
                self._session.through_outage(self._session.reconcile)
            if not all(map(self._uploader.has, contents)):
                return False
            if moves_on is None:
                moves_on = not sending or self._book.is_new_group({one.entry.group_id for one in sending})
            if moves_on and (steps is not None or not self._is_held_back()):
                self._move_on(sending, steps)
            elif sending:
                self._execute(sending)
            return True

    def _move_on(self, sending: Sequence[Sending], steps: Recorded | None) -> None:
        self._leave_vanished()
        self._diary.moves_on()
        if steps is None:
            steps = self._book.kept.next_record()
        # Before the state is read: a reply handed to another thread after that is not in it.
        settled = self._book.answers.handed_over()
        # Orphans are cancelled once the resumed app has seen a reply and moved on.
        cancelled = self._book.unwanted() + (self._book.orphans() if sending and settled else [])
        owner = self._transactions.owner
        state = EncodedContent(encode_content(self._context.state), owner.fence.counter, owner.guard.state)
        if not self._book.kept.state_key.endswith(state.name):  # whoever uploaded it
            self._uploader.upload(state, patient=False)
            self._execute(sending, settled, cancelled, state, steps)
        elif sending or settled or cancelled or steps is not None:
            self._execute(sending, settled, cancelled, steps=steps)

    def _is_held_back(self) -> bool:
        """Return whether a step that is under way has replies: what they taught it is not recorded yet."""
        pending = self._book.kept.pending
        if not pending.is_any_under_way:
            return False
        return pending.holds_back([message.message_id for message in self._book.answers.handed_over()])

    def _leave_vanished(self) -> None:
        """Delete what the run has at nodes that are no longer registered, once it has contacted many."""
        idle = self._book.contacts.crowd()
        if idle:
            connection = self._transactions.owner.connection
            gone = set(idle) - self._session.through_outage(lambda: registered(connection, idle))
            if gone:
                self._session.transact(lambda: self._transactions.leave(gone), frees=True)
            self._book.contacts.forget(gone)

    def settle(self, message_ids: Sequence[str]) -> None:
        """Settle these replies if they were handed over; save nothing."""
        self._session.check()
        with self._session.writing:
            settled = self._book.answers.handed_over_of(message_ids)
            if settled:
                self._execute(settled=settled)
        self._session.through_outage(lambda: self._receiver.read(()))

    def cancel_orphans(self, among: Collection[str] | None = None) -> None:
        """Cancel what the app has not adopted since the resume; given ids, only those messages."""
        with self._session.writing:
            orphans = [each for each in self._book.orphans() if among is None or each.message_id in among]
            if orphans:
                self._execute(cancelled=orphans, is_said=among is None)

    def free_idle(self) -> None:
        """Delete what was uploaded for a push that failed; what cannot be deleted now is left to the next commit."""
        with suppress(BrokerflError), self._session.writing:
            is_any_idle = bool(self._book.plan(contents=self._uploader.contents))
            self._book.discard()
            if is_any_idle:
                self._execute()

    def _execute(
        self,
        sending: Sequence[Sending] = (),
        settled: Sequence[OpenMessage] = (),
        cancelled: Sequence[OpenMessage] = (),
        state: EncodedContent | None = None,
        steps: Recorded | None = None,
        *,
        is_said: bool = True,
    ) -> None:
        """Plan the change, run its transaction, apply it to the book, and say what was cancelled."""

        def plan() -> Transaction:
            change = self._book.plan(sending, settled, cancelled, state, self._uploader.contents, steps)
            has_room = bool(change.settled) or not change.frees
            return self._transactions.commit(change, self._diary.page(sending, has_room=has_room))

        try:
            results = self._session.transact(plan, self._was_executed, frees=not (sending or state or steps))
        except BaseException:
            self._book.discard()
            raise
        self._transactions.saved(self._book.under_way)
        self._diary.written()
        applied = self._book.apply(results)
        self._receiver.free(applied.freed)
        orphans = sum(not message.is_unwanted for message in cancelled)
        if orphans and is_said:
            log(INFO, "Run %s: cancelled %s messages that were not pushed again", self._run_id, orphans)
        try:
            self._follow_up(applied)
        except RedisOutOfMemory:  # the messages are in the ledger: a comparison sends them when there is room
            self._session.distrust()

    def _was_executed(self) -> bool:
        """Return whether the transaction took effect although its answer was lost: EXEC is all or nothing."""
        change = self._book.under_way
        probe = next(iter(change.new + change.leaving), None)
        if probe is None:
            # It is safe to repeat: neither the context nor a message sent again under its id is counted twice.
            return False
        return self._transactions.owner.books.has(probe) == bool(change.new)

    # Sending again.

    def _follow_up(self, applied: Applied) -> None:
        """Where an inbox had vanished, contact the node again and send once more."""
        refused = list(applied.refused)
        if applied.vanished:
            again = self._send(applied.vanished)
            refused += [*again.refused, *((parcel, Exception("it vanished")) for parcel in again.vanished)]
        if refused:
            names = self._session.names
            self._book.answers.fail([(each.message_id, _refusal(names.of(each.node_id), why)) for each, why in refused])

    def _send(self, parcels: Sequence[Parcel]) -> Applied:
        results = self._session.transact(lambda: self._transactions.send(parcels))
        assert results is not None, "never executed unseen: it is repeated until its results are here"
        return self._book.sent(parcels, results)

    def send_again(self, message: OpenMessage) -> bool:
        """The payload of a taken reply is missing: use another copy, or ask the node again; return whether one did.

        Raises:
            RedisUnreachable: this thread's time was up.
        """
        former = self._book.answers.use_spare(message)
        if former is not None:
            self._receiver.drop([former])
            return True
        return holding(self._session.writing, lambda: self._reopen(message))

    def _reopen(self, message: OpenMessage) -> bool:
        reopened = self._book.answers.reopen(message)
        if reopened is None:
            return False
        former, parcel = reopened
        self._receiver.drop([former])
        try:
            self._follow_up(Applied([parcel], [], []))
        except (RedisOutOfMemory, RedisUnreachable):
            self._session.distrust()  # the next comparison finds it missing, and sends it when that is possible
        return True


def _refusal(name: str, problem: Exception) -> Error:
    return Error(ErrorCode.NODE_UNAVAILABLE, f"the inbox of {name} does not accept messages: {problem}")
