"""What is stuck: messages that a node still executes although nobody waits for them.

Owns what the node says and does about it. It must not know how that is found out, or how a process ends.
"""

import time
from collections.abc import Callable
from logging import WARNING

from brokerfl.client.activity import Activity, Execution
from brokerfl.common import log
from brokerfl.common.text import shown
from brokerfl.view.judge import STUCK_AFTER
from brokerfl.view.words import lasting

#: Seconds until the same is said again.
_AGAIN = 3600.0


class Stuck:
    """Looks at what one node executes, with each heartbeat.

    Args:
        activity: what the node executes.
        who: the node, in words.
        limit: seconds after which a message that nobody waits for ends the node; infinity for never.
        give_up: ends it. Called in the thread of the heartbeat.
    """

    def __init__(self, activity: Activity, who: str, limit: float, give_up: Callable[[], None]) -> None:
        self._activity = activity
        self._who = who
        self._limit = limit
        self._give_up = give_up
        self._said: dict[str, float] = {}

    def look(self) -> None:
        """Say what is stuck, once and then every hour; end the node if that is what is to be done."""
        now, executions = time.monotonic(), self._activity.executions()
        stuck = [each for each in executions if each.over_at and now - each.over_at > min(STUCK_AFTER, self._limit)]
        self._said = {each.work.message_id: self._said.get(each.work.message_id, 0.0) for each in stuck}
        for each in stuck:
            self._say(each, now)
        longest = max((now - each.over_at for each in stuck), default=0.0)
        # Messages of other runs may be finished first, but new ones come again and again.
        is_alone = all(each.over_at for each in executions)
        if longest > self._limit and (is_alone or longest > 2 * self._limit):
            log(WARNING, "%s is stuck, and ends", self._who)
            self._give_up()

    def _say(self, execution: Execution, now: float) -> None:
        if (said := self._said[execution.work.message_id]) and now - said < _AGAIN:
            return
        self._said[execution.work.message_id] = now
        log(
            WARNING,
            "%s has executed message %s of run %s for %s, and nobody waits for it any more",
            self._who,
            shown(execution.work.message_id),
            execution.work.run_id,
            lasting(now - execution.began),
        )
