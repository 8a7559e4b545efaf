"""The progress of one run: what its ServerApp is at, and how far its groups are.

Owns what cannot be asked of the book, because it lies in the past or outside: when groups were pushed and answered, how
long messages take, and which calls wait for how long. It must not know Redis, or how anything is said or shown.

Times are local monotonic ones, in seconds.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from statistics import median

from brokerfl.server.book import Event, State, Step
from brokerfl.wire.status import MOST_TOLD, Phase

_ACCEPTED, _ADOPTED, _ANSWERED, _EARLY = Step.ACCEPTED, Step.ADOPTED, Step.ANSWERED, State.EARLY

#: Of how many messages, the last that were answered, the usual duration is the median.
_MEASURED = 64

#: How many groups are remembered, the last ones. Those that are still open may be older.
_GROUPS = 4 * MOST_TOLD

#: Seconds that an app may work between two waits that count as one.
_PAUSE = 1.0

#: A call that is at nothing longer comes before one that is at something shorter.
_FIRST = (Phase.NODES, Phase.REPLIES, Phase.PUSHING)


class Activity:
    """One call of the app that waits or pushes.

    Attributes:
        phase: what it is at.
        since: when that began; the wait before it counts as the same if the app did little in between.
        needed: for how many nodes it waits.
        online: how many of them are online.
        is_over: its wait has ended, and will not go on in the next call.
    """

    __slots__ = ("is_over", "needed", "online", "phase", "since")

    def __init__(self, phase: Phase, since: float, needed: int = 0) -> None:
        self.phase = phase
        self.since = since
        self.needed = needed
        self.online = 0
        self.is_over = False


class Group:
    """One group of messages.

    Attributes:
        name: its id.
        sent: how many of its messages were pushed.
        began: when the first was.
        ended: when the last reply so far came; 0 for none.
    """

    __slots__ = ("began", "ended", "name", "sent")

    def __init__(self, name: str, began: float) -> None:
        self.name = name
        self.sent = 0
        self.began = began
        self.ended = 0.0


class Progress:
    """What one run is at. Safe to use from many threads; `note` and what reads groups, under the lock of the book.

    Attributes:
        ended: is called with each wait that has ended, by the thread that waited.
        rung: is called when somebody rang who is no node.
        bytes_out: what was pushed, each content once for each node.
        is_draining: the run is to push nothing any more.
        round: the round of a loop that names no groups.
        record: bytes of what the run has recorded of its steps.
        recorded_at: where replies are recorded; "" if they are not.
    """

    def __init__(self) -> None:
        self.ended: Callable[[Activity], object] = lambda activity: None
        self.rung: Callable[[], object] = lambda: None
        self.bytes_out = 0
        self.is_draining = False
        self.round, self.record, self.recorded_at = "", 0, ""
        self._groups: OrderedDict[str, Group] = OrderedDict()  # by their first push
        self._latest: Group | None = None
        self._took: deque[float] = deque(maxlen=_MEASURED)
        self._activities: dict[int, Activity] = {}
        self._former = Activity(Phase.APP, time.monotonic())
        self._app_since = time.monotonic()

    # Messages.

    def note(self, event: Event) -> None:
        """A message took a step. This is on the path of every message."""
        step = event.step
        if step is _ANSWERED:
            now, group = time.monotonic(), self._groups.get(event.group_id)
            if group is not None:
                group.ended = now
            if event.since:
                self._took.append(now - event.since)
        elif step is _ACCEPTED or step is _ADOPTED:
            group = self._latest
            if group is None or group.name != event.group_id:
                group = self._latest = self._group(event.group_id)
            group.sent += 1
            if event.before is _EARLY:
                group.ended = time.monotonic()

    def _group(self, name: str) -> Group:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(name, time.monotonic())
            if len(self._groups) > _GROUPS:
                self._groups.popitem(last=False)
        return group

    def latest(self, still_open: Collection[str]) -> Group | None:
        """Return the group that was pushed last, of these if it knows any of them; None if none was pushed."""
        if self._latest is None or self._latest.name in still_open or not still_open:
            return self._latest
        return next((group for group in reversed(self._groups.values()) if group.name in still_open), self._latest)

    def group(self, name: str) -> Group | None:
        """Return a group; None if it is not remembered."""
        return self._groups.get(name)

    def rounds(self, still_open: Mapping[str, int]) -> list[float]:
        """Return how long the last groups took that are not among these, the latest last."""
        done = [each for each in self._groups.values() if each.ended and each.name not in still_open]
        return [max(0.0, each.ended - each.began) for each in done[-MOST_TOLD:]]

    @property
    def usually(self) -> float:
        """The median of how long the last messages took; 0 if none was answered."""
        return median(self._took) if self._took else 0.0

    # Calls of the app.

    def begin(self, phase: Phase, needed: int = 0) -> Activity:
        """A call begins to wait, or to push. What was begun is to be given to `finish`."""
        now, former = time.monotonic(), self._former
        goes_on = former.phase is phase and not former.is_over and now - self._app_since < _PAUSE
        activity = Activity(phase, former.since if goes_on else now, needed)
        self._activities[id(activity)] = activity
        return activity

    def finish(self, activity: Activity, *, is_over: bool = False) -> None:
        """It has ended; the wait ``is_over`` if its call waits for nothing more."""
        activity.is_over = is_over
        self._activities.pop(id(activity), None)
        self._former, self._app_since = activity, time.monotonic()
        self.ended(activity)

    def now(self) -> Activity:
        """Return what the run is at: what most concerns its operator, since when it has been so."""
        activities = list(self._activities.values())
        for phase in _FIRST:
            same = [each for each in activities if each.phase is phase]
            if same:
                return min(same, key=lambda each: each.since)
        return Activity(Phase.APP, self._app_since)
