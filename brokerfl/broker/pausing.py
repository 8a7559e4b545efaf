"""Pausing: what an operator wants of a node.

Owns the mark in the node's info, and the ring that makes the node look at it. It must not know what a node does then.

The mark is a field that registering does not write, so a restarted node is still paused. It goes with the info: that of
an unnamed node when it ends, that of a named one `MOST_RETENTION` after it was last seen.
"""

from brokerfl.broker.connection import Connection
from brokerfl.broker.contact import STEER, ring
from brokerfl.broker.failure import execute_unless_changed, map_errors
from brokerfl.broker.node_info import PAUSED
from brokerfl.common import NodeNotFound


def pause(connection: Connection, node_id: int) -> None:
    """Have a node begin no message until `resume`.

    Raises:
        NodeNotFound: it is not registered any more.
        RedisUnreachable, RedisAuthError, RedisOutOfMemory: Redis could not be told.
    """
    _mark(connection, node_id, is_paused=True)


def resume(connection: Connection, node_id: int) -> None:
    """Let a node begin messages again. Arguments and errors are those of `pause`."""
    _mark(connection, node_id, is_paused=False)


def _mark(connection: Connection, node_id: int, *, is_paused: bool) -> None:
    keys = connection.keys
    info = keys.node_info(node_id)
    with map_errors(connection.url, info), connection.at(info).redis.pipeline() as pipe:
        while True:
            pipe.watch(info)
            if not pipe.hexists(info, "name"):  # else the mark would be all that there is of the node
                raise NodeNotFound(f"node {node_id} is not registered any more")
            pipe.multi()
            if is_paused:
                pipe.hset(info, PAUSED, "1")
            else:
                pipe.hdel(info, PAUSED)
            ring(pipe, keys, node_id, STEER)
            if execute_unless_changed(pipe):
                return
