"""A stream whose last id is the greatest there is takes no more entries: no run hangs, whichever it is."""

import pytest

from brokerfl.broker.mend import mend
from brokerfl.broker.stream import LAST
from brokerfl.common import ErrorCode
from brokerfl.common.text import shown_node
from tests.apps import Bench, driving, echo_app, eventually, number, number_in
from tests.conftest import Backend
from tests.stage import (
    NAME,
    by_hand,
    heartbeat,
    layer,
    model,
    push,
    read_outbox,
    serving,
    sweep_soon,
    to_be_deleted,
    turns,
)


def exhaust(backend: Backend, stream: str, *, deleted: bool) -> None:
    """Put the last entry into a stream, as whoever may write it can; deleting it does not help."""
    backend.admin.xadd(stream, {"x": ""}, id=LAST, nomkstream=True)
    if deleted:
        backend.admin.xdel(stream, LAST)


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("is_read", [False, True])
def test_an_outbox_is_mended(backend: Backend, *, deleted: bool, is_read: bool) -> None:
    """The reply that was refused is added again, and those that are there stay."""
    bench = Bench()
    with by_hand(backend, bench.app, None) as node, driving(backend) as driver:
        keys = driver.connection.keys
        ids = [push(driver, node.node_id, number(1))]
        turns(node, 1, bench)
        exhaust(backend, keys.outbox(node.node_id, driver.run.run_id), deleted=deleted)
        if is_read:
            read_outbox(driver, node.node_id)
        ids += [push(driver, node.node_id, number(value)) for value in (2, 3)]
        turns(node, 3, bench)
        node.turn(0.01)
        assert sorted(map(number_in, driver.replies(ids, timeout=20))) == [1, 2, 3]


def test_an_outbox_of_another_type_is_replaced(backend: Backend) -> None:
    """A reply that it refuses is added to the new one. A run that has ended gets none."""
    bench = Bench()
    with by_hand(backend, bench.app, None) as node, driving(backend) as driver:
        outbox = driver.connection.keys.outbox(node.node_id, driver.run.run_id)
        ids = [push(driver, node.node_id, number(1))]
        backend.admin.unlink(outbox)
        backend.admin.hset(outbox, "a", "b")
        backend.admin.pexpire(outbox, 60_000)
        turns(node, 1, bench)
        assert [number_in(reply) for reply in driver.replies(ids, timeout=20)] == [1]
        assert backend.admin.type(outbox) == b"stream"
        assert not mend(driver.connection, f"{outbox}0", keep=True)
        assert not backend.admin.exists(f"{outbox}0")


@pytest.mark.parametrize("kind", ["exhausted", "hash"])
def test_the_data_stream_is_mended(backend: Backend, small_chunks: None, kind: str) -> None:
    """A large reply starts its upload again."""
    with serving(backend, echo_app()) as node, driving(backend) as driver:
        [first] = driver.replies([push(driver, node.node_id, model(layer(1)))], timeout=20)
        data = driver.connection.keys.data(node.node_id, driver.run.run_id)
        if kind == "exhausted":
            exhaust(backend, data, deleted=True)
        else:
            backend.admin.unlink(data)
            backend.admin.hset(data, "a", "b")
            backend.admin.pexpire(data, 60_000)
        [reply] = driver.replies([push(driver, node.node_id, model(layer(2)), "2")], timeout=20)
        assert first.has_content()
        assert reply.has_content(), reply


def test_an_inbox_is_an_error(backend: Backend) -> None:
    """It is the node's own, and who wrote into it may have read it as well."""
    bench = Bench()
    with by_hand(backend, bench.app, None) as node, driving(backend) as driver:
        ids = [push(driver, node.node_id, number(1))]
        exhaust(backend, driver.connection.keys.inbox(node.node_id, driver.run.run_id), deleted=False)
        ids.append(push(driver, node.node_id, number(2)))
        [reply] = driver.replies(ids[1:], timeout=20)
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
        assert f"the inbox of {shown_node(node.node_id, NAME)} does not accept messages" in (reply.error.reason or "")
        turns(node, 1, bench)
        assert [number_in(reply) for reply in driver.replies(ids[:1], timeout=20)] == [1]


@pytest.mark.with_rights
def test_a_doorbell_is_replaced(backend: Backend) -> None:
    """Until then the node does not hear of new runs."""
    bench = Bench()
    with serving(backend, bench.app) as node:
        exhaust(backend, backend.connect().keys.ctl(node.node_id), deleted=True)
        with driving(backend) as driver:
            ids = [push(driver, node.node_id, number(1))]
            heartbeat(node)
            assert [number_in(reply) for reply in driver.replies(ids, timeout=20)] == [1]


@pytest.mark.parametrize("deleted", [False, True])
def test_a_bell_costs_only_time(backend: Backend, *, deleted: bool) -> None:
    """Sweeps find the replies; the bell is mended if the entry is there."""
    bench = Bench()
    with serving(backend, bench.app) as node, driving(backend) as driver:
        bell = driver.connection.keys.bell(driver.run.run_id)
        exhaust(backend, bell, deleted=deleted)
        for value in (1, 2):
            ids = [push(driver, node.node_id, number(value))]
            assert [number_in(reply) for reply in driver.replies(ids, timeout=20)] == [value]
        if not deleted:
            assert backend.admin.xinfo_stream(bell)["last-generated-id"] != LAST.encode()


def test_a_forged_entry_hides_no_reply(backend: Backend) -> None:
    """The reader's cursor does not go behind it; it is dropped once."""
    bench = Bench()
    with by_hand(backend, bench.app, None) as node, driving(backend) as driver:
        ids = [push(driver, node.node_id, number(1))]
        outbox = driver.connection.keys.outbox(node.node_id, driver.run.run_id)
        forged = f"{2**64 - 5}-7"
        backend.admin.xadd(outbox, {"i": "0" * 32, "h": b"\x01"}, id=forged, nomkstream=True)
        for _ in range(3):
            read_outbox(driver, node.node_id)
        assert to_be_deleted(driver) == {forged}
        turns(node, 1, bench)
        assert [number_in(reply) for reply in driver.replies(ids, timeout=20)] == [1]
        ids = [push(driver, node.node_id, number(2), "2")]
        eventually(lambda: forged.encode() not in [entry for entry, _ in backend.admin.xrange(outbox)])
        turns(node, 2, bench)
        sweep_soon(driver)
        assert [number_in(reply) for reply in driver.replies(ids, timeout=20)] == [2]
