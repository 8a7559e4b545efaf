"""Liveness: who counts as gone, and that of many nodes everybody's turn comes."""

from collections.abc import Iterable

import pytest

from brokerfl.broker import liveness as module
from brokerfl.broker.liveness import Liveness
from brokerfl.broker.presence import Absence
from tests.apps import Clock


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def gone(liveness: Liveness, looked_at: Iterable[int], *absent: int, comes_back: bool = True) -> set[int]:
    """Who is unavailable when of those that are looked at some have no lease."""
    return liveness.unavailable(looked_at, [Absence(node, comes_back) for node in absent])


def test_absence_is_counted_from_the_observers_reconnect() -> None:
    """After the observer's own outage nobody is given up before nodes had a lease time to come back."""
    liveness = Liveness(offline_grace=0.0, lease=30.0)
    assert gone(liveness, [5], 5, comes_back=False) == {5}
    liveness.reconnected()
    assert gone(liveness, [5], 5, comes_back=False) == set()
    assert gone(liveness, [6], 6) == set()


def test_an_absence_that_nobody_watched_begins_anew(clock: Clock) -> None:
    """Nobody looked for a while: the node may have been there in between, so its grace begins again."""
    liveness = Liveness(offline_grace=60.0)
    assert gone(liveness, [5], 5) == set()
    clock.now += 1000.0
    for _ in range(60):
        assert gone(liveness, [5], 5) == set()
        clock.now += 1.0
    assert gone(liveness, [5], 5) == {5}


def test_a_node_that_was_back_is_given_its_grace_again(clock: Clock) -> None:
    """What was seen before an outage of the observer does not count after it, nor what was seen before a return."""
    liveness = Liveness(offline_grace=5.0, lease=0.0)
    assert gone(liveness, [5], 5) == set()
    clock.now += 5.0
    liveness.reconnected()
    assert gone(liveness, [5], 5) == set()
    clock.now += 5.0
    assert gone(liveness, [5]) == set()
    assert gone(liveness, [5], 5) == set()
    clock.now += 5.0
    assert gone(liveness, [5], 5) == {5}


def test_a_node_that_is_not_looked_at_is_neither_present_nor_absent(clock: Clock) -> None:
    """Its absence goes on, but no verdict is passed on it: it may be back."""
    liveness = Liveness(offline_grace=6.0)
    assert gone(liveness, [5, 6], 5, 6) == set()
    for _ in range(6):
        clock.now += 1.0
        assert gone(liveness, [6]) == set()
    clock.now += 1.0
    assert gone(liveness, [5, 6], 5, 6) == {5}


def test_one_node_that_nobody_watched_begins_anew(clock: Clock) -> None:
    """Others were looked at all the time."""
    liveness = Liveness(offline_grace=6.0)
    assert gone(liveness, [5, 6], 5, 6) == set()
    for _ in range(11):
        clock.now += 1.0
        gone(liveness, [6], 6)
    assert gone(liveness, [5, 6], 5, 6) == {6}


def test_few_nodes_are_looked_at_each_time(clock: Clock) -> None:
    """So many, however soon after the last look: of up to a thousand nodes, all."""
    liveness, most = Liveness(), module.MOST_LOOKED_AT
    for _ in range(3):
        clock.now += 0.001
        assert {*liveness.due(range(most))} == {*range(most)}
        assert len(liveness.due(range(4 * most))) == most


@pytest.mark.parametrize("pause", [0.5, 1.0, 3.0, 4.9, 8.0])
def test_of_many_nodes_everybodys_turn_comes(clock: Clock, monkeypatch: pytest.MonkeyPatch, pause: float) -> None:
    """Before what was seen of it is stale. Nodes that begin to owe meanwhile wait as long, and those that ended go."""
    monkeypatch.setattr(module, "MOST_LOOKED_AT", 20)
    liveness, last, looks = Liveness(), dict[int, float](), 0
    for at in range(40):
        clock.now += pause
        owing = range(2 * at, 2 * at + 120)
        due = liveness.due(owing)
        assert len({*due}) == len(due)
        assert {*due} <= {*owing}
        for node in owing:
            if node in due:
                last[node] = clock.now
            assert clock.now - last.setdefault(node, clock.now) < module._STALE
        looks += len(due)
    assert looks <= 40 * max(20, 120 * min(1.0, pause / module._ROUND) + 1)


@pytest.mark.parametrize("pause", [1.0, 4.0])
def test_who_vanishes_among_many_is_gone_after_its_grace(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """And at most two stale times later; nobody else is."""
    monkeypatch.setattr(module, "MOST_LOOKED_AT", 20)
    liveness, began = Liveness(offline_grace=60.0), clock.now
    absent = {7, 50, 99}
    seen: dict[int, float] = {}
    while clock.now - began < 100.0:
        clock.now += pause
        due = liveness.due(range(100))
        seen |= dict.fromkeys(gone(liveness, due, *absent.intersection(due)) - seen.keys(), clock.now - began)
    assert seen.keys() == absent
    assert all(60.0 <= after <= 60.0 + 2 * module._STALE for after in seen.values())
