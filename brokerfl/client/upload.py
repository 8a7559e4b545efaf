"""The upload: brings the chunks of one large reply into the data stream, through outages and a full Redis.

Owns which of them are there. It must not know what a reply says, or who waits for it.

Several replies that do not fit into Redis together could fill it, each with a part, and wait for one another for ever.
So an upload that is refused gives back what it has written, and begins again when there is room for all of it. But not
at once: it first holds what it has for a random time of at most `HOLD` seconds, in which it asks and sends nothing. Of
the replies that met there, one gives back sooner than the others, which go on at the chunk that was refused. So no two
of them give way to one another for ever, and the one that gets through has sent nothing twice.

How much is sent in vain: a new reply once what there was room for, or one window; from then on only what seemed to fit
when Redis was asked, and was taken by others in the meantime. Where Redis does not say how much room it has, or what
it says was wrong `MOST_MISSES` times, what was given back is sent again no faster than `RATE`.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import TypeVar

import tenacity

from brokerfl.broker.connection import Connection
from brokerfl.broker.data import DataReplaced, add_data, remove_data
from brokerfl.broker.room import Room
from brokerfl.broker.stream import place_of
from brokerfl.client.waiting import RATE, NoRoomError, WaitingRoom
from brokerfl.common import RedisUnreachable
from brokerfl.wire.payload import WINDOW, Payload

#: Most seconds that an upload keeps what it has written while it is refused.
HOLD = 2.0

#: Seconds between two questions meanwhile.
_ASK = (0.05, 0.3)

#: How often an upload may be refused although there seemed to be room, until it is sent slowly.
MOST_MISSES = 3

Result = TypeVar("Result")


class Upload:
    """One upload of one payload.

    Args:
        connection: to Redis.
        node_id: the node.
        run_id: the run.
        payload: the content.
        waiting: where it waits for room.
    """

    def __init__(
        self, connection: Connection, node_id: int, run_id: int, payload: Payload, waiting: WaitingRoom
    ) -> None:
        self._connection = connection
        self._node_id = node_id
        self._run_id = run_id
        self._payload = payload
        self._waiting = waiting
        self._sizes = [payload.size(index) for index in range(len(payload))]
        self._entries: dict[int, str] = {}
        self._refused = 0  # bytes of the last window
        self._refused_at = 0.0
        self._holds_until: float | None = None
        self._misses = 0  # how often it was given back
        self._reached = 0  # bytes that were there when they were last given back

    def bring(self, is_wanted: Callable[[], bool]) -> tuple[str, ...]:
        """Upload all chunks, and return their entries; none if the run is over.

        Args:
            is_wanted: whether the reply is still wanted; called when Redis is full.

        Raises:
            UnwantedError: it is not.
            RedisUnreachable, RedisOutOfMemory: the node is stopping.
        """
        if self._waiting.is_full or not self._send_first():
            wanted = {self._key: sum(self._sizes)}
            self._through_outages(lambda: self._waiting.when_there_is_room(self._send_again, wanted, is_wanted))
        is_complete = len(self._entries) == len(self._payload)
        return tuple(self._entries[index] for index in range(len(self._payload))) if is_complete else ()

    @property
    def _key(self) -> str:
        return self._connection.keys.data(self._node_id, self._run_id)

    def _send_first(self) -> bool:
        """Send without asking first; return False if it was refused, and nothing of it is left."""
        if self._send(Room.ENOUGH):
            return True
        try:
            self._with_turn(lambda: self._go_on(self._hold()))
        except NoRoomError:
            return False
        return True

    def _send_again(self, room: Room) -> None:
        self._with_turn(lambda: self._go_on(room))

    def _with_turn(self, action: Callable[[], None]) -> None:
        """Call ``action`` if no other worker of this process sends to a full Redis."""
        if not self._waiting.turn.acquire(blocking=False):
            raise self._give_back()
        try:
            action()
        finally:
            self._waiting.turn.release()

    def _go_on(self, room: Room) -> None:
        while not self._send(room):
            room = self._hold()

    def _send(self, room: Room) -> bool:
        """Send what is not there; return False if something was refused."""
        while missing := [index for index in range(len(self._payload)) if index not in self._entries]:
            is_sure = room is Room.ENOUGH and self._misses < MOST_MISSES
            if not is_sure and self._there() < self._reached:
                self._waiting.sleep(self._sizes[missing[0]] / RATE)
            added = self._through_outages(partial(self._add, missing[: WINDOW if is_sure else 1]))
            if added is None:  # the run is over
                return True
            if not added:
                return False
        return True

    def _add(self, indices: list[int]) -> bool | None:
        """Upload some chunks and note their entries; return whether all were taken, None if the run is over."""
        chunks = [self._payload.chunk(index) for index in indices]
        try:
            added = add_data(self._connection, self._node_id, self._run_id, chunks)
        except DataReplaced:
            self._entries.clear()
            return True
        if added is None:
            self._entries.clear()
            return None
        taken = [entry for entry in takewhile(lambda entry: entry is not None, added) if entry is not None]
        if None in added:  # what came behind a refused chunk goes: the entries of a reply rise with its chunks
            remove_data(self._connection, self._node_id, self._run_id, filter(None, added[len(taken) :]))
        entries = self._entries
        if taken and entries and place_of(taken[0]) <= place_of(entries[max(entries)]):
            entries.clear()  # Redis forgot the stream, and its clock went back
            return True
        entries.update(zip(indices, taken, strict=False))
        if taken:
            self._holds_until = None
        self._refused, self._refused_at = sum(map(len, chunks[len(taken) :])), time.monotonic()
        return len(taken) == len(chunks)

    def _there(self) -> int:
        return sum(self._sizes[index] for index in self._entries)

    # While it is refused.

    def _hold(self) -> Room:
        """Wait for room for the rest, for a while; return how much there is.

        Raises:
            NoRoomError: there was none in time; what had been written is deleted.
        """
        if self._holds_until is None:
            self._holds_until = time.monotonic() + random.uniform(0.0, HOLD)
        while not self._waiting.stopping() and (left := self._holds_until - time.monotonic()) > 0:
            self._waiting.sleep(min(left, random.uniform(*_ASK)))
            rest = {self._key: sum(self._sizes) - self._there()}
            room = self._through_outages(partial(self._waiting.ask, rest))
            is_due = time.monotonic() - self._refused_at >= self._refused / RATE
            if room is Room.ENOUGH or (room is Room.PERHAPS and is_due):
                return room
        raise self._give_back()

    def _give_back(self) -> NoRoomError:
        self._reached, self._holds_until = self._there(), None
        self._misses += 1
        gone = list(self._entries.values())
        self._entries.clear()  # first: the answer may be lost
        with suppress(RedisUnreachable):  # what is left then goes with the next reply that is settled
            remove_data(self._connection, self._node_id, self._run_id, gone)
        return NoRoomError(
            f"{self._connection.url} is full (maxmemory): there is no room for a chunk of a reply",
            self._reached + self._refused,
        )

    def _through_outages(self, action: Callable[[], Result]) -> Result:
        def wait(state: tenacity.RetryCallState) -> None:
            self._connection.wait_until_up(float("inf"), self._waiting.stopping)

        retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5.0),
            retry=tenacity.retry_if_exception_type(RedisUnreachable),
            stop=lambda _: self._waiting.stopping(),
            before_sleep=wait,
            sleep=self._waiting.sleep,
            reraise=True,
        )
        return retrying(action)
