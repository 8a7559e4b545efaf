"""The watch: what is there now, for all who ask at once.

Owns how often Redis is asked, and how long anybody waits for it: a Redis that is away is told, and not waited for. It
must not know who asks.
"""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from logging import INFO, WARNING

from brokerfl.broker.connection import Connection
from brokerfl.common import BrokerflError, log
from brokerfl.view.overview import Overview, read_overview
from brokerfl.view.reasons import Reason
from brokerfl.view.words import lasting

#: Seconds for which an overview is the answer to everybody.
_FRESH = 1.0

#: Seconds without an answer after which Redis counts as away. Prometheus waits for 10 by default.
_PATIENCE = 3.0


@dataclass(frozen=True)
class Sight:
    """What was seen.

    Attributes:
        overview: what was seen last; None if Redis has not answered yet.
        reason: `Reason.REDIS_AWAY` if it does not answer now, `Reason.REDIS_FULL` if it has no room, else
            `Reason.NONE`.
        why: the same in words; "" for none.
    """

    overview: Overview | None
    reason: Reason = Reason.NONE
    why: str = ""

    @property
    def is_away(self) -> bool:
        """Whether Redis does not answer, so that the overview is an old one."""
        return self.reason is Reason.REDIS_AWAY


class Watch:
    """Looks when it is asked, once for all who ask within a second.

    Args:
        connection: to Redis.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._asked_at = 0.0
        self._asked: Future[Overview] | None = None
        self._overview: Overview | None = None
        self._is_away = False

    def look(self) -> Sight:
        """Return what is there; no error of Redis is raised."""
        with self._lock:
            asked, asked_at = self._ask()
        try:
            overview = asked.result(max(0.0, _PATIENCE - (time.monotonic() - asked_at)))
        except TimeoutError:
            return self._away(f"Redis has not answered for {lasting(time.monotonic() - asked_at)}")
        except BrokerflError as error:
            return self._away(str(error))
        self._note(False, "Redis answers again")
        self._overview = overview
        return Sight(overview, Reason.REDIS_FULL if overview.full else Reason.NONE, overview.full)

    def _ask(self) -> tuple[Future[Overview], float]:
        """Ask Redis, unless an answer is under way, or fresh."""
        now = time.monotonic()
        if self._asked is None or (self._asked.done() and now - self._asked_at >= _FRESH):
            self._asked, self._asked_at = Future(), now
            # A daemon: a Redis that is frozen does not keep the process from ending.
            threading.Thread(target=self._read, args=(self._asked,), name="watch", daemon=True).start()
        return self._asked, self._asked_at

    def _read(self, asked: Future[Overview]) -> None:
        try:
            asked.set_result(read_overview(self._connection))
        except Exception as error:
            asked.set_exception(error)

    def _away(self, why: str) -> Sight:
        self._note(True, why)
        return Sight(self._overview, Reason.REDIS_AWAY, why)

    def _note(self, is_away: bool, text: str) -> None:
        """Log it when Redis goes away, and when it is back."""
        with self._lock:
            changed, self._is_away = is_away is not self._is_away, is_away
        if changed:
            log(WARNING if is_away else INFO, "%s", text)
