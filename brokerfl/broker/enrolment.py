"""Enrolment: an operator enters a node into the registry, or expels it for ever.

Owns what is written and deleted for that. It must not know users of Redis, or who decides.
"""

import json
from collections.abc import Mapping

from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.gather import Gather
from brokerfl.broker.keys import BELL_LENGTH, MOST_RETENTION, milliseconds, parse_id
from brokerfl.broker.presence import remove
from brokerfl.broker.runs import going_on


def enrol(connection: Connection, node_id: int, name: str, labels: Mapping[str, str]) -> None:
    """Enter a node, which is offline until it registers itself. Of one that is there, only the labels change."""
    keys, info = connection.keys, connection.keys.node_info(node_id)
    with map_errors(connection.url, keys.nodes, info):
        with connection.at(info).redis.pipeline(transaction=True) as pipe:
            pipe.hset(info, mapping={"name": name, "labels": json.dumps(dict(labels))})
            pipe.pexpire(info, milliseconds(MOST_RETENTION))
            pipe.execute()
        connection.at(keys.nodes).redis.sadd(keys.nodes, str(node_id))


def expel(connection: Connection, node_id: int) -> None:
    """Delete what Redis has of a node whose user can do nothing any more, and ring at all runs.

    A ServerApp that waits for the node's replies gives it up at once, with Error 5.
    """
    keys = connection.keys
    with map_errors(connection.url, keys.nodes):
        runs = _runs_at(connection, node_id)
        own = (keys.node_lease(node_id), *keys.of_node(node_id))
        redis = connection.at(own[0]).redis
        for key in (*own, *(keys.data(node_id, run_id) for run_id in runs)):
            redis.unlink(key)
    remove(connection, [node_id])
    _ring(connection)


def _runs_at(connection: Connection, node_id: int) -> list[int]:
    """Return the runs that have chunks in the node's slot; none if the list of them is not to be read."""
    keys, found = connection.keys, list[int]()
    for key in (keys.node_runs(node_id, realm) for realm in keys.realms):
        [answer] = connection.at(key).sockets.exchange([("HKEYS", key)], [_MOST_RUNS])
        if isinstance(answer, OversizeError):
            return going_on(connection)
        if not isinstance(answer, Exception):
            found += (run_id for name in answer if (run_id := parse_id(name)) is not None)
    return found


#: Bytes of the names of all runs that a node has.
_MOST_RUNS = 1024 * 1024


def _ring(connection: Connection) -> None:
    """Have all ServerApps look at their nodes now."""
    gather = Gather(connection)
    for run_id in going_on(connection):
        bell = connection.keys.bell(run_id)
        gather.at(bell).xadd(bell, {"n": ""}, maxlen=BELL_LENGTH, nomkstream=True)
    with map_errors(connection.url):
        gather.execute(raise_on_error=False)
