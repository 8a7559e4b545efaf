"""The work in hand: what a node has received and not published yet.

Owns the order in which runs take turns, that no two workers serve one run at once, which runs wait, and which messages
are known. It must not know Redis or ClientApp.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from brokerfl.broker.inbox import Delivery
from brokerfl.client.audit import Receipt
from brokerfl.client.journal import Answer
from brokerfl.wire.frame import size_of


@dataclass(eq=False)
class Work:
    """One message in hand.

    Attributes:
        run_id: its run.
        message_id: its id.
        fields: what was read.
        entries: its inbox entries: more than one if it was sent again.
        read_at: local monotonic time.
        queued_at: the same, or minus infinity if it had been delivered before.
        answer: what the journal has to note before the reply is published; None for nothing.
        receipt: what the audit file has to have before the reply is published; None for nothing.
        is_lost: it came from a Redis that has lost its data since: nobody waits for the reply.
    """

    run_id: int
    message_id: str
    fields: dict[bytes, bytes]
    entries: list[str] = field(default_factory=list)
    read_at: float = field(default_factory=lambda: time.monotonic())
    queued_at: float = field(default_factory=lambda: time.monotonic())
    answer: Answer | None = None
    receipt: Receipt | None = None
    is_lost: bool = False


class Worklist:
    """Messages by run. Runs take turns, with one message at a time.

    A run whose message was handed out has no turn until it is released; one that is parked has none until `unpark`, and
    the contents of its messages stay in their inbox. While the node `is_paused`, `wait` hands out nothing.

    Safe to share between threads: it calls nothing with its lock held. Methods whose names begin with an underscore
    need the lock.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._waiting: OrderedDict[int, deque[Work]] = OrderedDict()
        self._served: dict[int, deque[Work]] = {}
        self._parked: dict[int, deque[Work]] = {}
        self._in_hand: dict[tuple[int, str], Work] = {}
        self._left_out: dict[int, int] = {}
        self._held = self._closed = self.is_paused = False
        self._size = 0

    @property
    def size(self) -> int:
        """How many bytes the messages in hand have."""
        return self._size

    @property
    def queued(self) -> int:
        """How many messages were not handed out yet."""
        with self._changed:
            return sum(map(len, (*self._waiting.values(), *self._served.values())))

    def __bool__(self) -> bool:
        return bool(self._waiting) or any(self._served.values())

    def entries(self) -> dict[int, list[str]]:
        """Return the inbox entries of the messages in hand, by run."""
        found: dict[int, list[str]] = {}
        with self._changed:
            for work in self._in_hand.values():
                found.setdefault(work.run_id, []).extend(work.entries)
        return found

    def add(self, delivery: Delivery, message_id: str) -> int:
        """Queue a message. One that is already in hand is not queued twice, but its new entry is remembered.

        Returns:
            How many messages of its run come first; 0 for one that is already in hand.
        """
        with self._changed:
            return self._add(delivery, message_id)

    def _add(self, delivery: Delivery, message_id: str) -> int:
        run_id = delivery.run_id
        work = self._in_hand.get((run_id, message_id))
        if work is not None:
            if delivery.entry_id not in work.entries:
                work.entries.append(delivery.entry_id)
                self._size -= size_of(work.fields)
                work.fields = delivery.fields or work.fields  # Redis may have lost the first content
                self._size += size_of(work.fields)
                self._shed(work)
            return 0
        work = Work(run_id, message_id, delivery.fields, [delivery.entry_id])
        if delivery.is_old:
            work.queued_at = -math.inf  # so that, before its execution, Redis is asked whether it is still wanted
        self._in_hand[run_id, message_id] = work
        self._size += size_of(work.fields)
        if run_id in self._parked:
            self._parked[run_id].append(work)
            self._shed(work)
            return len(self._parked[run_id]) - 1
        if run_id in self._served:
            self._served[run_id].append(work)
            return len(self._served[run_id])
        self._waiting.setdefault(run_id, deque()).append(work)
        self._changed.notify()
        return len(self._waiting[run_id]) - 1

    # Turns.

    def next(self) -> Work:
        """Return the oldest message of the run that has waited longest. Its run is served until `release`."""
        with self._changed:
            return self._next()

    def _next(self) -> Work:
        run_id, queue = self._waiting.popitem(last=False)
        self._served[run_id] = queue
        return queue.popleft()

    def wait(self) -> Work | None:
        """Like `next`, but wait until there is a message and nothing is held back; None after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._waiting and not self._held and not self.is_paused))
            return None if self._closed else self._next()

    def has_more(self, work: Work) -> bool:
        """Whether there is more to do when this work's run is released."""
        return bool(self._waiting or self._served.get(work.run_id))

    def release(self, work: Work, *, put_back: bool = False) -> None:
        """Let the run wait for its next turn.

        Args:
            work: what was handed out.
            put_back: it could not be executed now: it is the run's next message again.
        """
        with self._changed:
            queue = self._served.pop(work.run_id, deque())
            if put_back and not work.is_lost and self._in_hand.get((work.run_id, work.message_id)) is work:
                queue.appendleft(work)
            if queue:
                self._waiting[work.run_id] = queue
                self._changed.notify()

    # What waits.

    @property
    def parked(self) -> set[int]:
        """The runs that are parked."""
        if not self._parked:
            return set()
        with self._changed:
            return set(self._parked)

    def has(self, run_id: int) -> bool:
        """Whether a message of a run is in hand."""
        with self._changed:
            return any(run == run_id for run, _ in self._in_hand)

    def park(self, work: Work) -> None:
        """Let the run of this work, which was handed out, wait until `unpark`, and leave its contents in the inbox."""
        with self._changed:
            queue = self._served.pop(work.run_id, deque())
            if not work.is_lost and self._in_hand.get((work.run_id, work.message_id)) is work:
                queue.appendleft(work)
            self._parked[work.run_id] = queue
            for each in queue:
                self._shed(each)

    def _shed(self, work: Work) -> None:
        if work.run_id in self._parked:
            self._size -= size_of(work.fields)
            work.fields = {}

    def unpark(self, run_id: int) -> None:
        """Forget the messages of a parked run: they are to be read again."""
        with self._changed:
            for work in self._parked.pop(run_id, ()):
                self._done(work)

    def hold(self) -> None:
        """Let `wait` hand out nothing until `resume`."""
        with self._changed:
            self._held = True

    def resume(self) -> None:
        """Let `wait` hand out messages again."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def pause(self, is_paused: bool) -> None:
        """Note whether the node is paused."""
        with self._changed:
            self.is_paused = is_paused
            self._changed.notify_all()

    def close(self) -> None:
        """End all waits, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # How much to read.

    def leave_out(self, most: int) -> set[int]:
        """Return the runs of which no more should be read now: with at least ``most`` messages queued, or parked."""
        with self._changed:
            queues = {**self._waiting, **self._served}
            self._left_out = {run_id: most // 2 for run_id, queue in queues.items() if len(queue) >= most}
            return self._left_out.keys() | self._parked.keys()

    def has_room(self, work: Work) -> bool:
        """Return whether the work's run was left out and has few left; true once until the next `leave_out`."""
        with self._changed:
            least = self._left_out.get(work.run_id)
            if least is None or len(self._served.get(work.run_id, ())) > least:
                return False
            self._left_out.clear()  # the next read looks at all of them
            return True

    # The end.

    def done(self, work: Work, published: Collection[str]) -> list[str]:
        """Its reply is published. Returns those of its entries that arrived too late to be removed with it.

        Args:
            work: what was executed.
            published: the entries that were removed when the reply was published.
        """
        with self._changed:
            return self._done(work, published)

    def give_up(self, work: Work, judged: Collection[str]) -> None:
        """It gets no reply. If it was sent again in the meantime, because Redis had forgotten it, queue that again.

        Args:
            work: what was handed out.
            judged: the entries that were known when it was given up.
        """
        with self._changed:
            for entry in self._done(work, judged):
                if not work.is_lost:
                    self._add(Delivery(work.run_id, entry, work.fields, is_old=True), work.message_id)

    def forget(self, work: Work) -> None:
        """It stays in its inbox, and will be read again."""
        with self._changed:
            self._done(work)

    def _done(self, work: Work, known: Collection[str] = ()) -> list[str]:
        if not work.is_lost and self._in_hand.pop((work.run_id, work.message_id), None) is not None:
            self._size -= size_of(work.fields)
        return [entry for entry in work.entries if entry not in known]

    def clear(self) -> None:
        """Drop everything: it belonged to another Redis."""
        with self._changed:
            for work in self._in_hand.values():
                work.is_lost = True
            self._waiting.clear()
            self._parked.clear()
            self._in_hand.clear()
            self._size = 0
            for queue in self._served.values():
                queue.clear()

    def keep_only(self, run_ids: Iterable[int]) -> None:
        """Drop what is queued for runs that are over."""
        with self._changed:
            for run_id in (self._waiting.keys() | self._served.keys() | self._parked.keys()).difference(run_ids):
                queue = self._waiting.pop(run_id, None) or self._parked.pop(run_id, None)
                queue = queue or self._served.get(run_id, deque())
                for work in queue:
                    self._done(work)
                queue.clear()
