"""Standard output and error, whose writes cannot fail.

Owns what happens to text that nobody can take: it is dropped. A closed descriptor, a full disk, a broken pipe or a
reader that no longer reads must change neither an answer nor an exit code.
"""

import io
import os
import select
import sys
import time
from contextlib import suppress
from typing import Any

#: Seconds that writes wait for a reader that does not read, before text is dropped until it reads again.
_PATIENCE = 1.0


class _Descriptor(io.FileIO):
    """Writes to a descriptor, and drops what cannot be written.

    Args:
        number: the descriptor.
        patience: seconds to wait for a reader; None waits for ever.

    Attributes:
        failure: why something was dropped last.
    """

    def __init__(self, number: int, patience: float | None) -> None:
        super().__init__(number, "w", closefd=False)
        self.failure: OSError | None = None
        self._patience = patience
        self._is_stuck = False
        self._poll = select.poll()
        self._poll.register(number, select.POLLOUT)

    def write(self, data: Any) -> int:
        """Write all of ``data``, as far as possible; return its length."""
        left = memoryview(data).cast("B")
        size = len(left)
        until = None if self._patience is None else time.monotonic() + self._patience
        try:
            while left:
                self._wait(until)
                # A pipe that is ready takes this much without blocking.
                left = left[super().write(left[: select.PIPE_BUF]) or 0 :]
        except OSError as error:
            self.failure = error
        return size

    def _wait(self, until: float | None) -> None:
        if until is None:
            self._poll.poll()
            return
        patience = 0.0 if self._is_stuck else max(0.0, until - time.monotonic())
        self._is_stuck = not self._poll.poll(patience * 1000)
        if self._is_stuck:
            raise TimeoutError("nobody reads it")


def guard(*, patient: bool = False) -> None:
    """Let no write to standard output or error fail. Call it before anything is written.

    Args:
        patient: wait for a reader however long it takes: the output is all that the command is for.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next socket or file would get this number, and whatever a library prints
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = _guarded(getattr(sys, name), number, patient)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # to which apps that redirect one come back


def _guarded(stream: Any, number: int, patient: bool) -> io.TextIOWrapper:
    raw = _Descriptor(number, None if patient else _PATIENCE)
    raw.name = getattr(stream, "name", os.devnull)
    unbuffered = getattr(stream, "write_through", False)
    errors = getattr(stream, "errors", "strict")
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace" if errors == "strict" else errors,
        newline="\n",
        line_buffering=number == 2 or raw.isatty(),
        write_through=unbuffered,
    )


def another_error_stream() -> io.TextIOWrapper:
    """Return a stream of its own to standard error, which stays as it is when an app closes or replaces that."""
    return _guarded(sys.__stderr__, 2, patient=False)


def failure() -> OSError | None:
    """Return why standard output could not be written, if it could not."""
    flush()
    buffer = getattr(sys.stdout, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "failure", None)


def flush() -> None:
    """Flush both streams, whatever an app has done to them."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
