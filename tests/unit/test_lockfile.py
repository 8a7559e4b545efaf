"""A lock file is held by one process, and by none that it forks."""

import subprocess
import sys
from pathlib import Path

import pytest

from brokerfl.common.lockfile import LockFile

#: Tells on standard output when a child was forked, which lives until standard input ends.
HOLDER = """
import os
import signal
import sys
from pathlib import Path

from brokerfl.common.lockfile import LockFile

lock = LockFile(Path(sys.argv[1]))
if os.fork():
    signal.pause()
print("Forked", flush=True)
sys.stdin.read()
"""


def test_one_process_holds_it(tmp_path: Path) -> None:
    """Another one is refused until it is closed, which may happen twice."""
    lock = LockFile(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        LockFile(tmp_path / "lock")
    lock.close()
    lock.close()
    LockFile(tmp_path / "lock").close()


def test_a_child_does_not_hold_it(tmp_path: Path) -> None:
    """The lock of a process that was killed is free, although a child that it forked lives on."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"Forked\n"
        with pytest.raises(BlockingIOError):
            LockFile(tmp_path / "lock")
        holder.kill()
        holder.wait()
        LockFile(tmp_path / "lock").close()
