"""The publisher: what gathers while Redis is full."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from brokerfl.client import publisher
from brokerfl.client.journal import Answer
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


class Published:
    """Takes the place of the commands of a publisher.

    Attributes:
        fields: what was published.
        discarded: entries that were removed later.
        meanwhile: called during each publish.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fields: list[Any] = []
        self.discarded: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None
        monkeypatch.setattr(publisher, "publish", self._publish)
        monkeypatch.setattr(publisher, "discard_message", lambda *arguments: self.discarded.append(arguments[-1]))

    def _publish(self, connection: Any, node_id: int, batch: list[Any]) -> list[bool]:
        self.fields += [outgoing.fields for outgoing in batch]
        self.meanwhile()
        return [True] * len(batch)


def test_work_for_another_redis_is_neither_noted_nor_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was being executed when the data were lost: whoever is there now never asked for it."""
    published, noted = Published(monkeypatch), []
    made = Publisher(fake_connection(), 7, Worklist(), Stop(), noted.extend)
    lost, present = (Work(1, name, {}, answer=Answer(1, name, {})) for name in ("lost", "present"))
    lost.is_lost = True
    made.put(lost, {b"i": b"lost"}, more=False)
    made.put(present, {b"i": b"present"}, more=False)
    made.close()
    assert published.fields == [{b"i": b"present"}]
    assert [answer.message_id for answer in noted] == ["present"]


def test_an_entry_that_comes_during_the_publish_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message was sent again while its reply was on its way: it is not executed once more."""
    published = Published(monkeypatch)
    work = Work(1, "m", {}, ["1-0"])
    published.meanwhile = lambda: work.entries.append("2-0")
    made = Publisher(fake_connection(), 7, Worklist(), Stop())
    made.put(work, {b"i": b"m"}, more=False)
    made.close()
    assert published.discarded == ["2-0"]
