"""The clock of Redis, as one process sees it: steps of it change nothing that is under way.

Owns what a process may conclude from TIME and from the ids of stream entries. It must not know Redis commands.

Redis' clock may be set forward or back at any time. Lifetimes in this process are therefore measured with its own
monotonic clock: `time` goes on as it began, and `skew` says how far TIME has moved away from it since. The id of an
entry is no time: it is never lower than the one before, so after a step forward and back a stream stays ahead for as
long as the step was. So an id counts only as far as what was seen of the clock supports it.
"""

import threading
import time

from brokerfl.broker.stream import milliseconds_of

#: Seconds. A clock that is disciplined by NTP moves less than this between two looks; what moves more was set.
_STEP = 1.0

#: Milliseconds by which the clock may be set back unseen.
CLOCK_STEP = 60_000

#: Milliseconds by which an entry may be ahead of the clock before its id says nothing about when it was made.
_FAR_AHEAD = 60_000


class Clock:
    """What is known about the clock of one Redis. Safe to share between threads.

    Attributes:
        skew: seconds by which TIME is ahead of `time` now.
        steps: how often TIME was found to have been set forward: keys with a lifetime may have lapsed early.
    """

    def __init__(self) -> None:
        self.skew = 0.0
        self.steps = 0
        self._start: float | None = None
        self._ahead = self._behind = 0.0  # the farthest that TIME was seen on either side of `time`
        self._lock = threading.Lock()

    def set(self, answer: tuple[int, int], asked: float) -> float:
        """Use an answer to TIME, asked for at the local monotonic time ``asked``; return it in seconds.

        It is from about halfway. One that took long says little, and changes nothing that it does not contradict.
        """
        now, received = answer[0] + answer[1] / 1e6, time.monotonic()
        offset, doubt = now - (asked + received) / 2, (received - asked) / 2
        with self._lock:
            if self._start is None:
                self._start = offset
            moved = offset - self._start - self.skew
            if abs(moved) > doubt:
                self.steps += moved > doubt + _STEP
                self.skew += moved
                self._ahead = max(self._ahead, self.skew)
                self._behind = max(self._behind, -self.skew)
        return now

    def time(self) -> float:
        """Return the time in seconds: that of Redis when it was first asked, and what has passed here since."""
        return time.monotonic() + (self._start or 0.0)

    def at(self, monotonic: float) -> float:
        """Return what `time` was at this local monotonic time."""
        return monotonic + (self._start or 0.0)

    def earliest(self, entry_id: str) -> float:
        """Return the earliest time, in milliseconds, at which an entry that is read now may have been made."""
        made = float(milliseconds_of(entry_id))
        if self._start is None:
            return made
        return min((time.monotonic() + self._start) * 1000, made - self._ahead * 1000)

    def latest(self, entry_id: str, read_at: float) -> float:
        """Return the latest time, in milliseconds, at which an entry may have been made.

        Args:
            entry_id: its id.
            read_at: the local monotonic time at which it was read.
        """
        return min(self.at(read_at) * 1000, milliseconds_of(entry_id) + self._behind * 1000)

    def tells(self, entry_id: str) -> bool:
        """Whether the id of an entry that was made just now tells when; not if it is far ahead of TIME, or is ""."""
        if self._start is None:
            return entry_id != ""
        return entry_id != "" and milliseconds_of(entry_id) <= (self.time() + self.skew) * 1000 + _FAR_AHEAD

    @property
    def slack(self) -> int:
        """Milliseconds by which an entry may seem to be older than one of another stream that was made before it."""
        return max(CLOCK_STEP, round((self._ahead + self._behind) * 1000))
