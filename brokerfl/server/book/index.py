"""The index: the messages of one run, found by id, by node and by state.

Owns the lookups by state, which it keeps in step with the states, and the events not collected yet. It must not know
why a message takes a step.
"""

import threading
from collections import Counter, OrderedDict

from brokerfl.server.book.message import Event, OpenMessage
from brokerfl.server.book.state import OWING, TAKEN, State, Step


class Index:
    """The unsettled messages of one run."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # the book's lock; notified when a wait may be over
        self.messages: dict[str, OpenMessage] = {}
        self.by_node: dict[int, dict[str, OpenMessage]] = {}
        self.unsent: dict[str, OpenMessage] = {}  # the ones under way
        self.answered: OrderedDict[str, None] = OrderedDict()  # replies to be taken, in the order of their arrival
        self.taken: dict[str, OpenMessage] = {}  # replies taken, and those handed over
        self.doubtful: dict[str, None] = {}  # large replies that Redis may have forgotten, with their chunks
        self._owing: Counter[int] = Counter()
        self._events: list[Event] = []

    def note(self, message: OpenMessage, event: Event) -> None:
        """A message took a step."""
        self._events.append(event)
        self._move(message, event.before)

    def _move(self, message: OpenMessage, before: State) -> None:
        state, message_id = message.state, message.message_id
        if (owes := state in OWING) != (before in OWING):
            self._owing[message.node_id] += 1 if owes else -1
            if not self._owing[message.node_id]:
                del self._owing[message.node_id]
        if state is State.ANSWERED:
            self.answered[message_id] = None
        elif before is State.ANSWERED:
            del self.answered[message_id]
        if state in TAKEN:
            self.taken[message_id] = message
        elif before in TAKEN:
            del self.taken[message_id]

    def enter(self, message: OpenMessage) -> None:
        """A message was accepted."""
        self.messages[message.message_id] = message
        self.by_node.setdefault(message.node_id, {})[message.message_id] = message

    def load(self, orphan: OpenMessage) -> None:
        """A message was accepted before the resume."""
        self.enter(orphan)
        self._move(orphan, State.UNSENT)

    def leave(self, message: OpenMessage, step: Step) -> None:
        """A message takes its last step, and leaves."""
        self.note(message, message.go(step))
        of_node = self.by_node[message.node_id]
        del self.messages[message.message_id], of_node[message.message_id]
        if not of_node:
            del self.by_node[message.node_id]

    def find(self, message_id: str) -> OpenMessage | None:
        """Return a message that is unsettled or under way."""
        return self.messages.get(message_id) or self.unsent.get(message_id)

    def owing(self) -> list[int]:
        """Return the nodes that owe a reply."""
        return list(self._owing)

    def owed(self) -> list[OpenMessage]:
        """Return the messages that were accepted and are still open."""
        return [each for node in self._owing for each in self.by_node[node].values() if each.state in OWING]

    def in_doubt(self) -> list[OpenMessage]:
        """Return the messages whose replies are doubtful."""
        return [self.messages[message_id] for message_id in self.doubtful if message_id in self.messages]

    def collect(self) -> list[Event]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events
