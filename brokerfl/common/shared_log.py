"""The log lines of a command that are on their way to Redis.

Owns which lines these are, how long they are, and how many wait. It must not know how they are sent, or who reads them.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from logging import INFO, Handler, LogRecord

from brokerfl.common.layout import timed_line

#: Most lines that wait, and most characters of one.
_MOST_WAITING, _LONGEST = 200, 2000

#: Most lines that wait of what a node says of one run, and most runs: the run's log has room for its other nodes, too.
_MOST_OF_NODE, _MOST_RUNS = 50, 100


class SharedLog(Handler):
    """Keeps the lines of a log from INFO on until they were sent. Of a flood the first lines are kept.

    Args:
        most_waiting: how many lines wait.
    """

    def __init__(self, most_waiting: int = _MOST_WAITING) -> None:
        super().__init__(INFO)
        self._most_waiting = most_waiting
        self._lines: list[str] = []
        self._left_out = self._noted = 0

    def emit(self, record: LogRecord) -> None:
        """Keep the line of a record."""
        if len(self._lines) < self._most_waiting:
            self._lines.append(timed_line(record, False)[:_LONGEST])
        else:
            self._left_out += 1

    def lines(self) -> list[str]:
        """Return the lines that wait, as they are printed."""
        lines, self._noted = self._lines[:], self._left_out
        return [*lines, f"… and {self._noted} more lines"] if self._noted else lines

    def sent(self, lines: list[str]) -> None:
        """These lines, which `lines` returned, were sent."""
        del self._lines[: len(lines) - bool(self._noted)]
        self._left_out, self._noted = self._left_out - self._noted, 0


class LogOfRuns(Handler):
    """Keeps the lines that say which run they are about, as `SharedLog` does, for each run."""

    def __init__(self) -> None:
        super().__init__(INFO)
        self._of_runs: dict[int, SharedLog] = {}

    def emit(self, record: LogRecord) -> None:
        """Keep the line of a record that is about a run."""
        run = getattr(record, "run", None)
        if isinstance(run, str) and run.isdecimal():
            of_run = self._of_runs.get(int(run))
            if of_run is None and len(self._of_runs) < _MOST_RUNS:
                of_run = self._of_runs[int(run)] = SharedLog(_MOST_OF_NODE)
            if of_run is not None:
                of_run.emit(record)

    def lines(self) -> dict[int, list[str]]:
        """Return the lines that wait, by run."""
        with self.lock or nullcontext():
            return {run: of_run.lines() for run, of_run in self._of_runs.items()}

    def sent(self, lines: Mapping[int, list[str]]) -> None:
        """These lines, which `lines` returned, were sent."""
        with self.lock or nullcontext():
            for run, of_run in lines.items():
                self._of_runs[run].sent(of_run)
                if not self._of_runs[run].lines():
                    del self._of_runs[run]
