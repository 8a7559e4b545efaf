"""Draining: an operator asks a run to push nothing any more.

Owns that request. It must not know how the run's ServerApp heeds it.
"""

from brokerfl.broker.books import note_drain
from brokerfl.broker.connection import Connection
from brokerfl.broker.ending import read_run
from brokerfl.broker.failure import execute_unless_changed, map_errors
from brokerfl.broker.keys import BELL_LENGTH
from brokerfl.broker.ownership import ownership_in
from brokerfl.broker.runs import absent
from brokerfl.common import RunNotFound, RunStopped


def drain_run(connection: Connection, run_id: int) -> None:
    """Ask a run to push nothing any more. Its ServerApp hears of it by the bell; one that resumes it, by the books.

    Raises:
        RunNotFound: there is no such run, or it has ended.
        RunStopped: it is being stopped.
        RedisOutOfMemory: Redis is full.
        FrameError: the run was created by another version.
    """
    keys = connection.keys
    read_run(connection, run_id)
    redis = connection.at(keys.owner(run_id)).redis
    with map_errors(connection.url), redis.pipeline(transaction=True) as pipe:
        while True:
            pipe.watch(keys.owner(run_id))
            value = pipe.get(keys.owner(run_id))
            owner = ownership_in(value) if value is not None else None
            if owner is None or owner.is_over:
                raise RunNotFound(absent(connection, run_id))
            if owner.is_stopping:
                raise RunStopped(f"run {run_id} is being stopped")
            pipe.multi()
            note_drain(pipe, keys, run_id)
            pipe.xadd(keys.bell(run_id), {"n": ""}, maxlen=BELL_LENGTH, nomkstream=True)
            if execute_unless_changed(pipe):
                return
