"""Where the app of a node comes from, in the registry. Owns the field of a node's info that says so."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from brokerfl.broker.connection import Connection
from brokerfl.broker.fields import read_fields
from brokerfl.wire.origin import Origin, listed, origin_of

FIELD = "app"

#: Most bytes of the field that are read: anybody may have written it. Three texts of 100 characters, escaped, and a
#: digest have fewer.
_LONGEST = 8192


def info_of(origin: Origin | None) -> dict[str, str]:
    """Return what a node's info says of its app."""
    return {FIELD: "" if origin is None else json.dumps([origin.app, *listed(origin)])}


def read_origins(connection: Connection, node_ids: Iterable[int]) -> Iterator[tuple[int, Origin]]:
    """Yield nodes, and where their apps come from, as far as the registry says so."""
    asked = list(node_ids)
    infos = read_fields(connection, [connection.keys.node_info(node) for node in asked], [FIELD], _LONGEST)
    for node, [field] in zip(asked, infos, strict=True):
        origin = decode_origin(field)
        if origin is not None:
            yield node, origin


def decode_origin(field: Any) -> Origin | None:
    """Return where a node's app comes from; None if the field of its info does not say so."""
    if not isinstance(field, bytes | str) or len(field) > _LONGEST:
        return None
    try:
        match json.loads(field):
            case [str(app), *told]:
                return origin_of(app, told)
    except (ValueError, RecursionError):
        pass
    return None
