"""What stream reads return, in one shape; and how many arguments a command has.

Servers and protocol versions differ: streams are a map or a list; an entry's fields are a list, or nothing if it was
deleted; redis-py makes them dicts.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

Entry = tuple[str, str, dict[bytes, bytes]]

Item = TypeVar("Item")

#: Most arguments that one command is given, about: a longer one keeps other clients waiting, and some managed services
#: refuse it.
MOST_ARGUMENTS = 1000


def batches(items: Iterable[Item], size: int = MOST_ARGUMENTS - 10) -> Iterator[list[Item]]:
    """Yield items in lists of at most ``size``, each for a command of its own."""
    rest = iter(items)
    while batch := [*islice(rest, size)]:
        yield batch


#: The greatest id of an entry.
LAST = f"{2**64 - 1}-{2**64 - 1}"


def entries(response: Any) -> Iterator[Entry]:
    """Yield (key, entry id, fields) for each entry that XREAD or XREADGROUP answered.

    Fields are empty for an entry of the history that was deleted in the meantime.
    """
    for key, found in response.items() if isinstance(response, Mapping) else response or ():
        for entry_id, fields in entries_of_one(found):
            yield key.decode(), entry_id, fields


def entries_of_one(found: Any) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    """Yield (entry id, fields) for each entry that XRANGE answered."""
    for entry_id, fields in found or ():
        pairs = iter(fields or ())
        yield entry_id.decode(), fields if isinstance(fields, dict) else dict(zip(pairs, pairs, strict=True))


def place_of(entry_id: str) -> tuple[int, int]:
    """Return the sort key of an entry id."""
    time, _, number = entry_id.partition("-")
    return int(time), int(number or 0)


def milliseconds_of(entry_id: str) -> int:
    """Return the server's time in an entry id, in milliseconds."""
    return int(entry_id.partition("-")[0])
