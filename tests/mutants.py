"""Break brokerfl in one place after the other, and tell which breaks no test notices.

The checkout itself is never touched: each mutant is written into a copy, which is deleted at the end. For each mutant
run, until one fails: the tests that are to notice it, on fakeredis and then on Valkey; all of tests/unit and
tests/contract on fakeredis; a slice of tests/crash. `mutant_table` has the mutants.
"""

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.mutant_table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent

#: What a copy does without.
_LEFT_OUT = (".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis")

#: Selects one backend of each contract test, and tests that have none.
_FAKEREDIS = "not valkey and not [redis] and not [redis- and not -redis] and not -redis-"

#: All that is fast. One module tells that a mutant changed the code, which is what mutants do.
_BROAD = ["tests/unit", "tests/contract", "--ignore", "tests/unit/test_mutants.py", "-n", "2", "-k", _FAKEREDIS]

#: Seconds after which tests that still run have noticed that something hangs.
_PATIENCE = {"its tests": 300, "its tests on valkey": 600, "unit, contract": 1800, "crash": 3600}


def problem_of(mutant: Mutant, root: Path = ROOT) -> str:
    """Return why a mutant does not fit the code any more; "" if it does."""
    count = (root / "brokerfl" / mutant.file).read_text().count(mutant.old)
    if count != 1:
        return f"{mutant.file} has its old text {count} times: {mutant.old.strip()!r}"
    missing = [name for name in mutant.tests.split() if not (root / "tests" / f"{name}.py").exists()]
    return f"there is no tests/{missing[0]}.py" if missing else ""


@contextmanager
def applied(mutant: Mutant, root: Path) -> Iterator[None]:
    """Apply a mutant to a copy until the block ends."""
    path = root / "brokerfl" / mutant.file
    before, stat = path.read_text(), path.stat()
    try:
        path.write_text(before.replace(mutant.old, mutant.new))
        # Compiled files are told apart by second and size.
        os.utime(path, (stat.st_atime, stat.st_mtime + 1 + MUTANTS.index(mutant)))
        yield
    finally:
        path.write_text(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


class Tests:
    """Runs tests in copies of the checkout, several at once.

    Args:
        copies: how many.
        seed: which slice of tests/crash.
    """

    def __init__(self, copies: int, seed: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        self._slice = f"{seed % 100}/100"
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False
        self._copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(copies):
            copy = self._folder / str(number)
            shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            self._copies.put(copy)

    def __enter__(self) -> "Tests":
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over = True
        for process in [*self._running]:
            _kill(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def notice(self, mutant: Mutant, *, quick: bool) -> str:
        """Return which test notices a mutant; "" if none does."""
        copy = self._copies.get()
        try:
            with applied(mutant, copy):
                return next(filter(None, (self._run(copy, *stage) for stage in self._stages(mutant, quick))), "")
        finally:
            self._copies.put(copy)

    def baseline(self) -> str:
        """Return which test fails without any mutant; "" if none does."""
        copy = self._copies.get()
        try:
            return self._run(copy, "unit, contract", _BROAD)
        finally:
            self._copies.put(copy)

    def _stages(self, mutant: Mutant, quick: bool) -> list[tuple[str, list[str]]]:
        chosen = [f"tests/{name}.py" for name in mutant.tests.split()]
        contract = [name for name in chosen if "contract" in name]
        stages = [("its tests", [*chosen, "-k", _FAKEREDIS])]
        if not quick:
            stages += [("its tests on valkey", [*contract, "-k", "valkey"])] if contract else []
            stages += [
                ("unit, contract", _BROAD),
                ("crash", ["tests/crash", "-n", "2", "--slice", self._slice, "--seed", "1"]),
            ]
        return stages

    def _run(self, copy: Path, name: str, arguments: Sequence[str]) -> str:
        """Return the first test that fails; "" if none does."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", *arguments]
        process = subprocess.Popen(
            command,
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._running.add(process)
        try:
            output, _ = process.communicate(timeout=_PATIENCE[name])
        except subprocess.TimeoutExpired:
            return f"{name} hang"
        finally:
            _kill(process)
            self._running.discard(process)
        if self._is_over:
            raise KeyboardInterrupt
        if process.returncode in (0, 5):  # 5: none was selected
            return ""
        lines = output.splitlines()
        failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
        return (failed or [line for line in lines if line.startswith("+") or "Timeout" in line] or lines[-1:] or ["?"])[
            0
        ]


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and its children; this and its group are ours."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _numbers(text: str) -> range:
    first, _, last = text.partition("-")
    if int(last or first) >= len(MUTANTS):
        raise ValueError(f"there are {len(MUTANTS)} mutants, from 0")
    return range(int(first), int(last or first) + 1)


def _leave(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Apply the mutants and print which survived."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutants, and which do not fit the code any more")
    parser.add_argument("--only", type=_numbers, action="append", metavar="N", help="only these: a number, or N-M")
    parser.add_argument("--quick", action="store_true", help="run only the tests that are to notice each, on fakeredis")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once (1)")
    parser.add_argument("--seed", type=int, default=1, help="which hundredth of tests/crash (1)")
    given = parser.parse_args(arguments)
    numbers = [number for chosen in given.only for number in chosen] if given.only else range(len(MUTANTS))
    chosen = {number: MUTANTS[number] for number in numbers}
    stale = {number: problem for number, mutant in chosen.items() if (problem := problem_of(mutant))}
    if given.list:
        for number, mutant in chosen.items():
            print(f"{number:4} {mutant.file:24} {mutant.breaks}")
    for number, problem in stale.items():
        print(f"{number:4} does not fit: {problem}")
    if given.list:
        return 1 if stale else 0
    signal.signal(signal.SIGTERM, _leave)
    survivors: list[int] = []
    with Tests(given.jobs, given.seed) as tests, ThreadPoolExecutor(given.jobs) as pool:
        try:
            if not given.only and (failed := tests.baseline()):
                print(f"without any mutant: {failed}")
                return 2

            def try_out(number: int) -> None:
                started = time.monotonic()
                noticed = tests.notice(MUTANTS[number], quick=given.quick)
                if not noticed:
                    survivors.append(number)
                verdict = noticed or "SURVIVED"
                print(
                    f"{number:4} {MUTANTS[number].breaks}: {verdict} ({time.monotonic() - started:.0f} s)", flush=True
                )

            for done in [pool.submit(try_out, number) for number in chosen if number not in stale]:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            tests.__exit__()
            raise
    print(f"{len(survivors)} of {len(chosen) - len(stale)} mutants survived")
    for number in sorted(survivors):
        print(f"{number:4} {MUTANTS[number].file:24} {MUTANTS[number].breaks}")
    return 1 if survivors or stale else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
