"""The ledger: which messages of a run are open, and what became of each.

Owns the state machine of a message as its run sees it, in memory and in the hash `P:{run:R}:ledger`. It does no
waiting and must not know how replies travel.

    open      in the ledger, by the transaction that pushed it
    answered  the first reply that fits was read from its node's outbox, or a verdict made an Error reply of it
    taken     an iterator has yielded it and not gone on yet
    handed    the call that waited returned it, or its iterator went past it
    gone      a commit took it out of the ledger

After a resume the entries of the hash are *orphans* until the app pushes the same message again and so adopts them, or
waits for their ids. Nobody waits for an orphan, so no verdict is passed on it.

A reply that was taken counts as handed when the thread that took it commits: its loop body has seen it. It does not
when another thread commits, for then it may not have been folded yet.

Not safe between threads by itself: whoever uses it holds its `lock`.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from brokerfl.broker.stream import milliseconds_of, place_of
from brokerfl.common import Error
from brokerfl.wire.frame import Fields
from brokerfl.wire.run import LedgerEntry, encode_entry

#: How often a node is asked again for a reply whose payload is missing.
MOST_REOPENED = 3

#: Milliseconds by which the clock of Redis may be set back: by so much the chunks of a reply may seem to be older than
#: the message that it answers.
CLOCK_STEP = 60_000


class State(Enum):
    """Where a message is between push and commit."""

    OPEN = "open"
    ANSWERED = "answered"
    TAKEN = "taken"
    HANDED = "handed"


@dataclass(slots=True)
class OpenMessage:
    """One message of the run.

    Attributes:
        message_id: its id.
        entry: what the hash holds of it.
        pushed: Redis has accepted the entry.
        is_lost: it is in the hash, and neither in an inbox nor in an outbox.
        fields: what was pushed, kept as long as it may have to be pushed again; None after a resume.
        inbox_entries: where it is in its inbox, as far as is known.
        began: where it first was there; None where that is not known.
        outbox_entry: where its reply is.
        data_entries: where the chunks of a large reply are.
        reply: what was read, or the verdict.
        taken_by: the thread that took the reply.
        reopened: how often the payload of its reply was missing.
        spares: later copies of a large reply: outbox entry, reply, and where its chunks are.
        needs: the content that its run keeps in Redis for it, by name; b"" as long as it is not counted.
        is_coming: a push adopts it, and its content is on the way to Redis.
    """

    message_id: str
    entry: LedgerEntry
    state: State = State.OPEN
    pushed: bool = False
    is_lost: bool = False
    fields: Fields | None = None
    inbox_entries: tuple[str, ...] = ()
    began: str | None = ""
    outbox_entry: str = ""
    data_entries: tuple[str, ...] = ()
    reply: Fields | Error | None = None
    taken_by: int = 0
    reopened: int = 0
    spares: tuple[tuple[str, Fields, tuple[str, ...]], ...] = ()
    needs: bytes = b""
    is_coming: bool = False

    @property
    def node_id(self) -> int:
        """Who is to execute it."""
        return self.entry.node_id

    def encode(self) -> bytes:
        """Return what the hash holds of it."""
        return encode_entry(self.entry)


class Ledger:
    """The messages of one run that no commit has taken out yet.

    Attributes:
        lock: guards all of it, and is notified when something in it changed.
        contacted: the nodes that may hold keys of the run; noted before they do, lest a first ring is passed over.
        pushed: how many messages the run has pushed.
        replied: of how many of them a commit has settled the reply.
        dropped: replies that fitted nothing open: another node's, late, or a second one.
        taken: how often `take` found something.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.contacted: set[int] = set()
        self.pushed = 0
        self.replied = 0
        self._sequence = 0
        self._messages: dict[str, OpenMessage] = {}
        self._orphans: dict[str, OpenMessage] = {}
        self._answered: dict[str, None] = {}
        self._taken: dict[str, OpenMessage] = {}
        self._open_per_node: dict[int, int] = {}
        self._groups: set[str] = set()
        self.dropped = 0
        self.taken = 0

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._messages

    def __len__(self) -> int:
        return len(self._messages)

    # After a resume.

    def load(self, entries: Mapping[str, LedgerEntry], is_counted: Callable[[bytes], bool]) -> None:
        """Take what the hash holds: messages that wait to be adopted.

        Args:
            entries: by message id.
            is_counted: whether a content of this name is kept in Redis for the messages that need it.
        """
        for message_id, entry in sorted(entries.items(), key=lambda item: item[1].sequence):
            message = OpenMessage(message_id, entry, pushed=True, began=None)
            message.needs = entry.digest if is_counted(entry.digest) else b""
            self.add([message])
            self._orphans[message_id] = message
            self._sequence = entry.sequence

    def adopt(self, entry: LedgerEntry, now: float, *, exactly: bool = False) -> OpenMessage | None:
        """Return the orphan that a message pushed again stands for: with equal content, else the oldest.

        Args:
            entry: the message's.
            now: in milliseconds of Redis TIME. One that has expired without a reply is not adopted.
            exactly: only one with equal content.
        """
        fitting = [
            orphan
            for orphan in self._orphans.values()
            if orphan.entry.key == entry.key and (orphan.state is not State.OPEN or orphan.entry.deadline > now)
        ]
        if not fitting:
            return None
        found = next((orphan for orphan in fitting if orphan.entry.digest == entry.digest), None)
        if found is None and exactly:
            return None
        return self._orphans.pop((found or fitting[0]).message_id)

    def disown(self, adopted: Iterable[OpenMessage]) -> None:
        """The push that adopted them failed: they are orphans again."""
        for message in adopted:
            if message.state in (State.OPEN, State.ANSWERED):
                self._orphans[message.message_id] = message

    def claim(self, message_id: str) -> None:
        """The app waits for this id, which it remembered over a resume: that adopts it too."""
        self._orphans.pop(message_id, None)

    def orphans(self) -> list[OpenMessage]:
        """Return what nobody has adopted yet."""
        return list(self._orphans.values())

    # Pushing.

    def next_sequence(self) -> int:
        """Return the number of the next message."""
        self._sequence += 1
        return self._sequence

    def add(self, messages: Iterable[OpenMessage]) -> set[str]:
        """Enter messages that are about to be pushed; return the groups that are new, for `withdraw`."""
        new = {message.entry.group_id for message in messages} - self._groups
        for message in messages:
            if message.message_id not in self._messages:
                self._messages[message.message_id] = message
                self._open(message.node_id)
        self._groups |= new
        return new

    def withdraw(self, messages: Iterable[OpenMessage], new_groups: set[str]) -> None:
        """Undo `add`: the push failed. What was adopted stays."""
        for message in messages:
            if message.pushed:
                continue
            if message.state is State.OPEN:
                self._close(message.node_id)
            self._answered.pop(message.message_id, None)
            self._messages.pop(message.message_id, None)
        self._groups -= new_groups

    def is_new_group(self, group_ids: Iterable[str]) -> bool:
        """Return whether one of ``group_ids`` was never pushed: then the run moves on."""
        return not self._groups.issuperset(group_ids)

    def waits(self, message_id: str) -> bool:
        """Return whether a reply to this id may still be handed over."""
        message = self._messages.get(message_id)
        return message is not None and message.state in (State.OPEN, State.ANSWERED)

    def open_nodes(self) -> list[int]:
        """Return the nodes that owe a reply."""
        return list(self._open_per_node)

    def open_messages(self) -> list[OpenMessage]:
        """Return the messages that Redis has accepted and that nobody has answered, with the orphans."""
        return [message for message in self._messages.values() if message.state is State.OPEN and message.pushed]

    def awaited(self) -> list[OpenMessage]:
        """Return the open messages on which a verdict may be passed: all but the orphans."""
        return [message for message in self.open_messages() if message.message_id not in self._orphans]

    def in_redis(self) -> dict[str, bytes]:
        """Return what the hash must hold: every message that was pushed and that no commit has taken out."""
        return {message_id: message.encode() for message_id, message in self._messages.items() if message.pushed}

    def find(self, message_id: str) -> OpenMessage | None:
        """Return a message that no commit has taken out."""
        return self._messages.get(message_id)

    def answer(
        self, node_id: int, outbox_entry: str, message_id: str, reply: Fields, data_entries: tuple[str, ...] = ()
    ) -> bool:
        """Take a reply that was read from ``node_id``'s outbox. Returns False when it fits nothing open.

        It is judged by its arrival: the entry's id carries the server's time.
        """
        message = self._messages.get(message_id)
        if message is not None and outbox_entry == message.outbox_entry and message.node_id == node_id:
            return True  # read again after a reconnect
        if (
            message is None
            or message.state is not State.OPEN
            or message.node_id != node_id
            or milliseconds_of(outbox_entry) > message.entry.deadline
        ):
            self.dropped += 1
            return False
        message.outbox_entry = outbox_entry
        message.data_entries = data_entries
        self._settle_answer(message, reply)
        return True

    def spare(self, message: OpenMessage, outbox_entry: str, reply: Fields, data_entries: tuple[str, ...]) -> bool:
        """Keep another copy of a large reply: the payload of the one that counts may prove to be missing.

        A node uploads again what it does not find in Redis. Returns False where that is no such copy.
        """
        if message.state is State.OPEN or not message.data_entries or not data_entries:
            return False
        if outbox_entry in [entry for entry, _, _ in message.spares]:
            return True  # read again after a reconnect
        if len(message.spares) >= MOST_REOPENED:  # a node that works makes no more
            return False
        message.spares = (*message.spares, (outbox_entry, reply, data_entries))
        return True

    def fail(self, message_id: str, error: Error) -> None:
        """Make ``error`` the reply of an open message; one that is answered keeps its reply."""
        message = self._messages.get(message_id)
        if message is not None and message.state is State.OPEN:
            self._settle_answer(message, error)

    def _settle_answer(self, message: OpenMessage, reply: Fields | Error) -> None:
        message.state, message.reply = State.ANSWERED, reply
        if not message.data_entries:  # else the payload may prove to be missing
            message.fields = None
        self._answered[message.message_id] = None
        self._close(message.node_id)

    def _open(self, node_id: int) -> None:
        self._open_per_node[node_id] = self._open_per_node.get(node_id, 0) + 1

    def _close(self, node_id: int) -> None:
        left = self._open_per_node[node_id] - 1
        if left:
            self._open_per_node[node_id] = left
        else:
            del self._open_per_node[node_id]

    def take(self, message_ids: set[str]) -> OpenMessage | None:
        """Take the reply among ``message_ids`` that arrived first; None when there is none yet."""
        for message_id in self._answered:
            if message_id in message_ids:
                self.taken += 1
                del self._answered[message_id]
                message = self._messages[message_id]
                message.state, message.taken_by = State.TAKEN, threading.get_ident()
                self._taken[message_id] = message
                return message
        return None

    def hand(self, message: OpenMessage) -> None:
        """A reply that was taken has reached the app for good; its bytes are let go."""
        message.state, message.reply, message.fields = State.HANDED, None, None

    def put_back(self, message: OpenMessage) -> None:
        """A reply that was taken could not be handed over now: it is the first to be taken again."""
        if message.message_id not in self._messages:  # settled meanwhile
            return
        message.state = State.ANSWERED
        self._taken.pop(message.message_id, None)
        self._answered = {message.message_id: None, **self._answered}

    def reopen(self, message: OpenMessage) -> bool:
        """A reply that was taken is none, for its payload is missing: the message is open again, a few times."""
        if message.reopened >= MOST_REOPENED or message.fields is None:
            return False
        message.reopened += 1
        message.state, message.reply, message.is_lost = State.OPEN, None, True
        message.inbox_entries, message.outbox_entry, message.data_entries = (), "", ()
        del self._taken[message.message_id]
        self._open(message.node_id)
        return True

    def use_spare(self, message: OpenMessage) -> bool:
        """A reply that was taken is none; return whether there is another copy, which is then the first to be taken."""
        if not message.spares:
            return False
        *rest, (message.outbox_entry, message.reply, message.data_entries) = message.spares
        message.spares = tuple(rest)
        self.put_back(message)
        return True

    def settled(self) -> list[OpenMessage]:
        """Return what a commit by this thread takes out: all that was handed over to the app."""
        thread = threading.get_ident()
        return [
            message
            for message in self._taken.values()
            if message.state is State.HANDED or (message.state is State.TAKEN and message.taken_by == thread)
        ]

    def handed(self, message_ids: Iterable[str]) -> list[OpenMessage]:
        """Return those of these messages whose replies the app has."""
        return [self._taken[message_id] for message_id in dict.fromkeys(message_ids) if message_id in self._taken]

    def leftovers(self, gone: Iterable[OpenMessage], entered: Iterable[OpenMessage]) -> dict[int, str]:
        """Return nodes that may have left chunks that belong to no reply, and from which entry on one may be needed.

        Such as a node that died in the middle of an upload, or whose connection was cut. An open message may have
        chunks from when it came into its inbox; where that is not known, its node is left alone.

        Args:
            gone: what a commit takes out: a large reply, or one that never came, tells where to look.
            entered: what comes in with it, for which no node can have uploaded anything yet.

        Returns:
            By node the first entry of its data stream that may be needed; "" for none that is there.
        """
        suspects = {
            message.node_id for message in gone if message.data_entries or message.spares or not message.outbox_entry
        }
        if not suspects:
            return {}
        passed_over = {message.message_id for message in (*gone, *entered)}
        needed: dict[int, list[tuple[int, int]]] = {node: [] for node in suspects}
        for message_id, message in self._messages.items():
            if message.node_id in needed and message_id not in passed_over:
                if message.began:
                    needed[message.node_id] += _chunk_places(message)
                else:
                    del needed[message.node_id]
        return {node: "{}-{}".format(*min(places)) if places else "" for node, places in needed.items()}

    def remove(self, messages: Iterable[OpenMessage]) -> None:
        """A commit took them out of the hash."""
        for message in messages:
            if self._messages.pop(message.message_id, None) is None:
                continue
            if message.state is State.OPEN:  # an orphan that nobody adopted
                self._close(message.node_id)
            self._orphans.pop(message.message_id, None)
            self._answered.pop(message.message_id, None)
            self._taken.pop(message.message_id, None)


def _chunk_places(message: OpenMessage) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of a reply are or, for one that is to come, from where on they can be."""
    began, _ = place_of(message.began or "")
    yield max(0, began - CLOCK_STEP), 0
    for entries in (message.data_entries, *(entries for _, _, entries in message.spares)):
        yield from map(place_of, entries)
