"""The damper: repeats are counted, and said."""

import queue
from logging import ERROR, INFO, LogRecord

from brokerfl.common.damper import Damper
from brokerfl.common.layout import identify
from brokerfl.common.log_context import log_context

LONG = 1e6


def record(text: str, *arguments: object, level: int = INFO) -> LogRecord:
    made = LogRecord("brokerfl", level, __file__, 1, text, arguments, None)
    identify(made)
    return made


def damped(*records: LogRecord) -> tuple[list[bool], list[str]]:
    """Whether each passes, and what is said at the end."""
    said: list[LogRecord] = []
    damper = Damper(said.append, LONG)
    passed = [damper.passes(each) for each in records]
    damper.flush()
    damper.flush()
    return passed, [each.getMessage() for each in said]


def test_repeats_are_counted() -> None:
    """The first line passes, and the end says how many followed, with the text of the last, once."""
    passed, said = damped(*(record("%s; trying again", f"failure {number}") for number in range(4)))
    assert passed == [True, False, False, False]
    assert said == ["failure 3; trying again … repeated 3 times in 1 s"]


def test_a_line_that_came_once_is_not_said_again() -> None:
    assert damped(record("one"), record("two")) == ([True, True], [])
    assert damped(record("one"), record("one"))[1] == ["one … repeated once in 1 s"]


def test_other_ids_are_other_lines() -> None:
    """Ids come from the context, or are whole numbers of the template."""
    with log_context(run=1):
        first = record("text")
    with log_context(run=1, node=2):
        second = record("text")
    assert damped(first, second)[0] == [True, True]
    assert damped(record("Node %s of %s", 1, "a"), record("Node %s of %s", 2, "a"))[0] == [True, True]
    assert damped(record("text"), record("text", level=INFO + 1))[0] == [True, True]


def test_errors_with_other_texts_are_other_lines() -> None:
    """A second traceback is printed, unless it is the same."""
    one, other = (record("The app raised\n%s", trace, level=ERROR) for trace in ("KeyError: a", "KeyError: b"))
    assert damped(one, other, one) == ([True, True, False], ["The app raised … repeated once in 1 s"])


def test_what_was_counted_is_said_when_its_time_is_over() -> None:
    """With the ids of the line, and without another line that would cause it; then the next window begins."""
    said: queue.Queue[LogRecord] = queue.Queue()
    damper = Damper(said.put, 0.05)
    with log_context(run=7):
        repeated = record("text")
    assert damper.passes(repeated)
    counted = [damper.passes(repeated) for _ in range(3)].count(False)
    if counted:
        summary = said.get(timeout=30)
        assert summary.getMessage().startswith("text … repeated ")
        assert summary.__dict__["run"] == "7"


def test_a_flood_of_different_lines_takes_no_memory() -> None:
    """Beyond the first thousand, lines are printed each time."""
    damper = Damper(lambda _: None, LONG)
    assert all(damper.passes(record(f"text {number}")) for number in range(2000))
    assert not damper.passes(record("text 1"))
    assert damper.passes(record("text 1999"))
