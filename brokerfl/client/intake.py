"""The intake: how much a node reads, and of which runs.

Owns the budgets. It must not know what is done with what was read.
"""

from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import Delivery, Inboxes
from brokerfl.client.service import Service
from brokerfl.client.wanted import READ_AHEAD
from brokerfl.client.worklist import Worklist

#: Most messages of one run that are read at once.
MOST_READ = 64

#: Bytes of messages in hand from which on only runs that have none are read. With twice as many, nothing is read until
#: a worker is done.
MOST_IN_HAND = 64 * 1024 * 1024


class Intake:
    """Reads the inboxes of one node.

    Args:
        connection: to Redis.
        node_id: the node.
        inboxes: what is read.
        worklist: what was read and is not published yet.
        service: says how long an execution takes, and which runs the site holds back.
    """

    def __init__(
        self, connection: Connection, node_id: int, inboxes: Inboxes, worklist: Worklist, service: Service
    ) -> None:
        self._connection = connection
        self._node_id = node_id
        self._inboxes = inboxes
        self._worklist = worklist
        self._service = service

    def ahead(self) -> int:
        """Return how many messages of a run are read at once."""
        if self._worklist.is_paused:
            return 0
        if self._worklist.size > MOST_IN_HAND:
            return 1
        return max(1, min(MOST_READ, int(READ_AHEAD / self._service.pace)))

    def read(self, block: float) -> list[Delivery]:
        """Return messages for a loop that has nothing to execute."""
        return self._inboxes.read(self.ahead(), block, self._worklist.parked)

    def read_for_workers(self, block: float) -> list[Delivery]:
        """Leave out runs of which enough is queued; a worker rings when one has room again."""
        is_full = self._worklist.size > 2 * MOST_IN_HAND
        count = 0 if is_full or self._worklist.is_paused else max(1, self.ahead() // 2)
        return self._inboxes.read(count, block, self._worklist.leave_out(count))

    def let_in(self) -> list[Delivery]:
        """Return what was read before of the runs that the site does not hold back any more."""
        if not self._service.site.has_gate:
            return []
        self._service.site.ask_again(self._worklist.has)
        free = [run_id for run_id in self._worklist.parked if not self._service.site.holds(run_id)]
        for run_id in free:
            self._worklist.unpark(run_id)
        inboxes = [self._connection.keys.inbox(self._node_id, run_id) for run_id in free]
        return self._inboxes.pending(inboxes) if inboxes else []
