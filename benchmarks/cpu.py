"""How much CPU time processes use: proc(5). Linux only. Owns the reading; must not know what they do."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: What is read of /proc/PID/stat behind the name: utime and stime, in ticks.
_TIMES = slice(11, 13)


def seconds(pids: Sequence[int]) -> float:
    """Return the CPU time that processes have used so far, in seconds.

    Raises:
        RuntimeError: this is not Linux, or one of them has ended.
    """
    return sum(map(_ticks, pids)) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    try:
        behind_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError as error:
        raise RuntimeError(f"CPU time cannot be read here, it takes Linux: {error}") from None
    return sum(map(int, behind_name.split()[_TIMES]))


def shares(work: Callable[[], object], times: int, parts: Mapping[str, Sequence[int]]) -> str:
    """Do work many times; say in words how many milliseconds of CPU time once took each part of the processes.

    Args:
        work: what to do.
        times: how often: the kernel counts hundredths of a second.
        parts: process ids by what they are.
    """
    before = {name: seconds(pids) for name, pids in parts.items()}
    for _ in range(times):
        work()
    used = {name: (seconds(pids) - before[name]) / times for name, pids in parts.items()}
    return ", ".join(f"{name} {value * 1e3:.3g} ms" for name, value in used.items())
