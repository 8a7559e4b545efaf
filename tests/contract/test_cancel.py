"""A message that nobody wants any more is not executed, and one that is being executed can see it."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from brokerfl.broker.ending import stop_run
from brokerfl.broker.inbox import Inboxes
from brokerfl.broker.nodes import Registration, node_id_of
from brokerfl.client import ClientApp, wanted
from brokerfl.client.node import Node
from brokerfl.client.wanted import READ_AHEAD
from brokerfl.common import Context, ErrorCode, Message, RunStopped
from brokerfl.server import Driver
from tests.apps import Gate, driving, echo_app, eventually, federation, number, number_in
from tests.conftest import PREFIX, Backend, keys_of
from tests.stage import by_hand, drain, dropped, has_queued, is_wanted, last_in_hand, serving

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


def push(driver: Driver, node: int, value: int = 1, group: str = "1", **options: float) -> str:
    """Push one message; return its id."""
    [message_id] = driver.push_messages([driver.create_message(number(value), "train", node, group, **options)])
    return message_id


def read_ahead(gate: Gate, driver: Driver, node: Node) -> None:
    """Let a node execute something quick, so that it reads many messages at once; then close the gate."""
    gate.go.set()
    driver.send_and_receive([driver.create_message(number(0), "train", node.node_id, "0")])
    assert gate.begun.acquire(timeout=10)
    gate.go.clear()


def queued_for(seconds: float) -> None:
    """What was queued for less than `READ_AHEAD` is executed without asking Redis."""
    assert seconds > READ_AHEAD
    threading.Event().wait(seconds)


class Watcher:
    """A ClientApp that works until it sees that it was cancelled, and then says so.

    Attributes:
        begun: set when it works.
        cancelled: set when it has seen it.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()
        self.done = threading.Event()
        self.app = ClientApp()

        @self.app.train()
        def train(message: Message, context: Context) -> Message:
            self.begun.set()
            until = time.monotonic() + 20
            while time.monotonic() < until and not self.done.wait(0.01):
                if context.cancelled():
                    self.cancelled.set()
                    raise InterruptedError("nobody wants it")
            return message.create_reply(message.content)


def test_a_cancelled_message_is_error_3_at_once(backend: Backend) -> None:
    """`cancel_messages` ends the waits for a message that a node has not begun, and takes it out of the inbox."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        running = push(driver, node)
        assert gate.begun.acquire(timeout=10)
        waiting = [push(driver, node, value) for value in (2, 3)]
        driver.cancel_messages(waiting)
        replies = driver.pull_messages(waiting)
        assert [reply.error.code for reply in replies] == [ErrorCode.MESSAGE_UNAVAILABLE] * 2
        assert {reply.error.reason for reply in replies} == {"the message was cancelled"}
        assert {reply.metadata.reply_to_message for reply in replies} == set(waiting)
        assert backend.admin.xlen(driver.connection.keys.inbox(node, driver.run.run_id)) == 1
        gate.go.set()
        assert [number_in(reply) for reply in driver.replies([running])] == [1]
        [reply] = driver.send_and_receive([driver.create_message(number(4), "train", node, "2")])
        assert number_in(reply) == 4
    assert gate.calls == 2


def test_a_message_queued_on_its_node_is_not_executed(backend: Backend) -> None:
    """What the node has read already, and queued behind a slow message, it does not execute after a cancel."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver, driving(backend) as other:
        node = nodes.nodes[0]
        read_ahead(gate, driver, node)
        running, cancelled, wanted = driver.push_messages(
            [driver.create_message(number(value), "train", node.node_id, "1") for value in (1, 2, 3)]
        )
        assert gate.begun.acquire(timeout=10)
        assert has_queued(node), "the node has not read ahead"
        queued_for(0.1)
        theirs = push(other, node.node_id, 5)
        driver.cancel_messages([cancelled])
        gate.go.set()
        assert [number_in(reply) for reply in driver.replies([running, wanted])] == [1, 3]
        assert [number_in(reply) for reply in other.replies([theirs])] == [5]
    assert gate.calls == 1 + 3


def test_a_cancel_does_not_take_back_a_reply(backend: Backend) -> None:
    """A reply that is there when its message is cancelled wins; an id that was answered or never was is passed over."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        message_id = push(driver, node, 6)
        eventually(lambda: backend.admin.xlen(driver.connection.keys.outbox(node, driver.run.run_id)))
        driver.cancel_messages([message_id, "", "f" * 32])
        assert [number_in(reply) for reply in driver.pull_messages([message_id])] == [6]
        driver.cancel_messages([message_id])
        assert driver.pull_messages([message_id]) == []


def test_a_cancel_ends_a_wait_in_another_thread(backend: Backend) -> None:
    """A thread that waits for a message gets its Error 3 the moment another one cancels it."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        message_id = push(driver, nodes.nodes[0].node_id)
        found: list[Message] = []
        waiter = threading.Thread(target=lambda: found.extend(driver.replies([message_id])))
        waiter.start()
        assert gate.begun.acquire(timeout=10)
        driver.cancel_messages([message_id])
        waiter.join(10)
        assert [reply.error.code for reply in found] == [ErrorCode.MESSAGE_UNAVAILABLE]
        gate.go.set()


def test_the_reply_to_a_cancelled_message_is_dropped(backend: Backend) -> None:
    """A node that finishes all the same is not counted, and nothing of its reply stays when the run moves on."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        message_id = push(driver, node)
        assert gate.begun.acquire(timeout=10)
        driver.cancel_messages([message_id])
        assert [reply.error.code for reply in driver.replies([message_id])] == [ErrorCode.MESSAGE_UNAVAILABLE]
        gate.go.set()
        outbox = driver.connection.keys.outbox(node, driver.run.run_id)
        eventually(lambda: backend.admin.xlen(outbox))
        eventually(lambda: (driver.pull_messages([]), dropped(driver))[1] == 1)
        driver.send_and_receive([driver.create_message(number(2), "train", node, "2")])
        assert backend.admin.xlen(outbox) == 1


@pytest.fixture
def watched(backend: Backend) -> Iterator[tuple[Watcher, Driver, str]]:
    """An app that works, the Driver that waits for it, and its message."""
    watcher = Watcher()
    with federation(backend, watcher.app, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app", lease=0.9)
        message_id = push(driver, nodes.nodes[0].node_id)
        assert watcher.begun.wait(10)
        assert not watcher.cancelled.wait(1.2), "more than the second in which it asks Redis once"
        yield watcher, driver, message_id
        watcher.done.set()
    driver.detach()


def cancel(backend: Backend, driver: Driver, message_id: str) -> None:
    driver.cancel_messages([message_id])


def stop(backend: Backend, driver: Driver, message_id: str) -> None:
    stop_run(backend.connect(), driver.run.run_id)


def end(backend: Backend, driver: Driver, message_id: str) -> None:
    driver.end()


@pytest.mark.parametrize("act", [cancel, stop, end])
def test_running_code_sees_that_it_is_cancelled(
    backend: Backend, watched: tuple[Watcher, Driver, str], act: Callable[[Backend, Driver, str], None]
) -> None:
    """context.cancelled() is false while the message is wanted, and true soon after a cancel, a stop or the end."""
    watcher, driver, message_id = watched
    act(backend, driver, message_id)
    assert watcher.cancelled.wait(5)
    if act is cancel:
        driver.end()
    eventually(lambda: not keys_of(backend.admin, driver.run.run_id))


def cut_all(backend: Backend) -> None:
    """Break every connection but that of the test."""
    backend.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@pytest.mark.parametrize("backend", ["valkey", "redis"], indirect=True)
@pytest.mark.parametrize("act", [cancel, stop, end])
@pytest.mark.parametrize("asks_between", [True, False])
def test_a_lost_connection_hides_no_cancellation(
    backend: Backend,
    watched: tuple[Watcher, Driver, str],
    act: Callable[[Backend, Driver, str], None],
    asks_between: bool,
) -> None:
    """context.cancelled() becomes true although a connection was lost while the code ran: long before, or just now."""
    watcher, driver, message_id = watched
    cut_all(backend)
    if asks_between:
        assert not watcher.cancelled.wait(1.2), "more than the second in which it asks Redis once"
    act(backend, driver, message_id)
    assert watcher.cancelled.wait(5)
    if act is cancel:
        driver.end()


@pytest.mark.parametrize("backend", ["valkey", "redis"], indirect=True)
def test_a_forgotten_message_is_not_cancelled(backend: Backend, watched: tuple[Watcher, Driver, str]) -> None:
    """A Redis that was killed may have forgotten a delivery: the code goes on, because the message is sent again."""
    watcher, driver, _ = watched
    [inbox] = [key.decode() for key in backend.admin.scan_iter() if b":in:" in key]
    [(entry, _)] = backend.admin.xrange(inbox)
    [group] = backend.admin.xinfo_groups(inbox)
    with backend.admin.pipeline() as pipe:
        pipe.xack(inbox, group["name"], entry)
        pipe.xdel(inbox, entry)
        pipe.xgroup_setid(inbox, group["name"], "0")
        pipe.client_kill_filter(_type="normal", skipme=True)
        pipe.execute()
    assert not watcher.cancelled.wait(2.5)
    driver.end()


def test_a_detached_run_is_not_cancelled(backend: Backend, watched: tuple[Watcher, Driver, str]) -> None:
    """Code whose ServerApp has let go of the run goes on: somebody may resume it."""
    watcher, driver, message_id = watched
    driver.detach()
    assert not watcher.cancelled.wait(1.5)
    watcher.done.set()
    again = Driver(backend.connect(), "", None, resume=driver.run.run_id)
    assert [number_in(reply) for reply in again.replies([message_id])] == [1]
    again.end()


def test_queued_work_of_a_stopped_run_is_dropped(backend: Backend) -> None:
    """What a node has queued of a run that was stopped is not executed; another run's is."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as other:
        node = nodes.nodes[0].node_id
        driver = Driver(backend.connect(), "server:app", lease=0.9)
        read_ahead(gate, driver, nodes.nodes[0])
        driver.push_messages([driver.create_message(number(value), "train", node, "1") for value in range(5)])
        assert gate.begun.acquire(timeout=10)
        assert has_queued(nodes.nodes[0]), "the node has not read ahead"
        queued_for(0.1)
        theirs = push(other, node, 7)
        stop_run(backend.connect(), driver.run.run_id)
        gate.go.set()
        assert [number_in(reply) for reply in other.replies([theirs])] == [7]
        with pytest.raises(RunStopped):
            driver.checkpoint()
        driver.detach()
    assert gate.calls == 1 + 2


# deliver_when_online


def test_a_message_waits_for_a_node_that_was_never_there(backend: Backend) -> None:
    """With deliver_when_online it is accepted for a name that nobody has yet, and answered by whoever takes it."""
    node = node_id_of(PREFIX, "later")
    with driving(backend, offline_grace=0.0) as driver:
        message = driver.create_message(number(3), "train", node, "1")
        assert driver.push_messages([message]) == [""]
        [message_id] = driver.push_messages([message], deliver_when_online=True)
        assert list(driver.replies([message_id], timeout=1.3)) == [], "more than one sweep"
        with serving(backend, echo_app(), name="later"):
            assert [number_in(reply) for reply in driver.replies([message_id])] == [3]


def test_a_message_outlasts_the_grace_of_its_node(backend: Backend) -> None:
    """A named node that is away for longer than the grace is Error 5 to a plain message, and not to one that waits."""
    with driving(backend, offline_grace=0.1) as driver:
        registration = Registration(backend.connect(), "berlin", lease=0.3)
        registration.register()
        plain = push(driver, registration.node_id, 1)
        [waits] = driver.push_messages(
            [driver.create_message(number(2), "train", registration.node_id, "1")], deliver_when_online=True
        )
        [error] = driver.replies([plain])
        assert error.error.code == ErrorCode.NODE_UNAVAILABLE
        assert list(driver.replies([waits], timeout=1.3)) == []
        with serving(backend, echo_app(), name="berlin"):
            assert [number_in(reply) for reply in driver.replies([waits])] == [2]


def test_a_message_waits_no_longer_than_its_ttl(backend: Backend) -> None:
    """One that waits for a node that never comes ends as Error 3 when it expires, and is in no inbox any more."""
    node = node_id_of(PREFIX, "never")
    with driving(backend) as driver:
        message = driver.create_message(number(3), "train", node, "1", ttl=0.5)
        [reply] = driver.send_and_receive([message], deliver_when_online=True)
        assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        assert "expired" in (reply.error.reason or "")
        assert backend.admin.xlen(driver.connection.keys.inbox(node, driver.run.run_id)) == 0


def test_a_message_waits_over_a_resume(backend: Backend) -> None:
    """That a message waits for its node is part of the run: a resumed one passes no verdict on it either."""
    node = node_id_of(PREFIX, "later")
    former = Driver(backend.connect(), "server:app")
    message = former.create_message(number(3), "train", node, "1")
    [message_id] = former.push_messages([message], deliver_when_online=True)
    former.detach()
    driver = Driver(backend.connect(), "", None, resume=former.run.run_id, offline_grace=0.0)
    assert list(driver.replies([message_id], timeout=1.3)) == []
    with serving(backend, echo_app(), name="later"):
        assert [number_in(reply) for reply in driver.replies([message_id])] == [3]
    driver.end()


def test_what_a_former_process_had_read_is_asked_for(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been cancelled long ago: a node that takes it up trusts nothing that it has not asked."""
    monkeypatch.setattr(wanted, "READ_AHEAD", 3600.0)
    with by_hand(backend, echo_app(), None) as node, driving(backend) as driver:
        message_id = push(driver, node.node_id)
        former = Inboxes(backend.by_hand(), node.node_id)
        former.refresh()
        assert len(former.read(1, block=1.0)) == 1
        drain(node)
        assert is_wanted(node, last_in_hand(node))
        driver.cancel_messages([message_id])
        assert not is_wanted(node, last_in_hand(node))
