"""Nobody has to take more than he said he would: a node, a ServerApp, the Redis of a run."""

import pytest

from brokerfl.common import ErrorCode, MessageTooLarge
from brokerfl.wire import payload
from tests.apps import Counter, driving, federation
from tests.conftest import Backend
from tests.stage import CHUNK, LAYER, Streams, chunks_in, layer, limit_messages, model, reason_of, send, serving, to_all

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_a_node_with_a_lower_limit_reads_nothing(
    backend: Backend, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A content beyond the node's limit is Error 3 by its declared sizes: no chunk is asked for, no memory is made."""

    def no_room(size: int) -> memoryview:
        raise AssertionError(f"{size} bytes were allocated")

    monkeypatch.setattr(payload, "_room", no_room)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        limit_messages(nodes.nodes[0], LAYER - 1)
        [reply] = to_all(driver, [node], model(layer(1)))
        reason = reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
        assert f"bytes; the limit is {LAYER - 1:,} bytes" in reason
        assert read == []
        [reply] = to_all(driver, [node], model(layer(1, CHUNK)), "2")
        assert reply.has_content()


def test_a_reply_beyond_the_drivers_limit_is_error_4(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply larger than `max_message` is Error 4 before memory is made for it, and its chunks are freed like any."""
    with serving(backend, Counter().app) as node, driving(backend, max_message=LAYER) as driver:
        streams = Streams(backend, driver, node)
        reply = send(driver, node, LAYER)
        reason = reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        assert f"the limit is {LAYER:,} bytes" in reason
        assert send(driver, node, LAYER - 200, group="2").has_content()
        driver.checkpoint()
        driver.pull_messages([])
        assert streams.lengths() == (0, 0, 0)


def test_a_run_has_only_so_much_in_redis(backend: Backend) -> None:
    """A push beyond `max_run` raises with the numbers and pushes nothing; when the run has moved on there is room."""
    with federation(backend, nodes=1) as nodes, driving(backend, max_run=3 * LAYER) as driver:
        node = nodes.nodes[0].node_id
        keys, run = driver.connection.keys, driver.run.run_id
        with pytest.raises(
            MessageTooLarge, match=rf"needs 1\d,\d\d\d bytes and .* has 0 in Redis, .* limit of {3 * LAYER:,}"
        ):
            driver.push_messages([driver.create_message(model(layer(1, 3 * LAYER)), "train", node, "1")])
        assert not backend.admin.exists(keys.ledger(run), keys.blobs(run), keys.inbox(node, run))
        assert chunks_in(backend) == set()
        to_all(driver, [node], model(layer(1)), "1")
        both = [driver.create_message(model(layer(seed)), "train", node, "2") for seed in (2, 3)]
        with pytest.raises(MessageTooLarge, match="together exceed its limit"):
            driver.push_messages(both)
        assert backend.admin.hlen(keys.ledger(run)) == 1
        driver.checkpoint()
        assert chunks_in(backend) == set()
        assert len(driver.send_and_receive(both)) == 2
