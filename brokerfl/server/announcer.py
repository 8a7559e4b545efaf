"""The announcer: the log says what a run waits for, and why.

Owns when a line is due, and that there is one however many threads wait. It must not know how threads wait, or what the
judge's rules are.

A wait is said after `SAYS_AFTER` seconds, then once in `SAYS_AGAIN`, and when its reason changes. Once it was said, its
end is said, too.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from logging import INFO

from brokerfl.broker.connection import Connection
from brokerfl.broker.patience import within
from brokerfl.broker.seen import look_at_nodes, look_at_servers
from brokerfl.common import BrokerflError, log
from brokerfl.common.text import shown
from brokerfl.server.progress import Activity, Progress
from brokerfl.server.report import Report
from brokerfl.server.session import Session
from brokerfl.view.judge import NodeJudged, Seer, Waiting, awaiting, judge_node, waiting
from brokerfl.view.overview import fullness
from brokerfl.view.reasons import NodeState, Reason
from brokerfl.view.words import lasting
from brokerfl.wire.status import NodeStatus, Phase, RunStatus

#: Seconds after which a wait is said, at first and then.
SAYS_AFTER, SAYS_AGAIN = 3.0, 60.0

#: Seconds between two looks for another reason of the same wait.
LOOKS_AGAIN = 5.0

#: Seconds that a look may take.
_PATIENCE = 1.0


@dataclass
class _Said:
    """What the log said last, and what it was about."""

    phase: Phase
    group: str
    since: float
    reason: Reason
    said_at: float
    looked_at: float


class Announcer:
    """Says what one run waits for. `tick` is called every second, by one thread; `finished` by any."""

    def __init__(self, progress: Progress, report: Report, session: Session) -> None:
        self._progress = progress
        self._report = report
        self._session = session
        self._run_id = session.transactions.owner.run.run_id
        self._connection: Connection = session.transactions.owner.connection
        self._lock = threading.Lock()
        self._said: _Said | None = None
        progress.ended = self.finished

    def tick(self) -> None:
        """Say what the run waits for, if a line is due."""
        activity, now = self._progress.now(), time.monotonic()
        if activity.phase == Phase.APP or now - activity.since < SAYS_AFTER or self._session.is_over:
            return
        status = self._report.status()
        with self._lock:
            said = self._said
        if said is not None and not _is_about(said, status):  # the app went on without a wait that ended
            said = None
        if said is not None and now - said.looked_at < LOOKS_AGAIN:
            return
        found = self._find(status)
        if found.reason is Reason.NONE:
            return
        is_due = said is None or found.reason is not said.reason or now - said.said_at >= SAYS_AGAIN
        said_at = now if is_due or said is None else said.said_at
        with self._lock:
            if self._progress.now().phase is not activity.phase:
                return  # it has ended in the meantime, and nothing had been said of it
            self._said = _Said(activity.phase, status.group, activity.since, found.reason, said_at, now)
            if is_due:
                log(INFO, "%s [%s]", _joined(status, found), found.reason.value)

    def finished(self, activity: Activity) -> None:
        """A wait has ended. If the log said what it was for, say how it ended, unless the next call goes on with it."""
        with self._lock:
            said = self._said
            if said is None or activity.phase is not said.phase:
                return
            text = self._end_of(said, activity)
            if text is not None or activity.phase is Phase.PUSHING:
                self._said = None
            if text is not None:
                log(INFO, "%s", text)

    def _end_of(self, said: _Said, activity: Activity) -> str | None:
        """Return how a wait ended; None if it goes on in the next call, or in another thread."""
        if activity.phase is Phase.NODES and activity.is_over:
            took = lasting(time.monotonic() - said.since)
            return f"{activity.online} of {activity.needed} nodes online after {took}"
        if activity.phase is not Phase.REPLIES:
            return None
        status = self._report.status()
        is_over = activity.is_over and status.phase != Phase.REPLIES
        if status.group != said.group or (status.answered < status.sent and not is_over):
            return None
        return f"{_counted(status)} after {lasting(self._report.lasted(status))}"

    # What holds it up.

    def _find(self, status: RunStatus) -> Waiting:
        down_since = self._session.down_since
        if down_since is not None:
            why = f"Redis has not answered for {lasting(time.monotonic() - down_since)}"
            return Waiting(Reason.REDIS_AWAY, why)
        if status.is_full:
            return Waiting(Reason.REDIS_FULL, self._fullness() or "Redis is full")
        if status.phase == Phase.NODES:
            return waiting(status, status.at, {})
        if status.phase != Phase.REPLIES or not status.awaited:
            return Waiting()
        nodes = {each.node_id: each for each in self._look(status)}
        nodes[0] = Seer(0, "", NodeJudged(NodeState.READY), status.usually)  # stands for all others
        found = waiting(status, status.at, nodes, self._run_id)
        return found if found.reason is not Reason.NONE else awaiting(status, status.at, nodes)

    def _look(self, status: RunStatus) -> Iterable[Seer]:
        """Yield what the awaited nodes say of themselves; nothing if Redis does not answer."""
        ids = [each.node for each in status.awaited]
        try:
            infos = within(time.monotonic() + _PATIENCE, lambda: look_at_nodes(self._connection, ids))
        except BrokerflError:
            return
        self._session.names.learn(infos)
        for info in infos:
            # Of the other nodes only this is known: how long the replies took that came.
            judged = judge_node(info.online, info.status, status.at, [status.usually])
            told = info.status or NodeStatus()
            yield Seer(info.node_id, info.name, judged, told.median, told.withheld_runs)

    def _fullness(self) -> str:
        try:
            return within(time.monotonic() + _PATIENCE, lambda: fullness(look_at_servers(self._connection)))
        except BrokerflError:
            return ""


def _is_about(said: _Said, status: RunStatus) -> bool:
    return said.phase == status.phase and (said.phase is not Phase.REPLIES or said.group == status.group)


def _joined(status: RunStatus, found: Waiting) -> str:
    """Return a line: how far the run is, and what it waits for."""
    if found.reason is Reason.WAITING_NODES:
        return found.why
    if status.phase == Phase.NODES:
        return f"{waiting(status, status.at, {}).why}: {found.why}"
    if status.phase == Phase.PUSHING:
        return f"pushing: {found.why}"
    return f"{_counted(status)}{', ' if found.reason is Reason.WAITING_REPLY else ': '}{found.why}"


def _counted(status: RunStatus) -> str:
    named = named_group(status.group)
    return f"{named}{': ' if named else ''}{status.answered} of {status.sent} answered"


def named_group(group: str) -> str:
    """Return a group in words: ``round 3``, ``group 'warm-up'``; "" for the group without a name."""
    if group.isdecimal():
        return f"round {shown(group)}"
    return f"group {shown(repr(group))}" if group else ""
