"""The signals of the commands that run an app.

Owns that processes forked by the app do not inherit the commands' handlers, and what counts as a second signal. In such
a process, for example of a multiprocessing.Pool, SIGTERM and SIGINT do what they do in any Python program: the
command's handlers would give up the node or the run that the parent still serves.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Seconds within which a second signal counts as the first: GNU ``timeout`` signals a process, then its group.
_TOGETHER = 0.1

_before = threading.local()


def on_second(leave: Callable[[int], None]) -> Callable[[int, FrameType | None], None]:
    """Return a handler that calls ``leave`` with the signal's number, unless it comes with the first signal."""
    began = time.monotonic()

    def handler(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - began > _TOGETHER:
            leave(number)

    return handler


def keep_from_children() -> None:
    """Let every process forked from now on start with Python's own signal handlers. Call it once."""
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
