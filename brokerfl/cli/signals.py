"""The signals of the commands.

Owns which signals end a command, what a second one is, and that processes forked by the app do not inherit the
commands' handlers, which would give up the node or the run that the parent still serves.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from brokerfl.cli.streams import flush

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], None]

#: Seconds within which a second signal counts as the first: GNU ``timeout`` signals a process, then its group.
_TOGETHER = 0.1

#: Seconds until a signal that came in the middle of a fork comes again.
_LATER = 0.01

#: Called before a signal ends the process at once.
before_leaving: list[Callable[[], None]] = []

_before = threading.local()


def handle(handler: Handler | signal.Handlers) -> None:
    """Have all `SIGNALS` handled, except a SIGHUP that is ignored: so ``nohup`` starts a command."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _outside_forks(handler) if callable(handler) else handler)


def _outside_forks(handler: Handler) -> Handler:
    def handle_outside(number: int, frame: FrameType | None) -> None:
        if getattr(_before, "is_forking", False):  # what is raised there is printed and lost: come back later
            again = threading.Timer(_LATER, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        else:
            handler(number, frame)

    return handle_outside


def ignore() -> None:
    """Ignore all `SIGNALS` from now on, so that a clean-up is finished."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def handle_early(*, children_finish: bool = False) -> None:
    """Let a signal end the process at once, until `handle` says better; call it before anything slow.

    As process 1 of a container, a process without a handler does not even get SIGTERM.

    Args:
        children_finish: forked processes ignore SIGINT and SIGHUP, which a terminal sends to the whole process group.
            SIGTERM ends them, since Process.terminate() sends it.
    """
    handle(_end)
    reset = _reset_and_ignore if children_finish else _reset
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=reset)


def _end(number: int, frame: FrameType | None) -> None:
    leave(number)


def leave(number: int) -> None:
    """End the process because of a signal."""
    end_at_once(128 + number)


def end_at_once(code: int) -> None:
    """End the process with this exit code. User code cannot be interrupted safely, so this does not unwind it."""
    for call in before_leaving:
        with suppress(Exception):
            call()
    flush()
    if "multiprocessing" in sys.modules:
        with suppress(Exception):  # nobody else would: its children may ignore Ctrl-C
            for child in sys.modules["multiprocessing"].active_children():
                child.terminate()
    os._exit(code)


def on_second(end: Callable[[int], None]) -> Handler:
    """Return a handler that calls ``end`` with the signal's number, unless it comes with the first signal."""
    began = time.monotonic()

    def handler(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - began > _TOGETHER:
            end(number)

    return handler


# Forked processes, for example of a multiprocessing.Pool, do not start with the commands' handlers.


def _block() -> None:
    # A signal that came before the child has its handlers would be lost: Process.terminate() may be that fast.
    _before.is_forking = True
    _before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _before.mask)
    _before.is_forking = False  # last: no call comes between this and the end of the fork, so no handler either


def _reset() -> None:
    handle(signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _unblock()


def _reset_and_ignore() -> None:
    for number in SIGNALS:  # a SIGTERM that has come already would be lost if it were ignored in between
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    _unblock()
