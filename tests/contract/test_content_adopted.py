"""A message that a resumed run adopts has a whole content: its first one, or the present one if that is gone."""

import pytest

from brokerfl.common import RecordSet
from brokerfl.wire.record import encode_content
from tests.apps import number, number_in
from tests.conftest import Backend
from tests.stage import Late, chunks_in, chunks_of, kill, layer, layers_in, model, resumed, start

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_an_adopted_message_keeps_its_first_content(backend: Backend, sent: list[str]) -> None:
    """The resumed app pushes another content: the open message stays what it was, and the new one is not uploaded."""
    late = Late(backend)
    former = start(backend)
    first = model(layer(1))
    [message_id] = former.push_messages([former.create_message(first, "train", late.node_id, "1")])
    kill(former)
    sent.clear()
    with resumed(backend, former) as driver:
        again = driver.create_message(model(layer(2)), "train", late.node_id, "1")
        assert driver.push_messages([again]) == [message_id]
        assert sent == []
        with late.serving():
            assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
        assert [layers_in(content) for content in late.seen.contents] == [layers_in(first)]
        driver.checkpoint()
        assert chunks_in(backend) == set()


@pytest.mark.parametrize("seed", [1, 2], ids=["the same", "another"])
@pytest.mark.parametrize("lost", ["one chunk", "all chunks"])
def test_a_first_content_that_is_gone_is_replaced(backend: Backend, lost: str, seed: int) -> None:
    """Redis lost a chunk of the first content: the node executes the present one once, and the rest is freed."""
    late = Late(backend)
    former = start(backend)
    [message_id] = former.push_messages([former.create_message(model(layer(1)), "train", late.node_id, "1")])
    kill(former)
    backend.admin.unlink(*list(chunks_in(backend))[: 1 if lost == "one chunk" else None])
    present = model(layer(seed))
    with resumed(backend, former) as driver:
        again = driver.create_message(present, "train", late.node_id, "1")
        assert driver.push_messages([again]) == [message_id]
        assert chunks_in(backend) == chunks_of(driver, present)
        with late.serving():
            assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
        assert [layers_in(content) for content in late.seen.contents] == [layers_in(present)]
        driver.checkpoint()
        assert chunks_in(backend) == set()


@pytest.mark.parametrize(
    ("first", "present"),
    [(number(1), model(layer(2))), (model(layer(1)), number(2)), (model(layer(1)), model(layer(2)))],
    ids=["small, then large", "large, then small", "large, then large"],
)
def test_a_message_that_was_lost_is_complete_when_it_is_pushed_again(
    backend: Backend, first: RecordSet, present: RecordSet
) -> None:
    """Redis lost the inbox of an open message: what the resumed app makes the node execute is there as a whole."""
    late = Late(backend)
    former = start(backend)
    [message_id] = former.push_messages([former.create_message(first, "train", late.node_id, "1")])
    backend.admin.unlink(former.connection.keys.inbox(late.node_id, former.run.run_id))
    kill(former)
    with resumed(backend, former) as driver:
        again = driver.create_message(present, "train", late.node_id, "1")
        assert driver.push_messages([again]) == [message_id]
        with late.serving():
            [reply] = driver.replies([message_id])
            assert reply.has_content(), reply.error
        [received] = late.seen.contents
        assert encode_content(received) in (encode_content(first), encode_content(present))
        driver.checkpoint()
        assert chunks_in(backend) == set()
