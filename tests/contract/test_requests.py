"""What an operator asks of a run: to cancel open messages, whether or not its ServerApp is alive."""

import logging

import pytest

from brokerfl.broker.requests import asked_to_cancel, cancel_messages
from brokerfl.common import ErrorCode, Message, MessageNotFound, RedisOutOfMemory, RunNotFound
from brokerfl.server import Driver
from brokerfl.server.outcome import CALLED_OFF
from tests.apps import Gate, driving, eventually, federation, number, number_in, waiting
from tests.conftest import Backend
from tests.stage import beat, in_inbox, in_ledger, kill, push, resumed, silent, start

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


def is_called_off(reply: Message) -> bool:
    """Whether an operator cancelled the message of this reply."""
    return reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE and reply.error.reason == CALLED_OFF


def asked(backend: Backend, driver: Driver) -> set[str]:
    """What of the run is to be cancelled."""
    return asked_to_cancel(backend.connect(), driver.run.run_id)


def test_an_app_that_waits_goes_on(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """It gets Error 3, which is no failure; a node executes nothing that it has not begun, and a late reply is dropped.

    The request goes when the message has left the books.
    """
    caplog.set_level(logging.INFO, "brokerfl")
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node, found = nodes.nodes[0].node_id, list[Message]()
        ids = driver.push_messages([driver.create_message(number(value), "train", node, "1") for value in (1, 2)])
        assert gate.begun.acquire(timeout=10)
        with waiting(lambda: found.extend(driver.replies(ids))):
            assert {*cancel_messages(backend.connect(), driver.run.run_id, node_id=node)} == {*ids}
        assert [is_called_off(reply) for reply in found] == [True, True]
        assert asked(backend, driver) == {*ids}
        gate.go.set()
        [reply] = driver.send_and_receive([driver.create_message(number(3), "train", node, "2")])
        assert number_in(reply) == 3
        assert in_ledger(backend, driver).isdisjoint(ids)
        beat(driver)
        assert asked(backend, driver) == set()
        assert (driver.report.outcome.replies, driver.report.outcome.errors) == (1, 0)
    assert gate.calls == 2
    assert caplog.text.count("An operator cancelled 2 messages") == 1


def test_an_app_that_does_not_wait_hears_of_it_by_the_heartbeat(backend: Backend) -> None:
    """The reply is there when it asks."""
    with driving(backend) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(1))
        cancel_messages(backend.connect(), driver.run.run_id, [message_id])
        beat(driver)
        assert in_inbox(backend, driver, node) == []
        assert [is_called_off(reply) for reply in driver.pull_messages([message_id])] == [True]


def test_a_resumed_run_heeds_it(backend: Backend) -> None:
    """Whenever its app pushes the message again, in this life or the next, until it is settled."""
    first = start(backend)
    node = silent(backend)
    message_id, other = (push(first, node, number(value)) for value in (1, 2))
    kill(first)
    assert cancel_messages(backend.connect(), first.run.run_id, [message_id[:8] + "…"]) == [message_id]
    for _ in range(2):
        life = Driver(backend.connect(), "", None, resume=first.run.run_id, takeover=True)
        assert push(life, node, number(1)) == message_id
        assert [is_called_off(reply) for reply in life.replies([message_id], timeout=20)] == [True]
        assert push(life, node, number(2)) == other
        assert in_inbox(backend, life, node) == [other]
        kill(life)
    with resumed(backend, life) as last:
        assert asked(backend, last) == {message_id}


def test_a_reply_that_is_there_counts(backend: Backend) -> None:
    """As with a cancel of the app."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        message_id = push(driver, node, number(6))
        eventually(lambda: backend.admin.xlen(driver.connection.keys.outbox(node, driver.run.run_id)))
        cancel_messages(backend.connect(), driver.run.run_id, [message_id])
        assert [number_in(reply) for reply in driver.replies([message_id])] == [6]


def test_a_message_that_is_not_there(backend: Backend) -> None:
    """Nothing is cancelled if one is unknown, or may be another; nor of a run that is over."""
    connection = backend.connect()
    with driving(backend) as driver:
        node, run_id = silent(backend), driver.run.run_id
        message_id = push(driver, node, number(1))
        for wrong in ("f" * 32, message_id[:7], "", message_id + "0"):
            with pytest.raises(MessageNotFound, match="is not settled"):
                cancel_messages(connection, run_id, [message_id, wrong])
        twin = message_id[:31] + ("0" if message_id[31] != "0" else "1")
        ledger = connection.keys.ledger(run_id)
        backend.admin.hset(ledger, twin, backend.admin.hget(ledger, message_id))
        with pytest.raises(MessageNotFound, match="may be one of 2 messages"):
            cancel_messages(connection, run_id, [message_id[:8]])
        backend.admin.hdel(ledger, twin)
        assert cancel_messages(connection, run_id, node_id=12345) == []
        assert asked(backend, driver) == set()
    for over in (run_id, 4711):
        with pytest.raises(RunNotFound):
            cancel_messages(connection, over, [message_id])


def test_whatever_others_write_there(backend: Backend) -> None:
    """What is no id is passed over, another type too, and the end deletes it."""
    with driving(backend) as driver:
        key = driver.connection.keys.cancelled(driver.run.run_id)
        message_id = push(driver, silent(backend), number(1))
        backend.admin.sadd(key, b"\xff", "", "f" * 32, message_id)
        assert asked(backend, driver) == {message_id}
        backend.admin.delete(key)
        backend.admin.set(key, "nothing")
        beat(driver)
        assert asked(backend, driver) == set()
    assert not backend.admin.exists(key)


def test_a_request_that_has_no_room(backend: Backend) -> None:
    """The error says that Redis is full."""
    if not backend.is_real:
        pytest.skip("fakeredis is never full")
    with driving(backend) as driver:
        message_id = push(driver, silent(backend), number(1))
        backend.admin.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisOutOfMemory):
                cancel_messages(backend.connect(), driver.run.run_id, [message_id])
        finally:
            backend.admin.config_set("maxmemory", 0)
