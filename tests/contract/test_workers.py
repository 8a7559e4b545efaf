"""A node with several workers: each run has one writer; and what shares a transaction of the journal."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from brokerfl.broker import inbox, pending
from brokerfl.broker.keys import GROUP
from brokerfl.client import ClientApp, executor, publisher
from brokerfl.client import wanted as wanted_module
from brokerfl.client.node import Node
from brokerfl.common import (
    Array,
    Context,
    ErrorCode,
    Message,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
    RedisUnreachable,
)
from brokerfl.server import Driver
from brokerfl.wire.record import decode_content
from tests.apps import Bench, driving, eventually, number, number_in
from tests.conftest import Backend
from tests.stage import (
    MOST_READ,
    QUESTIONS,
    answered_runs,
    begins_nothing,
    by_hand,
    commits,
    cut_node,
    drop_finished,
    identity,
    is_wanted,
    kill,
    last_in_hand,
    note_finished,
    numbers,
    publish_in_flight,
    push_numbers,
    read_inbox,
    saved_state,
    served_runs,
    serving,
    turns,
    waiting_runs,
    warm_up,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

NAME = "berlin"


def state_of(node: Node, driver: Driver) -> int:
    """How many messages of the run the journal's state has counted."""
    fields = saved_state(node, driver.run.run_id)
    count = 0 if fields is None else decode_content(fields).metrics_records["m"]["n"]
    assert isinstance(count, int)
    return count


# Runs side by side.


def test_a_slow_message_does_not_hold_up_another_run(backend: Backend) -> None:
    """While a message of one run is executed, one round after the other of a second run is served."""
    bench = Bench()
    with serving(backend, bench.app, workers=2) as node, driving(backend) as slow, driving(backend) as quick:
        go = bench.hold(slow)
        waiting = push_numbers(slow, node, 1)
        assert bench.begun.acquire(timeout=10)
        for turn in range(5):
            assert numbers(quick, push_numbers(quick, node, turn)) == [turn + 1]
        assert list(slow.replies(waiting, timeout=0.05)) == []
        go.set()
        assert numbers(slow, waiting) == [1]


def test_a_run_has_one_worker(backend: Backend, tmp_path: Path) -> None:
    """Two runs are executed at once, each message beside one of the other run, but never two of one; each in its order.

    There is a third worker, which could take a second message of a run. The states have counted each message once,
    also for the next process.
    """
    bench = Bench()
    bench.barrier = threading.Barrier(2)
    with driving(backend) as one, driving(backend) as two:
        with serving(backend, bench.app, tmp_path, workers=3) as node:
            sent = {driver: push_numbers(driver, node, *range(12)) for driver in (one, two)}
            for driver, ids in sent.items():
                assert sorted(numbers(driver, ids)) == list(range(1, 13))
        assert bench.most == 1
        assert bench.executed == {driver.run.run_id: list(range(12)) for driver in (one, two)}
        bench.barrier = None
        with serving(backend, bench.app, tmp_path, workers=3) as node:
            assert [numbers(driver, push_numbers(driver, node, 0)) for driver in (one, two)] == [[13], [13]]


def test_the_run_that_waited_longest_is_next(backend: Backend) -> None:
    """With two workers and four runs, a worker that is free takes the run that has waited longest, not its last one."""
    bench = Bench()
    with serving(backend, bench.app, workers=2) as node, ExitStack() as runs:
        one, two, three, four = (runs.enter_context(driving(backend)) for _ in range(4))
        go = {driver: bench.hold(driver) for driver in (one, two, three, four)}
        sent = {}
        for driver in (one, two):
            sent[driver] = push_numbers(driver, node, 1, 2)
            assert bench.begun.acquire(timeout=10)
        for driver in (three, four):
            sent[driver] = push_numbers(driver, node, 1)
            eventually(lambda d=driver: d.run.run_id in waiting_runs(node))
        go[one].set()
        assert bench.begun.acquire(timeout=10)
        assert list(bench.executed) == [driver.run.run_id for driver in (one, two, three)]
        assert bench.executed[one.run.run_id] == [1]
        for event in go.values():
            event.set()
        assert {driver: sorted(numbers(driver, ids)) for driver, ids in sent.items()} == {
            one: [1, 2], two: [1, 2], three: [1], four: [1],
        }  # fmt: skip


def test_a_busy_run_is_read_ahead_within_bounds(backend: Backend) -> None:
    """A node that reads for others does not take the whole inbox of a slow run, and then reads on without waiting."""
    bench = Bench()
    with serving(backend, bench.app, workers=2) as node, driving(backend) as slow, driving(backend) as quick:
        go = bench.hold(slow)
        ids = push_numbers(slow, node, *range(200))
        assert bench.begun.acquire(timeout=10)
        inbox = slow.connection.keys.inbox(node.node_id, slow.run.run_id)
        for turn in range(5):
            assert numbers(quick, push_numbers(quick, node, turn)) == [turn + 1]
        assert backend.admin.xpending(inbox, GROUP)["pending"] <= 1 + MOST_READ
        go.set()
        assert sorted(numbers(slow, ids, timeout=10.0)) == list(range(1, 201)), (
            "the loop's blocking read was waited for"
        )


def test_contents_in_hand_are_read_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that makes room wakes the read for what is new; only the first contact of a run looks at what is old."""
    entries = 0
    ask, read = inbox.Inboxes.pending, inbox.Inboxes.read

    def count(method: Callable[..., list[inbox.Delivery]]) -> Callable[..., list[inbox.Delivery]]:
        def counted(*args: object) -> list[inbox.Delivery]:
            nonlocal entries
            found = method(*args)
            entries += len(found)
            return found

        return counted

    bench, few, many = Bench(), 250, 2_000
    costs = []
    monkeypatch.setattr(inbox.Inboxes, "pending", count(ask))
    monkeypatch.setattr(inbox.Inboxes, "read", count(read))  # before a read begins that would not be counted
    with serving(backend, bench.app, workers=2) as node, driving(backend) as slow, driving(backend) as quick:
        for driver in (slow, quick):
            assert numbers(driver, push_numbers(driver, node, 0)) == [1]
        go = bench.hold(slow)
        ids = push_numbers(slow, node, *range(200))
        for total in (few, many):
            before = entries
            assert len(numbers(quick, push_numbers(quick, node, *range(total)), timeout=60.0)) == total
            costs.append(entries - before)
        go.set()
        assert len(numbers(slow, ids)) == 200
    assert few <= costs[0] <= few + 200
    assert many <= costs[1] <= many + 200
    assert costs[1] <= 8.5 * costs[0]


def test_a_new_run_reads_nothing_that_others_have_in_hand(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs come while the node has messages in hand, and its workers ring: each entry is read once."""
    bench, read, runs, each = Bench(), list[tuple[str, str]](), 12, 6
    entries = inbox.entries

    def noted(response: Any) -> Iterator[tuple[str, str, dict[bytes, bytes]]]:
        for key, entry_id, fields in entries(response):
            if not key.endswith(":ctl"):
                read.append((key, entry_id))
            yield key, entry_id, fields

    monkeypatch.setattr(inbox, "entries", noted)
    with serving(backend, bench.app, workers=2) as node, ExitStack() as stack:
        sent = {}
        for _ in range(runs):
            driver = stack.enter_context(driving(backend))
            bench.hold(driver)
            sent[driver] = push_numbers(driver, node, *range(each))
            eventually(lambda run=driver.run.run_id: run in waiting_runs(node) | served_runs(node))
        for driver in sent:
            bench.hold(driver).set()
        for driver, ids in sent.items():
            assert sorted(numbers(driver, ids)) == list(range(1, each + 1))
    assert len(read) == len(set(read)) == runs * each


def test_cancelled_asks_about_its_own_message(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two messages that are executed at once only the one that was cancelled sees it, and the next one does not."""
    monkeypatch.setattr(wanted_module, "_ASK", 0.0)
    bench = Bench()
    with serving(backend, bench.app, workers=2) as node, driving(backend) as one, driving(backend) as two:
        go = [bench.hold(driver) for driver in (one, two)]
        unwanted, wanted = push_numbers(one, node, 1), push_numbers(two, node, 1)
        for _ in range(2):
            assert bench.begun.acquire(timeout=10)
        one.cancel_messages(unwanted)
        for event in go:
            event.set()
        assert numbers(two, wanted) == [1]
        [reply] = one.replies(unwanted)
        assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        assert len(numbers(one, push_numbers(one, node, 2))) == 1
        assert bench.cancelled == {one.run.run_id: [True, False], two.run.run_id: [False]}


# The end, outages, another Redis.


def test_stopping_finishes_what_all_workers_have_in_hand(backend: Backend, tmp_path: Path) -> None:
    """Both messages that are being executed are finished and published; a third that is queued stays the node's."""
    bench = Bench()
    with driving(backend) as one, driving(backend) as two:
        with serving(backend, bench.app, tmp_path, workers=2) as node:
            go = [bench.hold(driver) for driver in (one, two)]
            sent = {one: push_numbers(one, node, 1, 2), two: push_numbers(two, node, 1)}
            for _ in range(2):
                assert bench.begun.acquire(timeout=10)
            node.stop()
            eventually(lambda: begins_nothing(node))
            for event in go:
                event.set()
        assert bench.executed == {one.run.run_id: [1], two.run.run_id: [1]}
        assert numbers(one, sent[one][:1]) == numbers(two, sent[two]) == [1]
        with serving(backend, bench.app, tmp_path, workers=2):
            assert numbers(one, sent[one][1:]) == [2]
        assert bench.executed[one.run.run_id] == [1, 2]


@pytest.mark.parametrize("fails", ["lease", "is_wanted", "publish"])
def test_a_message_whose_worker_lost_redis_is_answered(
    backend: Backend, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a worker alone cannot reach Redis, before or after it executed, its message is answered all the same."""
    bench, failed = Bench(), []
    module, name = QUESTIONS[fails]
    original = getattr(module, name)

    def flaky(*arguments: object) -> object:
        if not failed and threading.current_thread().name.startswith("worker"):
            failed.append(True)
            raise RedisUnreachable("cut")
        return original(*arguments)

    monkeypatch.setattr(module, name, flaky)
    with serving(backend, bench.app, workers=2) as node, driving(backend) as one, driving(backend) as two:
        assert numbers(one, push_numbers(one, node, 0)) == [1]  # a lone message is published by its worker
        sent = {one: push_numbers(one, node, *range(1, 5)), two: push_numbers(two, node, *range(5))}
        assert [sorted(numbers(driver, ids)) for driver, ids in sent.items()] == [[2, 3, 4, 5], [1, 2, 3, 4, 5]]
        assert {driver.run.run_id: state_of(node, driver) for driver in sent} == dict.fromkeys(bench.executed, 5)
    assert failed
    assert all(values == list(range(5)) for values in bench.executed.values())


def test_broken_connections_lose_and_double_nothing(backend: Backend, tmp_path: Path) -> None:
    """All connections are cut in every round of two runs; every message is executed once and counted once."""
    if not backend.is_real:
        pytest.skip("fakeredis has no connections to cut")
    bench, mine, rounds = Bench(), backend.admin.client_id(), 3
    with serving(backend, bench.app, tmp_path, workers=2) as node, driving(backend) as one, driving(backend) as two:
        for turn in range(rounds):
            sent = {driver: push_numbers(driver, node, *range(3 * turn, 3 * turn + 3)) for driver in (one, two)}
            for client in backend.admin.client_list():
                if int(client["id"]) != mine:
                    backend.admin.client_kill_filter(_id=client["id"])
            for driver, ids in sent.items():
                assert sorted(numbers(driver, ids)) == [3 * turn + 1, 3 * turn + 2, 3 * turn + 3]
        assert {run: sorted(values) for run, values in bench.executed.items()} == {
            driver.run.run_id: list(range(3 * rounds)) for driver in (one, two)
        }


@pytest.mark.without_rights("only an operator makes a new data set")
def test_a_redis_that_lost_its_data_is_served_beside_old_work(backend: Backend, tmp_path: Path) -> None:
    """While a worker is in a message of a run that is gone, new runs are served; its result goes nowhere."""
    bench = Bench()
    with serving(backend, bench.app, tmp_path, lease=0.9, workers=2) as node:
        lost = Driver(backend.by_hand(), "server:app")
        go = bench.hold(lost)
        push_numbers(lost, node, 1)
        assert bench.begun.acquire(timeout=10)
        before = identity(node)
        kill(lost)
        backend.admin.flushall()
        cut_node(node)  # as when Redis was started again
        eventually(lambda: identity(node) != before)
        with driving(backend) as fresh:
            assert fresh.wait_for_nodes(1, timeout=10) == [node.node_id]
            assert numbers(fresh, push_numbers(fresh, node, 1)) == [1]
            go.set()
            eventually(lambda: lost.run.run_id in bench.cancelled and not served_runs(node))
            assert bench.cancelled[lost.run.run_id] == [True]
            assert numbers(fresh, push_numbers(fresh, node, 2)) == [2]
            assert state_of(node, lost) == 0
            assert answered_runs(node) == {fresh.run.run_id}
        lost.detach()


# What shares a transaction. These nodes have no threads but the publisher's: the test makes their turns.


class Killed(BaseException):
    """The process is gone: no Exception, so that nothing catches it."""


def test_what_gathers_during_a_publish_is_one_transaction(backend: Backend, tmp_path: Path) -> None:
    """Nine executions that end while a publish is in flight are noted in one transaction, before they are published."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, tmp_path) as node:
        warm_up(node, driver, bench)
        heard = commits(node)
        ids = push_numbers(driver, node, *range(1, 11))
        outbox = driver.connection.keys.outbox(node.node_id, driver.run.run_id)
        published = backend.admin.xlen(outbox)
        with publish_in_flight(node):  # a publish is in flight
            turns(node, 10, bench)
            assert heard == []
            assert state_of(node, driver) == 1
        eventually(lambda: backend.admin.xlen(outbox) == published + 9)
        assert heard == ["COMMIT"]
        assert state_of(node, driver) == 10
        turns(node, 11, bench)
        assert sorted(numbers(driver, ids)) == list(range(2, 12))
        assert heard == ["COMMIT"] * 2


def test_an_exception_in_a_batch_undoes_only_its_own(backend: Backend, tmp_path: Path) -> None:
    """What was executed before a message that raised is in the state that the next one finds, though not published."""
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, tmp_path) as node:
        warm_up(node, driver, bench)
        kinds = ["train", "train", "train.raise", "train", "train"]
        ids = driver.push_messages([driver.create_message(number(1), kind, node.node_id, "1") for kind in kinds])
        with publish_in_flight(node):
            turns(node, 5, bench)
        turns(node, 6, bench)
        replies = list(driver.replies(ids))
        assert sorted(number_in(reply) for reply in replies if reply.has_content()) == [2, 3, 4, 5]
        assert [reply.error.code for reply in replies if reply.has_error()] == [ErrorCode.CLIENT_APP_RAISED_EXCEPTION]
        assert state_of(node, driver) == 5


@pytest.mark.parametrize("committed", [True, False])
def test_a_kill_undoes_a_whole_batch_or_nothing_of_it(backend: Backend, tmp_path: Path, committed: bool) -> None:
    """Killed before the commit, a node executes all of a batch again with the old state; after it, none of it."""
    bench, second = Bench(), Bench()
    with driving(backend) as driver:
        with by_hand(backend, bench.app, tmp_path) as node:
            warm_up(node, driver, bench)
            ids = push_numbers(driver, node, *range(1, 6))
            with publish_in_flight(node):
                turns(node, 5, bench)
                if committed:
                    note_finished(node)
                drop_finished(node)
        with serving(backend, second.app, tmp_path) as node:
            assert sorted(numbers(driver, ids)) == [2, 3, 4, 5, 6]
            assert state_of(node, driver) == 6
    assert second.executed[driver.run.run_id] == ([5] if committed else [1, 2, 3, 4, 5])


def test_what_a_kill_left_unpublished_is_published_and_not_executed(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lone message is committed before its publish: the next process publishes the reply and does not execute."""
    bench, second = Bench(), Bench()

    def kill(*_: object) -> list[bool]:
        raise Killed

    with driving(backend) as driver:
        with by_hand(backend, bench.app, tmp_path) as node:
            ids = push_numbers(driver, node, 1)
            with monkeypatch.context() as patch:
                patch.setattr(publisher, "publish", kill)
                with pytest.raises(Killed):
                    turns(node, 2, bench)
        with serving(backend, second.app, tmp_path) as node:
            assert numbers(driver, ids) == [1]
            assert state_of(node, driver) == 1
    assert second.executed == {}


@pytest.mark.parametrize("size", [8, executor.INLINE + 8])
def test_a_batch_has_the_states_that_its_messages_left(backend: Backend, tmp_path: Path, size: int) -> None:
    """An app that changes an array of its state in place: the journal never has half of what a later message does."""
    app, memory = ClientApp(), bytearray(size)
    bench = Bench()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        memory[0] += 1
        array = Array("uint8", [size], "numpy.ndarray", memoryview(memory))
        context.state.parameters_records["p"] = ParametersRecord({"a": array})
        bench.executed.setdefault(0, []).append(memory[0])
        if memory[0] == 4:
            raise ValueError("in the middle")
        small = Array("uint8", [1], "numpy.ndarray", memoryview(memory)[:1])
        return message.create_reply(RecordSet({"p": ParametersRecord({"a": small})}, {"m": MetricsRecord({"n": 1})}))

    with driving(backend) as driver, by_hand(backend, app, tmp_path) as node:
        warm_up(node, driver, bench)
        ids = push_numbers(driver, node, 1, 2, 3, 4)
        with publish_in_flight(node):
            turns(node, 4, bench)
            note_finished(node)
        state = saved_state(node, driver.run.run_id)
        assert state is not None
        assert state[b"0"][0] == 3
        turns(node, 5, bench)
        arrays = [r.content.parameters_records["p"]["a"].data[0] for r in driver.replies(ids) if r.has_content()]
        assert sorted(arrays) == [2, 3, 5]


# Many messages.


def test_what_one_question_does_not_tell_of_is_still_wanted(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message beyond what one question tells of is not taken for a cancelled one."""
    monkeypatch.setattr(pending, "MOST_PENDING", 2)
    monkeypatch.setattr(wanted_module, "MOST_PENDING", 2)
    monkeypatch.setattr(wanted_module, "READ_AHEAD", -1.0)  # every message is asked for
    bench = Bench()
    with driving(backend) as driver, by_hand(backend, bench.app, None) as node:
        warm_up(node, driver, bench)
        ids = push_numbers(driver, node, *range(5))
        read_inbox(node, 10)
        assert is_wanted(node, last_in_hand(node))
        driver.cancel_messages(ids[-1:])
        assert not is_wanted(node, last_in_hand(node))
