"""A large content is in Redis as a whole before a message names it, or nothing of it stays: also when Redis is full."""

import threading

import pytest

from brokerfl.common import RedisOutOfMemory
from brokerfl.server import session
from tests.apps import driving, eventually, federation, number
from tests.conftest import Backend
from tests.stage import (
    CHUNK,
    after_uploads,
    before_transactions,
    before_windows,
    chunks_in,
    fill,
    layer,
    layers_in,
    model,
    silent,
    to_all,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_a_full_redis_during_the_upload_pushes_nothing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is full after the first of three windows: no message, no chunk and no book is left, and it works later."""
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.1)
    content = model(layer(1, 40 * CHUNK))
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        to_all(driver, [node], number(1))
        keys, run = driver.connection.keys, driver.run.run_id
        before = backend.admin.hgetall(keys.ledger(run))
        message = driver.create_message(content, "train", node, "2")
        left = [1]

        def full() -> None:
            left[0] -= 1
            if left[0] < 0:
                raise RedisOutOfMemory("full")

        with monkeypatch.context() as patch:
            before_windows(patch, full)
            with pytest.raises(RedisOutOfMemory):
                driver.push_messages([message])
        assert backend.admin.hgetall(keys.ledger(run)) == before
        assert backend.admin.xlen(keys.inbox(node, run)) == 0
        assert chunks_in(backend) == set()
        [reply] = driver.send_and_receive([message])
        assert layers_in(reply.content) == layers_in(content)


def test_a_push_whose_transaction_finds_redis_full_leaves_no_chunk(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks are there and the message does not fit any more: the chunks go again."""
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.1)
    node = silent(backend)
    with driving(backend) as driver:
        with monkeypatch.context() as patch:
            fill(driver, patch, executions=1)
            with pytest.raises(RedisOutOfMemory):
                driver.push_messages([driver.create_message(model(layer(1)), "train", node, "1")])
        assert chunks_in(backend) == set()
        assert not backend.admin.exists(driver.connection.keys.ledger(driver.run.run_id))


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_a_full_redis_that_has_room_in_time_is_only_slow(
    backend: Backend, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of three windows, or the message itself, is refused twice: when there is room in time, all arrives."""
    content = model(layer(1, 40 * CHUNK))
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        message = driver.create_message(content, "train", nodes.nodes[0].node_id, "1")
        calls = [0]

        def refuse() -> None:
            calls[0] += 1
            if window < calls[0] <= window + 2:
                raise RedisOutOfMemory("full")

        before_windows(monkeypatch, refuse)
        after_uploads(driver, monkeypatch, lambda: before_transactions(driver, monkeypatch, refuse))
        [reply] = driver.send_and_receive([message])
        assert layers_in(reply.content) == layers_in(content)
        assert calls[0] >= 6


def test_maxmemory_is_back_pressure(backend: Backend) -> None:
    """A push into a Redis at maxmemory waits, and goes through when there is room within its patience."""
    if not backend.is_real:
        pytest.skip("fakeredis has no maxmemory")

    def refused() -> int:
        return int(backend.admin.info("errorstats").get("errorstat_OOM", {}).get("count", 0))

    def make_room() -> None:
        try:
            eventually(lambda: refused() > before)
        finally:
            backend.admin.config_set("maxmemory", 0)

    content = model(layer(1))
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        before = refused()
        backend.admin.config_set("maxmemory", 1)
        helper = threading.Thread(target=make_room)
        helper.start()
        try:
            [reply] = to_all(driver, [nodes.nodes[0].node_id], content)
        finally:
            helper.join()
        assert layers_in(reply.content) == layers_in(content)
        assert refused() > before
