"""The stories of runs, for a page that looks at one again and again: its events, its rounds and its numbers.

Owns that each look reads only what is new, and how much of a run is remembered. It must not know who asks.
"""

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from brokerfl.broker.connection import Connection
from brokerfl.broker.events import read_events
from brokerfl.broker.patience import within
from brokerfl.broker.remains import read_curves
from brokerfl.wire.event import Event
from brokerfl.wire.past import Curves, curves_of

#: Seconds for which a story is the answer to everybody, and for which Redis may be silent.
_FRESH, _PATIENCE = 1.0, 3.0

#: Runs that are remembered, and events of each.
_RUNS, _EVENTS = 8, 10_000


@dataclass(frozen=True)
class Story:
    """What happened in a run.

    Attributes:
        run_id: the run.
        events: the oldest first; of a run that has ended, those that were seen before.
        curves: its numbers by name, each as rounds and values.
    """

    run_id: int
    events: tuple[Event, ...] = ()
    curves: Curves = field(default_factory=dict)


class _Reading:
    """How far a run was read."""

    def __init__(self, run_id: int) -> None:
        self.at = -_FRESH
        self.last = ""
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.story = Story(run_id)


class Stories:
    """Reads on when it is asked, once for all who ask within a second. Safe to share between threads.

    Args:
        connection: to Redis.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._readings: OrderedDict[int, _Reading] = OrderedDict()

    def of(self, run_id: int) -> Story:
        """Return the story of a run; an empty one if nothing is known of it.

        Raises:
            RedisUnreachable, RedisAuthError: Redis could not be asked.
        """
        with self._lock:
            reading = self._readings.setdefault(run_id, _Reading(run_id))
            self._readings.move_to_end(run_id)
            while len(self._readings) > _RUNS:
                self._readings.popitem(last=False)
            if time.monotonic() - reading.at >= _FRESH:
                within(time.monotonic() + _PATIENCE, lambda: self._read_on(reading))
                reading.at = time.monotonic()
            return reading.story

    def _read_on(self, reading: _Reading) -> None:
        before, run_id = reading.last, reading.story.run_id
        for entry_id, event in [*read_events(self._connection, run_id, before)]:
            reading.events.append(event)
            reading.last = entry_id
        if reading.last != before:
            reading.story = Story(run_id, tuple(reading.events), curves_of(reading.events))
        elif not reading.events and not reading.story.curves:
            reading.story = Story(run_id, curves=read_curves(self._connection, run_id))
