"""The heartbeat: what ends it, and what does not."""

import threading

from brokerfl.broker.heartbeat import Heartbeat
from brokerfl.common import RedisOutOfMemory, RedisUnreachable, RunFenced


def test_an_outage_does_not_end_it() -> None:
    """Neither an outage nor a full Redis does; any other error does, and is passed on."""
    errors: list[Exception] = [RedisUnreachable("away"), RedisOutOfMemory("full"), RunFenced("taken")]
    beats, ended = [], threading.Event()

    def beat() -> None:
        beats.append(errors[len(beats)])
        raise beats[-1]

    def on_error(error: Exception) -> None:
        beats.append(error)
        ended.set()

    heartbeat = Heartbeat("test", 0.001, beat, on_error)
    heartbeat.start()
    assert ended.wait(10)
    heartbeat.stop()
    assert beats == [*errors, errors[-1]]
