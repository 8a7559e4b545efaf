"""The runner: fields and a state in, fields and a state out; and the executor that keeps the books for it."""

import sqlite3

import pytest

from brokerfl.broker.inbox import Delivery
from brokerfl.client import ClientApp
from brokerfl.client.executor import Executor
from brokerfl.client.journal import Answer, Journal
from brokerfl.client.payloads import Payloads
from brokerfl.client.runner import MOST_BYTES, NOT_SHARED, NoStateError, Runner, Task
from brokerfl.client.wanted import Wanted
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import (
    Array,
    Context,
    ErrorCode,
    FrameError,
    JournalError,
    Message,
    Metadata,
    MetricsRecord,
    ParametersRecord,
    SType,
)
from brokerfl.testing import fake_connection
from brokerfl.wire.frame import CONTENT, Fields
from brokerfl.wire.message import decode_header, decode_message, encode_message
from brokerfl.wire.record import decode_content, encode_content
from brokerfl.wire.run import Run, encode_run
from tests.apps import number, number_in

NODE, RUN = 5, Run(7, "server:app", {"lr": 0.1}, 1.7e9)


class Counter:
    """A ClientApp that counts in its state what it is sent; 0 leaves it alone, a negative number raises afterwards."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.app = ClientApp()

        @self.app.train()
        def train(message: Message, context: Context) -> Message:
            self.contexts.append(context)
            value = number_in(message)
            count = context.state.metrics_records.setdefault("m", MetricsRecord({"n": 0})) if value else {"n": 0}
            count["n"] += value  # type: ignore[operator]
            if value < 0:
                raise ValueError("after it had counted")
            return message.create_reply(number(int(count["n"])))  # type: ignore[arg-type]


def header() -> Metadata:
    return Metadata(RUN.run_id, "m", 1, NODE, "", "g", 60.0, "train")


def task(value: int, state: Fields | None, cancelled: bool = False) -> Task:
    return Task(RUN, "m", header(), encode_content(number(value)), state, lambda: cancelled)


def counted(state: Fields | None) -> int:
    assert state is not None
    return int(decode_content(state).metrics_records["m"]["n"])  # type: ignore[arg-type]


def test_a_state_goes_in_once_and_comes_out_when_it_changed() -> None:
    """A run that never had one begins with an empty state; what is at hand is not brought again."""
    counter = Counter()
    runner = Runner(counter.app, NODE, {"shift": 1})
    assert not runner.has_state_of(RUN.run_id)
    first = runner.run(task(2, {}))
    assert runner.has_state_of(RUN.run_id)
    again, same = runner.run(task(3, None)), runner.run(task(0, None))
    assert (counted(first.state), counted(again.state), same.state) == (2, 5, None)
    assert number_in(Message(header(), content=decode_content(again.content))) == 5
    metadata, error = decode_header(again.head)
    assert (metadata.run_id, metadata.src_node_id, metadata.reply_to_message, error) == (RUN.run_id, NODE, "m", None)
    assert counter.contexts[0] is counter.contexts[2]
    assert (counter.contexts[0].run_config, counter.contexts[0].node_config) == (RUN.run_config, {"shift": 1})


def test_a_state_that_is_brought_counts() -> None:
    """Whatever the runner had: the state that a task brings takes its place."""
    runner = Runner(Counter().app, NODE, {})
    former = runner.run(task(2, {})).state
    runner.run(task(3, None))
    assert counted(runner.run(task(1, former)).state) == 3


@pytest.mark.parametrize("how", ["never", "drop", "keep_only", "clear"])
def test_a_state_that_is_missing_is_asked_for(how: str) -> None:
    """Nothing is executed with a state that the runner does not have any more."""
    counter = Counter()
    runner = Runner(counter.app, NODE, {})
    if how != "never":
        runner.run(task(1, {}))
        {"drop": lambda: runner.drop(7), "keep_only": lambda: runner.keep_only([8]), "clear": runner.clear}[how]()
    executed = len(counter.contexts)
    with pytest.raises(NoStateError):
        runner.run(task(1, None))
    assert len(counter.contexts) == executed


def test_what_the_app_raises_undoes_its_change() -> None:
    """The reply is Error 2, and the next task has to bring the state."""
    runner = Runner(Counter().app, NODE, {})
    state = runner.run(task(2, {})).state
    failed = runner.run(task(-1, None))
    assert (failed.content, failed.state) == ({}, None)
    error = decode_message(failed.head).error
    assert (error.code, error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError: after it had counted")
    assert not runner.has_state_of(RUN.run_id)
    assert counted(runner.run(task(1, state)).state) == 3


def test_a_text_that_is_not_shared() -> None:
    """The ServerApp is told the class; the node's log has the rest."""
    runner = Runner(Counter().app, NODE, {})
    runner.shares_text = False
    error = decode_message(runner.run(task(-1, {})).head).error
    assert error.reason == f"ValueError: {NOT_SHARED}"


def test_an_array_that_sqlite_would_refuse_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of SQLite is for a row: the longest array that the runner lets through fits into one, with its key."""
    most = 10_000
    limit = most - (1_000_000_000 - MOST_BYTES)
    monkeypatch.setattr("brokerfl.client.runner.MOST_BYTES", limit)
    journal = Journal()
    journal.open(b"a Redis")
    assert journal._db is not None
    journal._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        size = number_in(message)
        array = Array("uint8", (size,), SType.NUMPY, bytes(size))
        context.state.parameters_records["p"] = ParametersRecord({"a": array})
        return message.create_reply(number(0))

    def answer(state: Fields | None) -> Answer:
        return Answer(2**64 - 1, "f" * 32, {}, state)

    longest = Runner(app, NODE, {}).run(task(limit, {})).state
    journal.commit([answer(longest)])
    assert journal.state_of(2**64 - 1) == longest
    refused = Runner(app, NODE, {}).run(task(limit + 1, {}))
    _, error = decode_header(refused.head)
    assert refused.state is None
    assert error is not None
    assert error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert f"has {limit + 1:,} bytes; the limit is {limit:,} bytes: split it" in (error.reason or "")
    with pytest.raises(JournalError, match="too big"):
        journal.commit([answer({b"0": bytes(most - 8)})])
    journal.close()


def test_what_cannot_be_read_is_no_fault_of_the_app() -> None:
    """A message leaves the state as it is; a state says whose fault it is."""
    runner = Runner(Counter().app, NODE, {})
    runner.run(task(2, {}))
    with pytest.raises(FrameError):
        runner.run(Task(RUN, "m", header(), {CONTENT: b"\x01"}, None, lambda: False))
    assert counted(runner.run(task(1, None)).state) == 3
    with pytest.raises(FrameError, match=r"context\.state was written by another version"):
        runner.run(task(1, {CONTENT: b"\x63"}))


def test_cancelled_asks_about_the_task() -> None:
    """One Context serves all messages of a run; it asks about the one that is being executed."""
    counter = Counter()
    runner = Runner(counter.app, NODE, {})
    for cancelled in (False, True, False):
        runner.run(task(1, None if counter.contexts else {}, cancelled))
        assert counter.contexts[-1].cancelled() == cancelled


# The executor.


class Forgetful(Runner):
    """A runner that once loses its states just before it is to execute."""

    lost = False
    work: Work | None = None

    def run(self, task: Task) -> object:  # type: ignore[override]
        if not self.lost:
            self.lost = True
            self.clear()
        if self.work is not None:
            self.work.is_lost = True
        return super().run(task)


def executing(runner: Runner) -> tuple[Executor, Journal]:
    connection, journal = fake_connection(), Journal()
    executor = Executor(runner, journal, Payloads(connection, NODE), Wanted(connection, NODE))
    executor.start_afresh(b"redis")
    executor.keep_only({RUN.run_id: encode_run(RUN)})
    return executor, journal


def handed_out(message_id: str, value: int) -> Work:
    worklist, later = Worklist(), 2**42
    fields = encode_message(message_id, header(), encode_content(number(value)))
    worklist.add(Delivery(RUN.run_id, f"{later}-0", {name: bytes(data) for name, data in fields.items()}), message_id)
    return worklist.next()


def test_a_state_that_got_lost_is_loaded_again() -> None:
    """The run was over for a moment while its message was being fetched: it is executed once, with its state."""
    counter = Counter()
    executor, journal = executing(runner := Forgetful(counter.app, NODE, {}))
    runner.lost = True
    works = [handed_out(name, 2) for name in ("a", "b")]
    assert executor.execute(works[0], 0, lambda: None) is not None
    assert works[0].answer is not None
    runner.lost = False
    reply = executor.execute(works[1], 0, lambda: journal.commit([works[0].answer]))  # type: ignore[list-item]
    assert reply is not None
    assert number_in(Message(header(), content=decode_content(reply))) == 4
    assert len(counter.contexts) == 2


def test_the_state_of_another_redis_is_not_kept() -> None:
    """Redis lost its data while a message was being executed: what it left in the state is for nobody."""
    runner = Forgetful(Counter().app, NODE, {})
    runner.work = work = handed_out("a", 2)
    executing(runner)[0].execute(work, 0, lambda: None)
    assert not runner.has_state_of(RUN.run_id)
