"""The work in hand: what a node has read from its inboxes and not published yet.

Owns the order in which runs take turns, and which messages are known. It must not know Redis or ClientApp.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from brokerfl.broker.inbox import Delivery


@dataclass
class Work:
    """One message in hand.

    Attributes:
        run_id: its run.
        message_id: its id.
        fields: what was read.
        entries: its inbox entries: more than one when it was pushed again.
        queued_at: local monotonic time.
    """

    run_id: int
    message_id: str
    fields: dict[bytes, bytes]
    entries: list[str] = field(default_factory=list)
    queued_at: float = field(default_factory=time.monotonic)


class Worklist:
    """Messages by run, handed out one run after the other."""

    def __init__(self) -> None:
        self._queues: OrderedDict[int, deque[Work]] = OrderedDict()
        self._in_hand: dict[tuple[int, str], Work] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, delivery: Delivery, message_id: str) -> None:
        """Queue a message. One that is in hand already is not queued twice, but its new entry is remembered."""
        work = self._in_hand.get((delivery.run_id, message_id))
        if work is not None:
            if delivery.entry_id not in work.entries:
                work.entries.append(delivery.entry_id)
            return
        work = Work(delivery.run_id, message_id, delivery.fields, [delivery.entry_id])
        self._in_hand[delivery.run_id, message_id] = work
        self._queues.setdefault(delivery.run_id, deque()).append(work)

    def next(self) -> Work:
        """Return the oldest message of the run whose turn it is, and put that run last."""
        run_id, queue = self._queues.popitem(last=False)
        work = queue.popleft()
        if queue:
            self._queues[run_id] = queue
        return work

    def put_back(self, work: Work) -> None:
        """It could not be executed just now: its run has the next turn with it."""
        self._queues.setdefault(work.run_id, deque()).appendleft(work)

    def done(self, work: Work, settled: Iterable[str] = ()) -> list[str]:
        """Its reply is published, or it gets none. Returns those of its entries that are not ``settled``."""
        self._in_hand.pop((work.run_id, work.message_id), None)
        return [entry for entry in work.entries if entry not in settled]

    def clear(self) -> None:
        """Drop everything: it belonged to another Redis."""
        self._queues.clear()
        self._in_hand.clear()

    def keep_only(self, run_ids: Iterable[int]) -> None:
        """Drop what is queued for runs that are over."""
        for run_id in set(self._queues).difference(run_ids):
            for work in self._queues.pop(run_id):
                self.done(work)
