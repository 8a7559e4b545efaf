"""Fields: reads fields of hashes that others wrote, none of which is larger than the reader allows.

Owns that their lengths are asked first. It must not know what they say.
"""

import math
from collections.abc import Iterable, Sequence
from logging import WARNING
from typing import Any

from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors, meaning, translate
from brokerfl.broker.stream import batches
from brokerfl.common import log

#: Bytes around each field in an answer.
_AROUND = 32

#: Most bytes of a hash that is read whole, and of the names of its fields.
_MOST_WHOLE, _MOST_NAMES = 64 * 1024 * 1024, 1024 * 1024


def read_fields(
    connection: Connection, keys: Sequence[str], names: Sequence[str | bytes], most: int, room: float = math.inf
) -> list[list[bytes | None]]:
    """Return the same fields of several hashes, in two round trips.

    Args:
        connection: to their Redis.
        keys: the hashes.
        names: the fields.
        most: bytes of a field.
        room: bytes of all fields of a hash; those that have none are not read.

    Returns:
        The fields of each: None in place of one that is missing or empty, and b"" in place of one that is not read,
        because it has more bytes or the key is no hash.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    found: list[list[bytes | None]] = []
    with map_errors(connection.url):
        lengths = [*connection.stream([("HSTRLEN", key, name) for key in keys for name in names])]
        for length in lengths:
            if isinstance(length, Exception) and (error := translate(length, connection.url)) is not None:
                raise error from length
        width = len(names)
        fitting: dict[int, list[int]] = {}
        for at in range(len(keys)):
            each = lengths[at * width : (at + 1) * width]
            found.append([None if length == 0 else b"" for length in each])
            fits = _fitting(each, most, room)
            if fits:
                fitting[at] = fits
        parts = [(at, some) for at, fits in fitting.items() for some in batches(fits)]
        reads = [("HMGET", keys[at], *(names[index] for index in fits)) for at, fits in parts]
        limits = [sum(lengths[at * width + index] + _AROUND for index in fits) for at, fits in parts]
        answers = connection.stream(reads, limits) if reads else ()
        for (at, fits), answer in zip(parts, answers, strict=True):
            if isinstance(answer, Exception):  # they grew in the meantime
                continue
            for index, value in zip(fits, answer, strict=True):
                found[at][index] = value
    return found


def _fitting(lengths: Iterable[Any], most: int, room: float) -> list[int]:
    """Return which of the fields with these lengths are read."""
    fits = []
    for index, length in enumerate(lengths):
        if isinstance(length, int) and 0 < length <= min(most, room):
            room -= length
            fits.append(index)
    return fits


def read_hash(connection: Connection, key: str, most: int) -> dict[bytes, bytes]:
    """Return a whole hash; of one that is too large, as many of its fields of at most ``most`` bytes as have room.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    with map_errors(connection.url):
        [answer] = connection.at(key).sockets.exchange([("HGETALL", key)], [_MOST_WHOLE])
        if not isinstance(answer, OversizeError):
            if isinstance(answer, Exception):
                raise meaning(answer, connection.url)
            return _pairs(answer)
        [names] = connection.at(key).sockets.exchange([("HKEYS", key)], [_MOST_NAMES])
    log(WARNING, "%s has more bytes than brokerfl writes; the rest is not read", key)
    names = [] if isinstance(names, Exception) else list(names)
    [values] = read_fields(connection, [key], names, most, _MOST_WHOLE) if names else [[]]
    return {name: value for name, value in zip(names, values, strict=True) if value}


def _pairs(answer: Any) -> dict[bytes, bytes]:
    """Return a hash as every protocol and version sends it."""
    pairs = iter(answer or ())
    return answer if isinstance(answer, dict) else dict(zip(pairs, pairs, strict=True))
