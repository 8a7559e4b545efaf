"""Pausing: what an operator wants of a node, and which node is meant.

Owns the mark in the node's info, and the ring that makes the node look at it. It must not know what a node does then.

The mark is a field that registering does not write, so a restarted node is still paused. It goes with the info: that of
an unnamed node when it ends, that of a named one `RETENTION` after it was last seen.
"""

from brokerfl.broker.connection import Connection
from brokerfl.broker.contact import STEER, ring
from brokerfl.broker.failure import execute_unless_changed, map_errors
from brokerfl.broker.nodes import PAUSED, NodeInfo, list_nodes, node_id_of, read_node
from brokerfl.common import NodeNotFound


def find_node(connection: Connection, wanted: str) -> NodeInfo:
    """Return the node with this name or id, or the only one whose name or id begins so.

    Raises:
        NodeNotFound: there is none, or several begin so.
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    named = read_node(connection, node_id_of(connection.keys.prefix, wanted)) if wanted else None
    if named is not None and named.name == wanted:  # as most are asked for, and the registry may be large
        return named
    nodes = list_nodes(connection)
    exact = [node for node in nodes if wanted == str(node.node_id)]
    found = exact or [node for node in nodes if node.name.startswith(wanted) or str(node.node_id).startswith(wanted)]
    if not wanted or not found:
        raise NodeNotFound(f"no node has the name or id {wanted!r}: brokerfl nodes lists them")
    if len(found) > 1:
        some = ", ".join(node.name or str(node.node_id) for node in found[:3])
        raise NodeNotFound(f"{len(found)} nodes begin with {wanted!r} ({some}, …): write more of the name or id")
    return found[0]


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
