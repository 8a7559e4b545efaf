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

from collections.abc import Iterator

import pytest

from tests.crash.programs import EXPECTED, NODES, PROGRAMS, REPEATING
from tests.crash.world import Accident, World, check_books, payloads, play, virtual_time

pytestmark = pytest.mark.timeout(1800)

VICTIMS = ("server", "node0")

#: Writes that a Redis forgets: none that matters, one of a pair, a whole round, all of the run.
FORGOTTEN = (1, 2, 3, 5, 8, 16, 40)

#: After how many turns a frozen node wakes: at once, in the middle, when the run is over.
WAKES = (1, 2, 3, 5, 1000)

#: Without --every-accident all but the kill happen at some commands, before or after Redis executed them. Seven, so
#: that the rounds, alike as they are, do not all leave out the same ones.
CHOSEN_MOMENTS = ((True,), (False,), (), (False,), (True,), (), (True,))


@pytest.fixture(autouse=True)
def _time() -> Iterator[None]:
    with virtual_time():
        yield


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


def accidents(kind: str, name: str, victim: str, every: bool) -> Iterator[Accident]:
    """Yield the accidents at each command of ``victim``, as many as it sends when nothing happens."""
    calm = run(name, Accident())
    first = calm.ready[victim] + 1 if kind == "freeze" and victim != "server" else 1
    forgotten = (0,) if kind != "forget" else FORGOTTEN if every else FORGOTTEN[3:4]
    wakes = (0,) if kind != "freeze" else WAKES if every else WAKES[2:3]
    for k in range(first, calm.counts[victim] + 1):
        for before in (True, False) if every or kind == "kill" else CHOSEN_MOMENTS[k % len(CHOSEN_MOMENTS)]:
            for forgets in forgotten:
                for turns in wakes:
                    yield Accident(kind, victim, k, before, forgets, turns)


#: What is played without --every-accident: each accident with small and with large contents, in some programs.
CHOSEN = {("asynchronous", "small"), ("state_kept", "chunks")}


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("size", ["small", "chunks"])
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", ["kill", "cut", "forget", "freeze", "stop"])
def test_the_books_are_right_after_any_accident(
    kind: str, name: str, size: str, victim: str, request: pytest.FixtureRequest
) -> None:
    """Whatever happens at whichever command: the sum is exact, nothing is executed twice, no key is left."""
    every = request.config.getoption("--every-accident")
    is_chosen = (name, size) in CHOSEN or (name in REPEATING and (kind, victim, size) == ("kill", "server", "small"))
    if not every and not is_chosen:
        pytest.skip("only with --every-accident")
    wrong = []
    with payloads(size == "chunks"):
        for accident in accidents(kind, name, victim, every):
            try:
                run(name, accident)
            except (Exception, AssertionError) as error:
                wrong.append(f"{accident}: {type(error).__name__} {error}")
    assert not wrong, f"{len(wrong)} cases, such as:\n" + "\n".join(wrong[:5])
