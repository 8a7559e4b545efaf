"""The names of nodes, for texts.

Owns when the registry is asked for one: once for each node, and only when a text needs it. It must not know messages.
"""

import time
from collections.abc import Iterable

from brokerfl.broker.connection import Connection
from brokerfl.broker.fields import read_fields
from brokerfl.broker.node_info import LONGEST_FIELD, NodeInfo
from brokerfl.broker.patience import within
from brokerfl.common import BrokerflError
from brokerfl.common.log_context import name_node
from brokerfl.common.text import shown_node


class Names:
    """What nodes are called. Safe to share between threads.

    Args:
        connection: to the registry's Redis.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[int, str] = {}

    def of(self, node_id: int) -> str:
        """Return a node in words, ``site-7 (6239…)``; without its name if Redis does not say it now."""
        return shown_node(node_id, self._name(node_id))

    def learn(self, nodes: Iterable[NodeInfo]) -> None:
        """Note what the registry says."""
        for node in nodes:
            if node.name:
                self._note(node.node_id, node.name)

    def _note(self, node_id: int, name: str) -> None:
        self._known[node_id] = name
        name_node(node_id, name)

    def _name(self, node_id: int) -> str:
        if node_id not in self._known:
            try:
                self._note(node_id, within(time.monotonic(), lambda: self._read(node_id)))
            except BrokerflError:  # it is only a text
                return ""
        return self._known[node_id]

    def _read(self, node_id: int) -> str:
        info = self._connection.keys.node_info(node_id)
        [[name]] = read_fields(self._connection, [info], ["name"], LONGEST_FIELD)
        return (name or b"").decode(errors="replace")
