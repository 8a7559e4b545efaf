"""Mending: a stream that takes no more entries is replaced: one has the greatest id there is, or the key no stream.

Owns how that is noticed and mended. It must not know what a stream is for.

Whoever may write a stream can do that to it, and deleting the entry does not help: Redis counts on from the last id.
A bell is also replaced if its entries are too large to be read.
"""

from logging import WARNING
from typing import Any

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import execute_unless_changed, map_errors
from brokerfl.broker.keys import GROUP, RETENTION, milliseconds
from brokerfl.broker.stream import LAST, entries_of_one, place_of
from brokerfl.common import log

#: Where ids begin that somebody chose: in the year 144,000, which no clock shows.
FORGED = 2**52 + 1, 0


def is_spoilt(answer: Any) -> bool:
    """Whether an XADD was refused because the stream's last id is the greatest there is, or the key is no stream."""
    text = str(answer) if isinstance(answer, Exception) else ""
    return "exhausted the last possible ID" in text or text.startswith("WRONGTYPE")


def is_forged(entry_id: str) -> bool:
    """Whether somebody chose this id, or that of an entry before it."""
    return place_of(entry_id) >= FORGED


def mend(connection: Connection, key: str, *, keep: bool) -> bool:
    """Put a new stream in the place of one that takes no more entries; return whether it is there.

    Newer servers do not let the last id go back, even if the entry is deleted.

    Args:
        connection: to its Redis.
        key: the stream.
        keep: put the entries into the new one: with their ids, or with new ones if those are forged.

    Raises:
        RedisUnreachable, RedisAuthError, RedisOutOfMemory: unknown whether it is there.
    """
    with map_errors(connection.url), connection.at(key).redis.pipeline(transaction=True) as pipe:
        while True:
            pipe.watch(key)
            kind = pipe.type(key)
            if kind == b"none":  # the run ended in the meantime
                return False
            lives, entries = pipe.pttl(key), entries_of_one(pipe.xrange(key) if keep and kind == b"stream" else ())
            pipe.multi()
            pipe.unlink(key)
            pipe.xgroup_create(key, GROUP, id="0", mkstream=True)
            pipe.pexpire(key, lives if lives > 0 else milliseconds(RETENTION))
            for entry_id, fields in entries:
                if entry_id != LAST:
                    pipe.xadd(key, fields, id="*" if is_forged(entry_id) else entry_id)
            if execute_unless_changed(pipe):
                break
    log(WARNING, "%s is replaced: it had another type, the last possible id, or entries too large to be read", key)
    return True
