"""What an app was told of nodes, in order, thread by thread.

Owns that a thread that looks at nodes beside the rounds takes nothing that the rounds were told. It must not know
where this was recorded.
"""

import re
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any

from brokerfl.broker.node_info import NodeInfo
from brokerfl.wire.told import sendable

#: The tags of these entries of a tape.
TAGS = ("n", "i", "t")

#: How many fields of a node are recorded.
_FIELDS = 6


def asking() -> str:
    """Return what this thread is called, without numbers: which worker of a pool is free is chance."""
    return sendable(re.sub(r"\d+", "", threading.current_thread().name))


class Told:
    """Gives what was told once. For one thread at a time."""

    def __init__(self) -> None:
        self._nodes: dict[str, deque[list[int] | TimeoutError]] = defaultdict(deque)
        self._infos: dict[str, deque[list[NodeInfo]]] = defaultdict(deque)

    def note(self, entries: Iterable[Sequence[Any]]) -> None:
        """Note entries of a tape."""
        for tag, value, asked_by in entries:
            if tag == "i":
                self._infos[asked_by].append([NodeInfo(*fields[:_FIELDS]) for fields in value])
            else:
                self._nodes[asked_by].append(TimeoutError(value) if tag == "t" else value)

    def nodes(self, *, waits: bool) -> list[int] | None:
        """Return the nodes that this thread was told next; None if it was told no more.

        Raises:
            TimeoutError: it ``waits``, as it did then in vain.
        """
        told = self._nodes[asking()]
        while told:
            found = told.popleft()
            if not isinstance(found, TimeoutError):
                return found
            if waits:
                raise found
        return None

    def infos(self) -> list[NodeInfo] | None:
        """Return what this thread was told of nodes next; None if it was told no more."""
        told = self._infos[asking()]
        return told.popleft() if told else None
