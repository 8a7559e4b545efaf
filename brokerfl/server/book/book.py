"""The book of one run: what its pushes and commits do to its messages.

Owns the plan of each commit, which contents are needed, and the run's counters. It must not know Redis, or what happens
to replies.

What changes both the book and Redis takes three steps: `plan` returns what is due, as one `Change`; its transaction is
executed; `apply` does the same to the book. If the transaction fails, `discard` forgets the plan, and nothing has to be
undone. From plan to apply, new messages are *under way*: a reply may be faster than the answer to their transaction, so
replies find them, and nothing else does.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from brokerfl.broker.change import Change, Parcel, Snapshot
from brokerfl.broker.clock import Clock
from brokerfl.broker.data import Settled
from brokerfl.server.book.answers import Answers
from brokerfl.server.book.comparison import compare
from brokerfl.server.book.contacts import Contacts
from brokerfl.server.book.groups import KnownGroups
from brokerfl.server.book.held import Held, HeldId
from brokerfl.server.book.index import Index, Tell, count
from brokerfl.server.book.message import OpenMessage
from brokerfl.server.book.orphans import Orphans
from brokerfl.server.book.plan import Sending, idle
from brokerfl.server.book.state import ORPHANS, State, Step
from brokerfl.wire.frame import Fields
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.run import LedgerEntry


class Applied(NamedTuple):
    """What happened to parcels, and what a change left to be deleted."""

    vanished: list[Parcel]  # there was no inbox
    refused: list[tuple[Parcel, Exception]]  # the key of the inbox has another type
    freed: list[Settled]  # replies


class _UnderWay(NamedTuple):
    change: Change
    sending: Sequence[Sending]
    settled: Sequence[OpenMessage]
    cancelled: Sequence[OpenMessage]


class Book:
    """The messages of one run, from their push to the commit that settles them.

    Args:
        snapshot: what the books in Redis hold: the messages in them are orphans.
        state_key: what the state that the last commit saved is called in Redis, as a content.
        tell: is told of every step that a message takes; it must not call the book.
        clock: of Redis.

    Attributes:
        changed: the condition of the lock that guards everything; notified when a wait may be over.
        lock: that lock. Taken through ``changed``, it would stay held if a signal handler raised an exception.
        answers: the replies.
        contacts: the nodes.
    """

    def __init__(
        self, snapshot: Snapshot, state_key: bytes, tell: Tell = lambda event: None, clock: Clock | None = None
    ) -> None:
        self._clock = clock or Clock()
        self._index = Index(tell)
        self.lock, self.changed = self._index.lock, self._index.changed
        self._held = Held()
        self.answers = Answers(self._index, self._clock, self._held)
        self._orphans = Orphans()
        self._groups = KnownGroups(snapshot.groups)
        self._needs: dict[bytes, int] = {}
        self._kept: Collection[bytes] = ()
        self.state_key = state_key
        self.contacts = Contacts(snapshot.nodes, self._index)
        self._pushed, self._replied, self._sequence = snapshot.messages, snapshot.replies, 0
        self._under_way: _UnderWay | None = None
        for message_id, entry in sorted(snapshot.entries.items(), key=lambda item: item[1].sequence):
            orphan = OpenMessage(message_id, entry, state=State.ORPHAN, began=None)
            self._index.load(orphan)
            self._orphans.add(orphan)
            self._groups.add(entry.group_id)
            count(self._needs, entry.content_key, 1)
            self._sequence = entry.sequence

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._index.messages

    def __len__(self) -> int:
        return len(self._index.messages)

    # Looking.

    def owing(self) -> list[int]:
        """Return the nodes that owe a reply."""
        with self.lock:
            return self._index.owing()

    def awaited(self, message_ids: Iterable[str] | None = None) -> list[OpenMessage]:
        """Return the open messages, or those of them with these ids, on which a verdict may be passed.

        That is, neither orphans nor what a push is adopting.
        """
        with self.lock:
            owed = self._index.owed(message_ids)
            return [each for each in owed if each.state not in ORPHANS and not self._orphans.is_reserved(each)]

    def left(self, message_ids: Iterable[str]) -> set[str]:
        """Return those of these ids that no message has, nor one that is under way."""
        with self.lock:
            return {message_id for message_id in message_ids if self._index.find(message_id) is None}

    def is_new_group(self, group_ids: Iterable[str]) -> bool:
        """Return whether one of ``group_ids`` is not among the last that the run pushed: then it moves on."""
        with self.lock:
            return bool(self._groups.new(group_ids))

    def start_over(self) -> None:
        """From now on, no group was pushed before."""
        with self.lock:
            self._groups.forget()

    def snapshot(self) -> Snapshot:
        """Return what the books in Redis are to hold."""
        with self.lock:
            entries = {message_id: message.entry for message_id, message in self._index.messages.items()}
            return Snapshot(entries, set(self.contacts.reached), self._pushed, self._replied, self._groups.all())

    # Pushing.

    def next_sequence(self) -> int:
        """Return the number of the next message."""
        with self.lock:
            self._sequence += 1
            return self._sequence

    def keep(self, contents: Collection[bytes]) -> None:
        """Let no plan count these contents as idle: they are on their way, and what needs them is not accepted yet."""
        with self.lock:
            self._kept = contents

    def reserve(self, entry: LedgerEntry, now: float, *, exactly: bool = False) -> OpenMessage | None:
        """Return the orphan that a message adopts, and reserve it until `adopt` or `disown`: see `Orphans.reserve`."""
        with self.lock:
            return self._orphans.reserve(entry, now, exactly=exactly)

    def adopt(self, adopted: Iterable[tuple[OpenMessage, Fields | None]]) -> bool:
        """The push that reserved these orphans succeeded, with these fields; return whether Redis lost one of them."""
        with self.lock:
            messages = list(adopted)
            for message, fields in messages:
                self._adopt(message)
                message.keep(fields)
            self._orphans.unreserve()
            return any(message.state is State.LOST for message, _ in messages)

    def _adopt(self, message: OpenMessage) -> None:
        if message.state in ORPHANS:
            self._index.note(message, message.adopt())

    def claim(self, message_id: str) -> None:
        """The app waits for this id, which it may remember over a resume: that adopts it too."""
        with self.lock:
            message = self._index.messages.get(message_id)
            if message is not None and message.state in ORPHANS:
                self._orphans.remove(message)
                self._adopt(message)
            if message is not None and type(message_id) is not HeldId:
                message.name()
                self._index.weigh(message)

    def disown(self, accepted: Iterable[OpenMessage]) -> None:
        """A push failed: what it reserved are orphans again, and so is what it had accepted, for it may be repeated."""
        with self.lock:
            self._orphans.unreserve()
            for message in accepted:
                if message.state in (State.SENT, State.LOST, State.ANSWERED):
                    self._index.note(message, message.go(Step.DISOWNED))
                    self._orphans.add(message)

    def hand_out(self, message_id: str) -> str:
        """Return the id of a message as the app gets it."""
        return self._held.hand_out(message_id)

    def unwanted(self) -> list[OpenMessage]:
        """Return the answered messages whose replies nobody has taken, and which the run may leave behind.

        The app has let go of their ids, and never asked with a copy; or they were cancelled, or have expired.
        """
        with self.lock:
            for message_id in self._held.let_go():
                message = self._index.messages.get(message_id)
                if message is not None:
                    message.let_go()
                    self._index.weigh(message)
            return list(self._index.unwanted.values())

    def orphans(self) -> list[OpenMessage]:
        """Return what nobody has adopted, nor is adopting."""
        with self.lock:
            return self._orphans.free()

    # Plan and apply.

    def plan(
        self,
        sending: Sequence[Sending] = (),
        settled: Sequence[OpenMessage] = (),
        cancelled: Sequence[OpenMessage] = (),
        state: EncodedContent | None = None,
        contents: Iterable[bytes] = (),
    ) -> Change:
        """Return what one commit changes. It is under way until `apply` or `discard`, or until the next plan.

        Args:
            sending: messages to enter, or to send again unless they were answered in the meantime.
            settled: messages whose replies the app has; they leave.
            cancelled: orphans, and what is unwanted; they leave.
            state: the ServerApp's, if it differs from what the last commit saved.
            contents: the large contents that the run has in Redis.
        """
        with self.lock:
            gone, saved = (*settled, *cancelled), state.key if state else self.state_key
            entered = {one.message.message_id: one.entry for one in sending}
            self._index.unsent = {one.message.message_id: one.message for one in sending if one.is_new}
            nodes = dict.fromkeys(one.entry.node_id for one in sending)
            self.contacts.reached.update(nodes)
            for message in self._index.unsent.values():  # by which a reply that is faster is judged
                message.replace(entered[message.message_id])
            contents = [each for each in contents if each != saved and each not in self._kept]
            again = [message for message in settled if message.is_asked_again]
            change = Change(
                entered=entered,
                new=tuple(self._index.unsent),
                groups=self._groups.new({one.entry.group_id for one in sending if one.is_new}),
                parcels=tuple(one.message.parcel(one.fields) for one in sending if one.message.is_open),
                contacted={node: None for node in nodes if node not in self.contacts.known},
                settled=tuple(message.message_id for message in settled),
                cancelled=tuple(message.message_id for message in cancelled),
                recalled=tuple(each.parcel({}) for each in (*cancelled, *again)),
                state=state,
                idle=idle(contents, self._needs, sending, gone),
                needed_from=self._index.places.needed_from(gone, self._clock.slack),
                messages=self._pushed + len(self._index.unsent),
                replies=self._replied + len(settled),
            )
            self._under_way = _UnderWay(change, sending, settled, cancelled)
            return change

    @property
    def under_way(self) -> Change:
        """The last plan, neither applied nor discarded yet."""
        assert self._under_way is not None, "a plan comes first"
        return self._under_way.change

    def discard(self) -> None:
        """The transaction of the change under way was not executed."""
        with self.lock:
            self._under_way = None
            self._index.forget_unsent()

    def apply(self, results: Sequence[Any] | None) -> Applied:
        """The transaction of the change under way was executed; ``results`` are None where its answer was lost."""
        with self.lock:
            assert self._under_way is not None, "a plan comes first"
            change, sending, settled, cancelled = self._under_way
            for one in sending:
                self._accept(one)
            self.contacts.known.update(change.contacted)
            self._groups.noted(change.groups)
            self._pushed, self._replied = change.messages, change.replies
            vanished, refused = self._note_entries(change.parcels, results)
            freed = [copy for message in (*settled, *cancelled) for copy in message.copies]
            for message in settled:
                self._leave(message, Step.SETTLED)
            for message in cancelled:
                is_left = message.state is State.ANSWERED and message.is_unwanted
                self._leave(message, Step.CANCELLED)
                self._orphans.remove(message)
                if is_left:  # else a thread has taken its reply in the meantime
                    self._held.leave(message)
            if cancelled:  # a thread that has claimed one in the meantime waits for nothing
                self.answers.takes += len(cancelled)
                self.changed.notify_all()
            if change.state is not None:
                self.state_key = change.state.key
            self.discard()
            return Applied(vanished, refused, freed)

    def _accept(self, one: Sending) -> None:
        message, entry = one.message, one.entry
        count(self._needs, entry.content_key, 1)
        if one.is_new:
            self._index.note(message, message.accept(entry))
            self._index.enter(message)
        else:
            count(self._needs, message.entry.content_key, -1)
            message.replace(entry)
            self._send(message)

    def _leave(self, message: OpenMessage, step: Step) -> None:
        self._index.leave(message, step)
        count(self._needs, message.entry.content_key, -1)

    def _send(self, message: OpenMessage) -> None:
        if message.is_open:
            self._index.note(message, message.go(Step.SENT))

    def sent(self, parcels: Sequence[Parcel], results: Sequence[Any]) -> Applied:
        """These messages were sent once more."""
        with self.lock:
            for parcel, result in zip(parcels, results, strict=True):
                if isinstance(result, bytes) and parcel.message_id in self._index.messages:
                    self._send(self._index.messages[parcel.message_id])
            return Applied(*self._note_entries(parcels, results), [])

    def _note_entries(
        self, parcels: Sequence[Parcel], results: Sequence[Any] | None
    ) -> tuple[list[Parcel], list[tuple[Parcel, Exception]]]:
        vanished, refused = [], []
        for parcel, result in zip(parcels, results if results is not None else [b""] * len(parcels), strict=True):
            message = self._index.messages.get(parcel.message_id)
            if isinstance(result, bytes):
                if message is not None:
                    entry_id = result.decode()
                    self._index.note_entry(message, entry_id, self._clock.tells(entry_id))
                continue
            if message is not None:
                self._index.places.note(message)
            if result is None:
                vanished.append(parcel)
            else:
                refused.append((parcel, result))
        return vanished, refused

    # Comparing.

    def compare(self, seen: Iterable[tuple[int, str, str]]) -> tuple[list[Parcel], list[Parcel], list[tuple[int, str]]]:
        """Compare with the inboxes, as they were before the outboxes were read: see `comparison.compare`."""
        with self.lock:
            return compare(self._index, seen)

    def still_lost(self, parcels: Iterable[Parcel]) -> list[Parcel]:
        """Return those of these messages that were not answered in the meantime, or whose replies are in doubt."""
        with self.lock:
            due = {message.message_id for message in (*self._index.owed(), *self._index.in_doubt())}
            return [parcel for parcel in parcels if parcel.message_id in due]
