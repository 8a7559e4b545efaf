"""The room: whether a Redis that was full takes so many bytes now.

Owns the question, which costs a few bytes and leaves nothing. It must not know what is to be written, or when.

Two things are asked of each server in one round trip. An XADD with the id 0-0, which no entry can have, changes
nothing: a full Redis refuses it because it is full, any other because of its id. That is what decides, but it says not
how much room there is; INFO says that, if this user may ask.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from brokerfl.broker.capacity import memory_in
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors, translate
from brokerfl.broker.rules import allows
from brokerfl.broker.servers import Server
from brokerfl.common import RedisOutOfMemory

_WRITES_NOTHING = ("NOMKSTREAM", "0-0", "d", "")

#: So much more than what is written is enough: for the buffers of connections, and what values take besides.
_SPARE = 1.1


class Room(Enum):
    """How much room there is."""

    NONE = "it is refused, or does not fit"
    PERHAPS = "it may fit: INFO may not be asked, or just enough is left"
    ENOUGH = "it fits, if others write nothing"


def room_for(connection: Connection, wanted: Mapping[str, int]) -> Room:
    """Return whether there is room.

    Args:
        connection: to Redis.
        wanted: how many bytes are to be written, by a key on the server that is to have them.

    Raises:
        RedisUnreachable: a server does not answer, or takes no writes for another reason.
    """
    sizes: dict[Server, int] = {}
    keys: dict[Server, str] = {}
    for key, size in wanted.items():
        server = connection.at(key)
        keys[server] = key
        sizes[server] = sizes.get(server, 0) + size
    found = [_room_at(server, keys[server], size, connection) for server, size in sizes.items()]
    if Room.NONE in found:
        return Room.NONE
    return Room.PERHAPS if Room.PERHAPS in found else Room.ENOUGH


def _room_at(server: Server, key: str, size: int, connection: Connection) -> Room:
    with map_errors(connection.url), server.redis.pipeline(transaction=False) as pipe:
        pipe.execute_command("XADD", key, *_WRITES_NOTHING)
        if allows(connection.role, "info"):
            pipe.info("memory")
        refusal, *info = pipe.execute(raise_on_error=False)
    error = translate(refusal, connection.url) if isinstance(refusal, Exception) else None
    if isinstance(error, RedisOutOfMemory):
        return Room.NONE
    if error is not None:
        raise error from refusal
    return _compare(info[0], size) if info else Room.PERHAPS


def _compare(info: Any, size: int) -> Room:
    if isinstance(info, Exception):
        return Room.PERHAPS
    free = memory_in("", info).free
    if free is None:
        return Room.ENOUGH
    if free < size:
        return Room.NONE
    return Room.ENOUGH if free >= size * _SPARE else Room.PERHAPS
