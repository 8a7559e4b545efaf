"""The index: the messages of one run, found by id, by node and by state.

Owns that what is looked up by state is in step with the states, and that every step is told. It must not know why a
message takes a step.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

from brokerfl.server.book.message import Event, OpenMessage
from brokerfl.server.book.plan import Places
from brokerfl.server.book.state import HOLDING, NEW, OWING, TAKEN, State, Step

#: Most bytes of replies that a run holds in memory until the app wants them. What exceeds it is read again, as large
#: contents are.
MOST_HELD = 64 * 1024 * 1024

_ANSWERED, _HANDED_OVER = State.ANSWERED, State.HANDED_OVER

Key = TypeVar("Key")

#: Is told of every step that a message takes.
Tell = Callable[[Event], object]


def count(counts: dict[Key, int], key: Key, more: int) -> None:
    """Count ``key``; one that is counted 0 times takes no memory."""
    now = counts.get(key, 0) + more
    if now:
        counts[key] = now
    else:
        del counts[key]


class Index:
    """The messages of one run that are not settled.

    Args:
        tell: is told of every step, under the book's lock.
    """

    def __init__(self, tell: Tell) -> None:
        self.lock = threading.RLock()  # the book's; four times as fast to take as the Condition on it
        self.changed = threading.Condition(self.lock)  # notified by whoever collects, after each turn, and by verdicts
        self.messages: dict[str, OpenMessage] = {}
        self.by_node: dict[int, dict[str, OpenMessage]] = {}
        self.places = Places(self.by_node)
        self.unsent: dict[str, OpenMessage] = {}  # those that are under way
        self.answered: OrderedDict[str, int] = OrderedDict()  # those to be taken: put back, then by arrival
        self._arrivals = itertools.count()
        self._returns = itertools.count(-1, -1)
        self.taken: dict[str, OpenMessage] = {}  # and those handed over
        self.unwanted: dict[str, OpenMessage] = {}  # those answered that may leave when the run moves on
        self.had: dict[tuple[str, int, str], int] = {}  # how many of each key were handed over
        self.doubtful: dict[str, None] = {}  # those whose large replies Redis may have forgotten, with their chunks
        self.held = 0  # bytes of replies in memory
        self._owing: dict[int, int] = {}
        self._tell = tell

    def note(self, message: OpenMessage, event: Event) -> None:
        """A message took a step."""
        self._tell(event)
        if event.before is not event.state:
            self._move(message, event.before)

    def _move(self, message: OpenMessage, before: State) -> None:
        state, message_id = message.state, message.message_id
        if message.held and state not in HOLDING:
            self._release(message)
        if state in OWING:
            if before not in OWING:
                count(self._owing, message.node_id, 1)
        elif before in OWING:
            count(self._owing, message.node_id, -1)
        if state is _ANSWERED:
            self.answered[message_id] = next(self._arrivals)
            self.weigh(message)
        elif before is _ANSWERED:
            del self.answered[message_id]
            self.unwanted.pop(message_id, None)
        if state in TAKEN:
            self.taken[message_id] = message
        elif before in TAKEN:
            del self.taken[message_id]
        if state is _HANDED_OVER:
            count(self.had, message.entry.key, 1)
        elif before is _HANDED_OVER:
            count(self.had, message.entry.key, -1)

    def rebuild(self) -> None:
        """A step was interrupted: find out again what is looked up, and counted. The order of the replies stays."""
        rank = {message_id: number for number, message_id in enumerate(self.answered)}
        self.answered, self.taken, self.unwanted, self.had, self._owing = OrderedDict(), {}, {}, {}, {}
        self.by_node.clear()
        self.places = Places(self.by_node)
        self.held = sum(message.held for message in self.unsent.values() if message.message_id not in self.messages)
        for message in sorted(self.messages.values(), key=lambda each: rank.get(each.message_id, len(rank))):
            self.held += message.held
            self.load(message)

    def first(self, message_ids: set[str]) -> OpenMessage | None:
        """Return the first of these that is to be taken."""
        if len(message_ids) < len(self.answered):
            places = ((self.answered[each], each) for each in message_ids if each in self.answered)
            return self.messages[found[1]] if (found := min(places, default=None)) else None
        for each in self.answered:  # no generator: an exception of a signal handler that closes it would be lost
            if each in message_ids:
                return self.messages[each]
        return None

    def is_first(self, message: OpenMessage) -> None:
        """It was put back: it is the first to be taken."""
        self.answered[message.message_id] = next(self._returns)
        self.answered.move_to_end(message.message_id, last=False)

    def hold(self, message: OpenMessage, size: int) -> None:
        """A reply of ``size`` bytes was read; hold it if there is room."""
        if message.held:  # an exception interrupted this
            self._release(message)
        if self.held + size <= MOST_HELD:
            message.hold(size)
            self.held += size

    def _release(self, message: OpenMessage) -> None:
        self.held -= message.held
        message.hold(0)

    def forget_unsent(self) -> None:
        """Nothing is under way any more."""
        for message in self.unsent.values():
            if message.state in NEW:
                self._release(message)
        self.unsent = {}

    def weigh(self, message: OpenMessage) -> None:
        """It may have become unwanted, or wanted again."""
        if message.is_unwanted and message.state is _ANSWERED:
            self.unwanted[message.message_id] = message
        else:
            self.unwanted.pop(message.message_id, None)

    def enter(self, message: OpenMessage) -> None:
        """A message was accepted. What is known of its place is noted next."""
        self.messages[message.message_id] = message
        self.by_node.setdefault(message.entry.node_id, {})[message.message_id] = message

    def note_entry(self, message: OpenMessage, entry_id: str, tells: bool) -> None:
        """It is in its inbox at this entry, "" if that is not known; whether it ``tells`` when."""
        message.note_entry(entry_id, tells)
        self.places.note(message)

    def has_chunks(self, message: OpenMessage) -> None:
        """A reply to it was read, maybe a large one; one that is under way is noted when it enters."""
        if (message.data_entries or message.spares) and message.message_id in self.messages:
            self.places.note(message)

    def load(self, orphan: OpenMessage) -> None:
        """A message was accepted before the resume."""
        self.enter(orphan)
        self.places.note(orphan)
        self._move(orphan, State.UNSENT)

    def leave(self, message: OpenMessage, step: Step) -> None:
        """A message takes its last step, and leaves."""
        self.note(message, message.go(step))
        of_node = self.by_node[message.entry.node_id]
        del self.messages[message.message_id], of_node[message.message_id]
        if not of_node:
            del self.by_node[message.entry.node_id]
        self.places.leave(message)

    def find(self, message_id: str) -> OpenMessage | None:
        """Return a message that is unsettled or under way."""
        return self.messages.get(message_id) or self.unsent.get(message_id)

    def owing(self) -> list[int]:
        """Return the nodes that owe a reply."""
        return list(self._owing)

    def owed(self, message_ids: Iterable[str] | None = None) -> list[OpenMessage]:
        """Return the messages, or those with these ids, that were accepted and are still open."""
        if message_ids is not None:
            found = [self.messages[each] for each in message_ids if each in self.messages]
            return [message for message in found if message.state in OWING]
        return [each for node in self._owing for each in self.by_node[node].values() if each.state in OWING]

    def in_doubt(self) -> list[OpenMessage]:
        """Return the messages whose replies are doubtful."""
        return [self.messages[message_id] for message_id in self.doubtful if message_id in self.messages]
