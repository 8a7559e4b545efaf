"""Forgetting a node: an operator says that a named node will not come back.

Owns what is deleted of it. What runs have at the node stays theirs: they find that it is gone, and delete it.
"""

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import execute_unless_changed, map_errors
from brokerfl.broker.lease import holder_of
from brokerfl.broker.presence import remove
from brokerfl.common import NodeOnline


def forget_node(connection: Connection, node_id: int) -> None:
    """Delete what the registry knows of a node that is offline. Its open messages become Error 5 at once.

    A node that comes back at this moment is either refused here, or registers anew with its next renewal.

    Raises:
        NodeOnline: it holds its lease.
    """
    keys = connection.keys
    lease = keys.node_lease(node_id)
    with map_errors(connection.url, keys.nodes), connection.at(lease).redis.pipeline(transaction=True) as pipe:
        while True:
            pipe.watch(lease)
            if pipe.exists(lease):
                holder = holder_of(connection, lease)
                raise NodeOnline(f"node {node_id} is online, as {holder}: stop it, and forget it when it is offline")
            pipe.multi()
            pipe.unlink(*keys.of_node(node_id))
            if execute_unless_changed(pipe):
                break
    remove(connection, [node_id])
