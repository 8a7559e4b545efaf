"""What the registry says of a node: the fields of `P:{N}:info` that others read.

Owns their names, and what they mean. It must not know who writes them, or when they are read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from brokerfl.broker.origins import FIELD, decode_origin
from brokerfl.wire.origin import Origin
from brokerfl.wire.status import NodeStatus, decode_status

#: The field of a node's info that says what the node is doing.
STATUS = "status"

#: The field that is there while the node is paused. Only operators write it.
PAUSED = "paused"

#: The fields of a node's info that are shown.
SHOWN = ("name", "labels", "version", "since", FIELD, STATUS)

#: Most bytes of one of them: the node alone decides how large they are.
LONGEST_FIELD = 8192

#: Unix time after which no clock shows a node to have started.
_YEAR_9999 = 253_402_000_000


@dataclass(frozen=True)
class NodeInfo:
    """What the registry knows about a node. ``name`` is "" for an unnamed node, ``since`` Unix time in seconds."""

    node_id: int
    online: bool
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    version: str = ""
    since: float = 0.0
    origin: Origin | None = None
    status: NodeStatus | None = None


def node_info_of(node_id: int, online: bool, info: Sequence[bytes | None]) -> NodeInfo:
    """Return what these fields of a node's info say, in the order of `SHOWN`; what is malformed counts as missing."""
    status = decode_status(NodeStatus, info[SHOWN.index(STATUS)])
    text = {name: value.decode(errors="replace") for name, value in zip(SHOWN, info, strict=True) if value}
    return _node_info(node_id, online, text, status)


def node_info_in(node_id: int, online: bool, status: NodeStatus | None) -> NodeInfo | None:
    """Return what a node's status says of all that `node_info_of` returns; None if it does not."""
    told = {name: text for name, text in vars(status.about).items() if text} if status is not None else {}
    return _node_info(node_id, online, told, status) if told else None


def _node_info(node_id: int, online: bool, text: Mapping[str, str], status: NodeStatus | None) -> NodeInfo:
    status = status if status is not None and status.at else None  # of a node that has only registered
    try:
        labels = {str(key): str(value) for key, value in json.loads(text.get("labels", "{}")).items()}
        since = float(text.get("since", "0"))
        since = since if 0 <= since < _YEAR_9999 else 0.0  # not inf and not nan
    except (ValueError, AttributeError, RecursionError):
        labels, since = {}, 0.0
    origin = decode_origin(text.get(FIELD))
    return NodeInfo(node_id, online, text.get("name", ""), labels, text.get("version", ""), since, origin, status)
