"""The signals of the commands that run an app.

Owns that a process which the app forks does not inherit what they do, and which signal is a second one. In such a
process, of a multiprocessing.Pool for one, SIGTERM and SIGINT do what they do in any Python: the command's own
functions would let go of the node or the run that its parent still serves.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Seconds within which a second signal is the first one again: ``timeout`` of GNU signals a process, then its group.
_TOGETHER = 0.1

_before = threading.local()


def on_second(leave: Callable[[int], None]) -> Callable[[int, FrameType | None], None]:
    """Return a handler that calls ``leave`` with the signal's number, unless it comes at once."""
    began = time.monotonic()

    def handler(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - began > _TOGETHER:
            leave(number)

    return handler


def keep_from_children() -> None:
    """Have every process that is forked from now on begin with Python's own signal handlers. Call it once."""
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset)


def _block() -> None:
    # A signal that came before the child has its handlers would be lost: Process.terminate() may be that fast.
    _before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _before.mask)


def _reset() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _unblock()
