"""Promise 8: wake-ups are pushed; an idle node and a waiting ServerApp hardly ask Redis anything."""

import threading
from typing import Any

import pytest

from brokerfl.server import wait
from tests.apps import Gate, driving, federation, number, number_in
from tests.conftest import Backend

#: TLS changes nothing here; test_messages.py and test_nothing_lost.py have it.
WITHOUT = ("redis-tls",)


def calls(backend: Backend) -> dict[str, int]:
    """How often each command was called, as the server counts."""
    return {name: stat["calls"] for name, stat in backend.admin.info("commandstats").items()}


def called_during(backend: Backend, seconds: float) -> dict[str, int]:
    """Which commands were called in a window of time, but for those that look."""
    before = calls(backend)
    threading.Event().wait(seconds)
    after = calls(backend)
    changed = {name: after[name] - before.get(name, 0) for name in after}
    return {name: count for name, count in changed.items() if count and name != "cmdstat_info"}


@pytest.fixture
def real(backend: Backend) -> Backend:
    """The backends that count commands."""
    if not backend.is_real:
        pytest.skip("fakeredis has no INFO")
    return backend


def test_rounds_wait_for_no_poll(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sweeps switched off, rounds still go at full speed: node and ServerApp are woken by what arrives."""
    monkeypatch.setattr(wait, "SWEEP", 5.0)
    with federation(backend, nodes=2) as nodes, driving(backend) as driver:
        for turn in range(20):
            batch = [driver.create_message(number(turn), "train", node.node_id, str(turn)) for node in nodes.nodes]
            # One wait that needed a sweep, or a node's next blocking read, would not end in this time.
            replies = driver.send_and_receive(batch, timeout=1.5)
            assert [number_in(reply) for reply in replies] == [turn, turn]


def test_an_idle_node_asks_at_most_once_a_second(real: Backend) -> None:
    """An idle node makes a blocking read every two seconds and a renewal every five, also when it has served runs."""
    with federation(real, nodes=1) as nodes, driving(real) as driver:
        driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        asked: dict[str, Any] = called_during(real, 4.0)
        assert asked.get("cmdstat_xreadgroup", 0) <= 3
        assert sum(asked.values()) <= 3 + 12, f"two renewals at most beside the reads: {asked}"


def test_a_waiting_server_app_asks_about_once_a_second(real: Backend) -> None:
    """While its node trains, a ServerApp reads its bell once a second and looks at the lease; it does not poll."""
    gate = Gate()
    with federation(real, gate.app, nodes=1) as nodes, driving(real) as driver:
        message = driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")
        waiter = threading.Thread(target=driver.send_and_receive, args=([message],))
        waiter.start()
        assert gate.begun.acquire(timeout=10)
        asked = called_during(real, 3.0)
        gate.go.set()
        waiter.join()
    assert asked["cmdstat_xread"] <= 2 * 4, "the bell, and the outbox at each sweep"
