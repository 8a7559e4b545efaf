"""Promise 7: what a node learns stays on the node, and no redelivery applies it twice."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from brokerfl.client import answered
from brokerfl.client import journal as journal_module
from brokerfl.common import Context, ErrorCode, Message
from brokerfl.server import Driver
from brokerfl.wire.frame import CONTENT, MANIFEST, join_fields, split_fields
from tests.apps import Bench, Counter, driving, eventually, number_in
from tests.conftest import Backend
from tests.stage import (
    Streams,
    absent_runs,
    ask,
    by_hand,
    dropped,
    fields_of,
    heartbeat,
    identity,
    kill,
    push_numbers,
    saved_reply,
    saved_state,
    send,
    serving,
    tidy_soon,
    turns,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

NAME = "berlin"


# Another version's.


def spoil(data: bytes) -> bytes:
    """What another version would have written."""
    return b"\x02" + data[1:]


@contextmanager
def journal_in(folder: Path) -> Iterator[sqlite3.Connection]:
    """The file of a node that is away."""
    [file] = folder.glob("*.db")
    with closing(sqlite3.connect(file)) as db, db:
        yield db


def test_a_large_reply_of_another_version_is_error_4(backend: Backend, tmp_path: Path) -> None:
    """The node goes on: it says that it cannot read what it kept, and serves the next message."""
    counter = Counter()
    with driving(backend) as driver:
        with serving(backend, counter.app, tmp_path) as node:
            streams = Streams(backend, driver, node)
            message_id = ask(driver, node, 100_000)
            eventually(lambda: streams.lengths()[1] == 1)
            fields = fields_of(driver, message_id)
        backend.admin.xtrim(streams.outbox, maxlen=0)
        with journal_in(tmp_path) as db:
            [(data,)] = db.execute("SELECT reply FROM answered").fetchall()
            kept = split_fields(data)
            db.execute("UPDATE answered SET reply = ?", (join_fields({**kept, MANIFEST: spoil(kept[MANIFEST])}),))
        backend.admin.xadd(streams.inbox, fields)  # type: ignore[arg-type]
        with serving(backend, counter.app, tmp_path) as node:
            [reply] = driver.replies([message_id], timeout=20)
            assert reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
            assert "version 2" in reply.error.reason
            assert send(driver, node, group="2").has_content()


def test_a_state_of_another_version_is_error_3(backend: Backend, tmp_path: Path) -> None:
    """The reason names the state, not the message."""
    counter = Counter()
    with driving(backend) as driver:
        with serving(backend, counter.app, tmp_path) as node:
            assert send(driver, node).has_content()
        with journal_in(tmp_path) as db:
            [(data,)] = db.execute("SELECT data FROM states WHERE field = ?", (CONTENT,)).fetchall()
            db.execute("UPDATE states SET data = ? WHERE field = ?", (spoil(data), CONTENT))
        with serving(backend, counter.app, tmp_path) as node:
            reply = send(driver, node, group="2")
            assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
            assert "context.state was written by another version" in reply.error.reason


# Once for each id.


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_redelivered_message_is_answered_from_the_journal(backend: Backend, on_disk: bool, tmp_path: Path) -> None:
    """A message that comes again after its reply is published again and not executed; the state counts it once."""
    counter = Counter()
    counter.go.clear()
    with serving(backend, counter.app, tmp_path if on_disk else None) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node)
        assert counter.begun.acquire(timeout=10)
        _, fields = streams.entry(streams.inbox)
        counter.go.set()
        eventually(lambda: streams.lengths() == (0, 1, 0))
        for copies in (2, 3):
            streams.again(fields)
            eventually(lambda copies=copies: streams.lengths() == (0, copies, 0))
        assert len({reply[b"h"] for _, reply in backend.admin.xrange(streams.outbox)}) == 1, "not the same reply"
        assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
        eventually(lambda: (driver.pull_messages([message_id]), dropped(driver))[1] == 2)
        assert number_in(send(driver, node)) == 2
    assert counter.calls == 2


def test_a_message_that_comes_again_while_it_runs_is_executed_once(backend: Backend) -> None:
    """Its second entry is settled with its first by one reply."""
    counter = Counter()
    counter.go.clear()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        message_id = ask(driver, node)
        assert counter.begun.acquire(timeout=10)
        _, fields = streams.entry(streams.inbox)
        streams.again(fields)
        counter.go.set()
        assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
        eventually(lambda: streams.lengths()[0] == 0)
        assert number_in(send(driver, node)) == 2
    assert counter.calls == 2


def test_a_restarted_node_has_state_and_replies(backend: Backend, tmp_path: Path) -> None:
    """The next process of a node goes on with the state, and answers what the last one had answered, from its disk."""
    counter, second = Counter(), Counter()
    counter.go.clear()
    with driving(backend) as driver:
        with serving(backend, counter.app, tmp_path) as node:
            streams = Streams(backend, driver, node)
            message_id = ask(driver, node)
            assert counter.begun.acquire(timeout=10)
            _, fields = streams.entry(streams.inbox)
            counter.go.set()
            eventually(lambda: streams.lengths() == (0, 1, 0))
        backend.admin.xtrim(streams.outbox, maxlen=0)  # Redis forgot the reply, and has the message again
        streams.again(fields)
        with serving(backend, second.app, tmp_path) as node:
            assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
            assert second.calls == 0
            assert number_in(send(driver, node)) == 2


def test_without_its_journal_a_node_starts_afresh(backend: Backend, tmp_path: Path) -> None:
    """A node whose state directory is another one says so, and its state begins anew."""
    counter = Counter()
    with driving(backend) as driver:
        with serving(backend, counter.app, tmp_path / "a") as node:
            assert [number_in(send(driver, node)) for _ in range(2)] == [1, 2]
        with serving(backend, counter.app, tmp_path / "b") as node:
            assert number_in(send(driver, node)) == 1
        with serving(backend, counter.app, tmp_path / "a") as node:
            assert number_in(send(driver, node)) == 3


def test_an_exception_undoes_what_it_did_to_the_state(backend: Backend, tmp_path: Path) -> None:
    """After Error 2 the state is that of the last message that succeeded: values, lists and records alike."""
    counter = Counter()
    with serving(backend, counter.app, tmp_path) as node, driving(backend) as driver:
        assert number_in(send(driver, node)) == 1
        for _ in range(2):
            reply = send(driver, node, kind="train.raise")
            assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            assert "after it had counted" in (reply.error.reason or "")
        assert number_in(send(driver, node)) == 2
        fields = saved_state(node, driver.run.run_id)
        assert fields is not None
        assert set(fields) == {b"c"}, "an array that a failed message put there"


def test_an_exception_before_any_state_leaves_none(backend: Backend, tmp_path: Path) -> None:
    """What the first message of a run did to the state is undone when it raised."""
    counter = Counter()
    with serving(backend, counter.app, tmp_path) as node, driving(backend) as driver:
        assert send(driver, node, kind="train.raise").has_error()
        assert saved_state(node, driver.run.run_id) is None
        assert number_in(send(driver, node)) == 1


def test_a_reply_that_cannot_be_sent_undoes_the_state_too(backend: Backend) -> None:
    """A function that counts and returns no Message is Error 2, and has not counted."""
    counter = Counter()

    @counter.app.train("nothing")
    def nothing(message: Message, context: Context) -> Message:
        counter.count(context)
        return None  # type: ignore[return-value]

    with serving(backend, counter.app) as node, driving(backend) as driver:
        assert send(driver, node, kind="train.nothing").error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert number_in(send(driver, node)) == 1


# Which Redis, and for how long.


@pytest.mark.without_rights("only an operator makes a new data set")
def test_the_state_belongs_to_one_redis(backend: Backend, tmp_path: Path) -> None:
    """A Redis that lost its data is another one: the node registers again by itself, and its states begin anew."""
    counter = Counter()
    with serving(backend, counter.app, tmp_path, lease=0.9) as node:
        driver = Driver(backend.by_hand(), "server:app")
        assert [number_in(send(driver, node)) for _ in range(2)] == [1, 2]
        before = identity(node)
        kill(driver)
        backend.admin.flushall()
        eventually(lambda: identity(node) != before)
        with driving(backend) as fresh:
            assert fresh.wait_for_nodes(1, timeout=10) == [node.node_id]
            assert number_in(send(fresh, node)) == 1
        assert len(list(tmp_path.glob("*.db"))) == 2
        driver.detach()


def test_a_run_is_forgotten_some_time_after_its_end(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State and replies outlast the run by FORGET_AFTER, and then leave the node's disk too."""
    monkeypatch.setattr(journal_module, "FORGET_AFTER", 0.3)
    with serving(backend, Counter().app, tmp_path) as node:
        with driving(backend) as driver:
            message_id = ask(driver, node)
            assert len(list(driver.replies([message_id]))) == 1
            run = driver.run.run_id
        assert saved_state(node, run) is not None

        def forgotten() -> bool:
            with driving(backend) as other:  # whatever the node hears of runs makes it look
                send(other, node)
            return saved_state(node, run) is None and saved_reply(node, run, message_id) is None

        eventually(forgotten)


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_that_has_ended_is_forgotten_soon(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ended: bool
) -> None:
    """Redis says that it has; one that only vanished may be written again by its ServerApp."""
    monkeypatch.setattr(journal_module, "FORGET_ENDED", -1.0)
    bench = Bench()
    with by_hand(backend, bench.app, tmp_path) as node, driving(backend) as driver:
        ids = push_numbers(driver, node, 1)
        turns(node, 1, bench)
        assert len(list(driver.replies(ids, timeout=20))) == 1
        run, keys = driver.run.run_id, driver.connection.keys
        if ended:
            driver.end()
        else:
            backend.admin.unlink(*keys.of_node_and_run(node.node_id, run), keys.node_runs(node.node_id))
        eventually(lambda: (node.turn(0.1), absent_runs(node))[1] == {run})
        heartbeat(node)
        assert (saved_reply(node, run, ids[0]) is None) is ended
        assert (saved_state(node, run) is None) is ended


def test_a_node_keeps_the_last_replies(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run's replies only the last MOST_REPLIES are kept, while its state stays."""
    monkeypatch.setattr(answered, "MOST_REPLIES", 3)
    with serving(backend, Counter().app) as node, driving(backend) as driver:
        tidy_soon(node, 5)  # the journal is tidied every thousand replies
        ids = [ask(driver, node) for _ in range(5)]
        assert len(list(driver.replies(ids))) == 5
        run = driver.run.run_id
        assert [saved_reply(node, run, message_id) is None for message_id in ids] == [True] * 2 + [False] * 3
        assert number_in(send(driver, node)) == 6


def test_an_app_is_not_to_blame_for_what_happens_after_its_execution(backend: Backend, tmp_path: Path) -> None:
    """The node is killed while it has nothing to execute: no message is named as the reason."""
    bench = Bench()
    with by_hand(backend, bench.app, tmp_path) as node, driving(backend) as driver:
        push_numbers(driver, node, 1)
        turns(node, 1, bench)
        [running] = tmp_path.rglob("*.running")
        assert running.read_bytes().strip() == b""
