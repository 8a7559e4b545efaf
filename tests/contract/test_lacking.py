"""A chunk that is gone from Redis: the node asks, the run writes it again or says that it cannot be had."""

from typing import Any

import pytest

from brokerfl.broker.outbox import tell_lack
from brokerfl.common import ErrorCode
from tests.apps import driving, eventually, number
from tests.conftest import Backend
from tests.stage import (
    Late,
    chunks_in,
    held_chunks,
    in_inbox,
    layer,
    let_go,
    model,
    push,
    reason_of,
    remove_chunks,
)

pytestmark = pytest.mark.usefixtures("small_chunks")

#: TLS changes nothing here.
WITHOUT = ("redis-tls",)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_chunk_that_redis_forgot_is_written_again(backend: Backend, is_replaced: bool) -> None:
    """Behind a proxy, so that no connection broke: the node waits, its ServerApp has the chunk, and nobody errs."""
    late, content = Late(backend), model(layer(1))
    with driving(backend) as driver:
        driver.connection.persists = True
        message_id = push(driver, late.node_id, content)
        names = chunks_in(backend)
        remove_chunks(backend)
        for name in names if is_replaced else ():
            backend.admin.hset(name, "a", "b")
            backend.admin.pexpire(name, 60_000)
        assert held_chunks(driver)
        with late.serving():
            [reply] = driver.replies([message_id], timeout=20)
        assert not reply.has_error()
        assert chunks_in(backend)


def test_a_chunk_that_nobody_has_is_an_error(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the ServerApp says so; the message leaves the inbox."""
    late = Late(backend)
    with driving(backend) as driver:
        message_id = push(driver, late.node_id, model(layer(1)))
        monkeypatch.setattr("brokerfl.broker.blobs.KEEP_UPLOADED", -1.0)
        let_go(driver)
        remove_chunks(backend)
        with late.serving():
            [reply] = driver.replies([message_id], timeout=20)
        assert "is gone from Redis" in reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
        assert in_inbox(backend, driver, late.node_id) == []


def test_without_its_server_app_a_message_waits_for_its_content(backend: Backend) -> None:
    """The node leaves it in the inbox, has its hands free for others, and executes it once the content is there."""
    late, content = Late(backend), model(layer(1))
    with driving(backend) as driver, driving(backend) as other:
        message_id = push(driver, late.node_id, content)
        chunks: dict[str, Any] = {key: backend.admin.get(key) for key in chunks_in(backend)}
        remove_chunks(backend)
        bell = driver.connection.keys.bell(driver.run.run_id)
        with late.serving():
            eventually(lambda: any(b"l" in fields for _, fields in backend.admin.xrange(bell)))
            [reply] = other.send_and_receive([other.create_message(number(1), "train", late.node_id, "1")])
            assert not reply.has_error()
            assert in_inbox(backend, driver, late.node_id) == [message_id]
            for key, data in chunks.items():
                backend.admin.set(key, data, px=60_000)
            [reply] = driver.replies([message_id], timeout=20)
        assert not reply.has_error()


def test_a_node_that_lacks_nothing_gets_nothing(backend: Backend) -> None:
    """It may ring as often as it likes: nothing is written, and its message is answered as any other."""
    late = Late(backend)
    with driving(backend) as driver:
        message_id = push(driver, late.node_id, model(layer(1)))
        for _ in range(3):
            tell_lack(driver.connection, late.node_id, driver.run.run_id)
            driver.pull_messages([])
        with late.serving():
            [reply] = driver.replies([message_id], timeout=20)
        assert not reply.has_error()
