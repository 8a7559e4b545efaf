"""The activity: what a node is executing, how that has gone so far, and when its threads last took a turn.

Owns these facts, and how they become the node's status. It must not know Redis, ClientApp, or what is concluded from
the facts.

A message costs a few assignments and two looks at the clock; everything else is worked out when a status is asked for.
"""

import os
import socket
import threading
import time
from collections import deque
from statistics import median

from brokerfl.broker.clock import Clock
from brokerfl.client.wanted import Watch
from brokerfl.client.worklist import Work
from brokerfl.common import Metadata
from brokerfl.wire.status import Doing, NodeStatus

#: Executions of which the median is told.
_REMEMBERED = 50

#: Seconds after which Redis is asked about a message that is being executed, and for how long it may be asked at once.
_ASK_AFTER, _ASK_FOR = 1.0, 1.0


class Execution:
    """One message that is being executed. Times are local monotonic ones.

    Attributes:
        work: the message.
        type, group: as its metadata say.
        watch: says whether somebody waits for the reply.
        began: when its execution began, with the fetching of its content.
        over_at: when the node learned that nobody waits for the reply; 0 while somebody does.
        seconds: how long the ClientApp took; negative until it has answered.
    """

    __slots__ = ("began", "group", "over_at", "seconds", "type", "watch", "work")

    def __init__(self, work: Work, metadata: Metadata, watch: Watch) -> None:
        self.work = work
        self.type, self.group = metadata.message_type, metadata.group_id
        self.watch = watch
        self.began = time.monotonic()
        self.over_at = 0.0
        self.seconds = -1.0


class Activity:
    """What one node is at. Safe to share between threads.

    Attributes:
        turned: local monotonic time at which the node's loop last took a turn.
        beaten: the same of its heartbeat.
    """

    def __init__(self) -> None:
        self.turned = self.beaten = time.monotonic()
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._using = threading.Lock()
        self._executions: dict[int, Execution] = {}
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._done = self._errors = 0
        self._error = ""

    def turn(self) -> None:
        """The loop takes a turn."""
        self.turned = time.monotonic()

    def beat(self) -> None:
        """The heartbeat takes a turn."""
        self.beaten = time.monotonic()

    # One message.

    def begin(self, worker: int, execution: Execution) -> None:
        """A worker begins to execute a message."""
        with self._using:
            self._executions[worker] = execution

    def answered(self, worker: int, error: str) -> None:
        """The ClientApp has answered the worker's message; ``error`` is the class of what it raised, or ""."""
        with self._using:
            execution = self._executions[worker]
            execution.seconds = time.monotonic() - execution.began
            self._recent.append(execution.seconds)
            self._done += 1
            if error:
                self._errors += 1
                self._error = error

    def end(self, worker: int) -> None:
        """The worker is done with its message, whatever became of it."""
        with self._using:
            self._executions.pop(worker, None)

    # All of it.

    def executions(self) -> list[Execution]:
        """Return what is being executed, the oldest first."""
        with self._using:
            return sorted(self._executions.values(), key=lambda execution: execution.began)

    def learn(self) -> None:
        """Ask whether anybody still waits for what is being executed, the oldest first, for about a second.

        It is asked here, since an app need not ask, and a loop that executes reads no news.
        """
        began = time.monotonic()
        for execution in self.executions():
            now = time.monotonic()
            if now - began > _ASK_FOR:  # Redis says nothing, and the lease has to be renewed
                return
            is_due = not execution.over_at and now - execution.began > _ASK_AFTER
            if is_due and execution.watch.is_cancelled():
                execution.over_at = time.monotonic()

    def is_turning(self, within: float, *, loop_executes: bool) -> bool:
        """Return whether loop and heartbeat took a turn in the last ``within`` seconds.

        Args:
            within: how long ago.
            loop_executes: the loop's own thread executes: while it does, it takes no turn.
        """
        now = time.monotonic()
        is_busy = loop_executes and bool(self.executions())
        return now - self.beaten <= within and (is_busy or now - self.turned <= within)

    def status(self, clock: Clock, queue: int, disk: int, *, is_paused: bool, is_full: bool) -> NodeStatus:
        """Return what the node says of itself.

        Args:
            clock: what is known of Redis' clock.
            queue: how many messages it has received and not begun.
            disk: free bytes where its journal is; 0 if unknown.
            is_paused: it begins nothing new.
            is_full: Redis has no room for a reply of it.
        """

        def at(monotonic: float) -> float:
            return clock.at(monotonic) + clock.skew

        doing = tuple(
            Doing(
                each.work.run_id,
                each.work.message_id,
                each.type,
                each.group,
                at(each.began),
                at(each.over_at) if each.over_at else 0.0,
            )
            for each in self.executions()
        )
        with self._using:
            recent, done, errors, error = [*self._recent], self._done, self._errors, self._error
        return NodeStatus(
            at=at(time.monotonic()),
            turned=at(self.turned),
            host=self._host,
            pid=self._pid,
            is_paused=is_paused,
            is_full=is_full,
            doing=doing,
            queue=queue,
            done=done,
            errors=errors,
            error=error,
            last=recent[-1] if recent else 0.0,
            median=median(recent) if recent else 0.0,
            disk=disk,
        )
