"""The soak: two runs over four nodes while everything is killed, frozen and cut at random; the books must be exact.

``scripts/soak --minutes 10 --seed 7``, and ``--topology`` for several servers. A seed decides what happens in which
order, not when: processes are as fast as they are. A process that could not connect (exit code 10) is started again, as
a supervisor would. What may cost Redis its last writes happens only while all processes run, for that is the promise:
of what it forgets, both sides together know everything.

Owns what happens to processes, and when. What happens to servers is the lab's.
"""

import argparse
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from redis.exceptions import RedisError

from brokerfl.broker.embedded import find_server
from brokerfl.common import BrokerflError
from tests.chaos.lab import Disturbance, Lab, exit_code, expected
from tests.cli.conftest import Process, run_id
from tests.topology.fleets import fleet_called
from tests.topology.lab import FleetLab

NODES = ("n0", "n1", "n2", "n3")
APPS = ("app", "stream")

#: Seconds: how long the runs may take to end when nothing is killed any more.
DEADLINE = 90.0

#: Seconds that everything has run undisturbed before Redis forgets, and goes on so after it is back: everything has
#: compared its memory with Redis then.
QUIET = 3.0

CONNECTION_LOST = 10  # exit code REDIS_UNREACHABLE


class MismatchError(Exception):
    """The books are wrong, or something hangs or failed. Its text is the evidence."""


class Soak:
    """One seed's soak in one folder.

    Attributes:
        counts: how often what happened.
        results: of the runs, by app.
    """

    def __init__(self, lab: Lab, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.results: dict[str, dict[str, list[int]]] = {}
        self._lab = lab
        self._random = random.Random(seed)
        self._processes: dict[str, Process] = {}
        self._runs: dict[str, str] = {}
        self._logs: dict[str, list[Process]] = {}
        self._started = 0.0
        self._disturbances = lab.disturbances(self._random)

    def soak(self, seconds: float) -> None:
        """Start everything, disturb it for so long, let the runs end, and check.

        Raises:
            MismatchError: what must never be.
        """
        try:
            self._start_all()
            self._lab.set_weather(True)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                self._disturb()
                self._revive()
            self._lab.set_weather(False)
            self._lab.commands.write("finish", "")
            self._await_end()
            self._check()
        except (AssertionError, BrokerflError, RedisError) as error:
            raise MismatchError(f"{type(error).__name__}: {error}") from error

    # Processes.

    def _start_all(self) -> None:
        for name, node in self._lab.nodes(len(NODES)).items():
            self._note(name, node)
        for app in APPS:
            config = {"nodes": len(NODES), "payload": self._random.choice((0, 1000, 200_000, 200_000)), "result": app}
            self._note(app, self._lab.run(app=app, **config))
            self._runs[app] = run_id(self._processes[app])

    def _note(self, name: str, process: Process) -> None:
        self._processes[name] = process
        self._logs.setdefault(name, []).append(process)
        self._started = time.monotonic()

    def _restart(self, name: str) -> None:
        self._note(name, self._lab.node(name) if name in NODES else self._lab.resume(self._runs[name], app=name))

    def _revive(self) -> None:
        """Start again what could not connect; nothing else may have ended."""
        for name, process in self._processes.items():
            code = exit_code(process)
            if code == CONNECTION_LOST:
                self.counts["revived"] += 1
                self._restart(name)
            elif code is not None:
                raise MismatchError(f"{name} ended with {code}")

    # Disturbances.

    def _disturb(self) -> None:
        own: list[tuple[Callable[[], None], int]] = [
            (self._kill_node, 6),
            (self._kill_server_app, 4),
            (self._freeze, 3),
        ]
        lab = [(partial(self._let_happen, each), each.weight) for each in self._disturbances]
        kinds, weights = zip(*own, *lab, strict=True)
        self._random.choices(kinds, weights)[0]()
        time.sleep(self._random.uniform(0.0, 0.5))

    def _kill_node(self) -> None:
        self._kill(self._random.choice(NODES))

    def _kill_server_app(self) -> None:
        self._kill(self._random.choice(APPS))

    def _kill(self, name: str) -> None:
        self.counts["ServerApp killed" if name in APPS else "node killed"] += 1
        self._processes[name].kill()
        self._let_pass(self._random.choice((0.0, self._random.uniform(0.0, 1.0))))
        self._restart(name)
        # Half of the time it gets to its work; else the next disturbance may meet it while it starts.
        time.sleep(self._random.choice((0.0, 1.0)))

    def _freeze(self) -> None:
        name = self._random.choice(NODES + APPS)
        self.counts["frozen"] += 1
        self._processes[name].send(signal.SIGSTOP)
        self._let_pass(self._random.uniform(0.0, 4.0))  # longer than a lease, now and then
        self._processes[name].send(signal.SIGCONT)

    def _let_pass(self, seconds: float) -> None:
        """Some time, in which something may happen to the servers, too."""
        harmless = [each for each in self._disturbances if not each.forgets]
        time.sleep(seconds / 2)
        if harmless and self._random.random() < 0.3:
            self._let_happen(self._random.choice(harmless))
        time.sleep(seconds / 2)

    def _let_happen(self, disturbance: Disturbance) -> None:
        self.counts[disturbance.what] += 1
        if disturbance.forgets:
            self._lab.set_weather(False)
            self._await_quiet()
        self.counts.update(disturbance.happen())
        if disturbance.forgets:
            self._started = time.monotonic()
            self._await_quiet()
            self._lab.set_weather(True)

    def _await_quiet(self) -> None:
        until = time.monotonic() + DEADLINE
        while time.monotonic() < self._started + QUIET or not all(map(is_ready, self._processes.values())):
            assert time.monotonic() < until, f"not everything started within {DEADLINE:g} s"
            time.sleep(0.1)
            self._revive()

    # The end.

    def _await_end(self) -> None:
        until = time.monotonic() + DEADLINE
        waiting = set(APPS)
        while waiting:
            if time.monotonic() > until:
                raise MismatchError(f"{', '.join(sorted(waiting))} did not end within {DEADLINE:g} s")
            for app in sorted(waiting):
                code = exit_code(self._processes[app])
                if code == 0:
                    waiting.remove(app)
                elif code == CONNECTION_LOST:
                    self._restart(app)
                elif code is not None:
                    raise MismatchError(f"{app} ended with {code}")
            time.sleep(0.05)

    def _check(self) -> None:
        for app, run in self._runs.items():
            results = self._lab.results(app)
            assert results, f"{app} wrote no result"
            assert all(result == results[0] for result in results), f"{app} wrote several results: {results}"
            result = self.results[app] = results[0]
            right = expected(*result["folded"])
            assert result == right, f"{app}: {result} is not {right}"
            sent = {message_id for log in self._logs[app] for message_id in pushed(log)}
            answered = sum(result["folded"])
            assert len(sent) == answered, f"{app} sent {len(sent)} messages and got {answered} replies"
            executed = {message_id for name in NODES for message_id in self._lab.executions(name, run)}
            assert executed == sent, f"{app}: {len(executed)} messages were executed, {len(sent)} sent"
            keys = self._lab.keys_of(run)
            assert not keys, f"{app} left {sorted(keys)}"
        self._lab.run(nodes=len(NODES), rounds=3, result="last").ends(0)
        assert self._lab.results("last") == [expected(*[3] * len(NODES))], "a node is deaf"
        for process in self._lab.commands.started:
            assert "Traceback" not in process.text, process.text

    def evidence(self, lines: int = 12) -> str:
        """The last lines of every process."""
        parts = [f"runs: {self._runs}"]
        for name, process in self._processes.items():
            last = "\n    ".join(process.text.splitlines()[-lines:])
            parts.append(f"{name} (pid {process.pid}, exit code {exit_code(process)}):\n    {last}")
        return "\n".join(parts)


def is_ready(process: Process) -> bool:
    """Whether a node serves, or a ServerApp has its run."""
    return re.search(r"serves client:app|Run \d+ of .* (started|resumed)", process.err) is not None


def pushed(server_app: Process) -> list[str]:
    """Ids of the messages that a ServerApp pushed or adopted, as it logged them."""
    return [word for ids in re.findall(r"Pushed ([\w ]+)", server_app.err) for word in ids.split()]


def soak(lab: Lab, seed: int, seconds: float) -> str:
    """Soak with one seed; return a line that says what happened.

    Raises:
        MismatchError: with the evidence.
    """
    started = time.monotonic()
    made = Soak(lab, seed)
    try:
        made.soak(seconds)
        verdict = "exact"
    except MismatchError as error:
        verdict = f"WRONG: {error}"
        evidence = made.evidence()
    happened = ", ".join(f"{what} {count}" for what, count in sorted(made.counts.items()))
    rounds = ", ".join(f"{app} {sum(result['folded'])}" for app, result in made.results.items())
    line = (
        f"seed {seed}: {verdict}; {time.monotonic() - started:.0f} s; replies: {rounds}; {happened}; "
        f"faults of the proxy {lab.faults()}"
    )
    if verdict != "exact":
        raise MismatchError(f"{line}\n{evidence}")
    return line


@contextmanager
def lab_on(topology: str, folder: Path, binary: Path, seed: int) -> Iterator[Lab]:
    """A lab on one server, or on a fleet."""
    if topology == "one":
        with Lab(folder, binary, seed) as lab:
            yield lab
    else:
        with fleet_called(topology, binary) as fleet, FleetLab(folder, fleet) as lab:
            yield lab


def main() -> int:
    """Soak with one seed or several in a row; the exit code is 1 if one of them was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="of each seed (default: 1)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the first (default: random)")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other (default: 1)")
    parser.add_argument(
        "--topology",
        choices=("one", "sentinel", "cluster", "valkey-cluster"),
        default="one",
        help="the servers: one behind a lossy proxy (the default), or several, as scripts/test has them",
    )
    parser.add_argument("--server", choices=("valkey", "redis"), help="the one (default: valkey)")
    options = parser.parse_args()
    if options.server and options.topology != "one":
        parser.error("--server is for one server: --topology says whose the others are")
    is_redis = options.server == "redis" or options.topology in ("sentinel", "cluster")
    binary = shutil.which("redis-server") if is_redis else find_server()
    if binary is None:
        parser.error("there is no redis-server")
    wrong = 0
    for seed in range(options.seed, options.seed + options.seeds):
        folder = Path(tempfile.mkdtemp(prefix=f"brokerfl-soak-{seed}-"))
        try:
            with lab_on(options.topology, folder, Path(binary), seed) as lab:
                print(soak(lab, seed, options.minutes * 60), flush=True)
            shutil.rmtree(folder)
        except MismatchError as error:
            wrong += 1
            print(f"{error}\nlogs and state: {folder}", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
