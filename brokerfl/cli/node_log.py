"""`brokerfl-node --share-log`: the lines of a node's log about a run go to that run's log in Redis.

Owns when they are sent. It must not know what they say, or how they are kept.
"""

import time
from contextlib import suppress
from logging import DEBUG

from brokerfl.broker.connection import Connection
from brokerfl.broker.events import send_lines
from brokerfl.broker.heartbeat import Heartbeat
from brokerfl.broker.patience import STEP, within
from brokerfl.cli.logs import keep_for
from brokerfl.common import BrokerflError, log
from brokerfl.common.shared_log import LogOfRuns

#: Seconds between two looks at what is to be sent.
_OFTEN = 2.0


class NodeLog:
    """Sends what a node logs about runs from now on, until it is closed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._shared = LogOfRuns()
        keep_for(self._shared)
        self._beat = Heartbeat("shared log", _OFTEN, self._send, _give_up)
        self._beat.start()

    def close(self) -> None:
        """Send the last lines, if Redis takes them."""
        if self._beat.stop(STEP):
            with suppress(BrokerflError):
                within(time.monotonic() + STEP, self._send)

    def _send(self) -> None:
        lines = self._shared.lines()
        if lines:
            send_lines(self._connection, lines)
            self._shared.sent(lines)


def _give_up(error: Exception) -> None:
    log(DEBUG, "The log is not shared any more: %r", error)
