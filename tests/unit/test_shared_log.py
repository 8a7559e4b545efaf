"""The log lines that wait to be sent: as printed, bounded, and each sent once."""

import logging

from brokerfl.common.shared_log import LogOfRuns, SharedLog


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


def test_lines_about_runs_wait_for_each_run() -> None:
    """What is about no run is not kept, what comes meanwhile is sent next, and a flood is cut off."""
    shared = LogOfRuns()

    def say(text: str, run: object) -> None:
        line = record(text)
        line.run = run
        shared.emit(line)

    for text, run in (("one", "7"), ("two", "8"), ("three", None), ("four", 7), ("five", "x")):
        say(text, run)
    shared.emit(record("six"))
    lines = shared.lines()
    assert {run: [line.split()[3] for line in of_run] for run, of_run in lines.items()} == {7: ["one"], 8: ["two"]}
    for _ in range(60):
        say("flood", "7")
    shared.sent(lines)
    assert [*shared.lines()] == [7]
    assert len(shared.lines()[7]) == 50
    assert shared.lines()[7][-1] == "… and 11 more lines"
    shared.sent(shared.lines())
    assert not shared.lines()
    for run in range(150):
        say("many", str(run))
    assert len(shared.lines()) == 100
