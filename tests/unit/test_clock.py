"""The clock of Redis: no step of it changes what is under way, and no id of an entry counts for more than was seen."""

import pytest

from brokerfl.broker import clock as clock_module
from brokerfl.broker.clock import Clock
from tests.apps import Clock as LocalClock

DAY = 86_400


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> LocalClock:
    """This process's own clock."""
    made = LocalClock()
    made.now = 1000.0
    monkeypatch.setattr(clock_module, "time", made)
    return made


def look(clock: Clock, local: LocalClock, at: float, took: float = 0.0) -> None:
    """Redis answers TIME with ``at``, halfway."""
    asked = local.now
    local.now += took
    clock.set((int(at), round(at % 1 * 1e6)), asked)


@pytest.mark.parametrize("step", [DAY, -DAY, 5, -5])
def test_a_step_moves_nothing_here(local: LocalClock, step: int) -> None:
    """The time goes on as it began; the skew says where Redis is."""
    clock = Clock()
    look(clock, local, 2_000_000)
    local.now += 10
    look(clock, local, 2_000_010 + step)
    assert clock.time() == 2_000_010
    assert clock.skew == step
    assert clock.steps == (step > 0)
    local.now += 10
    look(clock, local, 2_000_020)
    assert (clock.time(), clock.skew) == (2_000_020, 0)
    assert clock.steps == 1, "back from a step back is a step forward"


def test_an_answer_that_took_long_decides_nothing(local: LocalClock) -> None:
    """It is from any time while it was awaited; what it contradicts nevertheless has changed."""
    clock = Clock()
    look(clock, local, 2_000_000)
    look(clock, local, 2_000_019, took=20)
    assert (clock.skew, clock.steps) == (0.0, 0)
    look(clock, local, 2_000_020 + DAY, took=20)
    assert (clock.skew, clock.steps) == (pytest.approx(DAY, abs=30), 1)


def test_small_moves_are_no_steps(local: LocalClock) -> None:
    """NTP slows a clock down or speeds it up: leases do not lapse early for that."""
    clock = Clock()
    look(clock, local, 2_000_000)
    look(clock, local, 2_000_000.5)
    assert (clock.skew, clock.steps, clock.time()) == (0.5, 0, 2_000_000)


@pytest.mark.parametrize("behind", [0, DAY])
def test_an_entry_is_as_old_as_anything_that_was_seen_allows(local: LocalClock, behind: int) -> None:
    """A stream that is ahead says nothing about what is read now; one that was behind makes nothing older."""
    clock = Clock()
    look(clock, local, 2_000_000)
    ahead = f"{(2_000_000 + DAY) * 1000}-0"
    assert clock.earliest(ahead) == 2_000_000_000
    assert clock.earliest("1999000000-5") == 1_999_000_000
    assert clock.latest(ahead, local.now) == 2_000_000_000
    if behind:
        look(clock, local, 2_000_000 - behind)
    local.now += 100
    made = f"{(2_000_000 - behind + 60) * 1000}-0"
    assert clock.latest(made, local.now) == 2_000_060_000
    look(clock, local, 2_000_100 + DAY)
    assert clock.earliest(f"{(2_000_050 + DAY) * 1000}-0") == 2_000_050_000


def test_an_entry_that_is_far_ahead_tells_nothing(local: LocalClock) -> None:
    """The chunks of its reply may be in a stream that is not ahead."""
    clock = Clock()
    assert (clock.tells("5-0"), clock.tells("")) == (True, False)
    look(clock, local, 2_000_000)
    assert (clock.tells("2000030000-0"), clock.tells("2000100000-0"), clock.tells("")) == (True, False, False)


def test_chunks_may_be_as_much_older_as_the_clock_moved(local: LocalClock) -> None:
    """At least a minute, and all of what was seen."""
    clock = Clock()
    look(clock, local, 2_000_000)
    assert clock.slack == 60_000
    look(clock, local, 2_000_000 + DAY)
    look(clock, local, 2_000_000 - DAY)
    assert clock.slack == 2 * DAY * 1000
