"""The journal by itself: what is in it after a node was killed, and what leaves it."""

import sqlite3
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from brokerfl.client import answered
from brokerfl.client import journal as journal_module
from brokerfl.client.dead import dead_messages
from brokerfl.client.folder import default_state_dir
from brokerfl.client.foreign import ForeignJournal
from brokerfl.client.journal import Answer, Journal
from brokerfl.common import ConfigError, JournalError, NodeNameTaken
from tests.apps import eventually

REDIS = b"one data set"

REPLY = {b"i": b"id", b"h": b"\x01reply"}

STATE = {b"c": b"\x01description", b"0": b"\x00array"}


def opened(folder: Path | None, identity: bytes = REDIS) -> Journal:
    journal = Journal(folder)
    journal.open(identity)
    return journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal in ``tmp_path``."""
    made = opened(tmp_path)
    yield made
    made.close()


def killed(journal: Journal) -> None:
    """What kill -9 does: the system closes the files, and nobody says that the message in hand is over."""
    journal.close()


def test_a_reply_and_its_state_outlive_the_process(tmp_path: Path) -> None:
    """After a kill the next process finds the reply and the state of the last commit, field by field."""
    first = opened(tmp_path)
    first.commit([Answer(7, "a", REPLY, STATE)])
    first.commit([Answer(7, "b", {b"i": b"b"})])
    killed(first)
    with closing(opened(tmp_path)) as second:
        assert second.reply_to(7, "a") == REPLY
        assert second.reply_to(7, "b") == {b"i": b"b"}
        assert second.state_of(7) == STATE
        assert second.reply_to(8, "a") is None
        assert second.state_of(8) is None


def test_a_state_replaces_the_last_one(journal: Journal) -> None:
    """A field that a new state lacks is gone, and another run's state is not touched."""
    journal.commit([Answer(7, "a", REPLY, STATE)])
    journal.commit([Answer(8, "b", REPLY, STATE)])
    journal.commit([Answer(7, "c", REPLY, {b"c": b"new"})])
    assert journal.state_of(7) == {b"c": b"new"}
    assert journal.state_of(8) == STATE


def test_reply_and_state_are_one_transaction(tmp_path: Path, journal: Journal) -> None:
    """A commit that fails in its second half leaves nothing of the first."""
    with closing(sqlite3.connect(next(tmp_path.glob("*.db")))) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON answered BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    with pytest.raises(JournalError, match="disk full"):
        journal.commit([Answer(7, "a", REPLY, STATE)])
    assert journal.state_of(7) is None
    assert journal.reply_to(7, "a") is None


def test_deaths_in_a_message_are_counted(tmp_path: Path) -> None:
    """Each process that ended in the middle of an execution counts; its end forgives this one, the commit all."""
    for expected in (0, 1, 2):
        journal = opened(tmp_path)
        assert journal.begin(7, "a") == expected
        killed(journal)
    journal = opened(tmp_path)
    assert journal.begin(7, "b") == 0
    assert journal.begin(7, "a") == 3
    journal.forgive()  # killed before the commit: no fault of the message
    killed(journal)
    journal = opened(tmp_path)
    assert journal.begin(7, "a") == 3
    journal.forgive()
    journal.commit([Answer(7, "a", REPLY)])
    killed(journal)
    with closing(opened(tmp_path)) as last:
        assert last.begin(7, "a") == 0


def test_a_death_counts_for_what_every_worker_had_in_hand(tmp_path: Path) -> None:
    """Each message in hand counts once, those that were over do not, and the next node counts none again."""
    journal = opened(tmp_path)
    for worker, message in enumerate("abcd"):
        journal.begin(2**64 - 1, message, worker)
    journal.forgive(1)
    journal.begin(2**64 - 1, "e", 3)
    killed(journal)
    for _ in range(2):
        journal = opened(tmp_path)
        counts = {message: journal.begin(2**64 - 1, message) for message in "abcde"}
        assert counts == {"a": 1, "b": 0, "c": 1, "d": 0, "e": 1}
        journal.forgive()
        killed(journal)


def test_ids_of_any_length_fit_a_record(tmp_path: Path) -> None:
    """The longest run id and message id of one worker do not touch the record of the next."""
    journal = opened(tmp_path)
    for worker in range(3):
        journal.begin(2**64 - 1, f"{worker:032x}", worker)
    killed(journal)
    with closing(opened(tmp_path)) as second:
        assert [second.begin(2**64 - 1, f"{worker:032x}") for worker in range(3)] == [1, 1, 1]


def test_the_file_of_one_record_is_read(tmp_path: Path) -> None:
    """What a node noted before there were workers, a single record at the start of the file, counts."""
    killed(opened(tmp_path))
    running_file(tmp_path).write_bytes(b"7 a".ljust(64))
    with closing(opened(tmp_path)) as journal:
        assert journal.begin(7, "a") == 1


def test_a_process_that_ends_on_purpose_is_no_death(tmp_path: Path) -> None:
    """After `abandon` nothing counts, not even what another worker begins afterwards."""
    journal = opened(tmp_path)
    journal.begin(7, "a", 0)
    journal.abandon()
    journal.begin(7, "b", 1)
    killed(journal)
    with closing(opened(tmp_path)) as last:
        assert [last.begin(7, message) for message in "ab"] == [0, 0]


def test_a_process_that_only_waits_dies_of_nothing(tmp_path: Path) -> None:
    """A kill between two messages counts for neither."""
    journal = opened(tmp_path)
    journal.begin(7, "a")
    journal.forgive()
    journal.commit([Answer(7, "a", REPLY)])
    killed(journal)
    with closing(opened(tmp_path)) as last:
        assert last._crashes == {}


def running_file(folder: Path) -> Path:
    """Where it says what is being executed."""
    [path] = folder.glob("*.running")
    return path


def test_a_record_of_odd_bytes_is_no_death(tmp_path: Path) -> None:
    """A file of what is being executed that somebody wrote over counts as no death and stops nothing."""
    killed(opened(tmp_path))
    for text in (b"\xff" * 64, b"a b c", b"", b"alone"):
        running_file(tmp_path).write_bytes(text)
        with closing(opened(tmp_path)) as journal:
            assert journal._crashes == {}


# Several executions in one transaction.


def statements(journal: Journal) -> list[str]:
    """What SQLite is asked from now on."""
    heard: list[str] = []
    journal._open_db.set_trace_callback(heard.append)
    return heard


def test_a_batch_is_one_transaction(tmp_path: Path, journal: Journal) -> None:
    """All replies of a batch and the last state of each run are there; an empty batch costs nothing."""
    heard = statements(journal)
    journal.commit([])
    assert heard == []
    answers = [
        Answer(7 + number % 2, f"{number}", {b"i": b"%d" % number}, {b"c": b"%d" % number}) for number in range(6)
    ]
    journal.commit([*answers, Answer(7, "last", REPLY)])
    assert [text for text in heard if text.startswith(("BEGIN", "COMMIT"))] == ["BEGIN IMMEDIATE", "COMMIT"]
    assert sum(text.startswith("INSERT INTO states") for text in heard) == 2
    killed(journal)
    with closing(opened(tmp_path)) as second:
        assert [second.reply_to(7 + number % 2, f"{number}") for number in range(6)] == [a.reply for a in answers]
        assert second.reply_to(7, "last") == REPLY
        assert (second.state_of(7), second.state_of(8)) == ({b"c": b"4"}, {b"c": b"5"})


def test_a_batch_that_fails_leaves_nothing(tmp_path: Path, journal: Journal) -> None:
    """When one of its replies cannot be written, none is answered, and no state is changed."""
    with closing(sqlite3.connect(next(tmp_path.glob("*.db")))) as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON answered WHEN new.message = 'b' "
            "BEGIN SELECT RAISE(FAIL, 'disk full'); END"
        )
    with pytest.raises(JournalError, match="disk full"):
        journal.commit([Answer(7, "a", REPLY, STATE), Answer(7, "b", REPLY)])
    assert journal.reply_to(7, "a") is None
    assert journal.state_of(7) is None


def test_only_a_changed_state_is_synced(journal: Journal) -> None:
    """A batch is synced to the disk when a state of it changed, and not when it holds replies alone."""
    heard = statements(journal)
    journal.commit([Answer(7, "a", REPLY), Answer(7, "b", REPLY)])
    assert not any("synchronous" in text for text in heard)
    journal.commit([Answer(7, "c", REPLY), Answer(7, "d", REPLY, STATE)])
    assert [text for text in heard if "synchronous" in text] == [
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = NORMAL",
    ]


def test_what_is_not_there_is_not_asked_for(tmp_path: Path, journal: Journal) -> None:
    """For an id without an answer, and when no run came or went, SQLite is not asked; also after a restart."""
    journal.commit([Answer(7, "a", REPLY, STATE), Answer(8, "b", REPLY)])
    journal.keep_only([8])
    for made in (journal, None):
        if made is None:
            killed(journal)
            made = opened(tmp_path)
        heard = statements(made)
        assert made.reply_to(7, "b") is None
        assert made.reply_to(9, "a") is None
        made.keep_only([8])
        made.keep_only([8, 9])
        assert heard == []
        assert made.reply_to(7, "a") == REPLY
        assert len(heard) == 1
        made.keep_only([7, 8])
        made.keep_only([8])
        assert sum(text == "COMMIT" for text in heard) == 2
    made.close()


def test_threads_share_a_journal(tmp_path: Path, journal: Journal) -> None:
    """What several threads commit and read at once is all there, each with its own."""

    def work(run: int) -> None:
        for number in range(100):
            journal.begin(run, f"{number}", run)
            journal.commit([Answer(run, f"{number}", {b"i": b"%d" % run}, {b"c": b"%d" % number})])
            assert journal.reply_to(run, f"{number}") == {b"i": b"%d" % run}
            assert journal.state_of(run) == {b"c": b"%d" % number}
            journal.keep_only(range(4))
            journal.forgive(run)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    killed(journal)
    with closing(opened(tmp_path)) as second:
        assert all(second.reply_to(run, f"{number}") for run in range(4) for number in range(100))


def test_one_process_uses_a_directory(tmp_path: Path, journal: Journal) -> None:
    """A second one is refused as long as the first lives, whatever Redis it is for; then the directory is the same."""
    with pytest.raises(NodeNameTaken, match=f"another process uses the state directory {tmp_path}"):
        Journal(tmp_path)
    home = journal.home
    journal.close()
    with closing(Journal(tmp_path)) as next_one:
        assert next_one.home == home != ""


def test_each_data_set_has_a_file_of_its_own(tmp_path: Path, journal: Journal) -> None:
    """What belongs to one Redis is neither seen nor lost while another is served; the first time that is said."""
    journal.commit([Answer(7, "a", REPLY, STATE)])
    assert journal.open(b"other") is True
    assert journal.reply_to(7, "a") is None
    assert journal.state_of(7) is None
    journal.commit([Answer(7, "a", {b"i": b"other"}, {b"c": b"other"})])
    assert journal.open(REDIS) is False
    assert (journal.reply_to(7, "a"), journal.state_of(7)) == (REPLY, STATE)
    assert len(list(tmp_path.glob("*.db"))) == 2


def test_a_new_directory_is_not_strange() -> None:
    """A journal that knows no data set yet, and one in memory, belong to whatever comes first."""
    in_memory = Journal()
    assert in_memory.open(REDIS) is False
    in_memory.commit([Answer(7, "a", REPLY, STATE)])
    assert in_memory.open(b"other") is False
    assert in_memory.reply_to(7, "a") is None
    in_memory.close()


def test_a_run_that_stays_away_is_forgotten(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies, state and deaths go when a run has been absent for FORGET_AFTER, those of the others stay."""
    monkeypatch.setattr(journal_module, "FORGET_AFTER", 0.2)
    for run in (7, 8):
        journal.commit([Answer(run, "a", REPLY, STATE)])
    journal.keep_only([8])
    assert journal.state_of(7) == STATE, "a Redis that forgot its last writes may be told of it again"
    eventually(lambda: (journal.keep_only([8]), journal.state_of(7))[1] is None)
    assert journal.reply_to(7, "a") is None
    assert (journal.reply_to(8, "a"), journal.state_of(8)) == (REPLY, STATE)


def test_a_run_that_comes_back_is_kept(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absences do not add up: a run that was seen in between is absent from then on."""
    journal.commit([Answer(7, "a", REPLY, STATE)])

    def look(at: float, *present: int) -> bool:
        monkeypatch.setattr(journal_module.time, "time", lambda: at)
        journal.keep_only(present)
        return journal.state_of(7) == STATE

    assert look(0.0)
    assert look(3000.0, 7)
    assert look(4000.0)
    assert look(7000.0)
    assert not look(7700.0)


def test_a_clock_that_was_set_back_prolongs_no_absence(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen at a time that is still to come counts from now."""
    journal.commit([Answer(7, "a", REPLY, STATE)])
    for now, is_kept in ((10_000.0, True), (0.0, True), (3500.0, True), (3700.0, False)):
        monkeypatch.setattr(journal_module.time, "time", lambda now=now: now)
        journal.keep_only([])
        assert (journal.state_of(7) == STATE) is is_kept


def test_old_replies_go(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each run the last MOST_REPLIES are kept, whichever of them was served last; the states stay."""
    monkeypatch.setattr(answered, "MOST_REPLIES", 10)
    for number in range(1000):
        journal.commit([Answer(7 + number % 2, f"{number}", REPLY, STATE if number < 2 else None)])
    kept = {run: [n for n in range(1000) if journal.reply_to(run, f"{n}")] for run in (7, 8)}
    assert kept == {7: list(range(980, 1000, 2)), 8: list(range(981, 1000, 2))}
    assert journal.state_of(7) == journal.state_of(8) == STATE


def fill(journal: Journal, run: int, count: int, size: int = 20_000) -> None:
    """So many large replies."""
    for number in range(count):
        journal.commit([Answer(run, f"{run}-{number}", {b"h": bytes(size)}, STATE)])


def test_replies_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few large ones are kept, on disk and in memory; the file does not grow with those that went."""
    monkeypatch.setattr(answered, "MOST_BYTES", 1_000_000)
    monkeypatch.setattr(answered, "MOST_IN_MEMORY", 200_000)
    for folder, most in ((tmp_path, 1_000_000), (None, 200_000)):
        with closing(opened(folder)) as journal:
            fill(journal, 7, 500)
            kept = [number for number in range(500) if journal.reply_to(7, f"7-{number}")]
            assert kept == list(range(500 - len(kept), 500))
            assert most - 20_000 <= len(kept) * 20_000 <= 1.25 * most
    assert next(tmp_path.glob("*.db")).stat().st_size < 2_500_000
    with closing(opened(tmp_path)) as journal:
        fill(journal, 7, 1)
        assert journal.reply_to(7, f"7-{kept[-1]}"), "what an earlier process left counts too"


def test_what_an_ended_run_had_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small steps, between which messages are noted: the file shrinks to what the other run has."""
    monkeypatch.setattr(journal_module, "FORGET_ENDED", -1.0)
    with closing(opened(tmp_path)) as journal:
        file = next(tmp_path.glob("*.db"))
        for run in (7, 8, 9):
            fill(journal, run, 300)
        journal.keep_only([8])
        assert journal.absent() == {7, 9}
        with closing(sqlite3.connect(file)) as db:
            before = db.execute("SELECT count(*) FROM answered").fetchone()[0]
            journal.tidy([7])
            assert journal.state_of(7) is None
            assert not journal.has_answered(7, "7-0")
            for turn in range(100):
                left = db.execute("SELECT count(*) FROM answered").fetchone()[0]
                assert before - left <= 32 * 64, "one call takes a bounded number of rows"
                before = left
                journal.commit([Answer(8, f"more {turn}", REPLY)])
                journal.tidy()
            assert {run for (run,) in db.execute("SELECT DISTINCT run FROM answered")} == {"8", "9"}
            assert db.execute("PRAGMA freelist_count").fetchone()[0] < 300
        assert journal.state_of(9) == STATE, "nobody knows whether it has ended"
    assert file.stat().st_size < 15_000_000
    assert journal.absent() == {9}


def test_one_step_takes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of tidying, a message can be noted."""
    monkeypatch.setattr(journal_module, "FORGET_ENDED", -1.0)
    monkeypatch.setattr(journal_module, "_STEPS", 1)
    with closing(opened(tmp_path)) as journal, closing(sqlite3.connect(next(tmp_path.glob("*.db")))) as db:
        fill(journal, 7, 300)
        journal.keep_only([])
        counts = []
        for _ in range(20):
            journal.tidy([7])
            counts.append(db.execute("SELECT count(*) FROM answered").fetchone()[0])
        steps = [before - after for before, after in zip([300, *counts], counts, strict=False)]
        assert max(steps) == 64
        assert counts[-1] == 0


def test_a_forgotten_run_that_comes_back_begins_anew(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not left yet is not taken for its state, and what is new does not leave with it."""
    monkeypatch.setattr(journal_module, "FORGET_ENDED", -1.0)
    monkeypatch.setattr(journal_module, "_STEPS", 1)
    fill(journal, 7, 200)
    journal.keep_only([])
    journal.tidy([7])
    journal.keep_only([7])
    assert journal.state_of(7) is None
    journal.commit([Answer(7, "new", REPLY, {b"c": b"new"})])
    for _ in range(10):
        journal.tidy()
    assert (journal.reply_to(7, "new"), journal.state_of(7)) == (REPLY, {b"c": b"new"})
    assert journal.reply_to(7, "7-199") is None


def test_a_file_that_could_not_shrink_can(tmp_path: Path) -> None:
    """One that was made before files could is rewritten when it is opened."""
    with closing(opened(tmp_path)) as journal:
        fill(journal, 7, 1)
    file = next(tmp_path.glob("*.db"))
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA auto_vacuum = NONE")
        db.execute("VACUUM")
        db.executemany("INSERT INTO answered VALUES (9, ?, ?)", [(number, bytes(20_000)) for number in range(300)])
        db.execute("DELETE FROM answered WHERE run = 9")
    assert file.stat().st_size > 5_000_000
    with closing(opened(tmp_path)) as journal:
        assert journal.state_of(7) == STATE
    assert file.stat().st_size < 500_000


def test_a_node_tells_of_the_latest_dead_messages(tmp_path: Path, journal: Journal) -> None:
    """It knows their number at the next look, also when another process has deleted one, and after a restart."""
    for name in "abcdef":
        journal.set_aside(7, name, {b"i": name.encode()}, 3)
    journal.tidy()
    assert journal.aside.count == 6
    assert [(each.message, each.run, each.crashes) for each in journal.aside.latest] == [(n, 7, 3) for n in "fedc"]
    ForeignJournal(next(tmp_path.glob("*.db"))).forget("f")
    journal.set_aside(7, "g", {}, 3)
    journal.tidy()
    assert journal.aside.count == 6
    assert [each.message for each in journal.aside.latest] == [*"gedc"]
    killed(journal)
    again = opened(tmp_path)
    assert again.aside.count == 6
    again.open(b"another data set")
    assert (again.aside.count, again.aside.latest) == (0, ())
    again.close()


def test_dead_messages_are_read_beside_a_running_node(tmp_path: Path) -> None:
    """They are listed from all nodes of a directory, oldest first, and forgotten one by one, beside open journals."""
    journals = [opened(tmp_path / str(node)) for node in (3, 4)]
    for number in range(3):
        journals[number % 2].set_aside(7, f"m{number}", {b"i": b"%d" % number}, 3)
    journals[1].commit([Answer(7, "a", REPLY, STATE)])
    (tmp_path / "no node").mkdir()
    found = dead_messages(tmp_path)
    assert [(dead.message_id, dead.node_id, dead.run_id, dead.crashes) for dead in found] == [
        ("m0", 3, 7, 3), ("m1", 4, 7, 3), ("m2", 3, 7, 3),
    ]  # fmt: skip
    assert [dead.read_fields() for dead in found] == [{b"i": b"0"}, {b"i": b"1"}, {b"i": b"2"}]
    assert [dead.read_state() for dead in found] == [None, STATE, None]
    found[0].forget()
    assert [dead.message_id for dead in dead_messages(tmp_path)] == ["m1", "m2"]
    for journal in journals:
        journal.close()
    assert [dead.message_id for dead in dead_messages(tmp_path)] == ["m1", "m2"]
    assert dead_messages(tmp_path / "nowhere") == []


def test_a_list_of_dead_messages_reads_no_contents(tmp_path: Path) -> None:
    """A model that killed its node a hundred times is in memory only when it is shown."""
    journal = opened(tmp_path / "3")
    fields = {b"i": b"id", b"h": b"header", b"0": bytes(8_000_000)}
    for number in range(4):
        journal.set_aside(7, f"m{number}", fields, 3)
    journal.close()
    tracemalloc.start()
    found = dead_messages(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [dead.head for dead in found] == [{b"i": b"id", b"h": b"header"}] * 4
    assert all(8_000_000 < dead.size < 8_001_000 for dead in found)
    assert peak < 2_000_000
    assert found[0].read_fields() == fields


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    """A file that is no database raises an error with its path, for the node and for `brokerfl dead`."""
    folder = tmp_path / "3"
    folder.mkdir()
    (folder / f"{REDIS.hex()}.db").write_bytes(b"surely no database " * 100)
    journal = Journal(folder)
    with pytest.raises(JournalError, match=rf"{folder}.*move it away to start with a new state"):
        journal.open(REDIS)
    journal.close()
    with pytest.raises(ConfigError, match=str(folder)):
        dead_messages(tmp_path)


def test_where_states_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default follows the XDG Base Directory Specification, which has relative paths ignored."""
    monkeypatch.setenv("HOME", "/home/me")
    for value, expected in (
        (str(tmp_path), tmp_path / "brokerfl"),
        ("", Path("/home/me/.local/state/brokerfl")),
        ("relative", Path("/home/me/.local/state/brokerfl")),
    ):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert default_state_dir() == expected
