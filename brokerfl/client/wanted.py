"""Whether a message is still wanted: its time is not over, nobody took it back, and its run goes on.

Owns the question, and how old an answer may be. It must not know what is done with a message, or its reply.

    before its execution    one question for all that is queued of its run, once in `READ_AHEAD`
    while it is executed    at most once a second
    when it cannot go on    at once
"""

import math
import time
from logging import INFO

from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import MOST_PENDING, discard_message, is_wanted, pending_entries
from brokerfl.broker.stream import milliseconds_of
from brokerfl.client.worklist import Work
from brokerfl.common import BrokerflError, log

#: Seconds of work to read ahead; what was queued for no longer is executed without a question. A node whose messages
#: take longer than this reads one of each run at a time, so that runs take turns fairly; one whose messages are tiny
#: reads many in one round trip.
READ_AHEAD = 0.05

#: Seconds between two questions about a message that is being executed.
_ASK = 1.0


class Wanted:
    """Tells which messages of one node are still wanted. Safe to share between its workers.

    Args:
        connection: whom to ask.
        node_id: whose messages.
    """

    def __init__(self, connection: Connection, node_id: int) -> None:
        self._connection = connection
        self._node_id = node_id
        self._pending: dict[int, tuple[float, set[str]]] = {}

    def expire(self, work: Work, ttl: float) -> bool:
        """Return whether a message's time is over; it leaves its inbox then.

        Args:
            work: the message.
            ttl: seconds from its entry's time, by the clock of Redis.

        Raises:
            RedisUnreachable: Redis is away.
        """
        deadline = milliseconds_of(work.entries[0]) + ttl * 1000
        if deadline > self._connection.time() * 1000:
            return False
        log(INFO, "A message of run %s expired before it was executed", work.run_id)
        for entry in work.entries:
            discard_message(self._connection, self._node_id, work.run_id, entry)
        return True

    def was_wanted(self, work: Work) -> bool:
        """Return whether a message was wanted no longer than `READ_AHEAD` ago.

        It may have been cancelled while it was queued behind a slow one: its run is asked once in `READ_AHEAD`.

        Raises:
            RedisUnreachable: Redis is away.
        """
        now, run_id = time.monotonic(), work.run_id
        if now - work.queued_at <= READ_AHEAD:
            return True
        asked_at, pending = self._pending.get(run_id, (-math.inf, set()))
        if now - asked_at > READ_AHEAD or work.queued_at == -math.inf:
            pending = pending_entries(self._connection, self._node_id, run_id)
            self._pending = {run_id: (now, pending)}
        if len(pending) >= MOST_PENDING and pending.isdisjoint(work.entries):  # there may be more
            return self.is_wanted(work)
        return not pending.isdisjoint(work.entries)

    def is_wanted(self, work: Work) -> bool:
        """Return whether a message is wanted now.

        Raises:
            RedisUnreachable: Redis is away.
        """
        return is_wanted(self._connection, self._node_id, work.run_id, work.entries)

    def watch(self, work: Work) -> "Watch":
        """Begin to watch a message that is about to be executed."""
        return Watch(self._connection, self, work)


class Watch:
    """One message that is being executed: whether somebody still wants its reply.

    Args:
        connection: whose losses count.
        wanted: whom to ask.
        work: the message.
    """

    __slots__ = ("_asked_at", "_connection", "_is_over", "_losses", "_unwanted", "_wanted", "_work")

    def __init__(self, connection: Connection, wanted: Wanted, work: Work) -> None:
        self._connection = connection
        self._wanted = wanted
        self._work = work
        self._losses = connection.losses
        self._asked_at = 0.0
        self._unwanted = self._is_over = False

    def end(self) -> None:
        """From now on nobody is asked: code that goes on in a thread gets the last answer."""
        self._is_over = True

    def is_cancelled(self) -> bool:
        """Ask about the message, at most once a second.

        After a lost connection Redis may have forgotten it, which is no cancellation: its ServerApp pushes it again.
        One that lost all its data will never ask for it again.
        """
        now = time.monotonic()
        if self._work.is_lost:
            return True
        if self._is_over or self._unwanted or now - self._asked_at < _ASK:
            return self._unwanted
        self._asked_at = now
        try:
            wanted = self._wanted.is_wanted(self._work)
        except BrokerflError:
            return False
        self._unwanted = not wanted and self._connection.losses == self._losses
        return self._unwanted
