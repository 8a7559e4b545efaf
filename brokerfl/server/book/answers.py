"""Answers: the replies of a run's messages, from the outbox to the app.

Owns which reply counts, that only one thread takes it, and when it is handed over, so that a commit may settle it. It
must not know how replies are read or awaited.
"""

import threading
from collections.abc import Callable, Iterable, Sequence

from brokerfl.broker.books import Parcel
from brokerfl.broker.outbox import Settled
from brokerfl.broker.stream import milliseconds_of
from brokerfl.common import Error, ErrorCode
from brokerfl.server.book.held import Held
from brokerfl.server.book.index import Index
from brokerfl.server.book.message import MOST_REOPENED, UNREAD, Entries, Event, OpenMessage
from brokerfl.server.book.state import GIVEN, State, Step
from brokerfl.wire.frame import Fields, size_of


class Answers:
    """The replies of one run's messages. Safe to share between threads.

    Args:
        index: the messages.
        held: the ids that the app holds.

    Attributes:
        changed: the book's lock.
        dropped: how many replies matched no open message: from another node, late, or a second one.
        takes: how often there was one reply less to wait for: `take` found it, or its message left the book.
    """

    def __init__(self, index: Index, held: Held) -> None:
        self._lock, self.changed = index.lock, index.changed
        self.dropped = self.takes = 0
        self._index, self._held = index, held

    def answer(self, node_id: int, outbox_entry: str, message_id: str, reply: Fields, data: Entries) -> Settled | None:
        """Take in a reply that was read from ``node_id``'s outbox. Returns what is to be deleted of it.

        The time of its arrival decides whether it is late: the entry's id carries the server's time.
        """
        with self._lock:
            message = self._index.find(message_id)
            if message is None or message.node_id != node_id:
                self.dropped += 1
                return node_id, outbox_entry, data
            if outbox_entry in [entry for _, entry, _ in message.copies]:  # read again after a reconnect
                self._index.doubtful.pop(message_id, None)
                return None
            if message.is_open and milliseconds_of(outbox_entry) <= message.entry.deadline:
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

    def take(self, message_ids: set[str]) -> OpenMessage | None:
        """Take the reply among ``message_ids`` that arrived first, for this thread; None when there is none yet."""
        with self._lock:
            message = self._index.first(message_ids)
            if message is not None:
                self.takes += 1
                self._index.note(message, message.take(threading.get_ident()))
            return message

    def take_left(self, message_id: str) -> OpenMessage | None:
        """Take the Error of a message that left the book before the app asked for its reply; None if it did not."""
        with self._lock:
            return self._held.pop(message_id)

    def left(self, message_ids: Iterable[str]) -> list[str]:
        """Return those of these ids for which `take_left` has something."""
        with self._lock:
            return [message_id for message_id in message_ids if message_id in self._held]

    def put_back(self, messages: Sequence[OpenMessage]) -> None:
        """Replies that were taken could not be handed over now: the first of them is the first to be taken again."""
        with self._lock:
            for message in reversed(messages):
                self._put_back(message, lambda message: message.go(Step.PUT_BACK))

    def _put_back(self, message: OpenMessage, step: Callable[[OpenMessage], Event]) -> bool:
        if message.state is not State.TAKEN:  # it was cancelled in the meantime, or had left the book before
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

    def handed_over(self) -> list[OpenMessage]:
        """Return what a commit by this thread settles: the messages whose replies were handed over.

        A reply that an iterator of this thread has yielded counts, because the body of its loop has seen it. One that
        another thread's iterator has yielded may not have been folded yet.
        """
        thread = threading.get_ident()
        with self._lock:
            return [each for each in self._index.taken.values() if each.is_handed_over_to(thread)]

    def handed_over_of(self, message_ids: Iterable[str]) -> list[OpenMessage]:
        """Return those of these messages whose replies the app has, whichever thread was given them."""
        with self._lock:
            found = [self._index.taken[each] for each in dict.fromkeys(message_ids) if each in self._index.taken]
            return [message for message in found if message.state is not State.TAKEN]
