"""A flood of large entries, in any stream that others may write: how much of it is in memory at once is bounded."""

import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from brokerfl.broker import fields, inbox, outbox, oversize, pending
from brokerfl.broker.keys import GROUP
from brokerfl.broker.nodes import list_nodes
from brokerfl.broker.origins import read_origins
from brokerfl.broker.process import text_of
from brokerfl.broker.runs import runs_of
from brokerfl.broker.sockets import Command, Sockets
from brokerfl.broker.stream import LAST
from brokerfl.client.node import Node
from brokerfl.common import ConfigsRecord, RecordSet
from brokerfl.server import Driver, diary
from brokerfl.wire.frame import size_of
from tests.apps import Bench, driving, number
from tests.conftest import Backend
from tests.stage import (
    Streams,
    by_hand,
    compare,
    drain,
    heartbeat,
    numbers,
    push,
    push_numbers,
    read_inbox,
    read_outbox,
    silent,
    turns,
    warm_up,
)

#: fakeredis has no sockets.
WITHOUT = ("fakeredis", "redis-tls")

#: Bytes of an entry that brokerfl does not write, of what is read at once, and of what it takes in memory meanwhile.
LARGE, MOST, PEAK = 3_000_000, 1_000_000, 4_000_000


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a flood is quickly made."""
    for module in (inbox, outbox):
        monkeypatch.setattr(module, "MOST_ANSWER", MOST)
    for module in (outbox, oversize):
        monkeypatch.setattr(module, "MOST_ENTRY", 100_000)


@contextmanager
def at_most(size: int = PEAK) -> Iterator[None]:
    """No more bytes of memory are taken at any moment of the block."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= size


def flood(backend: Backend, stream: str, count: int = 10) -> None:
    """Put entries into a stream that say they are anything, and are large."""
    for _ in range(count):
        assert backend.admin.xadd(stream, {"n": "x", "i": "0" * 32, "r": bytes(LARGE)}, nomkstream=True)


# What a node writes.


@pytest.mark.parametrize("last", ["*", LAST])
def test_a_flooded_bell_is_replaced_unread(backend: Backend, last: str) -> None:
    """All outboxes are looked at instead; afterwards it rings again."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        bell = driver.connection.keys.bell(driver.run.run_id)
        ids = push_numbers(driver, node, 1)
        turns(node, 1, bench)
        flood(backend, bell)
        backend.admin.xadd(bell, {"n": bytes(LARGE)}, id=last)
        with at_most(MOST):
            assert numbers(driver, ids) == [1]
        assert backend.admin.xlen(bell) == 0
        ids = push_numbers(driver, node, 2)
        turns(node, 2, bench)
        assert backend.admin.xlen(bell) == 1
        flood(backend, bell)
        with at_most(MOST):
            read_outbox(driver, node.node_id)  # which looks for rings, too
        assert numbers(driver, ids) == [2]


def test_a_flooded_outbox_is_not_read(backend: Backend) -> None:
    """Neither is more of many nodes at once; a reply behind it arrives, and what is not read is deleted."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        others = [silent(backend, str(name)) for name in range(7)]
        for other in others:
            push(driver, other, number(0))
            flood(backend, driver.connection.keys.outbox(other, driver.run.run_id), 1)
        ids = push_numbers(driver, node, 1)
        streams = Streams(backend, driver, node)
        flood(backend, streams.outbox)
        turns(node, 1, bench)
        losses = driver.connection.losses
        with at_most():
            read_outbox(driver, *others, node.node_id)
        assert numbers(driver, ids) == [1]
        assert driver.connection.losses == losses, "that it hung up is no outage"
        driver.checkpoint()
        driver.settle()
        assert streams.lengths() == (0, 0, 0)


def test_a_verdict_reads_no_flood(backend: Backend) -> None:
    """Its last look is as careful as any other."""
    with driving(backend) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(0))
        flood(backend, driver.connection.keys.outbox(node, driver.run.run_id))
        with at_most():
            driver.cancel_messages([message_id])
        [reply] = driver.pull_messages([message_id])
        assert reply.has_error()


def test_a_comparison_reads_no_flood(backend: Backend) -> None:
    """A node may write its inbox, which its ServerApp reads after an outage: what is not read there is removed."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        streams = Streams(backend, driver, node)
        ids = push_numbers(driver, node, 1)
        flood(backend, streams.inbox)
        ids += push_numbers(driver, node, 2)
        with at_most():
            compare(driver)
        assert streams.lengths() == (2, 0, 0)
        turns(node, 2, bench)
        assert numbers(driver, ids) == [1, 2]


def test_a_field_that_grows_while_it_is_read_is_not_read(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length was asked first, but a node may write it again: the list of nodes and a push look at it."""
    with driving(backend) as driver:
        node = silent(backend)
        info = driver.connection.keys.node_info(node)
        stream, grown = Sockets.stream, f"{info}:grown"
        backend.admin.hset(grown, mapping={"name": "silent", "app": bytes(LARGE)})
        backend.admin.pexpire(grown, 60_000)

        def grow(sockets: Sockets, commands: Sequence[Command], most: Sequence[int] = ()) -> Iterator[Any]:
            if commands[0][0] == "HMGET":
                backend.admin.copy(grown, info, replace=True)  # what this process packs would count
            return stream(sockets, commands, most)

        monkeypatch.setattr(Sockets, "stream", grow)
        for look in (lambda: list_nodes(driver.connection), lambda: list(read_origins(driver.connection, [node]))):
            backend.admin.hset(info, "app", '["mine"]')
            with at_most(MOST):
                found = look()
        assert found == []
        [info_of_node] = list_nodes(driver.connection)
        assert (info_of_node.name, info_of_node.origin) == ("silent", None)
        backend.admin.delete(grown)


# What a ServerApp writes.


def test_a_flooded_inbox_is_not_read(backend: Backend) -> None:
    """It is removed; a message behind it is executed."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, driver, bench)
        streams = Streams(backend, driver, node)
        flood(backend, streams.inbox)
        ids = push_numbers(driver, node, 7)
        with at_most():
            turns(node, 2, bench)
        assert numbers(driver, ids) == [2]
        assert streams.lengths()[0] == 0
        assert backend.admin.xpending(streams.inbox, GROUP)["pending"] == 0


def push_large(driver: Driver, node: int, count: int) -> list[str]:
    """Push messages as large as brokerfl writes them into an inbox, with the numbers from 1."""
    contents = [RecordSet(metrics_records=number(turn).metrics_records) for turn in range(1, count + 1)]
    for content in contents:
        content.configs_records["c"] = ConfigsRecord({"padding": bytes(60_000)})
    return driver.push_messages([driver.create_message(content, "train", node, "large") for content in contents])


def sizes_of_reads(node: Node) -> list[int]:
    """Let a node read until there is nothing more; return how many bytes each read had."""
    sizes = []
    while found := read_inbox(node, 64):
        sizes.append(sum(size_of(delivery.fields) for delivery in found))
    return sizes


def test_many_messages_are_read_in_parts(backend: Backend) -> None:
    """What together is too large comes in several reads; each message is executed once, in order."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, driver, bench)
        ids = push_large(driver, node.node_id, 40)
        with at_most():
            sizes = sizes_of_reads(node)
        assert len(sizes) >= 3
        assert max(sizes) < MOST + 100_000
        turns(node, 41, bench)
        assert bench.executed == {driver.run.run_id: [0, *range(1, 41)]}
        assert len(numbers(driver, ids)) == 40
        assert Streams(backend, driver, node).lengths()[0] == 0


def test_what_a_former_process_read_is_read_in_parts(backend: Backend) -> None:
    """It may have been any number of runs, and of any size."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, driver, bench)
        streams = Streams(backend, driver, node)
        flood(backend, streams.inbox)
        ids = push_large(driver, node.node_id, 40)
        backend.admin.xreadgroup(GROUP, str(node.node_id), {streams.inbox: ">"})
        with at_most():
            drain(node)
            sizes_of_reads(node)
        turns(node, 41, bench)
        assert bench.executed == {driver.run.run_id: [0, *range(1, 41)]}
        assert len(numbers(driver, ids)) == 40
        assert streams.lengths()[0] == 0


def test_a_ring_leaves_alone_what_is_read_in_parts(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run is left out of which there is more, another comes that is read in parts, too: each comes once."""
    found, read = list[inbox.Delivery](), list[str]()
    read_pending = inbox.read_pending

    def noted(*asked: Any) -> Iterator[tuple[str, dict[bytes, bytes]]]:
        for entry_id, content in read_pending(*asked):
            read.append(entry_id)
            yield entry_id, content

    monkeypatch.setattr(inbox, "read_pending", noted)
    with driving(backend) as driver, driving(backend) as other:
        node, run_id = silent(backend), driver.run.run_id
        push_large(driver, node, 40)
        backend.admin.xreadgroup(GROUP, str(node), {driver.connection.keys.inbox(node, run_id): ">"})
        inboxes = inbox.Inboxes(
            backend.connect(),
            node,
            in_hand=lambda: {run_id: [each.entry_id for each in found if each.run_id == run_id]},
        )
        found += inboxes.drain()
        assert len(found) < 40
        push_large(other, node, 40)
        while {each.run_id for each in found} == {run_id}:
            found += inboxes.read(40, 1.0, without={run_id})
        assert len(found) < 80
        while more := inboxes.read(40, 0.01):
            found += more
    assert len({(each.run_id, each.entry_id) for each in found}) == len(found) == 80
    assert len(set(read)) == len(read) == 80


def test_the_name_of_another_consumer_is_not_read(backend: Backend) -> None:
    """Whoever may write an inbox can give an entry to one with a long name; it is not this node's any more."""
    with driving(backend) as driver:
        node, run_id = silent(backend), driver.run.run_id
        for value in (1, 2):
            push(driver, node, number(value))
        key = driver.connection.keys.inbox(node, run_id)
        [[_, [(first, _), (second, _)]]] = backend.admin.xreadgroup(GROUP, str(node), {key: ">"})
        backend.admin.xclaim(key, GROUP, bytes(LARGE), min_idle_time=0, message_ids=[first])
        with at_most(MOST):
            assert pending.pending_entries(driver.connection, node, run_id) == {text_of(second)}
            assert not pending.is_wanted(driver.connection, node, run_id, [text_of(first)])
            assert pending.with_others(driver.connection, node, {key: {text_of(second)}}) == set()


def test_a_flooded_doorbell_is_emptied_unread(backend: Backend) -> None:
    """Its ring is heard all the same: a new run is found. The heartbeat, which looks at it, reads nothing either."""
    bench = Bench()
    with driving(backend) as known, driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, known, bench)
        ctl = driver.connection.keys.ctl(node.node_id)
        flood(backend, ctl)
        ids = push_numbers(driver, node, 1)
        with at_most():
            for _ in range(3):  # long before a heartbeat replaces it
                node.turn(0.1)
        assert bench.executed[driver.run.run_id] == [1]
        assert numbers(driver, ids) == [1]
        assert backend.admin.xlen(ctl) == 0
        flood(backend, ctl, 1)
        with at_most(MOST):
            heartbeat(node)
        assert backend.admin.memory_usage(ctl) < LARGE


def test_a_flood_of_frames_is_not_read(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a node knows of its runs is bounded, too; those of others are still served."""
    monkeypatch.setattr(fields, "_MOST_WHOLE", MOST)
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        ids = push_numbers(driver, node, 1)
        runs = driver.connection.keys.node_runs(node.node_id)
        backend.admin.hset(runs, mapping={str(run_id): bytes(LARGE) for run_id in range(100, 110)})
        with at_most():
            assert set(runs_of(driver.connection, node.node_id)) == {driver.run.run_id}
            turns(node, 1, bench)
        assert numbers(driver, ids) == [1]


# What is normal.


def test_normal_traffic_costs_no_command_more(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages and replies are read as if nobody were hostile."""
    monkeypatch.setattr(diary, "_PAUSE", 0.0)
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, driver, bench)
        backend.admin.config_resetstat()
        for turn in range(1, 21):
            ids = push_numbers(driver, node, turn)
            turns(node, turn + 1, bench)
            assert numbers(driver, ids) == [turn + 1]
        stats = backend.admin.info("commandstats")
        calls = {name: stats[f"cmdstat_{name}"]["calls"] for name in ("xread", "xreadgroup", "xadd", "xdel", "exec")}
        rings = 20 if backend.is_cluster else 0  # each is written, read with the doorbell alone, and deleted
        events = 20  # of the commits, in their transactions
        more = {"xreadgroup": 20 + rings, "xadd": 60 + events + rings, "xdel": 20 + rings}
        assert calls == {"xread": 60, **more, "exec": 40}
        rare = {"xrange", "xtrim", "memory|usage", "xlen", "xinfo|stream", "hstrlen"}
        assert not [name for name in rare if f"cmdstat_{name}" in stats]
