"""The shortage: says that Redis is full, what holds the memory, and when there is room again.

Owns what is logged of that, and how often. It must not know what waits for room.

A ServerApp that only waits for replies writes nothing, so it would not notice that its nodes find no room. It looks
once a heartbeat. Redis counts as full for it if it has met a refusal, if hardly anything is left, or if there is twice
in a row less than the next reply will take: as much as the model, or as the replies that are there.
"""

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from logging import INFO, WARNING

from brokerfl.broker.connection import Connection
from brokerfl.broker.memory import RunMemory, ServerMemory, memory_of_run, memory_of_server
from brokerfl.common import BrokerflError, log
from brokerfl.common.text import sized

#: Seconds between two warnings.
_AGAIN = 60.0

#: The share of `maxmemory` that has to be in use before a run is measured.
_MEASURED = 0.5


class Shortage:
    """What one ServerApp says of a full Redis. Safe to share between threads.

    Args:
        connection: to Redis.
        run_id: the run.
        node_ids: returns the nodes that may hold keys of the run.
        owing: returns those that owe it a reply.
    """

    def __init__(
        self,
        connection: Connection,
        run_id: int,
        node_ids: Callable[[], Collection[int]],
        owing: Callable[[], Collection[int]],
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._node_ids = node_ids
        self._owing = owing
        self._lock = threading.Lock()
        self._said_at: float | None = None
        self._was_short = False
        self._is_silent = False  # Redis does not say how much memory it has

    def met(self) -> None:
        """Redis refused a write because it is full: say so, at most once a minute."""
        if self._lock.acquire(blocking=False):  # another thread is saying it
            try:
                with suppress(BrokerflError):
                    servers = memory_of_server(self._connection)
                    self._say(_fullest(servers), len(servers), self._measure())
            finally:
                self._lock.release()

    def look(self) -> bool:
        """Look whether there is room for the next reply; say so if there is none, and again when there is.

        Returns:
            Whether there is none.

        Raises:
            RedisUnreachable: Redis does not answer.
        """
        if not self._is_silent and self._lock.acquire(blocking=False):
            try:
                servers = memory_of_server(self._connection)
                self._is_silent = not servers
                fullest = _fullest(servers)
                if fullest is not None:
                    self._judge(fullest, len(servers))
                elif self._said_at is not None:  # somebody took the limit away
                    self._said_at = None
                    log(INFO, "Redis has room again: it has no limit any more")
            finally:
                self._lock.release()
        return self._said_at is not None

    def _judge(self, fullest: ServerMemory, servers: int) -> None:
        run = self._measure() if fullest.used >= fullest.most * _MEASURED else RunMemory()
        has_room = not fullest.is_full and (fullest.free or 0) >= _next_reply(run)
        is_short = fullest.is_full or (not has_room and bool(self._owing()))
        if is_short and (fullest.is_full or self._was_short):
            self._say(fullest, servers, run)
        elif has_room and self._said_at is not None:
            self._said_at = None
            log(INFO, "Redis has room again: %s", _use(fullest, servers))
        self._was_short = is_short

    def _measure(self) -> RunMemory:
        return memory_of_run(self._connection, self._run_id, self._node_ids())

    def _say(self, fullest: ServerMemory | None, servers: int, run: RunMemory) -> None:
        now = time.monotonic()
        if self._said_at is not None and now - self._said_at < _AGAIN:
            return
        self._said_at = now
        log(
            WARNING,
            "Redis is full%s; this run holds %s (contents %s, replies %s of %s nodes); "
            "settle replies or raise maxmemory",
            "" if fullest is None else f": {_use(fullest, servers)}",
            sized(run.total),
            sized(run.contents),
            sized(run.replies),
            run.repliers,
        )


def _fullest(servers: Collection[ServerMemory]) -> ServerMemory | None:
    """Return the server that has least room; None if none has a limit."""
    return min((one for one in servers if one.most), key=lambda one: one.free or 0, default=None)


def _next_reply(run: RunMemory) -> int:
    return max(run.contents, run.replies // run.repliers if run.repliers else 0)


def _use(server: ServerMemory, servers: int) -> str:
    where = f" at {server.place}" if servers > 1 else ""
    return f"{sized(server.used)} of {sized(server.most)}{where}"
