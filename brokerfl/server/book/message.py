"""One unsettled message of a run, and what is known about it.

Owns what each step does to a message: only the methods here write it, and only the `book` calls them. It must not know
any other message, Redis, or threads.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

from brokerfl.broker.change import Parcel
from brokerfl.broker.data import Settled
from brokerfl.common import Error
from brokerfl.server.book.state import GIVEN, OPEN, TRANSITIONS, State, Step
from brokerfl.wire.frame import MANIFEST, Fields, size_of
from brokerfl.wire.manifest import CHUNK
from brokerfl.wire.run import LedgerEntry

#: How often a node is asked again for a reply whose payload is missing.
MOST_REOPENED = 3

#: Where the chunks of a large reply are in the data stream; empty for a small one.
Entries = tuple[str, ...]

#: A copy of a reply: its outbox entry, its fields, and where its chunks are.
Copy = tuple[str, Fields, Entries]

#: The reply of a message whose reply is read from its outbox again when the app wants it.
UNREAD: Fields = {}

#: The steps of every message: reading a member off its Enum is slow, see `state`.
_ACCEPTED, _ANSWERED, _TAKEN, _HANDED_OVER = Step.ACCEPTED, Step.ANSWERED, Step.TAKEN, Step.HANDED_OVER


def _is_partial(reply: Fields | Error | None) -> bool:
    """Whether a reply is to be read again, or names a payload: one that its node could not store has no entries."""
    return isinstance(reply, dict) and (not reply or MANIFEST in reply)


class IllegalStep(AssertionError):  # noqa: N818  (it says what was tried)
    """A step that is not in the table in `state`: a bug in the code that tried it."""


class Event(NamedTuple):
    """One step that one message took, from one state to another.

    ``since`` is the local monotonic time of its push or adoption, before this step; 0 if there was none.
    """

    step: Step
    message_id: str
    node_id: int
    group_id: str
    before: State
    state: State
    since: float = 0.0


@dataclass(slots=True, eq=False)
class OpenMessage:
    """One message of the run."""

    message_id: str
    entry: LedgerEntry  # its entry in the ledger
    fields: Fields | None = None  # what was sent, while it may have to be sent again; None if it is not at hand
    state: State = State.UNSENT
    inbox_entries: tuple[str, ...] = ()  # its entries in its inbox, as far as known
    began: str | None = ""  # its first entry there; "" while it is unsent, None if unknown
    pushed_at: float = 0.0  # local monotonic time at which it was accepted, or adopted; 0 before
    outbox_entry: str = ""  # where its reply is
    data_entries: Entries = ()  # where the chunks of a large reply are
    reply: Fields | Error | None = None  # what was read, or the verdict
    held: int = 0  # bytes of the reply that count as held in memory
    taken_by: Hashable = None  # the job that took the reply for a loop of its own; None if it is another job's loop
    reopened: int = 0  # how often the payload of its reply was missing
    spares: tuple[Copy, ...] = ()  # later copies of a large reply
    is_asked_again: bool = False  # it was sent again for its reply, which Redis had lost
    is_let_go: bool = False  # the app has let go of its id
    is_named: bool = False  # the app asked for it with a copy of its id
    has_ended: bool = False  # cancelled or expired: nobody will execute it

    @property
    def node_id(self) -> int:
        """The node that is to execute it."""
        return self.entry.node_id

    @property
    def is_open(self) -> bool:
        """Whether it is not answered yet."""
        return self.state in OPEN

    @property
    def is_fetched(self) -> bool:
        """Whether its reply, or the payload of it, stays in Redis until the app wants it, and may be lost there."""
        return bool(self.data_entries) or _is_partial(self.reply)

    @property
    def is_unwanted(self) -> bool:
        """Whether its reply, once it is there, may leave when the run moves on."""
        return self.has_ended or (self.is_let_go and not self.is_named)

    def is_handed_over_to(self, job: Hashable) -> bool:
        """Whether the app has the reply that was taken: handed over, or yielded to this job."""
        return self.state not in GIVEN or (self.state is State.YIELDED and self.taken_by == job)

    @property
    def weight(self) -> int:
        """About how many bytes Redis has of it and its reply, besides a content that others may share."""
        return size_of(self.fields or {}) * self.is_open + self.held + CHUNK * len(self.data_entries)

    def parcel(self, fields: Fields) -> Parcel:
        """Return what goes into its inbox, replacing what is there."""
        return Parcel(self.node_id, self.message_id, fields, self.inbox_entries)

    @property
    def copy(self) -> Settled:
        """Where its reply is."""
        return self.node_id, self.outbox_entry, self.data_entries

    @property
    def copies(self) -> list[Settled]:
        """Where all copies of its reply are."""
        spares = [(self.node_id, outbox_entry, data_entries) for outbox_entry, _, data_entries in self.spares]
        return [self.copy, *spares] if self.outbox_entry else spares

    # A signal handler may raise an exception at any call. So each step first makes its event, and then makes all its
    # changes without a call in between.

    def go(self, step: Step) -> Event:
        """Take a step that changes nothing but the state.

        Raises:
            IllegalStep: the step cannot be taken from the message's state.
        """
        event = self._event(step)
        self.state = event.state
        return event

    def _event(self, step: Step) -> Event:
        before, entry = self.state, self.entry
        following = TRANSITIONS[before].get(step)
        if following is None:
            raise IllegalStep(f"message {self.message_id}, which is {before.value}, cannot be {step.value}")
        return Event(step, self.message_id, entry.node_id, entry.group_id, before, following, self.pushed_at)

    # In the inbox.

    def accept(self, entry: LedgerEntry) -> Event:
        """The transaction of its push was executed."""
        event, now = self._event(_ACCEPTED), time.monotonic()
        self.entry, self.pushed_at, self.state = entry, now, event.state
        return event

    def replace(self, entry: LedgerEntry) -> None:
        """It was sent again, with another content: Redis had lost the first one."""
        self.entry = entry

    def note_entry(self, entry_id: str, tells: bool) -> None:
        """It is in its inbox at this entry, "" if the answer was lost; unless it ``tells`` when, that stays unknown."""
        if entry_id:
            self.inbox_entries = (*self.inbox_entries, entry_id)
            self.is_asked_again = self.is_asked_again or not self.is_open
        if self.began == "":
            self.began = entry_id if tells else None

    def find(self, entry_ids: list[str]) -> Event:
        """A comparison with Redis found it at these entries, or nowhere."""
        event, entries = self._event(Step.FOUND if entry_ids else Step.MISSED), tuple(entry_ids)
        self.inbox_entries, self.state = entries, event.state
        return event

    def adopt(self) -> Event:
        """It is no longer an orphan."""
        event, now = self._event(Step.ADOPTED), time.monotonic()
        self.pushed_at, self.state = now, event.state
        return event

    def keep(self, fields: Fields | None) -> None:
        """Keep what to send if it has to be sent again."""
        if self.is_open or self.is_fetched:
            self.fields = fields

    # The reply.

    def answer(self, reply: Fields | Error, outbox_entry: str = "", data_entries: Entries = ()) -> Event:
        """Its first reply arrived, or a verdict was passed."""
        event, is_fetched = self._event(_ANSWERED), bool(data_entries) or _is_partial(reply)
        self.reply, self.outbox_entry, self.data_entries = reply, outbox_entry, data_entries
        if not is_fetched:  # otherwise it may turn out to be missing
            self.fields = None
        self.state = event.state
        return event

    def hold(self, size: int) -> None:
        """So many bytes of its reply are in memory."""
        self.held = size

    def let_go(self) -> None:
        """The app has let go of its id."""
        self.is_let_go = True

    def name(self) -> None:
        """The app asks for it with a copy of its id, and may do so again."""
        self.is_named = True

    def end(self) -> None:
        """It was cancelled, or has expired."""
        self.has_ended = True

    def leave_behind(self, error: Error) -> None:
        """It has left the book, and its reply has left Redis."""
        self.reply = self.reply if isinstance(self.reply, Error) else error
        self.outbox_entry, self.data_entries, self.spares = "", (), ()

    def spare(self, copy: Copy) -> bool:
        """Keep another copy of a reply that is fetched: what counts may turn out to be missing.

        A node publishes again what it does not find in Redis. Returns False if this is not such a copy.
        """
        if self.is_open or not self.is_fetched or bool(copy[2]) != bool(self.data_entries):
            return False
        if len(self.spares) >= MOST_REOPENED:  # a correct node makes no more
            return False
        self.spares = (*self.spares, copy)
        return True

    def use_spare(self) -> Event:
        """The payload of its reply is missing: the latest copy is its reply now."""
        event, rest = self._event(Step.PUT_BACK), self.spares[:-1]
        self.outbox_entry, self.reply, self.data_entries = self.spares[-1]
        self.spares, self.state = rest, event.state
        return event

    def reopen(self) -> Event:
        """The payload of its reply is missing: it is open again."""
        event = self._event(Step.REOPENED)
        self.reopened += 1
        self.reply, self.inbox_entries, self.outbox_entry, self.data_entries = None, (), "", ()
        self.state = event.state
        return event

    def take(self, job: Hashable) -> Event:
        """A job takes its reply, to fetch it."""
        event = self._event(_TAKEN)
        self.taken_by, self.state = job, event.state
        return event

    def hand_over(self) -> Event:
        """The app has its reply for good; release its bytes. Redis may still lose the chunks of a large one."""
        event = self._event(_HANDED_OVER)
        self.reply, self.state = None, event.state
        return event
