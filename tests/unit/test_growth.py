"""What a step costs does not grow with the run: eight times as many messages take eight times as many steps.

Steps are executed lines of brokerfl, so a loop counts as often as it goes round, and no clock decides.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import brokerfl
from brokerfl.broker.change import Snapshot
from brokerfl.common import Array, Error, ErrorCode, ParametersRecord, RecordSet
from brokerfl.server.book import Book, OpenMessage, Sending, Wanted
from brokerfl.server.progress import Progress
from brokerfl.server.wait import Waits
from brokerfl.wire import payload
from brokerfl.wire.contents import Contents
from brokerfl.wire.run import LedgerEntry

HOME = str(Path(brokerfl.__file__).parent)

FEW, MANY, MOST = 1_000, 8_000, 8.5

REPLY = {b"h": b"reply"}


def steps(action: Callable[[], object]) -> int:
    """How many lines of brokerfl it executes."""
    count = 0

    def line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def call(frame: FrameType, event: str, argument: object) -> Any:
        return line if frame.f_code.co_filename.startswith(HOME) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def entry(number: int, node: int = 7, group: str = "g", digest: bytes = b"c") -> LedgerEntry:
    return LedgerEntry(node, group, "train", 10**15, number, digest)


def push(book: Book, numbers: range, group: str = "g", node: int = 7) -> list[str]:
    """One push of messages to one node; the ids as the app gets them."""
    messages = [OpenMessage(f"{group}-{n}", entry(n, node, group), {b"c": b""}) for n in numbers]
    book.plan([Sending(message, message.entry, {b"c": b""}) for message in messages])
    book.apply([f"{n + 1}-0".encode() for n in numbers])
    return [book.hand_out(message.message_id) for message in messages]


def answer(book: Book, ids: list[str], is_large: bool = False) -> None:
    for number, message_id in enumerate(ids):
        place = f"{number + 100_000}-0"
        book.answers.answer(7, place, str.__str__(message_id), REPLY, (place,) if is_large else ())


def settle(book: Book, **leaving: list[OpenMessage]) -> None:
    book.plan(**leaving)
    book.apply([])


def take_all(book: Book, ids: list[str], one_by_one: bool) -> None:
    """Take replies, and settle each."""
    wanted = set(ids)
    for message_id in reversed(ids):
        message = book.answers.take(Wanted({message_id} if one_by_one else wanted))
        assert message is not None
        book.answers.hand_over([message])
        settle(book, settled=[message])


def taken_in_order(count: int) -> Callable[[], object]:
    """One iterator takes all in the order in which they came, and each is settled at once."""
    book = Book(Snapshot(), b"state")
    ids = push(book, range(count))
    answer(book, ids)
    return lambda: take_all(book, ids, one_by_one=False)


def taken_from_behind(count: int) -> Callable[[], object]:
    """The app asks for one after the other, the last first."""
    book = Book(Snapshot(), b"state")
    ids = push(book, range(count))
    answer(book, ids)
    return lambda: take_all(book, ids, one_by_one=True)


def large_ones_settled(count: int) -> Callable[[], object]:
    """Large replies of one node, each settled when it was folded: its leftovers are looked for each time."""
    book = Book(Snapshot(), b"state")
    ids = push(book, range(count))
    answer(book, ids, is_large=True)
    return lambda: take_all(book, ids, one_by_one=True)


def left_behind(count: int) -> Callable[[], object]:
    """Rounds of two messages of which the app takes the first."""
    book = Book(Snapshot(), b"state")

    def rounds() -> None:
        for turn in range(count // 2):
            ids = push(book, range(2), group=str(turn))
            answer(book, ids)
            message = book.answers.take(Wanted({ids[0]}))
            assert message is not None
            book.answers.hand_over([message])
            del ids
            settle(book, settled=book.answers.handed_over(), cancelled=book.unwanted())
        assert len(book) == 0

    return rounds


def open_ones_let_go(count: int) -> Callable[[], object]:
    """Nobody answers what the app let go of, and the run moves on each time."""
    book = Book(Snapshot(), b"state")

    def rounds() -> None:
        for turn in range(count):
            push(book, range(1), group=str(turn))
            assert book.unwanted() == []

    return rounds


def nodes_that_vanish(count: int) -> Callable[[], object]:
    """Each round has a node of its own, which then is gone: what is looked through is only what came since."""
    book = Book(Snapshot(), b"state")

    def rounds() -> None:
        for node in range(count):
            settle(book, cancelled=book.awaited(push(book, range(1), str(node), node)))
            if gone := book.contacts.crowd():
                book.contacts.forget(gone)
        assert len(book.contacts.all()) < 200

    return rounds


def nodes_that_all_owe(count: int) -> Callable[[], object]:
    """The run moves on with each push, while every node has a message: none of them can have been left."""
    book = Book(Snapshot(), b"state")

    def rounds() -> None:
        for node in range(count):
            push(book, range(1), str(node), node)
            assert book.contacts.crowd() == []

    return rounds


def adopted(count: int) -> Callable[[], object]:
    """A resumed app pushes everything again."""
    book = Book(Snapshot({f"m{n}": entry(n) for n in range(count)}), b"state")

    def adopt() -> None:
        found = [book.reserve(entry(count + n), 0.0) for n in range(count)]
        assert book.adopt((orphan, {}) for orphan in found if orphan is not None) is False
        assert not book.orphans()

    return adopt


def cancelled(count: int) -> Callable[[], object]:
    """One after the other, as the threads of a strategy do."""
    book = Book(Snapshot(), b"state")
    ids = push(book, range(count))

    def cancel() -> None:
        for message_id in ids:
            [message] = book.awaited([message_id])
            book.answers.fail([(message.message_id, Error(ErrorCode.MESSAGE_UNAVAILABLE, "cancelled"))])

    return cancel


def waited_for_by_two(count: int) -> Callable[[], object]:
    """Two iterators take turns: what one takes does not make the other look through all that it waits for."""
    book = Book(Snapshot(), b"state")
    ids = push(book, range(count))
    waits = Waits(book, _Session(), None, None, Progress())  # type: ignore[arg-type]
    two = [Wanted(set(ids[::2])), Wanted(set(ids[1::2]))]

    def take() -> None:
        for number, message_id in enumerate(ids):
            book.answers.answer(7, f"{number + 1}-0", str.__str__(message_id), REPLY, ())
            mine, other = two[number % 2], two[1 - number % 2]
            assert waits.next(other, 0.0) is None
            assert waits.next(mine, 0.0) is not None

    return take


class _Session:
    def check(self) -> None:
        """The run goes on."""


def look_alikes(count: int) -> Callable[[], object]:
    """Contents of one size that have equal ends."""
    contents, ends = Contents(), bytes(600)
    records = [
        RecordSet({"p": ParametersRecord({"w": Array("uint8", [1208], "numpy.ndarray", ends + n.to_bytes(8) + ends)})})
        for n in range(count)
    ]

    def encode() -> None:
        assert len({contents.encode(record).name for record in records}) == count

    return encode


@pytest.mark.parametrize(
    "scenario",
    [
        taken_in_order,
        taken_from_behind,
        large_ones_settled,
        left_behind,
        open_ones_let_go,
        nodes_that_vanish,
        nodes_that_all_owe,
        adopted,
        cancelled,
        waited_for_by_two,
        look_alikes,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_a_step_costs_what_it_touches(
    scenario: Callable[[int], Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times as many take at most 8.5 times as many steps."""
    monkeypatch.setattr(payload, "INLINE", 512)
    few, many = (steps(scenario(count)) for count in (FEW, MANY))
    assert few >= FEW, "it did something"
    assert many / few <= MOST, f"{few:,} steps for {FEW:,}, {many:,} for {MANY:,}"


def test_an_old_message_of_a_node_keeps_no_places_of_later_ones() -> None:
    """It is open for ever; of all large replies that came and went since, nothing stays."""
    book = Book(Snapshot(), b"state")
    [old] = push(book, range(1), group="old")
    for number in range(100_000, 100_000 + FEW):
        [message_id] = push(book, range(number, number + 1))
        answer(book, [message_id], is_large=True)
        take_all(book, [message_id], one_by_one=True)
    assert len(book) == 1
    assert len(book._index.places._places[7]) < 100
    assert str.__str__(old) in book


def test_what_a_failed_commit_would_have_settled_is_still_needed() -> None:
    """A plan that is discarded leaves the places as they were: the next one comes to the same."""
    book = Book(Snapshot(), b"state")
    ids = push(book, range(100_000, 100_003))
    answer(book, ids, is_large=True)
    taken = [book.answers.take(Wanted({message_id})) for message_id in ids[:2]]
    messages = [message for message in taken if message is not None]
    book.answers.hand_over(messages)
    plans = []
    for _ in range(2):
        plans.append(book.plan(settled=messages).needed_from)
        book.discard()
    plans.append(book.plan(settled=messages[:1]).needed_from)
    assert plans == [{7: "40003-0"}, {7: "40003-0"}, {7: "40002-0"}], "less a minute for the clock"
