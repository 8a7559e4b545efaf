"""A chunk belongs to the ServerApp that uploaded it: what a former one deletes late, nobody needs.

On a Cluster a chunk is on another server than the owner key, so its deletion cannot be fenced.
"""

import pytest

from brokerfl.broker.ending import stop_run
from brokerfl.server import Driver
from brokerfl.wire.frame import MANIFEST
from brokerfl.wire.manifest import decode_manifest
from tests.apps import Seen, federation, number_in
from tests.conftest import Backend
from tests.stage import (
    Late,
    chunks_in,
    chunks_of,
    fields_of,
    kill,
    layer,
    layers_in,
    model,
    push,
    remove_chunks,
    resumed,
    silent,
    start,
    to_all,
    uploader_of,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


def uploader(driver: Driver, message_id: str) -> int:
    """Whose chunks a message needs."""
    return decode_manifest(fields_of(driver, message_id)[MANIFEST]).uploader


def test_new_messages_use_only_chunks_of_their_own_server_app(backend: Backend, sent: list[str]) -> None:
    """One that a resumed app adopts goes on using the former one's, as long as Redis has them."""
    late, other, content = Late(backend), silent(backend, "other"), model(layer(1))
    former = start(backend)
    first = push(former, late.node_id, content)
    kill(former)
    sent.clear()
    with resumed(backend, former) as driver:
        assert uploader_of(driver) == uploader_of(former) + 1
        ids = driver.push_messages([driver.create_message(content, "train", n, "1") for n in (late.node_id, other)])
        assert ids[0] == first, "adopted"
        assert [uploader(driver, each) for each in ids] == [uploader_of(former), uploader_of(driver)]
        assert sorted(sent) == sorted(chunks_of(driver, content))
        assert chunks_in(backend) == chunks_of(driver, content) | chunks_of(former, content)
        with late.serving():
            assert [number_in(reply) for reply in driver.replies(ids[:1])] == [1]
        assert [layers_in(each) for each in late.seen.contents] == [layers_in(content)]
        driver.checkpoint()
        assert chunks_in(backend) == chunks_of(driver, content), "nobody needs those of the former one any more"
    assert chunks_in(backend) == set()


def test_a_late_deletion_of_a_former_server_app_harms_nobody(backend: Backend, deleted: list[str]) -> None:
    """Messages, adopted or new, and the state are whole, although a frozen process wakes and deletes what it freed."""
    late = Late(backend)
    freed, open_still = model(layer(1), layer(2)), model(layer(1), layer(3))
    with federation(backend, nodes=1) as nodes:
        former = start(backend)
        first = push(former, late.node_id, open_still)
        to_all(former, [nodes.nodes[0].node_id], freed)
        former.checkpoint()
        kill(former)
    assert deleted
    assert set(deleted) == chunks_of(former, freed) - chunks_of(former, open_still)
    by_hand = list(deleted)
    second = Driver(backend.connect(), "", None, resume=former.run.run_id, takeover=True)
    adopted, new = push(second, late.node_id, open_still), push(second, late.node_id, freed, "2")
    assert adopted == first
    second.context.state.parameters_records["p"] = freed.parameters_records["p"]
    second.checkpoint()
    backend.admin.unlink(*by_hand)
    with late.serving():
        assert len(list(second.replies([adopted, new]))) == 2
    assert [layers_in(each) for each in late.seen.contents] == [layers_in(open_still), layers_in(freed)]
    kill(second)
    with resumed(backend, second) as third:
        backend.admin.unlink(*by_hand)
        assert layers_in(third.context.state) == layers_in(freed)
    assert chunks_in(backend) == set()


def test_a_state_that_did_not_change_stays_where_it_is(backend: Backend, sent: list[str]) -> None:
    """A resumed app does not write it again; its chunks are needed until it changes, and are deleted then."""
    former = start(backend)
    former.context.state.parameters_records["p"] = model(layer(1)).parameters_records["p"]
    former.checkpoint()
    theirs = chunks_in(backend)
    kill(former)
    sent.clear()
    with resumed(backend, former) as driver:
        late = Late(backend)
        push(driver, late.node_id, model(layer(2)))
        driver.checkpoint()
        assert chunks_in(backend) == theirs | chunks_of(driver, model(layer(2)))
        assert sorted(sent) == sorted(chunks_of(driver, model(layer(2))))
        driver.context.state.parameters_records["p"]["1"] = model(layer(3)).parameters_records["p"]["0"]
        driver.checkpoint()
        assert chunks_in(backend) == chunks_of(driver, model(layer(2)), model(layer(1), layer(3)))


def test_a_stop_deletes_the_chunks_of_all_uploaders(backend: Backend) -> None:
    """Whoever deletes a run finds what each of its ServerApps uploaded."""
    node = silent(backend)
    former = start(backend)
    push(former, node, model(layer(1)))
    kill(former)
    driver = Driver(backend.connect(), "", None, resume=former.run.run_id, takeover=True)
    push(driver, node, model(layer(2)), "2")
    assert chunks_in(backend) == chunks_of(former, model(layer(1))) | chunks_of(driver, model(layer(2)))
    driver.detach()
    stop_run(backend.connect(), driver.run.run_id)
    assert chunks_in(backend) == set()


def test_a_node_does_not_fetch_the_same_model_from_another_uploader(backend: Backend, read: list[str]) -> None:
    """A node keeps what it received by what it is: after a takeover it has the model still."""
    seen, content = Seen(), model(layer(1), layer(2))
    with federation(backend, seen.app, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        to_all(former, [node], content)
        kill(former)
        assert set(read) == chunks_of(former, content)
        read.clear()
        with resumed(backend, former) as driver:
            [reply] = to_all(driver, [node], content, "2")
            assert number_in(reply) == 2
        assert read == []
    assert [layers_in(each) for each in seen.contents] == [layers_in(content)] * 2


def test_an_answered_message_can_be_sent_again(backend: Backend) -> None:
    """Its large reply may turn out to be missing, so a resumed app that pushes it again has its content in Redis."""
    content = model(layer(1))
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        first = push(former, node, content)
        next(iter(former.replies([first], timeout=20)))
        kill(former)
        remove_chunks(backend)
        with resumed(backend, former) as driver:
            assert push(driver, node, content) == first
            assert uploader(driver, first) == uploader_of(driver)
            assert chunks_in(backend) == chunks_of(driver, content)
            [reply] = driver.replies([first])
            assert layers_in(reply.content) == layers_in(content)
            driver.checkpoint()
            assert chunks_in(backend) == set()
