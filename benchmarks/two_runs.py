"""Two runs at once over the same nodes: what a tiny round suffers from another run that moves large models."""

import time
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event, Semaphore

from benchmarks.federation import LIMIT, Federation, empty_round, model_round, open_run
from benchmarks.measure import Comparison, Plan, Round, Samples, percentile, singles
from benchmarks.models import LARGE
from benchmarks.processes import Processes, context
from benchmarks.stage import Stage

_NODES = 5


class Traffic:
    """The run with the large models, in a separate process: makes as many rounds as requested.

    Attributes:
        made: how many rounds were made.
    """

    def __init__(self) -> None:
        self.made: Synchronized[int] = context.Value("q", 0)
        self._wanted: Semaphore = context.Semaphore(0)
        self._over: Event = context.Event()

    def move(self, url: str, prefix: str) -> None:
        """Be that process."""
        with open_run(url, prefix) as driver:
            round_ = model_round(driver, driver.wait_for_nodes(_NODES, timeout=LIMIT)[:_NODES], LARGE)
            while self._wanted.acquire() and not self._over.is_set():
                round_()
                with self.made.get_lock():
                    self.made.value += 1

    def ask(self, rounds: int) -> Callable[[], bool]:
        """Ask for rounds; return what tells whether they were made."""
        goal = self.made.value + rounds
        for _ in range(rounds):
            self._wanted.release()
        return lambda: self.made.value >= goal

    def close(self, processes: Processes) -> None:
        """End the run."""
        self._over.set()
        self._wanted.release()
        processes.join(LIMIT)


def measure_two_runs(stage: Stage, plan: Plan) -> Comparison:
    """Return the p95 of tiny rounds next to large models, and alone, in alternation."""
    traffic = Traffic()
    alone, beside = [], []
    with (
        Federation(stage.server.url, _NODES, "bench-two", workers=2) as federation,
        federation.run() as (driver, nodes),
        Processes() as processes,
    ):
        processes.start(traffic.move, federation.url, federation.prefix)
        round_ = empty_round(driver, nodes)
        _rounds(round_, processes, traffic.ask(1))
        for _ in range(plan.turns):
            alone.append(_rounds(round_, processes, _timer(2 * plan.seconds)))
            beside.append(_rounds(round_, processes, traffic.ask(1 if plan.quick else 2)))
        traffic.close(processes)
    note = f"{sum(map(len, beside))} tiny rounds in {traffic.made.value - 1} large ones"
    return Comparison(_p95(beside), _p95(alone), note)


def _timer(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def _p95(turns: Sequence[Sequence[float]]) -> Samples:
    return singles([percentile(turn, 0.95) for turn in turns])


def _rounds(round_: Round, processes: Processes, over: Callable[[], bool]) -> list[float]:
    """Return the seconds of tiny rounds, made until it is over."""
    values = [round_()]
    until = time.monotonic() + LIMIT
    while not over():
        values.append(round_())
        processes.check()
        if time.monotonic() > until:
            raise TimeoutError(f"a round with large models was not made in {LIMIT:g} s")
    return values
