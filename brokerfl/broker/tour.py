"""The tour: keys of other servers that no read waits for are looked at now and then, some at a time.

Owns whose turn it is. It must not know what they are.

One that expired, or was deleted, makes itself heard only where a read waits for it.
"""

import time
from collections.abc import Set as AbstractSet

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.gather import Gather

#: Seconds from one look to the next, and most keys that one look asks for.
_LOOK, _MOST = 2.0, 100


class Tour:
    """Looks at all keys in turn. One thread at a time.

    Args:
        connection: to where they are.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left: set[str] = set()
        self._next = 0.0

    def misses_one(self, keys: AbstractSet[str]) -> bool:
        """Return whether one of ``keys`` whose turn it is does not exist. False if it is too soon to look.

        Raises:
            RedisUnreachable: unknown.
        """
        if not keys or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _LOOK
        self._left = (self._left & keys) or {*keys}
        gather = Gather(self._connection)
        with map_errors(self._connection.url):
            for key in [self._left.pop() for _ in range(min(_MOST, len(self._left)))]:
                gather.at(key).exists(key)
            return not all(gather.execute())
