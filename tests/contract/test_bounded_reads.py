"""What is read from Redis at once, and what of it stays in memory, is bounded in bytes."""

import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest

from brokerfl.broker import outbox
from brokerfl.broker.contact import READ_ON, ring
from brokerfl.broker.inbox import Inboxes, add_message
from brokerfl.broker.outbox import FIRST_PAGE, LONG_PAGE, Outboxes, Reply
from brokerfl.client import intake
from brokerfl.server import Driver
from brokerfl.server.book import index
from tests.apps import Bench, driving, eventually, federation, number, number_in
from tests.conftest import Backend
from tests.stage import (
    Late,
    Streams,
    by_hand,
    bytes_in_hand,
    first_contact,
    held_bytes,
    kill,
    next_work,
    numbers,
    owing,
    push,
    push_numbers,
    read_ahead,
    read_anew,
    read_inbox,
    read_outbox,
    refuse_reply,
    release,
    resumed,
    silent,
    start,
    to_all,
    turns,
    warm_up,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


def answered(driver: Driver) -> None:
    """Wait until no node owes a reply."""
    eventually(lambda: (driver.pull_messages([]), not owing(driver))[-1])


# What stays in memory.


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> int:
    """So few bytes that only some replies have room."""
    monkeypatch.setattr(index, "MOST_HELD", 1000)
    return 1000


def test_replies_that_wait_for_the_app_have_a_byte_budget(backend: Backend, small_budget: int) -> None:
    """What exceeds it is read again when the app wants it; also after a resume; and the room is there again."""
    node = Late(backend)
    former = start(backend)
    ids = [push(former, node.node_id, number(0), "1") for _ in range(40)]
    with node.serving():
        answered(former)
    assert 0 < held_bytes(former) <= small_budget
    assert sorted(numbers(former, ids[:10])) == list(range(1, 11))
    kill(former)
    with resumed(backend, former) as driver:
        assert 0 < held_bytes(driver) <= small_budget
        assert [number_in(reply) for reply in driver.pull_messages(ids)] == list(range(1, 41))
        assert driver.pull_messages([]) == [], "with the next call it is certain that the app has them"
        assert held_bytes(driver) == 0
        with node.serving():
            assert [number_in(reply) for reply in to_all(driver, [node.node_id], number(0), "2")] == [41]


@pytest.mark.parametrize("repeats", [True, False])
def test_a_reply_beyond_the_budget_that_redis_lost_comes_again(
    backend: Backend, small_budget: int, repeats: bool
) -> None:
    """The node publishes it again by itself, or is asked for it: nothing is executed twice, and none is missing."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        ids = push_numbers(driver, node, *range(40))
        turns(node, 40, bench)
        streams = Streams(backend, driver, node)
        replies = [fields for _, fields in backend.admin.xrange(streams.outbox)]
        assert len(replies) == 40
        read_outbox(driver, node.node_id)
        assert 0 < held_bytes(driver) <= small_budget
        backend.admin.xtrim(streams.outbox, maxlen=0)
        if repeats:
            for fields in replies:
                backend.admin.xadd(streams.outbox, fields)
            read_anew(driver)
            read_outbox(driver, node.node_id)
            found = [number_in(reply) for _ in range(2) for reply in driver.pull_messages(ids)]
            assert sorted(found) == list(range(1, 41))
            driver.checkpoint()
            driver.settle()
            assert streams.lengths() == (0, 0, 0), "of each copy nothing stays"
        else:
            found = [number_in(reply) for reply in driver.pull_messages(ids)]
            assert len(found) < 40

            def all_are_here() -> bool:
                node.turn(0.1)
                found.extend(map(number_in, driver.pull_messages(ids)))
                return len(found) >= 40

            eventually(all_are_here)
            assert sorted(found) == list(range(1, 41))
        assert bench.executed == {driver.run.run_id: list(range(40))}


# What is read at once.


class Pages:
    """Notes how many replies of each node a read returned at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        read = Outboxes.read

        def spy(outboxes: Outboxes, nodes: Iterable[int], take: Any, settled: Any = ()) -> bool:
            def note(replies: Iterable[Reply]) -> None:
                some = list(replies)
                self.seen.append(len(some))
                take(some)

            return read(outboxes, nodes, note, settled)

        monkeypatch.setattr(Outboxes, "read", spy)


def forge(backend: Backend, driver: Driver, node: int, count: int, size: int) -> None:
    """Put entries that answer nothing into a node's outbox."""
    key = driver.connection.keys.outbox(node, driver.run.run_id)
    for _ in range(count):
        backend.admin.xadd(key, {"i": "x", "h": bytes(size)})


def test_an_outbox_is_read_in_pages(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few entries of many outboxes at once; more only of one that has more."""
    pages = Pages(monkeypatch)
    with driving(backend) as driver:
        node = silent(backend)
        push(driver, node, number(1))
        forge(backend, driver, node, 40, 100)
        read_outbox(driver, node)
        assert pages.seen == [FIRST_PAGE, 40 - FIRST_PAGE]
        forge(backend, driver, node, LONG_PAGE + FIRST_PAGE, 10)
        read_outbox(driver, node)
        assert pages.seen[2:] == [FIRST_PAGE, LONG_PAGE]


def test_large_entries_are_read_one_at_a_time(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a node that sends what brokerfl does not, whatever it announces: 40 MB never are in memory together."""
    monkeypatch.setattr(outbox, "MOST_ENTRY", 100_000)
    pages = Pages(monkeypatch)
    with driving(backend) as driver:
        node, other = silent(backend), silent(backend, "other")
        for each in (node, other):
            push(driver, each, number(1))
        forge(backend, driver, node, 40, 1_000_000)
        forge(backend, driver, other, 8, 100)
        tracemalloc.start()
        try:
            read_outbox(driver, node, other)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sum(pages.seen) == 48
        assert pages.seen.count(1) >= 40 - FIRST_PAGE
        assert peak < 4 * FIRST_PAGE * 1_000_000, "each may be there twice while it is parsed"
        forge(backend, driver, node, 3, 1_000_000)
        read_outbox(driver, node)
        assert pages.seen[-3:] == [1, 1, 1], "from now on"


def test_no_more_is_read_of_an_outbox_that_is_too_large(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small entries first, large ones behind them: the answer is cut off."""
    if not backend.is_real:
        pytest.skip("fakeredis has no sockets")
    monkeypatch.setattr(outbox, "MOST_ENTRY", 10_000)
    monkeypatch.setattr(outbox, "MOST_ANSWER", 1_000_000)
    pages = Pages(monkeypatch)
    with driving(backend) as driver:
        node = silent(backend)
        push(driver, node, number(1))
        forge(backend, driver, node, FIRST_PAGE, 10)
        forge(backend, driver, node, 20, 100_000)
        read_outbox(driver, node)
        assert pages.seen == [FIRST_PAGE, *[1] * 20]


def test_the_last_look_of_a_verdict_finds_what_is_behind_a_page(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply wins over an Error, although the node has written much before it since the sweep looked."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        [message_id] = push_numbers(driver, node, 7)
        read = Outboxes.read

        def then_write(outboxes: Outboxes, *args: Any) -> bool:
            done = read(outboxes, *args)
            monkeypatch.setattr(Outboxes, "read", read)
            forge(backend, driver, node.node_id, 2 * FIRST_PAGE, 10)
            turns(node, 1, bench)
            return done

        monkeypatch.setattr(Outboxes, "read", then_write)
        read_outbox(driver, node.node_id)
        driver.cancel_messages([message_id])
        [reply] = driver.pull_messages([message_id])
        assert number_in(reply) == 1


def test_a_round_asks_for_no_sizes(backend: Backend) -> None:
    """Only what announces much costs another question."""
    if not backend.is_real:
        pytest.skip("fakeredis has no INFO")
    with federation(backend, nodes=3) as nodes, driving(backend) as driver:
        before = backend.admin.info("commandstats")
        for turn in range(20):
            to_all(driver, [node.node_id for node in nodes.nodes], number(turn), str(turn))
        after = backend.admin.info("commandstats")
        name = "cmdstat_memory|usage"
        assert after.get(name) == before.get(name)


# What a node reads.


def test_a_node_reads_few_messages_of_many_runs_at_once(backend: Backend) -> None:
    """What one read returns does not grow with the runs, but that each gets one message."""
    node, keys = silent(backend), backend.by_hand().keys
    inboxes = Inboxes(backend.by_hand(), node)
    runs = range(10, 110)
    with backend.admin.pipeline() as pipe:
        for run_id in runs:
            first_contact(pipe, keys, node, run_id)
        pipe.execute()
    inboxes.drain()
    assert inboxes.read(20, block=0.01) == []
    assert backend.admin.xlen(keys.ctl(node)) == 0, "one look answers all rings"
    with backend.admin.pipeline() as pipe:
        for run_id in runs:
            for _ in range(20):
                add_message(pipe, keys, node, run_id, {b"i": b"m"})
            if backend.is_cluster:
                ring(pipe, keys, node, f"{READ_ON} {run_id}")
        pipe.execute()
    sizes = []
    while found := inboxes.read(20, block=0.01):
        sizes.append(len(found))
    assert sum(sizes) == 100 * 20
    assert max(sizes) <= 256


def make_runs(backend: Backend, node: int, run_ids: range) -> None:
    """Contact a node as so many runs, each with one message."""
    keys = backend.connect().keys
    with backend.admin.pipeline() as pipe:
        for run_id in run_ids:
            first_contact(pipe, keys, node, run_id)
            add_message(pipe, keys, node, run_id, {b"i": f"{run_id:032x}".encode(), b"h": bytes(300)})
        pipe.execute()


def test_workers_of_many_runs_have_a_budget(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fair to each run, but not without end: with much in hand nothing is read until some of it is done."""
    monkeypatch.setattr(intake, "MOST_IN_HAND", 500)
    with by_hand(backend, Bench().app, None, workers=2) as node:
        for runs in (range(10, 15), range(15, 20)):
            make_runs(backend, node.node_id, runs)
            for _ in range(3):
                node.turn(0.01)
            assert bytes_in_hand(node) == 5 * 332
        while bytes_in_hand(node) > 500:
            work = next_work(node)
            refuse_reply(node, work, work.entries)
            release(node, work)
        node.turn(0.01)
        assert bytes_in_hand(node) == 6 * 332


def test_a_node_that_has_much_in_hand_reads_little(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads ahead of quick messages; beyond a byte budget only of runs of which it has nothing."""
    monkeypatch.setattr(intake, "MOST_IN_HAND", 500)
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, driver, bench)
        assert read_ahead(node) > 1
        push_numbers(driver, node, *range(10))
        for delivery in read_inbox(node, 10):
            assert delivery.fields
        assert bytes_in_hand(node) > 500
        assert read_ahead(node) == 1
        turns(node, 11, bench)
        assert bytes_in_hand(node) == 0
        assert read_ahead(node) > 1
