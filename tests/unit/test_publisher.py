"""The publisher: what gathers while Redis is full."""

import threading
from typing import Any

import pytest

from brokerfl.client import publisher
from brokerfl.client.publisher import Publisher
from brokerfl.client.stop import Stop
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import RedisOutOfMemory
from brokerfl.testing import fake_connection


def test_a_full_redis_holds_up_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some replies gather; who brings one more waits until there is room, and then all of them go out."""
    monkeypatch.setattr(publisher, "MOST_GATHERED", 4)
    refused, room, published = threading.Event(), threading.Event(), []

    def publish(connection: Any, node_id: int, batch: list[Any]) -> list[bool]:
        if not room.is_set():
            refused.set()
            raise RedisOutOfMemory("full")
        published.extend(outgoing.fields for outgoing in batch)
        return [True] * len(batch)

    monkeypatch.setattr(publisher, "publish", publish)
    stop = Stop()
    made = Publisher(fake_connection(), 7, Worklist(), stop)
    replies = [{b"i": b"%d" % number} for number in range(4)]
    for reply in replies[:3]:
        made.put(Work(1, "m", {}), reply, more=True)
    assert refused.wait(10)
    last = threading.Thread(target=made.put, args=(Work(1, "m", {}), replies[3], True))
    last.start()
    last.join(0.3)
    assert last.is_alive()
    room.set()
    last.join(20)
    assert not last.is_alive()
    made.close()
    assert published == replies
    assert stop.failure is None
