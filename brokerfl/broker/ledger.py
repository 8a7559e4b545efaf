"""The ledger: which messages of a run are open, and what became of each.

Owns the state machine of a message as its run sees it, in memory and in the hash `P:{run:R}:ledger`. It does no
waiting and must not know how replies travel.

    open      in the ledger, by the transaction that pushed it
    answered  the first reply that fits was read from its node's outbox, or a verdict made an Error reply of it
    taken     an iterator has yielded it and not gone on yet
    handed    the call that waited returned it, or its iterator went past it
    gone      a commit took it out of the ledger

A reply that was taken counts as handed when the thread that took it commits: its loop body has seen it. It does not
when another thread commits, for then it may not have been folded yet.

Not safe between threads by itself: its one user, the Driver, holds a lock.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from brokerfl.broker.stream import milliseconds_of
from brokerfl.common import Error
from brokerfl.wire.frame import Fields
from brokerfl.wire.run import encode_entry


class State(Enum):
    """Where a message is between push and commit."""

    OPEN = "open"
    ANSWERED = "answered"
    TAKEN = "taken"
    HANDED = "handed"


@dataclass(slots=True)
class OpenMessage:
    """One message of the run. ``deadline`` is in milliseconds of Redis TIME; ``pushed`` once Redis has accepted it."""

    message_id: str
    node_id: int
    group_id: str
    message_type: str
    deadline: int
    state: State = State.OPEN
    pushed: bool = False
    inbox_entry: str = ""
    outbox_entry: str = ""
    reply: Fields | Error | None = None
    taken_by: int = 0

    def encode(self) -> bytes:
        """Return what the hash holds of it."""
        return encode_entry(self.node_id, self.group_id, self.message_type, self.deadline)


class Ledger:
    """The messages of one run that no commit has taken out yet.

    Attributes:
        dropped: replies that fitted nothing open: another node's, late, or a second one.
        taken: how often `take` found something.
    """

    def __init__(self) -> None:
        self._messages: dict[str, OpenMessage] = {}
        self._answered: dict[str, None] = {}
        self._open_per_node: dict[int, int] = {}
        self._groups: set[str] = set()
        self.dropped = 0
        self.taken = 0

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._messages

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, messages: Iterable[OpenMessage]) -> set[str]:
        """Enter messages that are about to be pushed; return the groups that are new, for `withdraw`."""
        new = {message.group_id for message in messages} - self._groups
        for message in messages:
            self._messages[message.message_id] = message
            self._open_per_node[message.node_id] = self._open_per_node.get(message.node_id, 0) + 1
        self._groups |= new
        return new

    def withdraw(self, messages: Iterable[OpenMessage], new_groups: set[str]) -> None:
        """Undo `add`: the push failed."""
        for message in messages:
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

    def open_messages(self, node_ids: Iterable[int] | None = None) -> Iterator[OpenMessage]:
        """Yield the open messages, all or those of some nodes."""
        wanted = None if node_ids is None else set(node_ids)
        for message in list(self._messages.values()):
            if message.state is State.OPEN and (wanted is None or message.node_id in wanted):
                yield message

    def answer(self, node_id: int, outbox_entry: str, message_id: str, reply: Fields) -> bool:
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
            or milliseconds_of(outbox_entry) > message.deadline
        ):
            self.dropped += 1
            return False
        message.outbox_entry = outbox_entry
        self._settle_answer(message, reply)
        return True

    def fail(self, message_id: str, error: Error) -> None:
        """Make ``error`` the reply of an open message; one that is answered keeps its reply."""
        message = self._messages.get(message_id)
        if message is not None and message.state is State.OPEN:
            self._settle_answer(message, error)

    def _settle_answer(self, message: OpenMessage, reply: Fields | Error) -> None:
        message.state, message.reply = State.ANSWERED, reply
        self._answered[message.message_id] = None
        self._close(message.node_id)

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
                return message
        return None

    def hand(self, message: OpenMessage) -> None:
        """A reply that was taken has reached the app for good; its bytes are let go."""
        message.state, message.reply = State.HANDED, None

    def settled(self) -> list[OpenMessage]:
        """Return what a commit by this thread takes out: all that was handed over to the app."""
        thread = threading.get_ident()
        return [
            message
            for message in self._messages.values()
            if message.state is State.HANDED or (message.state is State.TAKEN and message.taken_by == thread)
        ]

    def remove(self, messages: Iterable[OpenMessage]) -> None:
        """A commit took them out of the hash."""
        for message in messages:
            self._messages.pop(message.message_id, None)
