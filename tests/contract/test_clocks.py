"""Redis' clock is set forward or back: replies count, nodes live, and messages keep their time."""

from collections.abc import Callable

import pytest

from brokerfl.broker.books import read_books
from brokerfl.broker.clock import Clock
from brokerfl.common import ErrorCode
from tests.apps import Bench, Gate, driving, federation, number, number_in
from tests.conftest import Backend
from tests.stage import beat, by_hand, push, resumed, start, sweep_soon, turns

DAY = 86_400


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock that TIME shows, in seconds from the right one; ids and lifetimes are left as they are."""
    original, moved = Clock.set, [0.0]

    def answer(clock: Clock, answer: tuple[int, int], asked: float) -> float:
        return original(clock, (answer[0] + round(moved[0]), answer[1]), asked)

    monkeypatch.setattr(Clock, "set", answer)

    def to(seconds: float) -> None:
        moved[0] = seconds

    return to


def put_ahead(backend: Backend, at: int, *streams: str) -> None:
    """What a step forward and back leaves: the next entry of a stream is not before the last."""
    for stream in streams:
        with backend.admin.pipeline(transaction=True) as pipe:
            pipe.xadd(stream, {"x": ""}, id=f"{10**13 + at}-0", nomkstream=True)
            pipe.xdel(stream, f"{10**13 + at}-0")
            pipe.execute()


def test_replies_count_after_a_step_forward_and_back(backend: Backend) -> None:
    """The node's outbox stays ahead for as long as the step was: what is read now is not late."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        for value in (1, 2, 3):
            [reply] = driver.send_and_receive([driver.create_message(number(value), "train", node, str(value))])
            assert number_in(reply) == value
            put_ahead(backend, value, *driver.connection.keys.of_node_and_run(node, driver.run.run_id))


@pytest.mark.parametrize("seconds", [DAY, -DAY])
def test_a_message_keeps_its_time_when_the_clock_is_set(
    backend: Backend, step: Callable[[float], None], seconds: float
) -> None:
    """A step of a day neither ends a message that has 12 hours, nor makes its reply late."""
    bench = Bench()
    with by_hand(backend, bench.app, None) as node, driving(backend) as driver:
        ids = [push(driver, node.node_id, number(1))]
        step(seconds)
        beat(driver)
        turns(node, 1, bench)
        ids.append(push(driver, node.node_id, number(2)))
        sweep_soon(driver)
        turns(node, 2, bench)
        assert sorted(map(number_in, driver.replies(ids, timeout=20))) == [1, 2]


def test_a_living_node_survives_a_step_forward(backend: Backend, step: Callable[[float], None]) -> None:
    """It ends every lease at once. An unnamed node that is alive takes its own again; one that is not, is found out."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend, lease=2.0) as driver:
        node = nodes.nodes[0].node_id
        ids = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        assert gate.begun.acquire(timeout=10)
        assert list(driver.replies(ids, timeout=1.5)) == []
        step(DAY)
        keys = driver.connection.keys
        backend.admin.unlink(keys.node_lease(node), keys.node_info(node))
        sweep_soon(driver)
        driver.pull_messages(ids)
        assert list(driver.replies(ids, timeout=0.1)) == [], "not Error 5 at once"
        gate.go.set()
        assert [number_in(reply) for reply in driver.replies(ids, timeout=20)] == [1]


def test_a_dead_node_is_found_out_after_a_step_forward(backend: Backend, step: Callable[[float], None]) -> None:
    """A step gives everybody one lease time, not more."""
    bench = Bench()
    with by_hand(backend, bench.app, None) as node, driving(backend, lease=0.3) as driver:
        step(DAY)
        keys = driver.connection.keys
        ids = [push(driver, node.node_id, number(1))]
        backend.admin.unlink(keys.node_lease(node.node_id), keys.node_info(node.node_id))
        [reply] = driver.replies(ids, timeout=30)
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE


def test_deadlines_in_redis_are_by_its_clock(backend: Backend, step: Callable[[float], None]) -> None:
    """A resumed run reads them by the clock that it finds: a step in between does not end what was pushed after it."""
    former = start(backend)
    bench = Bench()
    with by_hand(backend, bench.app, None) as node:
        step(DAY)
        beat(former)
        pushed = push(former, node.node_id, number(1), ttl=1000.0)
        entries = read_books(backend.by_hand(), former.run.run_id).entries
        now = backend.admin.time()[0] + DAY
        assert 900 < entries[pushed].deadline / 1000 - now < 1100
        with resumed(backend, former) as driver:
            again = push(driver, node.node_id, number(1), ttl=1000.0)
            assert again == pushed, "it has not expired"
            turns(node, 1, bench)
            assert [number_in(reply) for reply in driver.replies([again], timeout=20)] == [1]
