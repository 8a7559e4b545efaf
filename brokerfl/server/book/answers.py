"""Answers: the replies of a run's messages, from the outbox to the app.

Owns which reply counts, that only one thread takes it, and when it is handed over, so that a commit may settle it. It
must not know how replies are read or awaited.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from brokerfl.broker.change import Parcel
from brokerfl.broker.clock import Clock
from brokerfl.broker.data import Settled
from brokerfl.common import Error, ErrorCode
from brokerfl.common.job import current_job
from brokerfl.server.book.held import Held
from brokerfl.server.book.index import Index
from brokerfl.server.book.message import MOST_REOPENED, UNREAD, Entries, Event, OpenMessage
from brokerfl.server.book.state import GIVEN, State, Step
from brokerfl.wire.frame import Fields, size_of


@dataclass(eq=False)
class Wanted:
    """The replies that one call wants, and those it took for the app. Only for the thread that drives it.

    A signal handler may raise an exception at any call, so ``is_given`` is set last: no call comes between that and the
    app's own code.
    """

    ids: set[str]
    job: Hashable = field(default_factory=current_job)  # whose loop it is
    seen: float = -math.inf  # the book's takes when nobody else had taken one of ``ids``
    left: list[str] = field(default_factory=list)  # those that have left the book
    taken: list[OpenMessage] = field(default_factory=list)
    is_given: bool = False  # the app has all of ``taken``


class Answers:
    """The replies of one run's messages. Safe to share between threads.

    Args:
        index: the messages.
        clock: of Redis.
        held: the ids that the app holds.

    Attributes:
        changed: the book's lock.
        dropped: how many replies matched no open message: from another node, late, or a second one.
        takes: how often there was one reply less to wait for: `take` found it, or its message left the book.
    """

    def __init__(self, index: Index, clock: Clock, held: Held) -> None:
        self._clock, self._held = clock, held
        self._lock, self.changed = index.lock, index.changed
        self.dropped = self.takes = 0
        self._index = index
        self._giving: list[Wanted] = []

    def answer(self, node_id: int, outbox_entry: str, message_id: str, reply: Fields, data: Entries) -> Settled | None:
        """Take in a reply that was read from ``node_id``'s outbox. Returns what is to be deleted of it.

        The time of its arrival decides whether it is late: at the latest that is now, when it was read.
        """
        with self._lock:
            message = self._index.find(message_id)
            if message is None or message.node_id != node_id:
                self.dropped += 1
                return node_id, outbox_entry, data
            if outbox_entry in [entry for _, entry, _ in message.copies]:  # read again after a reconnect
                self._index.doubtful.pop(message_id, None)
                return None
            if message.is_open and self._clock.earliest(outbox_entry) <= message.entry.deadline:
                self._index.hold(message, size_of(reply))
                self._index.note(message, message.answer(reply if message.held else UNREAD, outbox_entry, data))
                self._index.has_chunks(message)
                return None
            self.dropped += 1
            if data and not message.is_open and data in [data for _, _, data in message.copies]:
                # The chunks are still needed.
                return node_id, outbox_entry, ()
            if not message.spare((outbox_entry, reply if data else UNREAD, data)):
                return node_id, outbox_entry, data
            self._index.doubtful.pop(message_id, None)
            self._index.has_chunks(message)
            return None

    def doubt(self) -> None:
        """All outboxes are about to be read again: a large reply that is gone from there lost its chunks too."""
        with self._lock:
            large = (each.message_id for each in self._index.messages.values() if each.data_entries)
            self._index.doubtful = dict.fromkeys(large)

    def fail(self, verdicts: Iterable[tuple[str, Error]]) -> None:
        """Make an Error the reply of each of these open messages; one that is answered keeps its reply."""
        with self._lock:
            for message_id, error in verdicts:
                message = self._index.find(message_id)
                if message is not None and message.is_open:
                    if error.code == ErrorCode.MESSAGE_UNAVAILABLE:
                        message.end()
                    self._index.note(message, message.answer(error))
            self.changed.notify_all()

    def waits(self, message_id: str) -> bool:
        """Return whether a reply to this id may still be handed over."""
        with self._lock:
            return message_id in self._index.messages and message_id not in self._index.taken

    def take(self, wanted: Wanted) -> OpenMessage | None:
        """Take the wanted reply that arrived first, for this job; None when there is none yet."""
        job = current_job()
        with self._lock:
            self._hand_over_given()
            message = self._index.first(wanted.ids)
            if message is not None:
                wanted.taken.append(message)  # first, so that it can be put back after any exception
                self.takes += 1
                self._index.note(message, message.take(job if job == wanted.job else None))
            return message

    def take_left(self, wanted: Wanted) -> OpenMessage | None:
        """Take the Error of a wanted message that left the book before the app had its reply; None if there is none."""
        with self._lock:
            while wanted.left:
                message = self._held.of(wanted.left[-1])
                if message is not None:
                    wanted.taken.append(message)
                    self._held.pop(message.message_id)
                wanted.left.pop()
                if message is not None:
                    return message
            return None

    def left(self, message_ids: Iterable[str]) -> list[str]:
        """Return those of these ids for which `take_left` has something."""
        with self._lock:
            return [message_id for message_id in message_ids if message_id in self._held]

    def put_back(self, messages: Sequence[OpenMessage] = ()) -> None:
        """Replies that were taken could not be handed over now: the first of them is the first to be taken again.

        An exception may have interrupted any step.
        """
        with self._lock:
            self._index.rebuild()
            for message in reversed(messages):
                self._put_back(message, lambda message: message.go(Step.PUT_BACK))

    def _put_back(self, message: OpenMessage, step: Callable[[OpenMessage], Event]) -> bool:
        if message.state not in GIVEN:  # it was cancelled in the meantime, or had left the book before
            if message.state is State.GONE and isinstance(message.reply, Error):
                self._held.leave(message)
            return False
        self._index.note(message, step(message))
        self._index.is_first(message)
        return True

    def use_spare(self, message: OpenMessage) -> Settled | None:
        """The payload of a taken reply is missing: the latest copy becomes the reply, and is the next to be taken.

        Returns:
            The former reply, to be deleted; None if there is no copy.
        """
        with self._lock:
            former = message.copy
            return former if message.spares and self._put_back(message, OpenMessage.use_spare) else None

    def reopen(self, message: OpenMessage) -> tuple[Settled, Parcel] | None:
        """The payload of a taken reply is missing: the message is open again, at most `MOST_REOPENED` times.

        Returns:
            What is left of the reply, to be deleted, and what is to be sent again; None if that is not possible.
        """
        with self._lock:
            former = message.copy
            if message.state is not State.TAKEN or message.reopened >= MOST_REOPENED or message.fields is None:
                return None
            self._index.note(message, message.reopen())
            return former, message.parcel(message.fields)

    def yielded(self, message: OpenMessage) -> None:
        """An iterator is about to yield a reply that was taken."""
        with self._lock:
            if message.state is State.TAKEN:
                self._index.note(message, message.go(Step.YIELDED))

    def hand_over(self, messages: Iterable[OpenMessage]) -> None:
        """Replies have reached the app for good."""
        with self._lock:
            for message in messages:
                if message.state in GIVEN:  # else it was settled meanwhile
                    self._index.note(message, message.hand_over())

    def giving(self, wanted: Wanted) -> None:
        """A call is about to return all that it took: that is handed over once ``wanted.is_given``."""
        with self._lock:
            self._giving.append(wanted)

    def _hand_over_given(self) -> None:
        for wanted in [each for each in self._giving if each.is_given]:
            self.hand_over(wanted.taken)
            self._giving.remove(wanted)

    def weight(self) -> int:
        """Return about how many bytes Redis has of all messages and replies, besides contents that messages share."""
        with self._lock:
            return sum(message.weight for message in self._index.messages.values())

    def unsettled(self, key: tuple[str, int, str]) -> int:
        """Return how many replies to messages with this `LedgerEntry.key` were handed over and are not settled."""
        with self._lock:
            self._hand_over_given()
            return self._index.had.get(key, 0)

    def handed_over(self) -> list[OpenMessage]:
        """Return what a commit by this job settles: the messages whose replies were handed over.

        A reply that was yielded to a loop of this job counts, because the body of the loop has seen it. One that was
        yielded to another job may not have been folded yet.
        """
        job = current_job()
        with self._lock:
            self._hand_over_given()
            return [each for each in self._index.taken.values() if each.is_handed_over_to(job)]

    def handed_over_of(self, message_ids: Iterable[str]) -> list[OpenMessage]:
        """Return those of these messages whose replies the app has, whichever thread was given them."""
        with self._lock:
            self._hand_over_given()
            found = [self._index.taken[each] for each in dict.fromkeys(message_ids) if each in self._index.taken]
            return [message for message in found if message.state is not State.TAKEN]
