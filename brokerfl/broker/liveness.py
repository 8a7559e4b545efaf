"""Liveness: when a node without a lease counts as unavailable, and whose lease is looked at next.

Owns these rules and the memory they need. It must not know Redis or messages.

A node is absent only if it was seen absent continuously since the observer's own last reconnect: in an outage every
lease lapses, and nodes that are alive need a lease time to renew theirs. So it is when Redis' clock is set forward.

Of many nodes, each look takes those whose turn it is. A node that was not looked at was seen neither present nor
absent: what was seen of it before counts until it is `_STALE`.
"""

import math
import time
from collections.abc import Collection, Iterable

from brokerfl.broker.keys import LEASE, OFFLINE_GRACE
from brokerfl.broker.presence import Absence

#: Seconds without a look at a node after which its absence no longer counts as continuous. A lease that was taken and
#: lapsed in between would have lasted longer.
_STALE = 10.0

#: Leases that one look may take, however short ago the last one was; looks come about once a second.
MOST_LOOKED_AT = 1000

#: Seconds in which everybody's turn comes where there are more. A node waits at most so long, and then for one look: if
#: that comes as late, it takes all. So nobody's absence becomes stale between two turns.
_ROUND = _STALE / 2


class Liveness:
    """Judges absences by the local monotonic clock. One thread at a time; any other may call `reconnected`.

    Args:
        offline_grace: seconds a named node may be offline: it may be restarting.
        lease: seconds that nodes get to come back after an outage of the observer.
    """

    def __init__(self, offline_grace: float = OFFLINE_GRACE, lease: float = LEASE) -> None:
        self._grace = offline_grace
        self._lease = lease
        self._absent: dict[int, tuple[float, float]] = {}  # since when, and when it was looked at last
        self._not_before = 0.0
        self._steps = 0
        self._turns: dict[int, None] = {}  # who was looked at last comes last
        self._looked = time.monotonic()

    def reconnected(self) -> None:
        """The observer had lost its connection: forget what it saw before."""
        self._absent.clear()
        self._not_before = time.monotonic() + self._lease

    def due(self, node_ids: Collection[int]) -> list[int]:
        """Return whose lease is to be looked at now: all, or `MOST_LOOKED_AT`, or more if it is long since the last."""
        now, asked = time.monotonic(), dict.fromkeys(node_ids)
        share = (now - self._looked) / _ROUND
        most, self._looked = max(MOST_LOOKED_AT, math.ceil(len(asked) * share)), now
        turns = [node for node in self._turns if node in asked]
        turns += [node for node in asked if node not in self._turns]
        due, later = turns[:most], turns[most:]
        self._turns = dict.fromkeys(later + due)
        return due

    def unavailable(self, looked_at: Iterable[int], absences: Iterable[Absence], steps: int = 0) -> set[int]:
        """Return those of the nodes that were looked at now which are unavailable.

        Args:
            looked_at: the nodes.
            absences: those of them that hold no lease now.
            steps: how often Redis' clock had been set forward when they were seen: that ends every lease early.
        """
        if steps != self._steps:
            self._steps = steps
            self.reconnected()
        now, seen = time.monotonic(), {absence.node_id: absence for absence in absences}
        before = {node: times for node, times in [*self._absent.items()] if now - times[1] <= _STALE}
        since = {node: before.get(node, (now, now))[0] for node in seen}
        present = {*looked_at} - seen.keys()
        self._absent = {node: times for node, times in before.items() if node not in present}
        self._absent.update((node, (first, now)) for node, first in since.items())
        return {
            node
            for node, absence in seen.items()
            if now >= self._not_before and now - since[node] >= (self._grace if absence.comes_back else 0.0)
        }
