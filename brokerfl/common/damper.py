"""The damper: log lines that repeat are counted instead of printed.

Owns what counts as a repeat, and the line that says how many there were. It must not know where lines go.
"""

import os
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from logging import ERROR, LogRecord

from brokerfl.common.layout import IDS, text_of

#: Seconds in which a line that repeats is counted.
SECONDS = 10.0

#: Most different lines that are watched at once; others are printed each time.
_MOST = 1000


@dataclass
class _Line:
    """What was printed once in this window."""

    since: float
    until: float
    count: int = 0
    last: LogRecord | None = None


class Damper:
    """Lets a line pass once in a while, and counts its repeats. Safe to share between threads.

    A repeat has the same level, template and ids, among them all whole numbers that the template was given. From ERROR
    on, it has the same text.

    Args:
        say: is given the record of the line that says how often another one was repeated.
        seconds: how long repeats are counted before that line.
    """

    def __init__(self, say: Callable[[LogRecord], None], seconds: float = SECONDS) -> None:
        self._say = say
        self._seconds = seconds
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()  # a signal handler may ask for `flush` in the middle of anything
        self._lines: dict[Hashable, _Line] = {}
        self._thread: threading.Thread | None = None

    def passes(self, record: LogRecord) -> bool:
        """Return whether a record is to be printed; otherwise it was counted."""
        key, now = _key(record), time.monotonic()
        with self._lock:
            line = self._lines.get(key)
            if line is None or (now >= line.until and not line.count):
                self._lines.pop(key, None)
                if len(self._lines) >= _MOST:
                    self._lines = {each: line for each, line in self._lines.items() if line.count or now < line.until}
                if len(self._lines) < _MOST:
                    self._lines[key] = _Line(now, now + self._seconds)
                return True
            line.count += 1
            line.last = record
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="repeats", daemon=True)
                thread.start()
                self._thread = thread
            return False

    def flush(self) -> None:
        """Say now what was counted: the program ends."""
        self._tell(float("inf"))

    def _run(self) -> None:
        while True:
            with self._lock:
                due = min((line.until for line in self._lines.values() if line.count), default=None)
                if due is None:
                    self._thread = None
                    return
            time.sleep(max(0.0, due - time.monotonic()))
            self._tell(time.monotonic())

    def _tell(self, until: float) -> None:
        """Say what was counted in windows that end by then; their next ones begin."""
        now, told = time.monotonic(), []
        with self._lock:
            for line in self._lines.values():
                if line.last is not None and line.until <= until:
                    told.append(_summary(line.last, line.count, now - line.since))
                    line.since, line.until, line.count, line.last = now, now + self._seconds, 0, None
        for record in told:
            self._say(record)


def _key(record: LogRecord) -> Hashable:
    numbers = tuple(each for each in record.args if type(each) is int) if isinstance(record.args, tuple) else ()
    template = text_of(record) if record.levelno >= ERROR else str(record.msg)
    return record.name, record.levelno, template, numbers, *(getattr(record, each, None) for each in IDS)


def _summary(record: LogRecord, count: int, seconds: float) -> LogRecord:
    first = text_of(record).partition("\n")[0]
    times = "once" if count == 1 else f"{count} times"
    summary = LogRecord(record.name, record.levelno, record.pathname, record.lineno, "%s", None, None, record.funcName)
    summary.msg, summary.args = "%s … repeated %s in %.0f s", (first, times, max(1.0, seconds))
    for key in IDS:
        setattr(summary, key, getattr(record, key, None))
    return summary
