"""The keyboard: single keys of a terminal, as they are pressed.

Owns the terminal's mode, which is put back however the command ends. It must not know what keys mean.
"""

import os
import select
import signal
import termios
import tty
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

#: Signals that end a command, and those after which its screen is drawn anew.
_ENDING, _REDRAWING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), (signal.SIGWINCH, signal.SIGCONT)

#: Sequences of a terminal, by what they mean.
_SEQUENCES = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"\x1b": "escape",
    b"\r": "enter", b"\n": "enter",
}  # fmt: skip


class Ended(Exception):  # noqa: N818  (it says what happened)
    """The terminal is gone, or a signal ends the command; ``number`` is that of the signal, 0 for none."""

    def __init__(self, number: int) -> None:
        self.number = number


class Keyboard:
    """The keys of a terminal, until the ``with`` block ends. Only for the main thread, except `wake`.

    Args:
        descriptor: of the terminal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mode: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._signal = 0

    def __enter__(self) -> Self:
        self._woken, self._waking = os.pipe()
        for end in (self._woken, self._waking):
            os.set_blocking(end, False)
        self._mode = termios.tcgetattr(self._descriptor)
        self._handlers = {number: signal.getsignal(number) for number in (*_ENDING, *_REDRAWING)}
        for number, handler in self._handlers.items():
            if handler is not signal.SIG_IGN or number in _REDRAWING:
                signal.signal(number, self._on_signal)
        self._take_over()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._mode)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._woken)
        os.close(self._waking)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in _ENDING:
            self._signal = number
        elif number == signal.SIGCONT:  # a shell sets the mode that it likes before a command goes on
            with suppress(termios.error):
                self._take_over()
        self.wake()

    def _take_over(self) -> None:
        """Ask for single keys, and for no Ctrl-Z: who stops with it leaves the screen to the shell."""
        tty.setcbreak(self._descriptor)
        mode = termios.tcgetattr(self._descriptor)
        mode[6][termios.VSUSP] = bytes([os.fpathconf(self._descriptor, "PC_VDISABLE")])
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mode)

    def wake(self) -> None:
        """Let `read` return, also from another thread."""
        with suppress(OSError):  # there is enough in the pipe, or it is closed
            os.write(self._waking, b"\0")

    def read(self, timeout: float) -> list[str]:
        """Return the keys that were pressed: characters, ``up``, ``down``, ``enter`` or ``escape``.

        Waits for the first one, but not longer than ``timeout`` seconds, nor when somebody calls `wake`.

        Raises:
            Ended: there will be no more.
        """
        ready, _, _ = select.select([self._descriptor, self._woken], [], [], timeout)
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._signal:
            raise Ended(self._signal)
        if self._descriptor not in ready:
            return []
        return keys_in(self._read_all())

    def _read_all(self) -> bytes:
        try:
            data = os.read(self._descriptor, 1024)
        except OSError:
            data = b""
        if not data:
            raise Ended(0)
        return data


def keys_in(data: bytes) -> list[str]:
    """Return the keys in what a terminal sent; sequences of other keys are left out."""
    keys, at = [], 0
    while at < len(data):
        length = _length_of(data[at:])
        part, at = data[at : at + length], at + length
        if part in _SEQUENCES:
            keys.append(_SEQUENCES[part])
        elif not part.startswith(b"\x1b"):
            keys.append(part.decode(errors="replace"))
    return keys


def _length_of(data: bytes) -> int:
    """Return how many bytes the first key has."""
    if data[:1] != b"\x1b" or data[1:2] not in (b"[", b"O"):
        return 1
    ends = (at for at in range(2, len(data)) if 0x40 <= data[at] <= 0x7E)
    return next(ends, len(data) - 1) + 1
