"""Promise 8: wake-ups are pushed; an idle node and a waiting ServerApp hardly ask Redis anything."""

import threading
import time

import pytest

from brokerfl.broker import ending, inbox
from brokerfl.broker.connection import Connection
from brokerfl.broker.contact import ring_doorbell
from brokerfl.broker.ending import stop_run
from brokerfl.broker.keys import BELL_LENGTH, GROUP
from brokerfl.broker.outbox import Outgoing, publish
from brokerfl.server import wait
from tests.apps import Bench, Gate, driving, echo_app, eventually, federation, number, number_in
from tests.conftest import Backend
from tests.stage import (
    await_delivery,
    by_hand,
    first_contact,
    in_ledger,
    numbers,
    push,
    push_numbers,
    seconds_between_sweeps,
    serving,
    silent,
    start,
    turns,
    warm_up,
)

#: TLS changes nothing here; test_messages.py and test_nothing_lost.py have it. Sentinels would be counted, too.
WITHOUT = ("redis-tls", "sentinel")


#: What looks, and what another test's connection may do just now.
CONNECTING = ("_info", "_hello", "|setinfo", "|setname", "_role")


def calls(backend: Backend) -> dict[str, int]:
    """How often each command was called, as the server counts."""
    return {name: stat["calls"] for name, stat in backend.admin.info("commandstats").items()}


def called_during(backend: Backend, seconds: float) -> tuple[dict[str, int], float]:
    """Which commands were called in a window of time, but for those that look; and its length on a busy machine."""
    began = time.monotonic()
    before = calls(backend)
    threading.Event().wait(seconds)
    after = calls(backend)
    changed = {name: after[name] - before.get(name, 0) for name in after}
    called = {name: count for name, count in changed.items() if count and name != "cmdstat_info"}
    return called, time.monotonic() - began


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


def test_a_node_that_waits_is_woken(backend: Backend, issued: list[str]) -> None:
    """Its read blocks until there is something, also in fakeredis, whose older versions return at once with nothing."""
    bench, found = Bench(), []
    with by_hand(backend, bench.app, None) as node, driving(backend) as driver:
        warm_up(node, driver, bench)
        issued.clear()
        waiting = threading.Thread(target=lambda: found.extend(await_delivery(node, 5.0)))
        waiting.start()
        eventually(lambda: "XREADGROUP" in issued)
        push(driver, node.node_id, number(1))
        waiting.join()
        assert len(found) == 1
        assert issued.count("XREADGROUP") == (2 if backend.is_cluster else 1), (
            "on a Cluster the doorbell, then the inbox"
        )


def test_an_idle_node_asks_at_most_once_a_second(real: Backend) -> None:
    """An idle node makes a blocking read every two seconds, also when it has served runs; no heart beats meanwhile."""
    with serving(real, echo_app(), lease=600.0) as node, driving(real, lease=600.0) as driver:
        driver.send_and_receive([driver.create_message(number(1), "train", node.node_id, "1")])
        asked, seconds = called_during(real, 4.0)
        last = 1 if real.is_cluster else 0  # an inbox that rang is read until it has no more
        reads = 1 + seconds / 2 + last
        assert asked.get("cmdstat_xreadgroup", 0) <= reads
        others = sum(count for name, count in asked.items() if not name.endswith(("xreadgroup", *CONNECTING)))
        assert others <= 2, f"beside the reads: {asked}"


def test_a_waiting_server_app_asks_about_once_a_second(real: Backend) -> None:
    """While its node trains, a ServerApp reads its bell once a second and looks at the lease; it does not poll."""
    gate = Gate()
    with serving(real, gate.app, lease=600.0) as node, driving(real, lease=600.0) as driver:
        message = driver.create_message(number(1), "train", node.node_id, "1")
        waiter = threading.Thread(target=driver.send_and_receive, args=([message],))
        waiter.start()
        assert gate.begun.acquire(timeout=10)
        asked, seconds = called_during(real, 3.0)
        gate.go.set()
        waiter.join()
    assert asked["cmdstat_xread"] <= 2 * (1 + seconds), "the bell, and the outbox at each sweep"


def contact(backend: Backend, node: int, *run_ids: int) -> None:
    """First contacts of runs, as their ServerApps make them."""
    keys = backend.connect().keys
    with backend.admin.pipeline() as pipe:
        for run_id in run_ids:
            first_contact(pipe, keys, node, run_id)
        pipe.execute()


def commands_of_a_contact(backend: Backend, node: int, met: int) -> dict[str, int]:
    """What a node asks Redis when one more run contacts it, after it has met so many that are still there."""
    keys = backend.connect().keys
    inboxes = inbox.Inboxes(backend.by_hand(), node)
    backend.admin.xgroup_create(keys.ctl(node), GROUP, id="0", mkstream=True)
    contact(backend, node, *range(2, 2 + met))
    inboxes.drain()
    while inboxes.read(10, block=0.01):
        pass
    with backend.admin.pipeline() as pipe:
        first_contact(pipe, keys, node, 10_000)
        inbox.add_message(pipe, keys, node, 10_000, {b"i": b"m"})
        pipe.execute()
    before = calls(backend)
    [delivery] = inboxes.read(10, block=1.0)
    asked = calls(backend)
    assert delivery.run_id == 10_000
    backend.admin.unlink(keys.ctl(node))
    changed = {name: count - before.get(name, 0) for name, count in asked.items() if not name.endswith(CONNECTING)}
    return {name: count for name, count in changed.items() if count}


def test_a_contact_costs_as_much_whatever_the_node_has_met(real: Backend) -> None:
    """One read for all runs, and questions only about the new one: ten times the runs, the same commands."""
    few, many = (commands_of_a_contact(real, node, met) for node, met in ((71, 20), (72, 200)))
    assert few == many
    assert sum(many.values()) <= 8, many


def test_a_cancelled_message_wakes_no_node(real: Backend) -> None:
    """Taking a message back is no news for a node: it rings no doorbell."""
    with driving(real) as driver:
        node = silent(real)
        [message_id] = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        doorbell = driver.connection.keys.ctl(node)
        rings = real.admin.xlen(doorbell)
        driver.cancel_messages([message_id])
        assert real.admin.xlen(doorbell) == rings


def test_a_node_that_wakes_itself_asks_nothing(real: Backend) -> None:
    """Its workers ring often: it deletes the ring and reads on, whatever it has in hand."""
    keys, node = real.connect().keys, silent(real)
    inboxes = inbox.Inboxes(real.by_hand(), node, in_hand=lambda: {run_id: ["1-0"] for run_id in range(2, 22)})
    contact(real, node, *range(2, 22))
    inboxes.drain()
    while real.admin.xlen(keys.ctl(node)):
        inboxes.read(10, block=0.01)
    ring_doorbell(real.connect(), node, inbox.READ_ON)
    before = calls(real)
    assert inboxes.read(10, block=1.0) == []
    asked = {name: count - before.get(name, 0) for name, count in calls(real).items() if name != "cmdstat_info"}
    assert {name: count for name, count in asked.items() if count} == {
        "cmdstat_xreadgroup": 1, "cmdstat_xack": 1, "cmdstat_xdel": 1,
    }  # fmt: skip
    assert real.admin.xlen(keys.ctl(node)) == 0


def overfilled(backend: Backend, bell: str) -> None:
    """Ring far more often than anybody listens."""
    with backend.admin.pipeline(transaction=False) as pipe:
        for _ in range(3 * BELL_LENGTH):
            pipe.xadd(bell, {"n": ""})
        pipe.execute()


def test_a_doorbell_that_nobody_answers_stays_short(backend: Backend) -> None:
    """A node that is away is rung all the same; the rings that it has not heard are bounded."""
    with driving(backend) as driver:
        node = silent(backend)
        doorbell = driver.connection.keys.ctl(node)
        overfilled(backend, doorbell)
        ring_doorbell(driver.connection, node)
        assert backend.admin.xlen(doorbell) <= 2 * BELL_LENGTH


def test_the_bell_of_a_busy_server_app_stays_short(backend: Backend) -> None:
    """Nodes ring for each reply, whether or not the ServerApp is listening."""
    with driving(backend) as driver:
        node, run = silent(backend), driver.run.run_id
        message_id = push(driver, node, number(1))
        bell = driver.connection.keys.bell(run)
        overfilled(backend, bell)
        assert publish(driver.connection, node, [Outgoing(run, ("1-0",), {b"i": message_id.encode()})]) == [True]
        assert backend.admin.xlen(bell) <= 2 * BELL_LENGTH


def test_the_ring_of_a_stop_keeps_the_bell_short(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one ring more, with the same bound, for as long as the ServerApp has not detached."""
    driver, lengths = start(backend), []
    bell = driver.connection.keys.bell(driver.run.run_id)

    def look(connection: Connection, *_: object) -> None:
        lengths.append(backend.admin.xlen(bell))

    monkeypatch.setattr(ending, "_await_release", look)
    overfilled(backend, bell)
    stop_run(backend.connect(), driver.run.run_id)
    driver.detach()
    assert in_ledger(backend, driver) == set()
    assert 0 < lengths[0] <= 2 * BELL_LENGTH


def test_where_rings_get_lost_a_server_app_looks_more_often(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any node may empty the bell. Replies that nobody rang for are looked for soon, until nodes ring again."""
    monkeypatch.setattr(wait, "SWEEP", 0.4)
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        keys, run = driver.connection.keys, driver.run.run_id
        outbox, bell = keys.outbox(node.node_id, run), keys.bell(run)
        assert seconds_between_sweeps(driver) == 0.4
        ids = push_numbers(driver, node, 0)
        turns(node, 1, bench)
        eventually(lambda: backend.admin.xlen(outbox) == 1)
        backend.admin.xtrim(bell, maxlen=0, approximate=False)
        assert numbers(driver, ids) == [1]
        assert seconds_between_sweeps(driver) == 0.1
        ids = push_numbers(driver, node, 0)
        turns(node, 2, bench)
        assert numbers(driver, ids) == [2]
        eventually(lambda: (driver.pull_messages([]), seconds_between_sweeps(driver))[1] == 0.4)
