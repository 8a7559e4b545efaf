"""What stream reads return, in one shape.

redis-py returns lists or dicts by protocol version, and deleted entries come back from history reads without fields.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Entry = tuple[str, str, dict[bytes, bytes]]


def entries(response: Any) -> Iterator[Entry]:
    """Yield (key, entry id, fields) for each entry of an XREAD or XREADGROUP response.

    Fields are empty for an entry of the history that was deleted meanwhile.
    """
    if not response:
        return
    items = response.items() if isinstance(response, Mapping) else response
    for key, found in items:
        if isinstance(response, Mapping):
            found = found[0] if found and isinstance(found[0], list) else found
        for entry_id, fields in found:
            yield key.decode(), entry_id.decode(), fields or {}


def milliseconds_of(entry_id: str) -> int:
    """Return the server's time in an entry id, in milliseconds."""
    return int(entry_id.partition("-")[0])
