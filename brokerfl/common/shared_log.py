"""The log lines of a command that are on their way to Redis.

Owns which lines these are, how long they are, and how many wait. It must not know how they are sent, or who reads them.
"""

from logging import INFO, Handler, LogRecord

from brokerfl.common.layout import timed_line

#: Most lines that wait, and most characters of one.
_MOST_WAITING, _LONGEST = 200, 2000


class SharedLog(Handler):
    """Keeps the lines of a log from INFO on until they were sent. Of a flood the first lines are kept."""

    def __init__(self) -> None:
        super().__init__(INFO)
        self._lines: list[str] = []
        self._left_out = 0

    def emit(self, record: LogRecord) -> None:
        """Keep the line of a record."""
        if len(self._lines) < _MOST_WAITING:
            self._lines.append(timed_line(record, False)[:_LONGEST])
        else:
            self._left_out += 1

    def lines(self) -> list[str]:
        """Return the lines that wait, as they are printed."""
        lines = self._lines[:]
        return [*lines, f"… and {self._left_out} more lines"] if self._left_out else lines

    def sent(self, lines: list[str]) -> None:
        """These lines, which `lines` returned, were sent."""
        if len(lines) > _MOST_WAITING:
            lines, self._left_out = lines[:_MOST_WAITING], 0
        del self._lines[: len(lines)]
