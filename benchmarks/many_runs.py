"""Many runs at once over the same nodes: how they spread over three primaries, compared with one server.

Owns the processes of their ServerApps, and what is read of the servers. It must not know how it is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from benchmarks.federation import LIMIT, empty_round, open_run
from benchmarks.measure import Comparison, Plan, Samples, singles, turn
from benchmarks.processes import Processes, context
from benchmarks.servers import Side, three_and_one

#: What ``--only`` takes.
NAME = "many-runs"

#: How many runs at once.
RUNS = (2, 4, 8)

NODES = 10

_WARM_UP = 5


@dataclass(frozen=True)
class Load:
    """What so many runs at once came to.

    Attributes:
        runs: how many.
        rates: empty rounds a second of all runs together, on three primaries compared with one server.
        commands: the part of the busiest of three primaries in all commands.
        cpu: its part in the CPU time of the three.
        busiest: seconds of CPU time a round of the busiest primary, compared with one server.
    """

    runs: int
    rates: Comparison
    commands: Samples
    cpu: Samples
    busiest: Comparison


@dataclass(frozen=True)
class _Turn:
    """What the runs of one turn came to, on one side."""

    rate: float
    commands: float
    cpu: float
    busiest: float


class _ServerApps:
    """ServerApps in processes of their own, each with one run at a time; they end with the ``with`` block."""

    def __init__(self, side: Side, size: int) -> None:
        self._side = side
        self._size = size
        self._processes = Processes()
        self._pipes: list[Connection] = []

    def __enter__(self) -> Self:
        federation = self._side.federation
        for _ in range(self._size):
            ours, theirs = context.Pipe()
            self._processes.start(_lead, theirs, federation.url, federation.prefix)
            theirs.close()
            self._pipes.append(ours)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.__exit__(kind, error, trace)
        for pipe in self._pipes:
            pipe.close()

    def measure(self, runs: int, seconds: float) -> _Turn:
        """Let new runs make rounds for some seconds."""
        pipes = self._pipes[:runs]
        _tell(pipes, "begin")
        before = _spent(self._side)
        made = _tell(pipes, seconds)
        after = _spent(self._side)
        _tell(pipes, "end")
        commands, cpu = (
            [now - then for now, then in zip(*pair, strict=True)] for pair in zip(after, before, strict=True)
        )
        rate = sum(rounds / taken for rounds, taken in made)
        busiest = max(cpu) / sum(rounds for rounds, _ in made)
        return _Turn(rate, max(commands) / sum(commands), max(cpu) / sum(cpu), busiest)


def _tell(pipes: Sequence[Connection], word: Any) -> list[Any]:
    """Return what each answers, once all have."""
    try:
        for pipe in pipes:
            pipe.send(word)
        return [pipe.recv() for pipe in pipes]
    except (EOFError, OSError):
        raise RuntimeError("the process of a run has ended; what it said is on stderr") from None


def _lead(pipe: Connection, url: str, prefix: str) -> None:
    """Be a ServerApp: for each "begin" a new run, rounds for the seconds that come next, and the end of the run."""
    while True:
        pipe.recv()
        with open_run(url, prefix) as driver:
            round_ = empty_round(driver, driver.wait_for_nodes(NODES, timeout=LIMIT))
            for _ in range(_WARM_UP):
                round_()
            pipe.send("ready")
            found = turn(round_, pipe.recv())
            pipe.send((len(found), sum(found)))
            pipe.recv()
        pipe.send("ended")


def _spent(side: Side) -> tuple[list[float], list[float]]:
    """Return how many commands each primary has executed, and its CPU time in seconds."""
    found = [client.info() for client in side.primaries]
    commands = [float(info["total_commands_processed"]) for info in found]
    return commands, [info["used_cpu_user"] + info["used_cpu_sys"] for info in found]


def measure_many_runs(plan: Plan) -> list[Load]:
    """Return what 2, 4 and 8 runs at once come to, on three primaries and on one server, turn about.

    Each turn has new runs, since which primary a run is on depends on its id. A quick plan leaves out the 8.
    """
    counts = RUNS[:-1] if plan.quick else RUNS
    size = max(counts)
    with three_and_one(NODES) as sides, _ServerApps(sides[0], size) as three, _ServerApps(sides[1], size) as one:
        return [_measure(three, one, runs, plan) for runs in counts]


def _measure(three: _ServerApps, one: _ServerApps, runs: int, plan: Plan) -> Load:
    turns: dict[_ServerApps, list[_Turn]] = {three: [], one: []}
    for number in range(plan.turns):
        for side in list(turns)[:: -1 if number % 2 else 1]:
            turns[side].append(side.measure(runs, 4 * plan.seconds))
    ours, reference = turns[three], turns[one]
    return Load(
        runs,
        Comparison(singles([each.rate for each in ours]), singles([each.rate for each in reference])),
        singles([each.commands for each in ours]),
        singles([each.cpu for each in ours]),
        Comparison(singles([each.busiest for each in ours]), singles([each.busiest for each in reference])),
    )
