"""Promise 3: every wait ends: with the reply, an Error reply that names the reason, or the caller's timeout."""

import threading

import pytest

from brokerfl.broker import liveness as liveness_module
from brokerfl.broker.books import read_books
from brokerfl.broker.ending import stop_run
from brokerfl.broker.nodes import Registration
from brokerfl.common import ErrorCode, RunNotFound, RunStopped
from brokerfl.common.text import shown_node
from brokerfl.server import Driver
from brokerfl.server import push as push_module
from brokerfl.server import wait as waiting
from tests.apps import Clock, Gate, driving, echo_app, eventually, federation, number, number_in, runs_seen
from tests.conftest import Backend, keys_of
from tests.stage import (
    Late,
    after_uploads,
    cut,
    dropped,
    is_collecting,
    kill,
    layer,
    model,
    push,
    read_nothing,
    serving,
    silent,
    sweep_soon,
)


def server_time(backend: Backend) -> float:
    """The server's clock, which decides what expired."""
    seconds, microseconds = backend.admin.time()
    return float(seconds + microseconds / 1e6)


def silent_node(backend: Backend, name: str = "", lease: float = 0.6) -> Registration:
    """A node that registers and then does nothing: what a kill -9 leaves behind."""
    registration = Registration(backend.connect(), name, lease=lease)
    registration.register()
    return registration


@pytest.mark.with_rights
def test_a_dead_unnamed_node_is_error_5(backend: Backend) -> None:
    """The message to an unnamed node that died becomes Error 5 once its lease lapsed; the others' replies come."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        dead = silent_node(backend).node_id
        batch = [driver.create_message(number(1), "train", node, "1") for node in (dead, nodes.nodes[0].node_id)]
        replies = driver.send_and_receive(batch)
        [error] = [reply for reply in replies if reply.has_error()]
        assert error.error.code == ErrorCode.NODE_UNAVAILABLE
        assert error.metadata.src_node_id == dead
        assert error.error.reason == f"{shown_node(dead)} is unavailable: its lease has lapsed"
        [reply] = [reply for reply in replies if reply.has_content()]
        assert number_in(reply) == 1


def test_the_other_run_does_not_notice_a_dead_node(backend: Backend) -> None:
    """While one run waits for a dead node's lease, another run over the living node goes on."""
    with federation(backend, nodes=1) as nodes, driving(backend) as stuck, driving(backend) as other:
        dead = silent_node(backend, lease=600.0).node_id
        waiter = threading.Thread(
            target=lambda: stuck.send_and_receive([stuck.create_message(number(1), "train", dead, "1")])
        )
        waiter.start()
        node = nodes.nodes[0].node_id
        for turn in range(20):
            [reply] = other.send_and_receive([other.create_message(number(turn), "train", node, str(turn))])
            assert number_in(reply) == turn
        assert waiter.is_alive()
        backend.admin.unlink(stuck.connection.keys.node_lease(dead))
        waiter.join(20)
        assert not waiter.is_alive()


def test_a_named_node_may_come_back(backend: Backend) -> None:
    """A message to a named node that is offline waits for its grace: a restarted node answers it."""
    with driving(backend, offline_grace=20.0) as driver:
        first = silent_node(backend, "hospital", lease=0.4)
        ids = driver.push_messages([driver.create_message(number(4), "train", first.node_id, "1")])
        lease = driver.connection.keys.node_lease(first.node_id)
        eventually(lambda: not backend.admin.exists(lease))
        assert list(driver.replies(ids, timeout=1.5)) == []
        with serving(backend, echo_app(), name="hospital"):
            assert [number_in(reply) for reply in driver.replies(ids)] == [4]


def test_a_named_node_that_stays_away_is_error_5(backend: Backend) -> None:
    """A named node that is offline for longer than the grace is given up."""
    with driving(backend, offline_grace=0.5) as driver:
        gone = silent_node(backend, "hospital", lease=0.4)
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", gone.node_id, "1")])
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
        inbox = driver.connection.keys.inbox(gone.node_id, driver.run.run_id)
        assert backend.admin.xlen(inbox) == 0, "a node that comes back later would execute it"


def test_a_node_that_left_is_error_5(backend: Backend) -> None:
    """An unnamed node that leaves gracefully with messages open is given up at the next sweep."""
    with driving(backend) as driver:
        leaving = silent_node(backend, lease=60.0)
        ids = driver.push_messages([driver.create_message(number(1), "train", leaving.node_id, "1")])
        leaving.leave()
        [reply] = driver.replies(ids)
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE


def test_an_expired_message_is_error_3_and_is_not_executed(backend: Backend) -> None:
    """A message whose ttl passes while the node is busy ends as Error 3, and the node never executes it."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        busy = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        assert gate.begun.acquire(timeout=10)
        late = driver.push_messages([driver.create_message(number(2), "train", node, "1", ttl=0.3)])
        [reply] = driver.replies(late)
        assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        assert "expired" in (reply.error.reason or "")
        gate.go.set()
        assert [number_in(reply) for reply in driver.replies(busy)] == [1]
        assert gate.calls == 1


def test_a_node_does_not_execute_what_expired_meanwhile(backend: Backend) -> None:
    """A message that expires in the inbox is not executed, although no ServerApp was there to take it back."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        ids = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        assert gate.begun.acquire(timeout=10)
        ids += driver.push_messages([driver.create_message(number(2), "train", node, "1", ttl=0.2)])
        pushed = server_time(backend)
        # The node knows the server's clock as well as a round trip allows; on a busy machine that is not much.
        eventually(lambda: server_time(backend) > pushed + 1.0)
        gate.go.set()
        inbox = driver.connection.keys.inbox(node, driver.run.run_id)
        eventually(lambda: backend.admin.xlen(inbox) == 0)  # nobody swept: the node itself removed it
        replies = {reply.metadata.reply_to_message: reply for reply in driver.replies(ids)}
        assert number_in(replies[ids[0]]) == 1
        assert replies[ids[1]].error.code == ErrorCode.MESSAGE_UNAVAILABLE
        assert gate.calls == 1


def test_a_reply_after_the_deadline_does_not_count(backend: Backend) -> None:
    """A reply is judged by its arrival: one that comes after its message expired is dropped, and Error 3 stands."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        ids = driver.push_messages([driver.create_message(number(1), "train", node, "1", ttl=1.0)])
        assert gate.begun.acquire(timeout=10)
        begun = server_time(backend)
        eventually(lambda: server_time(backend) > begun + 1.0)
        gate.go.set()
        outbox = driver.connection.keys.outbox(node, driver.run.run_id)
        eventually(lambda: backend.admin.xlen(outbox))  # the reply is there before anybody judged the message
        [reply] = driver.replies(ids)
        assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        assert dropped(driver) == 1


def test_a_reply_that_arrived_wins_over_a_verdict(backend: Backend) -> None:
    """A reply that reached Redis before its node died is delivered, although the lease has lapsed."""
    gate = Gate()
    gate.go.set()
    with driving(backend) as driver, federation(backend, gate.app, nodes=1) as nodes:
        node = nodes.nodes[0]
        ids = driver.push_messages([driver.create_message(number(6), "train", node.node_id, "1")])
        outbox = driver.connection.keys.outbox(node.node_id, driver.run.run_id)
        eventually(lambda: backend.admin.xlen(outbox))
        bell = driver.connection.keys.bell(driver.run.run_id)
        backend.admin.xtrim(bell, maxlen=0)  # and its ring is lost
        node.stop()
        eventually(lambda: not backend.admin.exists(driver.connection.keys.node_lease(node.node_id)))
        assert [number_in(reply) for reply in driver.replies(ids)] == [6]


def test_a_verdict_looks_into_the_outbox_once_more(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that arrives after the sweep has read, and before the verdict, wins over the verdict."""
    with driving(backend) as driver, federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0]
        ids = driver.push_messages([driver.create_message(number(6), "train", node.node_id, "1")])
        outbox = driver.connection.keys.outbox(node.node_id, driver.run.run_id)
        eventually(lambda: backend.admin.xlen(outbox))
        node.stop()
        eventually(lambda: not backend.admin.exists(driver.connection.keys.node_lease(node.node_id)))
        # As if it had not arrived yet.
        read_nothing(driver, monkeypatch)
        assert [number_in(reply) for reply in driver.replies(ids)] == [6]


def test_a_lost_ring_costs_only_time(backend: Backend) -> None:
    """With the bell deleted altogether, replies still come: the sweep finds them."""
    with federation(backend, nodes=2) as nodes, driving(backend) as driver:
        backend.admin.unlink(driver.connection.keys.bell(driver.run.run_id))
        batch = [driver.create_message(number(1), "train", node.node_id, "1") for node in nodes.nodes]
        assert [number_in(reply) for reply in driver.send_and_receive(batch)] == [1, 1]


@pytest.mark.with_rights
def test_stop_ends_a_wait(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run stopped by someone else ends every wait with RunStopped at once; pushes are refused; no key remains."""
    monkeypatch.setattr(waiting, "SWEEP", 6.0)  # neither a sweep nor the heartbeat tells it: the bell does
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app", lease=60.0)
        node = nodes.nodes[0].node_id
        message = driver.create_message(number(1), "train", node, "1")
        outcome: list[BaseException] = []

        def wait() -> None:
            try:
                driver.send_and_receive([message])
            except RunStopped as error:
                outcome.append(error)
            finally:
                driver.detach()

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert gate.begun.acquire(timeout=10)
        stop_run(backend.connect(), driver.run.run_id, patience=4.0)
        waiter.join(1.0)
        assert outcome, "the bell did not wake the ServerApp"
        assert driver.push_messages([message]) == [""]
        with pytest.raises(RunStopped):
            driver.pull_messages([])
        gate.go.set()
    assert not keys_of(backend.admin, driver.run.run_id)


def test_stop_waits_for_a_busy_server_app(backend: Backend) -> None:
    """A ServerApp that is busy when it is stopped hears RunStopped afterwards, not that its data are lost."""
    driver = Driver(backend.connect(), "server:app", lease=0.9)
    stop_run(backend.connect(), driver.run.run_id)
    with pytest.raises(RunStopped):
        driver.pull_messages([])
    assert not keys_of(backend.admin, driver.run.run_id)


def test_stop_deletes_a_run_without_a_server_app(backend: Backend) -> None:
    """A run whose ServerApp is dead is detached once its lease lapsed; stopping it deletes every key."""
    with federation(backend, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app", lease=1.5)
        run = driver.run.run_id
        driver.push_messages([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert [info.state for info in runs_seen(backend.connect())] == ["running"]
        kill(driver)  # as after a kill -9
        eventually(lambda: [info.state for info in runs_seen(backend.connect())] == ["detached"])
        stop_run(backend.connect(), run)
        assert [info.state for info in runs_seen(backend.connect())] == ["stopped"]
        with pytest.raises(RunNotFound, match="already ended"):
            stop_run(backend.connect(), run)
        with pytest.raises(RunNotFound, match="no run 77"):
            stop_run(backend.connect(), 77)
    assert not keys_of(backend.admin, run)


def test_waiting_for_nodes_ends(backend: Backend) -> None:
    """wait_for_nodes returns the ids once enough nodes are online, and raises TimeoutError with the count otherwise."""
    with driving(backend) as driver, federation(backend, nodes=2) as nodes:
        assert driver.wait_for_nodes(2, timeout=10) == sorted(node.node_id for node in nodes.nodes)
        with pytest.raises(TimeoutError, match="2 of 3"):
            driver.wait_for_nodes(3, timeout=0.2)


def test_who_vanishes_among_many_is_error_5(
    backend: Backend, issued: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look takes a part of the leases; nobody's turn is forgotten, and who was not looked at is not given up."""
    monkeypatch.setattr(liveness_module, "MOST_LOOKED_AT", 10)
    monkeypatch.setattr(liveness_module, "_ROUND", 1e9)
    keys, nodes = backend.connect().keys, range(10, 70)
    with backend.admin.pipeline(transaction=False) as pipe:
        for node in nodes:
            pipe.sadd(keys.nodes, str(node))
            pipe.set(keys.node_lease(node), "x", px=60_000)
            pipe.hset(keys.node_info(node), "version", "1")  # it has no name, so it does not come back
            pipe.pexpire(keys.node_info(node), 60_000)
        pipe.execute()
    with driving(backend) as driver:
        ids = driver.push_messages([driver.create_message(number(1), "train", node, "1") for node in nodes])
        backend.admin.unlink(keys.node_lease(42))
        replies, looks = [], 0
        while not replies:
            issued.clear()
            sweep_soon(driver)
            replies, looks = driver.pull_messages(ids), looks + 1
            assert issued.count("EXISTS") <= 11, "each alone, if one of them is missing"
            assert looks <= 6
        [reply] = replies
        assert (reply.error.code, reply.metadata.src_node_id) == (ErrorCode.NODE_UNAVAILABLE, 42)


def test_a_ttl_counts_from_the_end_of_the_upload(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes 100 seconds to upload does not take them from the time that its node has."""
    clock = Clock()
    monkeypatch.setattr(push_module, "time", clock)
    with driving(backend) as driver:
        node = silent(backend)
        quick = push(driver, node, number(1), ttl=50.0)
        after_uploads(driver, monkeypatch, lambda: setattr(clock, "now", clock.now + 100.0))
        slow = push(driver, node, model(layer(1, 200_000)), ttl=50.0)
        deadlines = {
            each: entry.deadline for each, entry in read_books(driver.connection, driver.run.run_id).entries.items()
        }
        assert deadlines[slow] - deadlines[quick] >= 100_000


def test_nodes_have_time_to_come_back_after_an_outage(backend: Backend) -> None:
    """In an outage every lease lapses: whoever comes back first gives nobody up at once."""
    with driving(backend) as driver:
        node = silent_node(backend, lease=60.0).node_id
        message_id = push(driver, node, number(1))
        backend.admin.unlink(driver.connection.keys.node_lease(node))
        cut(driver)
        assert list(driver.replies([message_id], timeout=1.5)) == []


def test_rings_do_not_put_off_a_verdict(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bell that never stops ringing leaves time to look at deadlines."""
    monkeypatch.setattr(waiting, "SWEEP", 0.2)
    over = threading.Event()
    with driving(backend) as driver:
        node = silent(backend)
        bell, ring = driver.connection.keys.bell(driver.run.run_id), {"n": str(node)}

        def ringing() -> None:
            while not over.wait(0.005):
                backend.admin.xadd(bell, ring, nomkstream=True)  # type: ignore[arg-type]

        ringer = threading.Thread(target=ringing)
        message_id = push(driver, node, number(1), ttl=0.3)
        ringer.start()
        try:
            [reply] = driver.replies([message_id], timeout=10)
        finally:
            over.set()
            ringer.join()
        assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE


def test_a_round_may_have_a_timeout_by_default(backend: Backend) -> None:
    """With the option round_timeout, a node that is online and silent holds no round; an app's own timeout wins."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend, round_timeout=0.0) as driver:
        [node] = nodes.nodes
        message_id = push(driver, silent(backend), number(1))
        assert list(driver.replies([message_id])) == []
        assert driver.send_and_receive([driver.create_message(number(1), "train", node.node_id, "2")]) == []
        gate.go.set()
        [reply] = driver.send_and_receive([driver.create_message(number(7), "train", node.node_id, "2")], timeout=20)
        assert number_in(reply) == 7


def test_an_iterator_does_not_wait_for_what_another_call_took(backend: Backend) -> None:
    """It has looked and waited before; in the middle of its loop, the other replies are pulled: then it ends."""
    node = Late(backend)
    with driving(backend) as driver:
        ids = [push(driver, node.node_id, number(0)) for _ in range(40)]
        found: list[int] = []
        first, go = threading.Event(), threading.Event()

        def iterate() -> None:
            for reply in driver.replies(ids, timeout=60):
                found.append(number_in(reply))
                first.set()
                assert go.wait(20)

        thread = threading.Thread(target=iterate)
        thread.start()
        eventually(lambda: is_collecting(driver))
        with node.serving():
            assert first.wait(20)
            pulled: list[int] = []

            def all_are_here() -> bool:
                pulled.extend(map(number_in, driver.pull_messages(ids)))
                return len(pulled) >= 39

            eventually(all_are_here)
        go.set()
        thread.join(20)
        assert not thread.is_alive()
        assert sorted(found + pulled) == list(range(1, 41))
