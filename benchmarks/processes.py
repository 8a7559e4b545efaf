"""Processes: started fresh, ended with the block or with this process, however that ends.

Owns starting and ending. It must not know what they do.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.resource_tracker import ensure_running
from types import FrameType, TracebackType
from typing import Any, Self

from brokerfl.broker.embedded import die_with_parent

#: Events and semaphores that are shared with these processes come from it. Spawned, so that none inherits memory.
context = multiprocessing.get_context("spawn")


class Processes:
    """Processes that end with the ``with`` block."""

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []

    def start(self, function: Callable[..., None], *args: Any) -> None:
        """Run ``function(*args)`` in a separate process."""
        process = context.Process(target=_run, args=(function, args), daemon=True)
        with _without_interrupts():
            process.start()
        self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process in self._processes if process.pid is not None]

    def check(self) -> None:
        """Look whether all of them live.

        Raises:
            RuntimeError: one has ended; what it said is on stderr.
        """
        for process in self._processes:
            if process.exitcode is not None:
                raise RuntimeError(f"a process of the benchmark ended with exit code {process.exitcode}")

    def join(self, timeout: float) -> None:
        """Wait until each has ended by itself.

        Args:
            timeout: seconds for each.
        """
        for process in self._processes:
            process.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Return what ``function(*args)`` returns in a fresh process.

    Raises:
        RuntimeError: it raised, or died; what it said is on stderr.
    """
    receiver, sender = context.Pipe(duplex=False)
    with Processes() as processes, receiver:
        processes.start(_send, sender, function, args)
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            raise RuntimeError(f"{function.__name__} failed in its process") from None


def _send(sender: Connection, function: Callable[..., Any], args: Sequence[Any]) -> None:
    sender.send(function(*args))


def _run(function: Callable[..., None], args: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:  # it was killed before we could ask to be told
        sys.exit(1)
    function(*args)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A child keeps the mask: Ctrl-C is this process's affair, which ends the others itself."""
    ensure_running()  # the first child would start it, and that takes the mask off
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind this process, as Ctrl-C does, so that all blocks end what they started."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
