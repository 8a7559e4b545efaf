"""The diary: what a ServerApp notes of its run, for whoever looks later.

Owns when an event is due, what it says, and which events are still to be written. It must not know where they are kept,
or how they are brought there.

An event is written with a commit, at most every `_PAUSE` seconds so that fast rounds share an entry, else with the next
heartbeat. Nothing is decided by it: what exceeds the bounds here is left out, and a process that dies takes at most a
few seconds of events with it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from brokerfl.broker.events import AT_ONCE, Events, Page, pages_of
from brokerfl.broker.owner import Owner
from brokerfl.common import Message
from brokerfl.common.shared_log import SharedLog
from brokerfl.server.book import Sending
from brokerfl.wire.event import LONGEST_NAME, MOST_VALUES, Event, Kind, encode_event

#: Most events that wait to be written; more are left out.
_MOST_WAITING = 256

#: Seconds between commits that write events, unless a whole entry of them waits.
_PAUSE = 0.1

#: Groups of which replies are counted, the last ones.
_MOST_GROUPS = 64

#: Nodes whose first Error is noted.
_MOST_NODES = 100


class _Tally:
    """What became of one group of messages of one type."""

    __slots__ = ("answered", "began", "errors", "latest", "sent", "sums")

    def __init__(self, began: float) -> None:
        self.began = self.latest = began
        self.sent = self.answered = 0
        self.errors = 0  # since its latest event
        self.sums: dict[str, tuple[float, int]] = {}  # since then


class Diary:
    """Notes what happens in one run. Safe to use from many threads; `page` and what follows it, by one at a time.

    Args:
        owner: the run's owner. Without its events, nothing is noted.

    Attributes:
        log: the lines of this process's log that go to Redis, too; None for none.
    """

    def __init__(self, owner: Owner) -> None:
        self.log: SharedLog | None = None
        self._events = owner.events
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._on_page = 0
        self._wrote = -_PAUSE  # local monotonic time
        self._sending: dict[tuple[str, str], int] = {}
        self._begun: list[bytes] = []  # what it begins, and how many events waited before them
        self._before = 0
        self._tallies: OrderedDict[tuple[str, str], _Tally] = OrderedDict()
        self._incomplete: dict[tuple[str, str], None] = {}  # those with replies that no event has
        self._erred: set[int] = set()

    # What happens.

    def tell(self, group: str, values: Mapping[str, Any]) -> None:
        """The app tells numbers.

        Raises:
            TypeError, ValueError: one is no number, a name is too long, or there are too many.
        """
        if len(values) > MOST_VALUES:
            raise ValueError(f"{len(values)} metrics are too many for one call: the limit is {MOST_VALUES}")
        self._note(Kind.METRICS, group, values={name: _number(name, value) for name, value in values.items()})

    def left(self) -> None:
        """The ServerApp leaves its run."""
        self._note(Kind.DETACHED)

    def replied(self, reply: Message, is_failure: bool) -> None:
        """The app gets a reply, maybe an Error that nobody asked for. This is on the path of every message."""
        if self._events is None:
            return
        meta = reply.metadata
        key = meta.group_id, meta.message_type
        with self._lock:
            tally = self._tally(key)
            tally.answered += 1
            tally.errors += is_failure
            tally.latest = time.monotonic()
            if not reply.has_error():
                _add(tally.sums, reply)
            is_complete = tally.answered == tally.sent
            if not is_complete:
                self._incomplete[key] = None
        if is_failure:
            self._erred_first(meta.src_node_id, key, f"Error {reply.error.code}: {reply.error.reason}")
        if is_complete:
            self._conclude(key)

    def moves_on(self) -> None:
        """The run moves on: note what was replied, also in groups that are not complete."""
        with self._lock:
            keys = [*self._incomplete]
        for key in keys:
            self._conclude(key)

    def _tally(self, key: tuple[str, str]) -> _Tally:
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = _Tally(time.monotonic())
            if len(self._tallies) > _MOST_GROUPS:
                self._tallies.popitem(last=False)
        return tally

    def _erred_first(self, node_id: int, key: tuple[str, str], text: str) -> None:
        with self._lock:
            if node_id in self._erred or len(self._erred) >= _MOST_NODES:
                return
            self._erred.add(node_id)
        self._note(Kind.ERROR, *key, node=node_id, text=text)

    def _conclude(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._incomplete.pop(key, None)
            tally = self._tallies.get(key)
            if tally is None:
                return
            sums, errors, tally.sums, tally.errors = tally.sums, tally.errors, {}, 0
        self._note(
            Kind.ANSWERED,
            *key,
            sent=max(tally.sent, tally.answered),  # adopted messages were sent by another process
            answered=tally.answered,
            errors=errors,
            seconds=tally.latest - tally.began,
            values={name: total / count for name, (total, count) in sums.items()},
        )

    def _note(self, kind: Kind, group: str = "", message_type: str = "", **what: Any) -> None:
        if self._events is not None:
            event = _event(self._events, kind, group, message_type, **what)
            with self._lock:
                if len(self._waiting) < _MOST_WAITING:
                    self._waiting.append(event)

    # What is to be written.

    def write(self) -> None:
        """Write all events and log lines in a round trip of their own."""
        pages, lines = self.pages(), self.lines()
        if self._events is not None and self._events.send(pages, lines):
            self.written()
            if self.log is not None:
                self.log.sent(lines)

    def lines(self) -> list[str]:
        """Return the lines of the log that are to be written."""
        return [] if self.log is None else self.log.lines()

    def page(self, sending: Iterable[Sending] = (), *, has_room: bool = True) -> Page:
        """Return the events of a commit; `written` says that it was executed.

        Args:
            sending: what it sends. The groups that it begins are noted in it, or later.
            has_room: it may have events.
        """
        if self._events is None:
            return ()
        sent: dict[tuple[str, str], int] = {}
        for one in sending:
            if one.is_new:
                key = one.entry.group_id, one.entry.message_type
                sent[key] = sent.get(key, 0) + 1
        with self._lock:
            self._sending = sent
            begun = [key for key in sent if key not in self._tallies][: AT_ONCE // 2]
            self._begun = [_event(self._events, Kind.BEGUN, *key, sent=sent[key]) for key in begun]
            is_due = time.monotonic() - self._wrote >= _PAUSE or len(self._waiting) + len(begun) >= AT_ONCE
            page = (self._waiting + self._begun)[:AT_ONCE] if has_room and is_due else []
            self._before, self._on_page = len(self._waiting), len(page)
        return page

    def pages(self) -> list[Page]:
        """Return all events that are to be written; `written` says that they were."""
        with self._lock:
            self._before = self._on_page = len(self._waiting)
            self._sending, self._begun = {}, []
            return pages_of(self._waiting[:])

    def written(self) -> None:
        """What `page` or `pages` returned last was written."""
        with self._lock:
            self._waiting[self._before : self._before] = self._begun
            del self._waiting[: self._on_page]
            for key, count in self._sending.items():
                self._tally(key).sent += count
            if self._on_page:
                self._wrote = time.monotonic()
            self._on_page, self._sending, self._begun = 0, {}, []


def _event(events: Events, kind: Kind, group: str, message_type: str, **what: Any) -> bytes:
    return encode_event(Event(events.now(), kind, group, message_type, **what))


def _number(name: str, value: Any) -> float:
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the name of the metric {name!r} is too long: the limit is {LONGEST_NAME} characters")
    if not isinstance(value, bool | str | bytes):
        with suppress(TypeError, ValueError, OverflowError):
            return float(value)
    raise TypeError(f"the metric {name} is {value!r}, not a number")


def _add(sums: dict[str, tuple[float, int]], reply: Message) -> None:
    """Add the numbers of a reply's metrics records."""
    for record in reply.content.metrics_records.values():
        for name, value in record.items():
            if isinstance(value, (int, float)) and (name in sums or len(sums) < MOST_VALUES):
                total, count = sums.get(name, (0.0, 0))
                sums[name] = total + value, count + 1
