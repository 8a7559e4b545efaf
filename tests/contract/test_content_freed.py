"""Chunks stay as long as a message or a state needs them, and no longer: also over a resume."""

import pytest

from brokerfl.broker import blobs
from brokerfl.broker.ending import stop_run
from brokerfl.broker.nodes import Registration
from brokerfl.common import Array, MetricsRecord, ParametersRecord
from brokerfl.server import Driver
from tests.apps import Seen, driving, federation, number, number_in
from tests.conftest import Backend, check_keys, keys_of
from tests.stage import (
    Late,
    after_uploads,
    chunks_in,
    chunks_of,
    kill,
    layer,
    layers_in,
    model,
    renew_lifetimes,
    resumed,
    silent,
    start,
    to_all,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_the_run_moves_on_and_only_the_new_content_stays(backend: Backend, sent: list[str]) -> None:
    """A content is freed when the last message that needs it is settled, kept when the next group has it again."""
    with federation(backend, nodes=2) as nodes, driving(backend) as driver:
        ids = [node.node_id for node in nodes.nodes]
        first, second = model(layer(1)), model(layer(2))
        for group, content in (("1", first), ("2", second), ("3", second), ("4", second), ("5", first)):
            before = chunks_in(backend)
            sent.clear()
            to_all(driver, ids, content, group)
            assert chunks_in(backend) == chunks_of(driver, content)
            assert sorted(sent) == sorted(chunks_of(driver, content) - before)
        to_all(driver, ids, number(1), "6")
        assert chunks_in(backend) == set()


def test_what_one_node_still_needs_stays(backend: Backend) -> None:
    """While one message of a broadcast is open its chunks stay, whatever the others and the run do."""
    late = Late(backend)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        content = model(layer(1), layer(2))
        ids = driver.push_messages([driver.create_message(content, "train", n, "1") for n in (node, late.node_id)])
        assert len(list(driver.replies(ids[:1]))) == 1
        # Half of it is in the next content too.
        to_all(driver, [node], model(layer(1), layer(3)), "2")
        to_all(driver, [node], number(1), "3")
        assert chunks_in(backend) == chunks_of(driver, content)
        with late.serving():
            assert [number_in(reply) for reply in driver.replies(ids)] == [1]
            assert layers_in(late.seen.contents[0]) == layers_in(content)
            driver.checkpoint()
            assert chunks_in(backend) == set()


@pytest.mark.parametrize("how", ["cancelled", "expired", "unavailable"])
def test_a_message_that_ends_as_an_error_frees_too(backend: Backend, how: str) -> None:
    """A broadcast whose messages are cancelled, expire or lose their node leaves no chunk after the next commit."""
    registration = Registration(backend.connect(), "" if how == "unavailable" else "quiet", lease=0.3)
    registration.register()
    with driving(backend) as driver:
        ttl = 0.2 if how == "expired" else None
        ids = driver.push_messages(
            [driver.create_message(model(layer(1)), "train", registration.node_id, "1", ttl) for _ in range(2)]
        )
        assert chunks_in(backend)
        if how == "cancelled":
            driver.cancel_messages(ids)
        assert [reply.has_error() for reply in driver.replies(ids)] == [True, True]
        assert chunks_in(backend)
        driver.checkpoint()
        assert chunks_in(backend) == set()


def test_the_end_leaves_nothing_and_all_has_a_lifetime(backend: Backend) -> None:
    """All keys of a run expire by themselves, are renewed as long as it is attached, and go when it ends."""
    node = silent(backend)
    driver = Driver(backend.connect(), "server:app", retention=1000.0)
    driver.context.state.parameters_records["p"] = ParametersRecord({"w": Array(layer(2))})
    driver.push_messages([driver.create_message(model(layer(1)), "train", node, "1")])
    check_keys(backend.admin)
    for key in chunks_in(backend):
        assert backend.admin.pttl(key) > 900_000
        backend.admin.pexpire(key, 5000)
    renew_lifetimes(driver)
    assert all(backend.admin.pttl(key) > 900_000 for key in chunks_in(backend))
    driver.end()
    assert not keys_of(backend.admin, driver.run.run_id)


def test_a_stopped_run_leaves_nothing(backend: Backend) -> None:
    """`brokerfl stop` of a run without a ServerApp deletes the chunks of its broadcast, its state and its replies."""
    with federation(backend, nodes=1) as nodes:
        former = start(backend)
        former.context.state.parameters_records["p"] = ParametersRecord({"w": Array(layer(2))})
        to_all(former, [nodes.nodes[0].node_id], model(layer(1)))
        assert len(chunks_in(backend)) > 6
        former.detach()
        stop_run(backend.connect(), former.run.run_id)
        assert not keys_of(backend.admin, former.run.run_id)


# After a resume.


def test_counts_are_rebuilt_from_the_books(backend: Backend) -> None:
    """After a resume nothing is freed while a node has yet to fetch it, and nothing is left when all are settled."""
    late = Late(backend)
    content, other, following = model(layer(1), layer(2)), model(layer(1), layer(3)), model(layer(1), layer(4))
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        pushed = [(content, node), (other, node), (content, late.node_id)]
        former.push_messages([former.create_message(what, "train", n, "1") for what, n in pushed])
        kill(former)
        with resumed(backend, former) as driver:
            ids = driver.push_messages([driver.create_message(what, "train", n, "1") for what, n in pushed])
            replies = [layers_in(reply.content) for reply in driver.replies(ids[:2])]
            assert sorted(replies) == sorted([layers_in(content), layers_in(other)])
            to_all(driver, [node], following, "2")
            assert chunks_in(backend) == chunks_of(former, content) | chunks_of(driver, following)
            with late.serving():
                assert [number_in(reply) for reply in driver.replies(ids)] == [1]
            assert layers_in(late.seen.contents[0]) == layers_in(content)
            driver.checkpoint()
            assert chunks_in(backend) == set()


def test_what_nobody_adopts_is_freed_with_its_message(backend: Backend) -> None:
    """An orphan's chunks go when it is cancelled, and not before."""
    unread = silent(backend)
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        former.push_messages([former.create_message(model(layer(1)), "train", unread, "1")])
        kill(former)
        with resumed(backend, former) as driver:
            to_all(driver, [node], number(1), "1")
            driver.checkpoint()
            assert chunks_in(backend) == chunks_of(former, model(layer(1)))
            for group in ("2", "3"):
                to_all(driver, [node], number(1), group)
            assert chunks_in(backend) == set()


def test_what_a_push_is_uploading_is_not_freed_by_a_settle(
    backend: Backend, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing needs a content yet that is on its way: all the same, its chunks are sent once."""
    with federation(backend, Seen().app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        [reply] = to_all(driver, [node], number(1))
        after_uploads(driver, monkeypatch, lambda: driver.settle(reply))
        to_all(driver, [node], model(layer(1)))
        assert len(sent) == len(set(sent)) > 1


def test_a_chunk_whose_deletion_was_forgotten_goes_with_the_run(backend: Backend) -> None:
    """Its server failed over behind a proxy: nobody was told, so the end of the run deletes it once more."""
    with federation(backend, nodes=1) as nodes:
        driver = start(backend)
        node = nodes.nodes[0].node_id
        to_all(driver, [node], model(layer(1)), "1")
        kept = {key: backend.admin.get(key) for key in keys_of(backend.admin, driver.run.run_id) if ":blob:" in key}
        to_all(driver, [node], number(1), "2")
        assert kept
        assert not backend.admin.exists(*kept)
        for key, chunk in kept.items():
            backend.admin.set(key, chunk or b"", ex=600)
        driver.end()
        assert keys_of(backend.admin, driver.run.run_id) == []


def test_manifests_leave_some_seconds_after_their_chunks(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that forgets the deletion of chunks still says which they are; a content that comes back is uploaded."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node, manifests = nodes.nodes[0].node_id, driver.connection.keys.blobs(driver.run.run_id)
        to_all(driver, [node], model(layer(1)), "1")
        to_all(driver, [node], model(layer(2)), "2")
        assert backend.admin.hlen(manifests) == 2
        to_all(driver, [node], model(layer(1)), "3")
        assert chunks_in(backend) == chunks_of(driver, model(layer(1)))
        monkeypatch.setattr(blobs, "_KEEP_MANIFEST", 0.0)
        driver.checkpoint()
        driver.context.state.metrics_records["m"] = MetricsRecord({"n": 1})
        driver.checkpoint()
        assert backend.admin.hlen(manifests) <= 1
