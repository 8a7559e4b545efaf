"""The log lines that wait to be sent: as printed, bounded, and each sent once."""

import logging

from brokerfl.common.shared_log import SharedLog


def record(text: str) -> logging.LogRecord:
    """A line of the log."""
    return logging.LogRecord("brokerfl", logging.INFO, __file__, 0, text, None, None)


def test_lines_wait_until_they_were_sent() -> None:
    """What comes while they are sent is sent next."""
    shared = SharedLog()
    shared.emit(record("first"))
    lines = shared.lines()
    shared.emit(record("second"))
    assert [line.split()[-1] for line in lines] == ["first"]
    shared.sent(lines)
    assert [line.split()[-1] for line in shared.lines()] == ["second"]


def test_a_flood_is_cut_off() -> None:
    """And says so, once."""
    shared = SharedLog()
    for number in range(250):
        shared.emit(record(f"{number} " + "x" * 10_000))
    lines = shared.lines()
    assert len(lines) == 201
    assert max(map(len, lines)) == 2000
    assert lines[-1] == "… and 50 more lines"
    shared.sent(lines)
    assert shared.lines() == []
