"""The nodes that are online, for the app.

Owns how often Redis is asked while the app waits for more of them. It must not know messages.
"""

import time

from brokerfl.broker.connection import Connection
from brokerfl.broker.node_info import NodeInfo
from brokerfl.broker.nodes import list_nodes
from brokerfl.broker.patience import within
from brokerfl.broker.presence import count_online, online_nodes
from brokerfl.common import RedisUnreachable
from brokerfl.server.progress import Activity, Progress
from brokerfl.server.session import Session
from brokerfl.wire.status import Phase

#: Seconds until the online nodes are counted again, at first and after a while.
_SOON, _LATER = 0.05, 1.0


class OnlineNodes:
    """Looks up which nodes are online. Safe to share between threads."""

    def __init__(self, connection: Connection, session: Session, progress: Progress) -> None:
        self._connection = connection
        self._session = session
        self._progress = progress

    def ids(self) -> list[int]:
        """Return their ids, in ascending order."""
        self._session.check()
        return self._session.through_outage(lambda: online_nodes(self._connection))

    def infos(self) -> list[NodeInfo]:
        """Return what the registry says of them."""
        self._session.check()
        found = self._session.through_outage(lambda: [node for node in list_nodes(self._connection) if node.online])
        self._session.names.learn(found)
        return found

    def wait(self, n: int, timeout: float | None) -> list[int]:
        """Wait until at least ``n`` are online, for ``timeout`` seconds or forever, and return their ids.

        Raises:
            TimeoutError: fewer came online in time.
        """
        activity, is_over = self._progress.begin(Phase.NODES, n), False
        try:
            found = self._wait(n, timeout, activity)
            is_over = True
            return found
        except TimeoutError:
            is_over = True
            raise
        finally:
            self._progress.finish(activity, is_over=is_over)

    def _wait(self, n: int, timeout: float | None, activity: Activity) -> list[int]:
        until, pause = None if timeout is None else time.monotonic() + timeout, _SOON
        while True:
            try:
                online, found = within(until, lambda: self._look(n))
            except RedisUnreachable as error:
                raise TimeoutError(f"fewer than {n} nodes were seen online in {timeout:g} s: {error}") from error
            activity.online = online
            if online >= n:
                return found
            left = pause if until is None else min(pause, until - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"only {online} of {n} nodes are online after {timeout:g} s")
            time.sleep(left)
            pause = min(1.5 * pause, _LATER)

    def _look(self, n: int) -> tuple[int, list[int]]:
        """Return how many nodes are online, and their ids if they are at least ``n``."""
        self._session.check()
        online = self._session.through_outage(lambda: count_online(self._connection))
        if online < n:
            return online, []
        found = self.ids()  # exact
        return len(found), found
