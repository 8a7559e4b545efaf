"""Content that Redis acknowledged and forgot is written again from memory, or else uploaded again by the next push."""

import pytest

from tests.apps import driving, federation, number_in
from tests.conftest import Backend, check_keys
from tests.stage import (
    CHUNK,
    Late,
    chunks_in,
    chunks_of,
    cut,
    forget_received,
    held_chunks,
    layer,
    layers_in,
    let_go,
    model,
    remove_chunks,
    silent,
    to_all,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("lost", ["chunks", "chunks and message", "everything of the run"])
def test_chunks_that_redis_forgot_are_written_again(backend: Backend, lost: str) -> None:
    """After a lost connection, what was uploaded just before is written again from memory, and the node executes it."""
    late = Late(backend)
    content = model(layer(1, 40 * CHUNK))
    with driving(backend) as driver:
        driver.connection.persists = True
        keys, run = driver.connection.keys, driver.run.run_id
        ids = driver.push_messages([driver.create_message(content, "train", late.node_id, "1")])
        remove_chunks(backend)
        if lost != "chunks":
            backend.admin.unlink(keys.inbox(late.node_id, run))
        if lost == "everything of the run":
            backend.admin.unlink(*keys.of_run(run))
        cut(driver)
        assert list(driver.replies(ids, timeout=0.1)) == []
        assert chunks_in(backend) == chunks_of(driver, content)
        check_keys(backend.admin)
        with late.serving():
            assert [number_in(reply) for reply in driver.replies(ids)] == [1]
        assert layers_in(late.seen.contents[0]) == layers_in(content)
        driver.checkpoint()
        assert chunks_in(backend) == set()


def test_a_content_that_redis_forgot_is_uploaded_by_the_next_push(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that are not held any more and are gone after a lost connection are sent again with the same content."""
    monkeypatch.setattr("brokerfl.broker.blobs.KEEP_UPLOADED", 0.0)
    content = model(layer(1))
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        to_all(driver, [node], content)
        let_go(driver)
        assert not held_chunks(driver)
        remove_chunks(backend)
        forget_received(nodes.nodes[0])
        cut(driver)
        [reply] = to_all(driver, [node], content)
        assert layers_in(reply.content) == layers_in(content)


def test_deletions_that_redis_forgot_are_made_again(backend: Backend) -> None:
    """Redis comes back with a content that a commit had freed: the comparison deletes it again."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        keys, run = driver.connection.keys, driver.run.run_id
        first, second = model(layer(1)), model(layer(2))
        to_all(driver, [node], first)
        manifests = backend.admin.hgetall(keys.blobs(run))
        former = {key: backend.admin.get(key) for key in chunks_in(backend)}
        to_all(driver, [node], second, "2")
        for key, data in former.items():
            backend.admin.set(key, data, px=60_000)
        backend.admin.hset(keys.blobs(run), mapping=manifests)
        cut(driver)
        driver.pull_messages([])
        assert chunks_in(backend) == chunks_of(driver, second)


def test_without_persistence_nothing_is_held(backend: Backend) -> None:
    """Of a Redis without an append-only file nothing survives, so that no memory is spent on what it might forget."""
    node = silent(backend)
    for persists in (True, False):
        with driving(backend) as driver:
            driver.connection.persists = persists
            driver.push_messages([driver.create_message(model(layer(1)), "train", node, "1")])
            assert bool(held_chunks(driver)) == persists


def test_the_servers_persistence_is_seen(backend: Backend) -> None:
    """A connection knows from the server whether it keeps an append-only file."""
    if not backend.is_real:
        pytest.skip("fakeredis has no INFO")
    assert backend.connect().persists == backend.is_found, "a replica forgets only the last writes"
    backend.admin.config_set("appendonly", "yes")
    try:
        assert backend.connect().persists
    finally:
        backend.admin.config_set("appendonly", "no")
