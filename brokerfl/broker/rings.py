"""Rings: when a node that owes a reply is told again of the run.

Owns that rule and the memory it needs. It must not know Redis or messages.

An echo may be lost with the shard that had it, and no connection breaks. So a node that owes is contacted again: soon
at first, then ever less often.
"""

import time
from collections.abc import Iterable

#: Seconds from one contact to the next: the first, and the longest. Each is twice as long as the one before.
_SOON, _LATE = 2.0, 60.0


class Rings:
    """Which nodes of one run are due. One thread at a time."""

    def __init__(self) -> None:
        self._next: dict[int, tuple[float, float]] = {}  # when, and the pause after it

    def due(self, owing: Iterable[int]) -> list[int]:
        """Return the nodes among these, which owe a reply, that are to be contacted now."""
        now, due = time.monotonic(), []
        known, self._next = self._next, {}
        for node in owing:
            at, pause = known.get(node, (now + _SOON, 2 * _SOON))
            if now >= at:
                due.append(node)
                at, pause = now + pause, min(2 * pause, _LATE)
            self._next[node] = at, pause
        return due
