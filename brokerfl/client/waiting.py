"""The waiting room: how a node waits while Redis is full.

Owns whether this process waits, how often it asks whether there is room, and that one of its workers sends at a time.
It must not know what is sent.

Nothing is sent to find out whether there is room: that is asked (`broker.room`), at random intervals that grow to five
seconds. So a node that waits costs Redis a few hundred bytes a second, whatever the size of its replies, and goes on
soon after there is room.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import INFO, WARNING
from typing import TypeVar

import tenacity

from brokerfl.broker.connection import Connection
from brokerfl.broker.room import Room, room_for
from brokerfl.common import RedisOutOfMemory, log
from brokerfl.common.text import sized

Result = TypeVar("Result")

#: Most bytes a second that this process sends in vain, after it was refused once.
RATE = 1_000_000.0

#: Most seconds between two questions.
_LONGEST = 5.0

_BACK_OFF = tenacity.wait_random_exponential(multiplier=0.1, max=_LONGEST)


class NoRoomError(RedisOutOfMemory):
    """Redis is full, or has not enough room.

    Attributes:
        sent: bytes that were sent in vain.
    """

    def __init__(self, text: str, sent: int = 0) -> None:
        super().__init__(text)
        self.sent = sent


class UnwantedError(Exception):
    """What waited is no longer wanted."""


class WaitingRoom:
    """Where one kind of replies of a node waits. Safe to share between its workers.

    Args:
        connection: to Redis.
        stopping: true gives up.
        what: is waiting, in the plural, for the log.

    Attributes:
        turn: held by the worker that sends, after a refusal.
    """

    def __init__(
        self, connection: Connection, stopping: Callable[[], bool] = lambda: False, what: str = "finished replies"
    ) -> None:
        self.stopping = stopping
        self.turn = threading.Lock()
        self._connection = connection
        self._what = what
        self._counting = threading.Lock()
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether something waits: Redis is full, as far as this process knows."""
        return self._count > 0

    def ask(self, wanted: Mapping[str, int]) -> Room:
        """Return whether there is room; arguments and errors are those of `room_for`."""
        return room_for(self._connection, wanted)

    def when_there_is_room(
        self,
        action: Callable[[Room], Result],
        wanted: Mapping[str, int],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Result:
        """Return what ``action`` returns, called whenever there seems to be room until it is not refused any more.

        Args:
            action: sends; is told how sure it is that there is room.
            wanted: as for `room_for`.
            is_wanted: asked before each question.

        Raises:
            UnwantedError: it is no longer wanted.
            RedisOutOfMemory: the node is stopping.
            RedisUnreachable: Redis is unreachable.
        """

        def attempt() -> Result:
            if not is_wanted():
                raise UnwantedError
            room = self.ask(wanted)
            if room is Room.NONE:
                raise NoRoomError(f"{self._connection.url} is full (maxmemory): {_sum(wanted)} have to wait")
            return action(room)

        retrying = tenacity.Retrying(
            wait=_pause,
            retry=tenacity.retry_if_exception_type(RedisOutOfMemory),
            stop=lambda _: self.stopping(),
            sleep=self.sleep,
            reraise=True,
        )
        with self._waits(wanted):
            return retrying(attempt)

    @contextmanager
    def _waits(self, wanted: Mapping[str, int]) -> Iterator[None]:
        with self._counting:
            self._count += 1
            is_first = self._count == 1
        if is_first:
            log(
                WARNING,
                "%s is full (maxmemory); %s wait until there is room (%s)",
                self._connection.url,
                self._what,
                _sum(wanted),
            )
        try:
            yield
        finally:
            with self._counting:
                self._count -= 1
                is_last = self._count == 0
        if is_last:  # an exception comes not so far: then there may be no room
            log(INFO, "There is room again; %s are published", self._what)

    def sleep(self, seconds: float) -> None:
        """Sleep, or until the node is stopping."""
        until = time.monotonic() + seconds
        while not self.stopping() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))


def _pause(state: tenacity.RetryCallState) -> float:
    """Return seconds until the next attempt: the longer, the more the last one sent in vain."""
    error = state.outcome.exception() if state.outcome is not None else None
    sent = error.sent if isinstance(error, NoRoomError) else 0
    return max(float(_BACK_OFF(state)), random.uniform(0.5, 1.0) * min(2 * sent / RATE, _LONGEST))


def _sum(wanted: Mapping[str, int]) -> str:
    return sized(sum(wanted.values()))
