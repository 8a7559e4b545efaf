"""How much memory a process holds, and how much it held at most: proc(5). Linux only."""

import gc
import re
from pathlib import Path


def resident(pid: int | None = None) -> int:
    """Return the bytes that a process holds now; None is this one."""
    return _status("VmRSS", pid)


def peak(pid: int | None = None) -> int:
    """Return the most bytes that a process held since it started, or since its `reset_peak`; None is this one."""
    return _status("VmHWM", pid)


def reset_peak() -> int:
    """Reset `peak` of this process; return the bytes that it holds now.

    Raises:
        RuntimeError: this is not Linux.
    """
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise RuntimeError(f"peak memory cannot be measured here, it takes Linux: {error}") from None
    return resident()


def _status(name: str, pid: int | None) -> int:
    try:
        text = Path(f"/proc/{pid or 'self'}/status").read_text()
    except OSError as error:
        raise RuntimeError(f"memory of a process cannot be read here, it takes Linux: {error}") from None
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the kernel does not tell {name}")
    return int(found[1]) * 1024
