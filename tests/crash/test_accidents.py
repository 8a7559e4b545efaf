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

Three more change nothing that these books show, and have tests of their own: a lost EXEC is repeated blindly
(test_a_push_whose_answer_was_lost_is_made_once), orphans are never cancelled, or too early (contract/test_resume.py).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import pytest

from tests.crash.programs import EXPECTED, NODES, PROGRAMS, REPEATING
from tests.crash.world import READS, Accident, World, check_books, payloads, play, virtual_time

pytestmark = pytest.mark.timeout(1800)

KINDS = ("kill", "cut", "forget", "freeze", "stop")
SIZES = ("small", "chunks")
VICTIMS = ("server", "node0")

#: Writes that a Redis forgets: none that matters, one of a pair, a whole round, all of the run.
FORGOTTEN = (1, 2, 3, 5, 8, 16, 40)

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


def moments(kind: str, name: str, victim: str) -> list[Moment]:
    """Return all moments at which an accident differs, as many as there are when nothing happens.

    A victim that learns nothing from a command that changes nothing is where it was: it was killed, or its connection
    broke. Whoever is stopped or frozen may go on with the answer.
    """
    calm = run(name, Accident())
    first = calm.ready[victim] if kind == "freeze" and victim != "server" else 0
    found = []
    for k, command in enumerate(calm.commands[victim], 1):
        is_alike = kind in ("kill", "cut", "forget") and READS.issuperset(command.split()) and command != "WATCH"
        found += [Moment(k, True)] if is_alike else [Moment(k, True), Moment(k, False)]
    return [moment for moment in found if moment.k > first]


def chosen(kind: str, name: str, size: str, victim: str, found: Sequence[Moment]) -> list[Moment]:
    """Return the moments that are played each time."""
    if name in REPEATING and (kind, victim, size) == ("kill", "server", "small"):
        return list(found)
    if (name, size) not in CHOSEN:
        return []
    if kind == "kill":
        return list(found)
    return [Moment(each.k, before) for each in found if each.before for before in CHOSEN_MOMENTS[each.k % 7]]


def wrong(kind: str, name: str, victim: str, found: Sequence[Moment], amounts: Sequence[int]) -> Iterator[str]:
    """Play accidents and yield what is wrong; of amounts only those that differ."""
    for moment in found:
        for amount in amounts:
            forgets, turns = (amount, 0) if kind == "forget" else (0, amount)
            accident = Accident(kind, victim, moment.k, moment.before, forgets, turns)
            try:
                if run(name, accident).is_utmost:
                    break
            except (Exception, AssertionError) as error:
                yield f"{accident}: {type(error).__name__} {error}"


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_books_are_right_after_any_accident(
    kind: str, name: str, size: str, victim: str, part: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    """Whatever happens at whichever command: the sum is exact, nothing is executed twice, no key is left."""
    index, slices = request.config.getoption("--slice")
    offset = crc32(f"{kind}-{name}-{size}-{victim}".encode())  # or all would leave out the same
    first, parts = part
    every = {"forget": FORGOTTEN, "freeze": WAKES}.get(kind, ONCE)
    few = {"forget": FORGOTTEN[3:4], "freeze": WAKES[2:3]}.get(kind, ONCE)
    with payloads(size == "chunks"):
        found = moments(kind, name, victim)
        sliced = [moment for place, moment in enumerate(found, offset) if place % slices == index][first::parts]
        problems = list(wrong(kind, name, victim, sliced, every))
        if request.config.option.chosen and first == 0:
            problems += wrong(kind, name, victim, chosen(kind, name, size, victim, found), few)
    again = f"again with --slice {index}/{slices} --seed {request.config.getoption('--seed')}"
    assert not problems, f"{len(problems)} cases ({again}), such as:\n" + "\n".join(problems[:5])


@pytest.mark.parametrize("size", SIZES)
def test_a_frozen_node_that_wakes_before_its_successor_comes_keeps_its_name(size: str) -> None:
    """The successor finds a lease that is renewed, and is refused; the run is not concerned."""
    with payloads(size == "chunks"):
        last = run("another_sample", Accident()).at_the_end["node0"]
        for before in (True, False):
            world = run("another_sample", Accident("freeze", "node0", last, before, wakes_after=1000))
            assert [process.was_refused for process in world.nodes] == [True, False, False, False]
