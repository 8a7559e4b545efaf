"""Liveness: when a node without a lease counts as unavailable.

Owns that rule and the memory it needs. It must not know Redis or messages.

A node is absent only if it was seen absent continuously since the observer's own last reconnect: in an outage every
lease lapses, and nodes that are alive need a lease time to renew theirs. So it is when Redis' clock is set forward.
"""

import time
from collections.abc import Iterable

from brokerfl.broker.keys import LEASE, OFFLINE_GRACE
from brokerfl.broker.presence import Absence

#: Seconds without a look after which an absence no longer counts as continuous; looks come about once a second.
_STALE = 10.0


class Liveness:
    """Judges absences by the local monotonic clock.

    Args:
        offline_grace: seconds a named node may be offline: it may be restarting.
        lease: seconds that nodes get to come back after an outage of the observer.
    """

    def __init__(self, offline_grace: float = OFFLINE_GRACE, lease: float = LEASE) -> None:
        self._grace = offline_grace
        self._lease = lease
        self._since: dict[int, float] = {}
        self._not_before = 0.0
        self._steps = 0
        self._looked = time.monotonic()

    def reconnected(self) -> None:
        """The observer had lost its connection: forget what it saw before."""
        self._since.clear()
        self._not_before = time.monotonic() + self._lease

    def unavailable(self, absences: Iterable[Absence], steps: int = 0) -> set[int]:
        """Return the nodes that are unavailable.

        Args:
            absences: the nodes that hold no lease now.
            steps: how often Redis' clock had been set forward when they were seen: that ends every lease early.
        """
        if steps != self._steps:
            self._steps = steps
            self.reconnected()
        now = time.monotonic()
        if now - self._looked > _STALE:  # nobody was waiting, so what happened in between was not seen
            self._since.clear()
        self._looked = now
        seen = {absence.node_id: absence for absence in absences}
        self._since = {node: self._since.get(node, now) for node in seen}
        return {
            node
            for node, absence in seen.items()
            if now >= self._not_before and now - self._since[node] >= (self._grace if absence.comes_back else 0.0)
        }
