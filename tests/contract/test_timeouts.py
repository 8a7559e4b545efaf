"""Promise 3, without Redis: a timeout holds while the server is frozen, or gone."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from brokerfl.broker import client as clients
from brokerfl.broker.connection import Connection
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.common import BrokerflError, RunStopped
from brokerfl.server import Driver
from tests.apps import Counter, eventually, number, number_in
from tests.conftest import Backend, real_backend
from tests.stage import ask, read_outbox, serving

#: Seconds that a socket waits for an answer. A call whose timeout does not hold lasts longer than a test waits for it.
PATIENCE = 60.0
MOST = 20.0


@dataclass
class Away:
    """A server of its own for a test, which can go away and come back."""

    server: EmbeddedServer
    backend: Backend
    is_frozen: bool

    def go(self) -> None:
        """From now on nothing is answered."""
        if self.is_frozen:
            os.kill(self.server.pid, signal.SIGSTOP)
        else:
            self.backend.admin.shutdown()
            self.server.wait()

    def come_back(self) -> None:
        """It answers again, with all that it had."""
        if self.is_frozen:
            os.kill(self.server.pid, signal.SIGCONT)
        else:
            self.server.stop()
            self.server.start()


@pytest.fixture(params=["frozen", "gone"])
def away(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Away]:
    """A server with a file, so that it forgets nothing."""
    monkeypatch.setattr(clients, "_SOCKET_TIMEOUT", PATIENCE)
    monkeypatch.setattr(clients, "_CONNECT_TIMEOUT", PATIENCE)
    with EmbeddedServer(data=tmp_path / "data") as server:
        made = Away(server, real_backend("valkey", server.url), request.param == "frozen")
        try:
            yield made
        finally:
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGCONT)


def in_time(call: Callable[[], Any]) -> Any:
    """What ``call`` returns or raises; it must not wait as long as a socket does."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(MOST)
    assert outcome, "its timeout did not hold"
    return outcome[0]


def test_a_wait_for_nodes_ends(away: Away) -> None:
    """It raises TimeoutError, as if no node were there, and says that Redis does not answer."""
    driver = Driver(away.backend.connect(), "server:app")
    away.go()
    outcome = in_time(lambda: driver.wait_for_nodes(1, timeout=0.5))
    away.come_back()
    assert isinstance(outcome, TimeoutError)
    assert "does not answer" in str(outcome)
    driver.end()


@pytest.mark.parametrize("size", [0, 5000])
def test_a_wait_for_replies_ends_and_loses_nothing(away: Away, small_chunks: None, size: int) -> None:
    """The iteration ends, a pull returns nothing, and all replies come once Redis is back, large ones, too."""
    counter = Counter()
    driver = Driver(away.backend.connect(), "server:app")
    with serving(away.backend, counter.app) as node:
        ids = [ask(driver, node, size) for _ in range(3)]
        outbox = driver.connection.keys.outbox(node.node_id, driver.run.run_id)
        eventually(lambda: away.backend.admin.xlen(outbox) == 3)
        if size:  # they are known, and their payloads are still in Redis
            read_outbox(driver, node.node_id)
        away.go()
        assert in_time(lambda: list(driver.replies(ids, timeout=0.5))) == []
        assert in_time(lambda: driver.pull_messages(ids)) == []
        assert in_time(lambda: list(driver.replies(ids, timeout=0.0))) == []
        away.come_back()
        replies = list(driver.replies(ids, timeout=MOST))
        assert sorted(number_in(reply) for reply in replies) == [1, 2, 3]
        assert counter.calls == 3
        driver.end()


def test_the_wait_of_a_send_and_receive_ends(away: Away) -> None:
    """Redis goes away behind the push: the replies so far are returned, and the other can be pulled by its id."""
    counter = Counter()
    counter.go.clear()
    driver = Driver(away.backend.connect(), "server:app")
    with serving(away.backend, counter.app) as node:
        message = driver.create_message(number(0), "train", node.node_id, "1")
        threading.Thread(target=lambda: counter.begun.acquire(timeout=MOST) and away.go()).start()
        assert in_time(lambda: driver.send_and_receive([message], timeout=2.0)) == []
        away.come_back()
        counter.go.set()
        [reply] = driver.replies([message.metadata.message_id], timeout=MOST)
        assert number_in(reply) == 1
        driver.end()


def test_no_thread_asks_redis_after_the_run_was_abandoned(away: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for their turn to probe Redis do not take it: eight of them end as fast as one."""
    monkeypatch.setattr(clients, "_SOCKET_TIMEOUT", 3.0)
    probed: list[bool] = []
    abandoned = threading.Event()
    probe = Connection._probe

    def spy(connection: Connection) -> None:
        probed.append(abandoned.is_set())
        probe(connection)

    driver = Driver(away.backend.connect(), "server:app", lease=600.0)
    monkeypatch.setattr(Connection, "_probe", spy)
    away.go()
    outcomes: list[BrokerflError] = []

    def look() -> None:
        try:
            driver.get_node_ids()
        except BrokerflError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=look, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: probed)
    driver.detach()
    abandoned.set()
    for thread in threads:
        thread.join(MOST)
    assert [type(outcome) for outcome in outcomes] == [RunStopped] * 8
    assert not any(probed), "a thread asked Redis although its run was abandoned"


def test_a_detach_is_not_held_up(away: Away) -> None:
    """SIGTERM while Redis is away: the lease lapses by itself."""
    driver = Driver(away.backend.connect(), "server:app", lease=0.6)
    away.go()
    assert in_time(driver.detach) is None


def test_a_server_that_answers_is_not_cut_short(away: Away) -> None:
    """Timeouts of no time at all do not cost the connection to a server that answers."""
    driver = Driver(away.backend.connect(), "server:app")
    losses = driver.connection.losses
    for _ in range(20):
        assert driver.pull_messages([]) == []
        with pytest.raises(TimeoutError, match="0 of 1"):
            driver.wait_for_nodes(1, timeout=0.0)
    assert driver.connection.losses == losses
    driver.end()
