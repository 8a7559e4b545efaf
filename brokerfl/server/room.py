"""Room in a full Redis: how long a push waits for it.

Owns that patience. It must not know what is written.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from brokerfl.common import RedisOutOfMemory
from brokerfl.server.book import Book
from brokerfl.server.receive import Receiver
from brokerfl.server.session import Session

Answer = TypeVar("Answer")

#: Seconds that a push waits for room in a full Redis, for each transaction and each window of an upload, before it
#: gives up: nodes' replies that are settled make some.
FULL_PATIENCE = 5.0


class Room:
    """Waits for room, in any thread that does not hold `Session.writing`: others may settle meanwhile.

    Args:
        session: through which Redis is reached.
        receiver: deletes what was settled.
        book: knows what the run has not settled.
    """

    def __init__(self, session: Session, receiver: Receiver, book: Book) -> None:
        self._session = session
        self._receiver = receiver
        self._book = book

    def wait(self, action: Callable[[], Answer]) -> Answer:
        """Return what ``action`` returns, repeating it while Redis is full: what this run or others settle makes room.

        Raises:
            RedisOutOfMemory: there was none in `FULL_PATIENCE`.
        """
        retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
            stop=tenacity.stop_after_delay(FULL_PATIENCE),
            retry=tenacity.retry_if_exception_type(RedisOutOfMemory),
            before_sleep=lambda _: self._session.through_outage(lambda: self._receiver.read(())),
            sleep=time.sleep,
            reraise=True,
        )
        try:
            return retrying(action)
        except RedisOutOfMemory as error:
            kept = len(self._book.answers.handed_over())
            if not kept:
                raise
            raise RedisOutOfMemory(
                f"{error}; {kept} replies that this run was given stay in Redis until it moves on: "
                "push the next group in smaller parts, or call driver.checkpoint() first"
            ) from error
