"""Measuring: contestants take turns in one run, and what came of it.

Owns the alternation and the statistics. It must not know what is measured.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Makes one round and returns its seconds: what it prepares before is not counted.
Round = Callable[[], float]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        turns: how often each contestant takes its turn.
        seconds: least time of a turn; a turn has at least one round.
        quick: leave out what takes long.
    """

    turns: int
    seconds: float
    quick: bool


@dataclass(frozen=True)
class Samples:
    """What one contestant came to, turn by turn."""

    turns: tuple[tuple[float, ...], ...]

    @property
    def values(self) -> list[float]:
        """All of them, ascending."""
        return sorted(value for turn in self.turns for value in turn)

    @property
    def median(self) -> float:
        """The median of all."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and 90th percentile; of fewer than 10 values the least and the greatest."""
        return (percentile(self.values, 0.1), percentile(self.values, 0.9))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value at or above ``share`` of ``values``; towards the ends where there are few."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


@dataclass(frozen=True)
class Comparison:
    """Ours compared with a reference: bare redis-py, or what the row says.

    Attributes:
        ours: brokerfl.
        reference: what it is compared with.
        note: more that was seen.
    """

    ours: Samples
    reference: Samples
    note: str = ""

    @property
    def ratio(self) -> float:
        """The median of the ratios of the turns: what slows the machine down for a while slows both sides of a turn."""
        return statistics.median(self._ratios())

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest ratio of a turn."""
        return min(self._ratios()), max(self._ratios())

    def _ratios(self) -> list[float]:
        pairs = zip(self.ours.turns, self.reference.turns, strict=True)
        return [statistics.median(ours) / statistics.median(reference) for ours, reference in pairs]


def alternate(contestants: Mapping[str, Round], plan: Plan, warm_up: int = 2) -> dict[str, Samples]:
    """Let contestants take turns, in changing order, after some rounds that do not count."""
    for round_ in contestants.values():
        for _ in range(warm_up):
            round_()
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in contestants}
    for number in range(plan.turns):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            turns[name].append(turn(contestants[name], plan.seconds))
    return {name: Samples(tuple(found)) for name, found in turns.items()}


def compare(ours: Round, bare: Round, plan: Plan, warm_up: int = 2) -> Comparison:
    """Return brokerfl's rounds compared with bare redis-py's."""
    found = alternate({"ours": ours, "bare": bare}, plan, warm_up)
    return Comparison(found["ours"], found["bare"])


def turn(round_: Round, seconds: float) -> tuple[float, ...]:
    """Return the seconds of each of as many rounds as take so many seconds together; of one at least."""
    found = [round_()]
    while sum(found) < seconds:
        found.append(round_())
    return tuple(found)


def singles(values: Sequence[float]) -> Samples:
    """Return samples of one value a turn."""
    return Samples(tuple((value,) for value in values))
