"""A model broadcast to N nodes is stored and sent once, and nobody is sent again what he has (promise 5)."""

from contextlib import ExitStack

import numpy as np
import pytest

from brokerfl.client import payloads
from brokerfl.common import RecordSet
from brokerfl.wire import hashing, payload
from tests.apps import Seen, driving, eventually, federation, number, number_in
from tests.conftest import Backend
from tests.stage import (
    CHUNK,
    LAYER,
    chunks_in,
    chunks_of,
    content_of,
    kept_contents,
    layer,
    layers_in,
    model,
    serving,
    silent,
    to_all,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("how", ["one record", "shared arrays", "equal copies"])
def test_a_broadcast_is_stored_and_sent_once(backend: Backend, sent: list[str], how: str) -> None:
    """N messages of one record, of records over the same arrays, or of equal copies: each chunk is sent once."""
    arrays = [layer(1), layer(2, 30), layer(3, 40 * CHUNK)]
    record = model(*arrays)

    def content() -> RecordSet:
        match how:
            case "one record":
                return record
            case "shared arrays":
                return model(*arrays)
            case _:
                return model(*(array.copy() for array in arrays))

    seen = Seen()
    with federation(backend, seen.app, nodes=3) as nodes, driving(backend) as driver:
        ids = [node.node_id for node in nodes.nodes]
        replies = driver.send_and_receive([driver.create_message(content(), "train", node, "1") for node in ids])
        assert sorted(map(number_in, replies)) == [1, 2, 3]
        expected = chunks_of(driver, record)
        assert len(expected) > 2 * payload.WINDOW
        assert sorted(sent) == sorted(expected)
        assert chunks_in(backend) == expected
    for received in seen.contents:
        assert layers_in(received) == [array.tobytes() for array in arrays]


def test_equal_contents_are_hashed_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five records of their own, with copies of the same arrays, are one content; one that differs in a bit is not."""
    hashed: list[bytes] = []
    digest = hashing.digest_now

    def spy(data: memoryview) -> bytes:
        hashed.append(bytes(data))
        return digest(data)

    monkeypatch.setattr(hashing, "digest_now", spy)
    array = layer(1)
    other = array.copy()
    other[len(other) // 2] ^= 1
    with driving(backend) as driver:
        nodes = [silent(backend, str(number)) for number in range(6)]
        arrays = [array, *(array.copy() for _ in range(4)), other]
        ids = driver.push_messages(
            [driver.create_message(model(mine), "train", node, "1") for node, mine in zip(nodes, arrays, strict=True)]
        )
        assert "" not in ids
        assert len(hashed) == 2 * 6
        assert len({content_of(driver, message_id) for message_id in ids}) == 2


def test_equal_layers_are_stored_once(backend: Backend, sent: list[str]) -> None:
    """Chunks of equal bytes within one content, such as zeros, are sent once, and arrive everywhere."""
    zeros = np.zeros(8 * CHUNK, dtype=np.uint8)
    seen = Seen()
    with federation(backend, seen.app, nodes=1) as nodes, driving(backend) as driver:
        to_all(driver, [nodes.nodes[0].node_id], model(zeros, zeros.copy()))
        assert len(sent) == len(chunks_in(backend)) == 2
    assert layers_in(seen.contents[0]) == [bytes(8 * CHUNK)] * 2


def test_the_second_message_with_the_same_model_transfers_nothing(
    backend: Backend, sent: list[str], read: list[str]
) -> None:
    """Nobody sends or reads a chunk for it."""
    seen = Seen()
    with federation(backend, seen.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        arrays = [layer(1), layer(2)]
        to_all(driver, [node], model(*arrays))
        assert len(read) == len(sent) > 0
        sent.clear()
        read.clear()
        [reply] = to_all(driver, [node], model(*(array.copy() for array in arrays)), kind="evaluate")
        assert number_in(reply) == 2
        assert (sent, read) == ([], [])
    assert layers_in(seen.contents[1]) == [array.tobytes() for array in arrays]


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("count", [8, 64])
def test_many_messages_with_one_model_read_it_once(backend: Backend, read: list[str], workers: int, count: int) -> None:
    """A node with three runs reads it once for each of them, however many messages and workers there are."""
    seen, content = Seen(), model(layer(1), layer(2))
    with serving(backend, seen.app, workers=workers) as node, ExitStack() as stack:
        drivers = [stack.enter_context(driving(backend)) for _ in range(3)]
        sent = [
            driver.push_messages([driver.create_message(content, "train", node.node_id, "1") for _ in range(count)])
            for driver in drivers
        ]
        for driver, ids in zip(drivers, sent, strict=True):
            assert len([number_in(reply) for reply in driver.replies(ids)]) == count
        assert sorted(read) == sorted(key for driver in drivers for key in chunks_of(driver, content))
    assert len(seen.contents) == 3 * count


def test_a_layer_that_did_not_change_is_not_sent_again(backend: Backend, sent: list[str], read: list[str]) -> None:
    """Of a model of three layers of which one was trained, only that one's chunks are sent, read, and replaced."""
    seen = Seen()
    with federation(backend, seen.app, nodes=2) as nodes, driving(backend) as driver:
        ids = [node.node_id for node in nodes.nodes]
        frozen = [layer(1), layer(3)]
        first, second = (model(frozen[0], layer(seed), frozen[1]) for seed in (2, 20))
        to_all(driver, ids, first, "1")
        sent.clear()
        read.clear()
        to_all(driver, ids, second, "2")
        changed = chunks_of(driver, second) - chunks_of(driver, first)
        assert len(changed) == 5
        assert sorted(sent) == sorted(changed)
        assert sorted(read) == sorted([*changed, *changed])
        assert chunks_in(backend) == chunks_of(driver, second)
    for received in seen.contents[2:]:
        assert layers_in(received) == layers_in(second)


def test_a_node_lets_go_of_what_the_newest_message_did_not_bring(backend: Backend) -> None:
    """A node keeps of each run what its last large message brought and no more, and nothing when the run is over."""
    with federation(backend, Seen().app, nodes=1) as nodes, driving(backend) as driver:
        [node] = nodes.nodes
        with driving(backend) as other:
            sizes = []
            for group, size in (("1", 3 * LAYER), ("2", LAYER)):
                to_all(driver, [node.node_id], model(layer(size, size)), group)
                sizes.append(kept_contents(node)[driver.run.run_id])
            assert 3 * LAYER <= sizes[0] < 3 * LAYER + 200
            assert LAYER <= sizes[1] < LAYER + 200
            to_all(other, [node.node_id], model(layer(1)))
            assert kept_contents(node).keys() == {driver.run.run_id, other.run.run_id}
        to_all(driver, [node.node_id], number(1))  # whatever the node hears of runs makes it look
        eventually(lambda: kept_contents(node).keys() == {driver.run.run_id})


def test_the_memory_of_a_node_is_bounded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many runs a node keeps what the last ones brought, as far as its cache goes, and nothing that is larger."""
    monkeypatch.setattr(payloads, "CACHE", int(2.5 * LAYER))
    with federation(backend, Seen().app, nodes=1) as nodes:
        node = nodes.nodes[0]
        with driving(backend) as first, driving(backend) as second, driving(backend) as third:
            for driver in (first, second, third):
                to_all(driver, [node.node_id], model(layer(1)))
            assert list(kept_contents(node)) == [second.run.run_id, third.run.run_id]
            [reply] = to_all(first, [node.node_id], model(layer(1, 3 * LAYER)), "2")
            assert reply.has_content()
            assert list(kept_contents(node)) == [second.run.run_id, third.run.run_id]
