"""The soak: two runs over four nodes while everything is killed, frozen and cut at random; the books must be exact.

``scripts/soak --minutes 10 --seed 7``. A seed decides what happens in which order, not when: processes are as fast as
they are. A process that could not connect (exit code 10) is started again, as a supervisor would. Redis is killed only
while all processes run, for that is the promise: of what it forgets, both sides together know everything.
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
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from brokerfl.broker.embedded import find_server
from brokerfl.common import BrokerflError
from tests.chaos.lab import Lab, exit_code, expected
from tests.cli.conftest import Process, run_id

NODES = ("n0", "n1", "n2", "n3")
APPS = ("app", "stream")

#: Seconds: how long the runs may take to end when nothing is killed any more.
DEADLINE = 90.0

#: Seconds that everything has run undisturbed before Redis is killed, and goes on so after it is back: everything has
#: compared its memory with Redis then.
QUIET = 3.0

#: Of a hundred requests and answers, so many are delayed, lost, cut or late.
WEATHER = 0.01

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

    def soak(self, seconds: float) -> None:
        """Start everything, disturb it for so long, let the runs end, and check.

        Raises:
            MismatchError: what must never be.
        """
        try:
            self._start_all()
            self._lab.proxy.weather = WEATHER
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                self._disturb()
                self._revive()
            self._lab.proxy.weather = 0.0
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
        kinds: dict[Callable[[], None], int] = {
            self._kill_node: 6,
            self._kill_server_app: 4,
            self._freeze: 3,
            self._cut: 4,
            self._stall: 1,
            self._kill_redis: 2,
        }
        self._random.choices(list(kinds), list(kinds.values()))[0]()
        time.sleep(self._random.uniform(0.0, 0.5))

    def _kill_node(self) -> None:
        self._kill(self._random.choice(NODES))

    def _kill_server_app(self) -> None:
        self._kill(self._random.choice(APPS))

    def _kill(self, name: str) -> None:
        self.counts["ServerApp killed" if name in APPS else "node killed"] += 1
        self._processes[name].kill()
        time.sleep(self._random.choice((0.0, self._random.uniform(0.0, 1.0))))
        self._restart(name)
        # Half of the time it gets to its work; else the next disturbance may meet it while it starts.
        time.sleep(self._random.choice((0.0, 1.0)))

    def _freeze(self) -> None:
        name = self._random.choice(NODES + APPS)
        self.counts["frozen"] += 1
        self._processes[name].send(signal.SIGSTOP)
        time.sleep(self._random.uniform(0.0, 4.0))  # longer than a lease, now and then
        self._processes[name].send(signal.SIGCONT)

    def _cut(self) -> None:
        self.counts["all connections cut"] += 1
        self._lab.proxy.cut()

    def _stall(self) -> None:
        self.counts["all connections stalled"] += 1
        self._lab.proxy.stall()
        time.sleep(self._random.uniform(0.0, 9.0))
        self._lab.proxy.release()

    def _kill_redis(self) -> None:
        self.counts["Redis killed"] += 1
        self._lab.proxy.weather = 0.0
        self._await_quiet()
        if self._lab.crash_redis_at_work(patience=self._random.choice((0.0, 4.0))):
            self.counts["Redis forgot"] += 1
        self._started = time.monotonic()
        self._await_quiet()
        self._lab.proxy.weather = WEATHER

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


def soak(folder: Path, binary: Path, seed: int, seconds: float) -> str:
    """Soak with one seed; return a line that says what happened.

    Raises:
        MismatchError: with the evidence.
    """
    started = time.monotonic()
    with Lab(folder, binary, seed) as lab:
        made = Soak(lab, seed)
        try:
            made.soak(seconds)
            verdict = "exact"
        except MismatchError as error:
            verdict = f"WRONG: {error}"
            evidence = made.evidence()
        happened = ", ".join(f"{what} {count}" for what, count in sorted(made.counts.items()))
        rounds = ", ".join(f"{app} {sum(result['folded'])}" for app, result in made.results.items())
        faults = sum(lab.proxy.faults.values())
        line = (
            f"seed {seed}: {verdict}; {time.monotonic() - started:.0f} s; replies: {rounds}; {happened}; "
            f"faults of the proxy {faults}"
        )
    if verdict != "exact":
        raise MismatchError(f"{line}\n{evidence}")
    return line


def main() -> int:
    """Soak with one seed or several in a row; the exit code is 1 if one of them was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="of each seed (default: 1)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the first (default: random)")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other (default: 1)")
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey")
    options = parser.parse_args()
    binary = shutil.which("redis-server") if options.server == "redis" else find_server()
    if binary is None:
        parser.error("there is no redis-server")
    wrong = 0
    for seed in range(options.seed, options.seed + options.seeds):
        folder = Path(tempfile.mkdtemp(prefix=f"brokerfl-soak-{seed}-"))
        try:
            print(soak(folder, Path(binary), seed, options.minutes * 60), flush=True)
            shutil.rmtree(folder)
        except MismatchError as error:
            wrong += 1
            print(f"{error}\nlogs and state: {folder}", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
