"""What a run is at, without Redis: phases, groups, and what its log says of Errors."""

import logging

import pytest

from brokerfl.broker.change import Snapshot
from brokerfl.common import Error, ErrorCode
from brokerfl.server import progress as module
from brokerfl.server.announcer import named_group
from brokerfl.server.book import Book, OpenMessage, Sending, Wanted
from brokerfl.server.outcome import CANCELLED, Outcome
from brokerfl.server.progress import Activity, Progress
from brokerfl.wire.reply import error_reply
from brokerfl.wire.run import LedgerEntry
from brokerfl.wire.status import Phase
from tests.apps import Clock

FAR = 10**15


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of `progress` and of messages, which stands still until a test lets it go on."""
    made = Clock()
    monkeypatch.setattr("brokerfl.server.progress.time", made)
    monkeypatch.setattr("brokerfl.server.book.message.time", made)
    return made


class Run:
    """A book whose steps a `Progress` is told."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.book = Book(Snapshot(), b"state", self.progress.note)

    def push(self, group: str, *ids: str) -> None:
        entries = [LedgerEntry(7, group, "train", FAR, sequence) for sequence, _ in enumerate(ids, 1)]
        self.book.plan(
            [Sending(OpenMessage(each, entry, {}), entry, {}) for each, entry in zip(ids, entries, strict=True)]
        )
        self.book.apply([b"1-0" for _ in ids])

    def answer(self, *ids: str) -> None:
        for number, each in enumerate(ids, 1):
            self.book.answers.answer(7, f"{number}-0", each, {b"h": b"x"}, ())

    @property
    def still_open(self) -> dict[str, int]:
        return {message.entry.group_id: 1 for message in self.book.awaited()}


def test_how_long_groups_take(clock: Clock) -> None:
    """From the first push to the last reply; a group with open messages has not ended, however new the next one is."""
    run = Run()
    run.push("1", "a", "b")
    clock.now += 2
    run.answer("a")
    clock.now += 3
    run.push("2", "c")
    run.answer("c")
    assert run.progress.rounds(run.still_open) == [0.0]
    latest = run.progress.latest(run.still_open)
    assert latest is not None
    assert (latest.name, latest.sent) == ("1", 2)
    clock.now += 1
    run.answer("b")
    assert run.progress.rounds(run.still_open) == [6.0, 0.0]
    latest = run.progress.latest(run.still_open)
    assert latest is not None
    assert latest.name == "2"
    assert run.progress.usually == 2.0


def test_a_reply_that_is_faster_than_the_answer_to_its_push(clock: Clock) -> None:
    """It ends its group."""
    run = Run()
    entry = LedgerEntry(7, "1", "train", FAR, 1)
    run.book.plan([Sending(OpenMessage("a", entry, {}), entry, {})])
    run.answer("a")
    clock.now += 1
    run.book.apply([b"1-0"])
    assert run.progress.rounds(run.still_open) == [0.0]


def test_only_the_last_groups_are_remembered() -> None:
    """A run of any length takes the same memory."""
    run = Run()
    for number in range(100):
        run.push(str(number), f"m{number}")
        run.answer(f"m{number}")
        [taken] = [run.book.answers.take(Wanted({f"m{number}"}))]
        assert taken is not None
    assert len(run.progress._groups) == module._GROUPS
    assert len(run.progress.rounds({})) == 8


def test_what_a_run_is_at(clock: Clock) -> None:
    """What most concerns its operator comes first; between two calls it is the app."""
    progress = Progress()
    assert progress.now().phase is Phase.APP
    pushing = progress.begin(Phase.PUSHING)
    replies = progress.begin(Phase.REPLIES)
    assert progress.now() is replies
    nodes = progress.begin(Phase.NODES, 5)
    assert progress.now() is nodes
    for each in (nodes, replies):
        progress.finish(each)
    assert progress.now() is pushing
    clock.now += 1
    progress.finish(pushing)
    assert (progress.now().phase, progress.now().since) == (Phase.APP, clock.now)


@pytest.mark.parametrize(
    ("pause", "is_over", "between", "goes_on"),
    [(0.5, False, None, True), (2.0, False, None, False), (0.5, True, None, False), (0.5, False, Phase.PUSHING, False)],
)
def test_a_loop_waits_once(clock: Clock, pause: float, is_over: bool, between: Phase | None, goes_on: bool) -> None:
    """Waits for reply after reply are one wait, unless the app works in between, pushes, or had all it wanted."""
    progress, began = Progress(), clock.now
    first = progress.begin(Phase.REPLIES)
    clock.now += 10
    progress.finish(first, is_over=is_over)
    clock.now += pause
    if between is not None:
        progress.finish(progress.begin(between))
    assert progress.begin(Phase.REPLIES).since == (began if goes_on else clock.now)


def test_the_end_of_a_wait_is_told() -> None:
    """With whether it is over."""
    progress, told = Progress(), list[Activity]()
    progress.ended = told.append
    activity = progress.begin(Phase.REPLIES)
    progress.finish(activity, is_over=True)
    assert told == [activity]
    assert activity.is_over


def test_the_first_error_of_each_node_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """With its name and the first line of the reason; what the app cancelled is no Error of a node."""
    outcome = Outcome(lambda node: f"site-{node}")
    errors = [(1, Error(2, "ValueError: bad\ntraceback")), (1, Error(2, "again")), (2, Error(4, None))]
    errors += [(3, Error(ErrorCode.MESSAGE_UNAVAILABLE, CANCELLED))]
    with caplog.at_level(logging.DEBUG, "brokerfl"):
        for node, error in errors:
            outcome.note(error_reply(1, "m", LedgerEntry(node, "1", "train", FAR), error))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "Error 2 from site-1: ValueError: bad"),
        ("DEBUG", "Error 2 from site-1: again"),
        ("WARNING", "Error 4 from site-2: "),
    ]
    assert (outcome.replies, outcome.errors) == (3, 3)


@pytest.mark.parametrize(("group", "words"), [("3", "round 3"), ("warm-up", "group 'warm-up'"), ("", "")])
def test_a_group_in_words(group: str, words: str) -> None:
    """A number is a round."""
    assert named_group(group) == words
