"""The log of a command: what its operator asked for, whatever the app does to the logging of the process.

Owns which records reach the console and the log file of a command, and that each reaches them once. It must not know
what is logged, or how a line looks.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from logging import CRITICAL, Handler, LogRecord
from pathlib import Path

from brokerfl.common.damper import Damper

#: Where brokerfl's own modules are. Those of an app may be among the examples.
_OURS, _EXAMPLES = str(Path(__file__).parent.parent) + "/", str(Path(__file__).parent.parent / "examples") + "/"


class KeptLog:
    """The handlers of a command. They are no handlers of any logger, so nobody finds them there.

    Args:
        handlers: each is given the records from its level on.
        watch: makes the damper, given where it is to say what was repeated.

    Attributes:
        level: the lowest level of all handlers.
    """

    def __init__(
        self, handlers: Sequence[Handler], watch: Callable[[Callable[[LogRecord], None]], Damper] = Damper
    ) -> None:
        self.level = min((handler.level for handler in handlers), default=CRITICAL)
        self._handlers = tuple(handlers)
        self._damper = watch(self.write)

    def share(self, handler: Handler) -> None:
        """Give another handler the records from now on, from its level on."""
        self._handlers = (*self._handlers, handler)
        self.level = min(self.level, handler.level)

    def take(self, record: LogRecord) -> bool:
        """Write a record, unless it repeats a line of brokerfl's own; return whether others may have it."""
        if _is_damped(record) and not self._damper.passes(record):
            return False
        self.write(record)
        return True

    def write(self, record: LogRecord) -> None:
        """Write a record."""
        for handler in self._handlers:
            if record.levelno >= handler.level:
                with handler.lock or nullcontext():  # a lock that an exception of a signal handler cannot leave held
                    handler.emit(record)

    def finish(self) -> None:
        """The program ends: write what was counted and not said yet."""
        self._damper.flush()


def _is_damped(record: LogRecord) -> bool:
    """Whether repeats of a line are counted: neither an app's own lines nor the steps of a message, which differ."""
    path = record.pathname
    return path.startswith(_OURS) and not path.startswith(_EXAMPLES) and getattr(record, "event", None) is None
