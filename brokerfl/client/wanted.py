"""Whether a message is still wanted: it has not expired or been taken back, and its run continues.

Owns the question, and how old an answer may be. It must not know what is done with a message, or its reply.

    before its execution    one question for all that is queued of its run, once in `READ_AHEAD`
    while it is executed    at most once a second
    when it cannot continue at once
"""

import math
import os
import time
from collections.abc import Iterable
from logging import INFO

from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import discard_message
from brokerfl.broker.outbox import tell_lack
from brokerfl.broker.pending import MOST_PENDING, is_wanted, pending_entries, was_forgotten
from brokerfl.broker.runs import ended_among
from brokerfl.client.worklist import Work
from brokerfl.common import BrokerflError, log

#: Seconds of work to read ahead; what has been queued for less is executed without asking Redis. A node whose messages
#: take longer than this reads one of each run at a time, so that runs take turns fairly; one with tiny messages reads
#: many in one round trip.
READ_AHEAD = 0.05

#: Seconds between two questions about a message that is being executed.
_ASK = 1.0


class Wanted:
    """Says which messages of one node are still wanted. Safe to share between its workers.

    Args:
        connection: to Redis.
        node_id: the node.
    """

    def __init__(self, connection: Connection, node_id: int) -> None:
        self._connection = connection
        self._node_id = node_id
        self._pending: dict[int, tuple[float, set[str]]] = {}

    def expire(self, work: Work, ttl: float) -> bool:
        """Return whether a message has expired; if so, remove it from its inbox.

        Args:
            work: the message.
            ttl: seconds from when it entered its inbox.

        Raises:
            RedisUnreachable: Redis is unreachable.
        """
        if self.left(work, ttl) > 0:
            return False
        log(INFO, "A message of run %s expired before it was executed", work.run_id)
        for entry in work.entries:
            discard_message(self._connection, self._node_id, work.run_id, entry)
        return True

    def left(self, work: Work, ttl: float) -> float:
        """Return the seconds until a message expires that lives for ``ttl`` from when it entered its inbox."""
        clock = self._connection.clock
        return clock.latest(work.entries[0], work.read_at) / 1000 + ttl - clock.time()

    def was_wanted(self, work: Work) -> bool:
        """Return whether a message is wanted, as of at most `READ_AHEAD` ago.

        It may have been cancelled while it was queued behind a slow one, so Redis is asked once in `READ_AHEAD`.

        Raises:
            RedisUnreachable: Redis is unreachable.
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
            RedisUnreachable: Redis is unreachable.
        """
        return is_wanted(self._connection, self._node_id, work.run_id, work.entries)

    def was_forgotten(self, work: Work) -> bool | None:
        """Return whether Redis forgot that this node was given a message; None if it knows nothing of the run.

        Raises:
            RedisUnreachable: Redis is unreachable.
        """
        return was_forgotten(self._connection, self._node_id, work.run_id, work.entries)

    def ended_among(self, run_ids: Iterable[int]) -> set[int]:
        """Return those of these runs that are known to have ended.

        Raises:
            RedisUnreachable: Redis is unreachable.
        """
        return ended_among(self._connection, run_ids)

    def lack(self, work: Work) -> None:
        """Tell a message's run that a part of its content is gone.

        Raises:
            RedisUnreachable: Redis is unreachable.
        """
        tell_lack(self._connection, self._node_id, work.run_id)

    def watch(self, work: Work) -> "Watch":
        """Return a watch on a message that is about to be executed."""
        return Watch(self._connection, self, work)


class Watch:
    """Whether the reply to a message that is being executed is still wanted.

    Args:
        connection: to Redis.
        wanted: asks Redis.
        work: the message.
    """

    __slots__ = ("_asked_at", "_connection", "_is_over", "_losses", "_process", "_unwanted", "_wanted", "_work")

    def __init__(self, connection: Connection, wanted: Wanted, work: Work) -> None:
        self._connection = connection
        self._wanted = wanted
        self._work = work
        self._losses = connection.losses
        self._asked_at = 0.0
        self._process = os.getpid()
        self._unwanted = self._is_over = False

    def end(self) -> None:
        """Ask no more: code that still runs in a thread gets the last answer."""
        self._is_over = True

    def is_cancelled(self) -> bool:
        """Ask about the message, at most once a second.

        If a connection was lost since the message was last seen, Redis may have forgotten it, which is no cancellation:
        its ServerApp sends it again. If Redis lost all its data, the message is cancelled.

        A process that the app forked gets the last answer before the fork: its copy of a lock of the connection may be
        held by a thread that it does not have.
        """
        now = time.monotonic()
        if self._work.is_lost:
            return True
        if self._is_over or self._unwanted or now - self._asked_at < _ASK or os.getpid() != self._process:
            return self._unwanted
        self._asked_at = now
        try:
            if self._wanted.is_wanted(self._work):
                self._losses = self._connection.losses
            else:
                self._unwanted = self._was_taken_back()
        except BrokerflError:
            return False
        return self._unwanted

    def _was_taken_back(self) -> bool:
        losses = self._connection.losses
        if losses == self._losses:
            return True
        is_forgotten = self._wanted.was_forgotten(self._work)
        if is_forgotten is None:  # the run is over, or its ServerApp has not written it again yet: the next time counts
            self._losses = losses
        return is_forgotten is False
