"""The report: what a ServerApp says of its run, put together from all its parts when somebody asks.

Owns what each field of a `RunStatus` is made of. It must not know who reads it.
"""

import time
from collections import Counter

from brokerfl.broker.blobs import Blobs
from brokerfl.server.book import Book
from brokerfl.server.outcome import Outcome
from brokerfl.server.progress import Progress
from brokerfl.server.session import Session
from brokerfl.wire.status import MOST_TOLD, Awaited, RunStatus


class Report:
    """What one run is doing, and what became of its messages. Safe to use from any thread.

    Attributes:
        outcome: what became of its messages.
    """

    def __init__(self, session: Session, book: Book, progress: Progress, outcome: Outcome, blobs: Blobs) -> None:
        self.outcome = outcome
        self._session = session
        self._book = book
        self._progress = progress
        self._blobs = blobs
        self._clock = session.transactions.owner.connection.clock

    def status(self, *, weighs: bool = True) -> RunStatus:
        """Return what the run is doing now. It takes longer the more messages are open, and asks nobody.

        Args:
            weighs: look what the run has in Redis, too, which takes longer the more replies are not settled.
        """
        activity, oldest, still_open = self._progress.now(), dict[int, float](), Counter[str]()
        with self._book.lock:
            for message in self._book.awaited():
                still_open[message.entry.group_id] += 1
                node_id, pushed_at = message.node_id, message.pushed_at
                oldest[node_id] = min(pushed_at, oldest.get(node_id, pushed_at))
            group, usually = self._progress.latest(still_open), self._progress.usually
            rounds, weight = self._progress.rounds(still_open), self._book.answers.weight() if weighs else 0
        awaited = sorted((since, node) for node, since in oldest.items())[:MOST_TOLD]
        sent = group.sent if group is not None else 0
        return RunStatus(
            at=self._told(time.monotonic()),
            phase=activity.phase,
            since=self._told(activity.since),
            group=(group.name if group is not None else "") or self._progress.round,
            sent=sent,
            answered=max(0, sent - still_open[group.name]) if group is not None else 0,
            errors=self.outcome.errors,
            needed=activity.needed,
            online=activity.online,
            owing=len(oldest),
            awaited=tuple(Awaited(node, self._told(since)) for since, node in awaited),
            usually=usually,
            rounds=tuple(rounds),
            bytes_out=self._progress.bytes_out,
            bytes_in=self.outcome.bytes_in,
            memory=self._blobs.size + weight,
            record=self._progress.record,
            recorded_at=self._progress.recorded_at,
            is_full=self._session.is_full or self._session.is_short,
            is_draining=self._progress.is_draining,
        )

    def name_of(self, node_id: int) -> str:
        """Return a node in words; the first time, Redis is asked for its name."""
        return self._session.names.of(node_id)

    def lasted(self, status: RunStatus) -> float:
        """Return for how many seconds its group has been under way: to the last reply, or until now; 0 if unknown."""
        group = self._progress.group(status.group)
        if group is None:
            return 0.0
        is_open = status.answered < status.sent or not group.ended
        return (time.monotonic() if is_open else group.ended) - group.began

    def _told(self, monotonic: float) -> float:
        """Return a local time by Redis' clock."""
        return self._clock.at(monotonic) + self._clock.skew
