"""The heartbeat: a thread that calls one function every so often until it is stopped.

Owns the rhythm. It must not know what is renewed.
"""

import threading
from collections.abc import Callable
from contextvars import copy_context
from logging import ERROR

from brokerfl.common import RedisOutOfMemory, RedisUnreachable, log


class Heartbeat:
    """Calls ``beat`` every ``interval`` seconds in a thread of its own, from `start` until `stop`.

    It ignores outages: the threads that wait for messages report them. Any other exception of ``beat`` ends it and is
    passed to ``on_error``.
    """

    def __init__(
        self, name: str, interval: float, beat: Callable[[], None], on_error: Callable[[Exception], None]
    ) -> None:
        self._interval = interval
        self._beat = beat
        self._on_error = on_error
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name=name, daemon=True)

    def start(self) -> None:
        """Start; the first beat comes after one interval."""
        self._thread.start()

    def stop(self, patience: float | None = None) -> bool:
        """Stop, and wait for a beat in progress, up to ``patience`` seconds; return whether it is over."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(patience)
            return not self._thread.is_alive()
        return True

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._beat()
            except (RedisUnreachable, RedisOutOfMemory):
                continue
            except Exception as error:
                try:
                    self._on_error(error)
                except Exception as second:
                    log(ERROR, "%s failed: %r, while handling %r", self._thread.name, second, error)
                return
