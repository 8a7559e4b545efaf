"""Every crash point: at each command of a ServerApp or a node, before and after Redis executed it, something happens.

The books must be right each time: the sum that comes out, how often each message was executed, the states of the nodes,
the keys that are left. `world` tells how a case runs, `programs` what the ServerApps do.

Broken on purpose, these fail here (each was seen to):

    the journal's answered ids are not asked          kill node, forget (executed twice)
    a state is not part of the journal's transaction  kill node
    a node does not drain after a reconnect           kill node, cut node (hang)
    nothing is adopted after a resume                 kill server (executed twice)
    the ledger is not loaded by a resume              kill server
    a push is not fenced                              freeze server
    the owner is not compared after a takeover        freeze server
    a node's XADD may create the outbox               stop (keys are left)
    nothing is compared after a lost connection       forget, cut server (hang)
    the run's slot is not written again               forget
    prefetched replies are settled by a commit        kill server
    a node that lost its lease goes on                freeze node
    the loser of a lease does not ring                freeze node (hang)
    the context is not saved with a push              kill server
    a node that owes is not contacted again           silent (hang)
    the owner does not count its transactions         silent (hang)
    an echo is not sent as a whole                    silent (keys are left)
    nobody looks whether the end was forgotten        forget by one of three (keys are left)

Three more change nothing that these books show, and have tests of their own: a lost EXEC is repeated blindly
(test_a_push_whose_answer_was_lost_is_made_once), orphans are never cancelled, or too early (contract/test_resume.py).
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import pytest

from tests.crash.programs import EXPECTED, NODES, PROGRAMS, REPEATING
from tests.crash.shards import LAYOUTS, READS
from tests.crash.world import Accident, World, check_books, payloads, play, virtual_time

pytestmark = pytest.mark.timeout(1800)

KINDS = ("kill", "cut", "forget", "silent", "freeze", "stop", "move")
SCENES = [(layout, kind) for layout in LAYOUTS for kind in KINDS if (layout, kind) != ("single", "move")]
LOSSES = ("forget", "silent")
SIZES = ("small", "chunks")
VICTIMS = ("server", "node0")

#: Writes that a Redis forgets: none that matters, one of a pair, a whole round, all of the run.
FORGOTTEN = (1, 2, 3, 5, 8, 16, 40)

#: The same for one of three, which has about a third of them.
FORGOTTEN_BY_ONE = (1, 2, 5, 16)

#: After how many turns a frozen node wakes: at once, in the middle, when the run is over.
WAKES = (1, 2, 3, 5, 1000)

#: How far the other kinds go.
ONCE = (0,)

#: What is played each time: each accident with small and with large contents, in some programs.
CHOSEN = {("asynchronous", "small"), ("state_kept", "chunks")}

#: There all but the kill happen at some commands, before or after Redis executed them. Seven, so that the rounds, alike
#: as they are, do not all leave out the same ones.
CHOSEN_MOMENTS = ((True,), (False,), (), (False,), (True,), (), (True,))


@pytest.fixture(autouse=True)
def _time(request: pytest.FixtureRequest) -> Iterator[None]:
    random.seed(request.config.getoption("--seed"))
    with virtual_time():
        yield


@dataclass(frozen=True)
class Moment:
    """Before or after a victim's ``k``-th command."""

    k: int
    before: bool


def run(name: str, accident: Accident) -> World:
    """Play one case and check its books."""
    world, outcome = play(accident, PROGRAMS[name], NODES.get(name, 2))
    if accident.kind != "stop" or outcome.result is not None:
        assert outcome.result == EXPECTED
    if (
        accident.kind != "stop"
        and name not in REPEATING
        and not (accident.kind == "freeze" and accident.victim != "server")
    ):
        assert len(world.counted()) == 6, "a node trained twice"
    check_books(world, outcome)
    return world


def moments(kind: str, layout: str, name: str, victim: str) -> list[Moment]:
    """Return all moments at which an accident differs, as many as there are when nothing happens.

    A victim that learns nothing from a command that changes nothing is where it was: it was killed, or its connection
    broke. Whoever is stopped or frozen may go on with the answer. A node that is frozen, or not told of a loss, has
    registered before.
    """
    calm = run(name, Accident(layout=layout))
    first = calm.ready.get(victim, 0) if kind in ("freeze", "silent") else 0
    found = []
    for k, command in enumerate(calm.commands[victim], 1):
        is_alike = kind in ("kill", "cut", "move", *LOSSES) and READS.issuperset(command.split()) and command != "WATCH"
        found += [Moment(k, True)] if is_alike else [Moment(k, True), Moment(k, False)]
    return [moment for moment in found if moment.k > first]


def is_new(layout: str, kind: str) -> bool:
    """Whether these accidents are too many for the usual choice."""
    return layout != "single" or kind == "silent"


def chosen(kind: str, layout: str, name: str, size: str, victim: str, found: Sequence[Moment]) -> list[Moment]:
    """Return the moments that are played each time."""
    if is_new(layout, kind) and (kind not in LOSSES or layout == "mixed"):
        return []
    if name in REPEATING and (kind, victim, size) == ("kill", "server", "small"):
        return list(found)
    if (name, size) not in CHOSEN:
        return []
    if kind == "kill":
        return list(found)
    moments = [each for each in found if each.before and not (is_new(layout, kind) and each.k % 3)]
    return [Moment(each.k, before) for each in moments for before in CHOSEN_MOMENTS[each.k % 7]]


@dataclass(frozen=True)
class Extent:
    """How far accidents go: how much is forgotten and by which servers, or how late somebody wakes."""

    amounts: Sequence[int]
    shards: Sequence[int] = (0,)

    @classmethod
    def of(cls, kind: str, layout: str) -> "Extent":
        """Return all that there is."""
        if kind not in LOSSES:
            return cls(WAKES if kind == "freeze" else ONCE)
        return cls(FORGOTTEN) if layout == "single" else cls(FORGOTTEN_BY_ONE, range(3))

    def middle(self) -> "Extent":
        """Return one that is neither little nor much."""
        return Extent([self.amounts[len(self.amounts) // 2]], self.shards[:1])

    def any(self, choice: random.Random) -> "Extent":
        """Return one of them."""
        return Extent([choice.choice(self.amounts)], [choice.choice(self.shards)])


def wrong(
    kind: str, layout: str, name: str, victim: str, found: Iterable[Moment], extent: Callable[[], Extent]
) -> Iterator[str]:
    """Play accidents and yield what is wrong; of amounts only those that differ."""
    for moment in found:
        how_far = extent()
        for shard in how_far.shards:
            for amount in how_far.amounts:
                forgets, turns = (amount, 0) if kind in LOSSES else (0, amount)
                accident = Accident(kind, victim, moment.k, moment.before, forgets, turns, shard, layout)
                try:
                    if run(name, accident).is_utmost:
                        break
                except (Exception, AssertionError) as error:
                    yield f"{accident}: {type(error).__name__} {error}"


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("layout", "kind"), SCENES)
def test_the_books_are_right_after_any_accident(
    layout: str, kind: str, name: str, size: str, victim: str, part: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    """Whatever happens at whichever command: the sum is exact, nothing is executed twice, no key is left."""
    option = request.config.option
    (index, slices), (first, parts) = option.slice, part
    where = f"{kind}-{name}-{size}-{victim}"
    offset = crc32(where.encode())  # or all would leave out the same
    every, choice = Extent.of(kind, layout), random.Random(f"{option.seed}-{layout}-{where}")
    is_sparse = option.chosen and is_new(layout, kind)
    with payloads(size == "chunks"):
        found = moments(kind, layout, name, victim)
        sliced = [moment for place, moment in enumerate(found, offset) if place % slices == index][first::parts]
        extent = partial(every.any, choice) if is_sparse else lambda: every
        problems = list(wrong(kind, layout, name, victim, sliced, extent))
        if option.chosen and first == 0:
            few = chosen(kind, layout, name, size, victim, found)
            extent = partial(every.any, choice) if is_sparse else every.middle
            problems += wrong(kind, layout, name, victim, few, extent)
    again = f"again with --slice {index}/{slices} --seed {option.seed}"
    assert not problems, f"{len(problems)} cases ({again}), such as:\n" + "\n".join(problems[:5])


@pytest.mark.parametrize("size", SIZES)
def test_a_frozen_node_that_wakes_before_its_successor_comes_keeps_its_name(size: str) -> None:
    """The successor finds a lease that is renewed, and is refused; the run is not concerned."""
    with payloads(size == "chunks"):
        last = run("another_sample", Accident()).at_the_end["node0"]
        for before in (True, False):
            world = run("another_sample", Accident("freeze", "node0", last, before, wakes_after=1000))
            assert [process.was_refused for process in world.nodes] == [True, False, False, False]
