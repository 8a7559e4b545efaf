"""The book: every state and step, and what plans, commits and replies make of a run's messages."""

import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brokerfl.broker.change import Snapshot
from brokerfl.common import Error
from brokerfl.server.book import Book, Event, OpenMessage, Sending, State, Step, Wanted
from brokerfl.server.book.message import IllegalStep
from brokerfl.server.book.state import ORPHANS, OWING, TAKEN
from brokerfl.wire.frame import Fields
from brokerfl.wire.run import LedgerEntry

#: Where each step leads from each state, written down a second time; what is left out must raise.
LEADS_TO = """
unsent          accepted: sent, answered: early
early           accepted: answered
sent            sent: sent, found: sent, missed: lost, answered: answered, disowned: orphan, cancelled: gone
lost            sent: sent, found: sent, missed: lost, answered: answered, disowned: orphan lost, cancelled: gone
answered        taken: taken, disowned: orphan answered, cancelled: gone
taken           put back: answered, reopened: lost, yielded: yielded, handed over: handed over, cancelled: gone
yielded         put back: answered, handed over: handed over, settled: gone, cancelled: gone
handed over     settled: gone, cancelled: gone
orphan          sent: orphan, found: orphan, missed: orphan lost, answered: orphan answered, adopted: sent, \
cancelled: gone
orphan lost     sent: orphan, found: orphan, missed: orphan lost, answered: orphan answered, adopted: lost, \
cancelled: gone
orphan answered adopted: answered, cancelled: gone
gone
"""

REPLY: Fields = {b"h": b"reply"}


def expected() -> dict[tuple[State, Step], State]:
    """The table above."""
    found = {}
    for line in LEADS_TO.strip().splitlines():
        state, steps = line[:16].strip(), line[16:].strip()
        for step, following in (pair.split(": ") for pair in steps.split(", ") if pair):
            found[named(State, state), named(Step, step)] = named(State, following)
    return found


def named(kind: type, name: str) -> "State | Step":
    return kind[name.upper().replace(" ", "_")]


@pytest.mark.parametrize("step", Step, ids=lambda step: step.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_every_step_from_every_state(state: State, step: Step) -> None:
    """A step leads where the table says, and tells so; any other raises and changes nothing."""
    message = OpenMessage("m", LedgerEntry(7, "g", "train", 0), state=state)
    following = expected().get((state, step))
    if following is None:
        with pytest.raises(IllegalStep, match=f"message m, which is {state.value}, cannot be {step.value}"):
            message.go(step)
        assert message.state is state
    else:
        event = message.go(step)
        assert message.state is following
        assert (event.step, event.message_id, event.node_id, event.group_id) == (step, "m", 7, "g")
        assert (event.before, event.state) == (state, following)


# One book.


def entry(node: int = 7, group: str = "g", digest: bytes = b"c", deadline: int = 10**15) -> LedgerEntry:
    return LedgerEntry(node, group, "train", deadline, 0, digest)


def sending(message_id: str, node: int = 7, group: str = "g", digest: bytes = b"c") -> Sending:
    new = OpenMessage(message_id, entry(node, group, digest), {b"c": b""})
    return Sending(new, new.entry, {b"c": b""})


def empty() -> Book:
    return Book(Snapshot(), b"state")


def pushed(*message_ids: str) -> Book:
    book = empty()
    book.plan([sending(each) for each in message_ids])
    book.apply([b"1-0"] * len(message_ids))
    return book


def answer(book: Book, message_id: str, outbox_entry: str = "5-0", data: tuple[str, ...] = (), node: int = 7) -> object:
    return book.answers.answer(node, outbox_entry, message_id, REPLY, data)


def state_of(book: Book, message_id: str) -> State:
    found = book._index.find(message_id)
    assert found is not None
    return found.state


def test_a_plan_that_is_discarded_leaves_nothing_behind() -> None:
    """The transaction failed: groups, counts, needs and messages are as before; nothing is undone by hand."""
    book = pushed("a")
    before = book.snapshot().entries, book.snapshot().messages, book._needs.copy(), len(book)
    change = book.plan([sending("b", node=8, group="h", digest=b"d")])
    assert (change.new, set(change.contacted), change.messages) == (("b",), {8}, 2)
    assert book.contacts.among([7, 8, 9]) == {7, 8}, "a first ring may come before the answer"
    book.discard()
    assert (book.snapshot().entries, book.snapshot().messages, book._needs.copy(), len(book)) == before
    assert book.contacts.among([8]) == {8}, "Redis may have executed it: the end of the run looks there too"
    assert set(book.plan([sending("c", node=8)]).contacted) == {8}, "and the next message makes contact again"
    book.discard()
    assert book.is_new_group({"h"})
    assert answer(book, "b", node=8) == (8, "5-0", ()), "its reply fits nothing"


def test_a_reply_may_be_faster_than_the_answer_to_its_push() -> None:
    """It is found while the change is under way, is not sent again by the next try, and can be taken once accepted."""
    book, one = empty(), sending("a")
    assert [parcel.message_id for parcel in book.plan([one]).parcels] == ["a"]
    assert answer(book, "a") is None
    assert book.answers.take(Wanted({"a"})) is None
    retried = book.plan([one])
    assert (set(retried.entered), retried.parcels) == ({"a"}, ())
    book.apply([])
    taken = book.answers.take(Wanted({"a"}))
    assert taken is not None
    assert taken.reply == REPLY


def test_a_transaction_whose_answer_was_lost_hides_where_a_message_began() -> None:
    """Its first inbox entry is not known, so its node's chunks are left alone."""
    book = empty()
    book.plan([sending("a")])
    book.apply(None)
    found = book._index.find("a")
    assert found is not None
    assert (found.began, found.inbox_entries) == (None, ())


def test_what_redis_says_of_each_parcel_is_told_apart() -> None:
    """No inbox, another thing in its place, or an entry."""
    book = empty()
    book.plan([sending("a"), sending("b"), sending("c")])
    applied = book.apply([b"1-0", None, ValueError("WRONGTYPE")])
    assert [parcel.message_id for parcel in applied.vanished] == ["b"]
    assert [parcel.message_id for parcel, _ in applied.refused] == ["c"]


def test_a_commit_settles_what_this_thread_was_handed() -> None:
    """Yielded to this thread, or handed over: settled; taken, or only answered: not. Its replies may be deleted."""
    book = pushed("yielded", "handed", "taken", "answered", "open")
    for number, each in enumerate(("yielded", "handed", "taken", "answered")):
        answer(book, each, f"{number + 5}-0")
    for each in ("yielded", "handed", "taken"):
        taken = book.answers.take(Wanted({each}))
        assert taken is not None
        if each == "yielded":
            book.answers.yielded(taken)
        elif each == "handed":
            book.answers.hand_over([taken])
    settled = book.answers.handed_over()
    assert [message.message_id for message in settled] == ["yielded", "handed"]
    change = book.plan(settled=settled)
    assert change.frees
    assert (change.leaving, change.replies, change.messages) == (("yielded", "handed"), 2, 5)
    assert book.apply([]).freed == [(7, "5-0", ()), (7, "6-0", ())]
    assert len(book) == 3
    book.answers.hand_over(settled)  # its iterator goes past it afterwards


def test_contents_are_idle_when_nobody_needs_them() -> None:
    """Not while a message, the saved state, or a push that is under way needs them."""
    book = pushed("a", "b")
    answer(book, "a")
    taken = book.answers.take(Wanted({"a"}))
    assert taken is not None
    book.answers.hand_over([taken])
    c, d, e = (entry(digest=digest).content_key for digest in (b"c", b"d", b"e"))
    contents = [c, d, e, b"state"]
    book.keep([e])
    assert book.plan(settled=[taken], contents=contents).idle == (d,), "b needs c"
    book.apply([])
    answer(book, "b")
    last = book.answers.take(Wanted({"b"}))
    assert last is not None
    book.answers.hand_over([last])
    book.keep(())
    assert book.plan(settled=[last], contents=contents).idle == (c, d, e)
    assert book.plan([sending("x", digest=b"c")], settled=[last], contents=contents).idle == (d, e)


def test_a_content_is_needed_from_who_uploaded_it() -> None:
    """A predecessor's is idle although a new message has the same: that one has its own."""
    theirs, ours = entry()._replace(uploader=1), entry()._replace(uploader=2)
    contents = [theirs.content_key, ours.content_key]
    book = resumed(("a", theirs))
    assert book.plan(contents=contents).idle == (ours.content_key,)
    book.plan([Sending(OpenMessage("b", ours, {}), ours, {})])
    book.apply([b"1-0"])
    assert book.plan(contents=contents).idle == ()
    assert book.plan(cancelled=book.orphans(), contents=contents).idle == (theirs.content_key,)
    orphan = book.reserve(ours, 0, exactly=True)
    assert orphan is not None, "equal content is adopted, whoever uploaded it"
    book.plan([Sending(orphan, ours, {})])
    book.apply([b"1-1"])
    assert book.plan(contents=contents).idle == (theirs.content_key,), "it was replaced"


def resumed(*entries: tuple[str, LedgerEntry]) -> Book:
    return Book(Snapshot(dict(entries), {7}, len(entries), 0), b"state")


def test_a_push_that_fails_leaves_its_orphans_to_the_next() -> None:
    """What it reserved nobody else adopts, no verdict is passed on it, and it is an orphan again."""
    book = resumed(("a", entry()), ("b", entry(digest=b"other")))
    found = book.reserve(entry(), 0.0)
    assert found is not None
    assert found.message_id == "a"
    assert [orphan.message_id for orphan in book.orphans()] == ["b"]
    book.disown([])
    assert sorted(orphan.message_id for orphan in book.orphans()) == ["a", "b"]
    assert book.awaited() == []
    again = book.reserve(entry(), 0.0)
    assert again is found
    assert not book.adopt([(found, {b"c": b""})])
    assert [message.message_id for message in book.awaited()] == ["a"]


def test_an_orphan_is_adopted_by_equal_content_else_the_oldest() -> None:
    """One that expired without a reply is not; with `exactly` only equal content is."""
    old = resumed(("x", LedgerEntry(7, "g", "train", 5, 1, b"c")), ("y", LedgerEntry(7, "g", "train", 10**15, 2, b"d")))
    assert old.reserve(entry(), 10.0, exactly=True) is None
    found = old.reserve(entry(), 10.0)
    assert found is not None
    assert found.message_id == "y"


def test_an_orphan_that_is_waited_for_by_its_id_is_adopted() -> None:
    """Also when its reply is here already."""
    book = resumed(("a", entry()))
    answer(book, "a")
    assert book.answers.take(Wanted({"a"})) is None
    book.claim("a")
    assert book.answers.take(Wanted({"a"})) is not None


def test_an_orphan_that_is_adopted_while_it_is_cancelled_is_gone() -> None:
    """Redis has no more of it: who waits for it is told that nothing will come."""
    book = resumed(("a", entry()))
    book.plan(cancelled=book.orphans())
    book.claim("a")
    assert book.answers.waits("a")
    takes = book.answers.takes
    book.apply([])
    assert not book.answers.waits("a")
    assert book.answers.takes > takes, "else an iterator does not look again"


def test_a_comparison_finds_what_is_lost_and_what_is_stray() -> None:
    """Only what is at hand is sent again; an entry of an answered message, or of another's inbox, is stray."""
    book = pushed("there", "lost", "answered")
    answer(book, "answered")
    lost, _, strays = book.compare([(7, "1-0", "there"), (7, "2-0", "answered"), (8, "3-0", "lost")])
    assert [parcel.message_id for parcel in lost] == ["lost"]
    assert strays == [(7, "2-0"), (8, "3-0")]
    assert (state_of(book, "there"), state_of(book, "lost")) == (State.SENT, State.LOST)
    book.sent(lost, [b"9-0"])
    assert state_of(book, "lost") is State.SENT


def test_a_large_reply_that_is_gone_from_its_outbox_is_asked_for_again() -> None:
    """Until a commit has settled it: its node holds the chunks only for a while."""
    book = pushed("a", "b")
    answer(book, "a", "5-0", ("1-0",))
    answer(book, "b", "6-0", ("2-0",))
    book.answers.doubt()
    answer(book, "b", "6-0", ("2-0",))
    lost, doubtful, _ = book.compare([])
    assert (lost, [parcel.message_id for parcel in doubtful]) == ([], ["a"])
    assert book.still_lost(doubtful) == doubtful
    book.sent(doubtful, [b"9-0"])
    assert answer(book, "a", "7-0", ("3-0",)) is None, "the copy is kept"
    book.answers.doubt()
    answer(book, "a", "7-0", ("3-0",))
    answer(book, "b", "6-0", ("2-0",))
    assert book.compare([])[1] == [], "Redis has a copy: nothing is asked for again"
    assert answer(book, "a", "8-0", ("3-0",)) == (7, "8-0", ()), "another copy needs the same chunks"


def test_what_was_asked_again_leaves_its_inbox_when_it_is_settled() -> None:
    """Else a node that forgot its answer executes it once more."""
    book = pushed("a")
    answer(book, "a", "5-0", ("1-0",))
    taken = book.answers.take(Wanted({"a"}))
    assert taken is not None
    book.answers.hand_over([taken])
    assert book.plan(settled=[taken]).recalled == ()
    book.answers.doubt()
    _, doubtful, _ = book.compare([])
    book.sent(doubtful, [b"9-0"])
    [recalled] = book.plan(settled=[taken]).recalled
    assert "9-0" in recalled.former


def test_a_reply_that_is_faster_than_its_push_is_judged_by_the_postponed_deadline() -> None:
    """The ttl counts from the end of the upload for it as well."""
    book, early = empty(), OpenMessage("a", entry(deadline=5_000), {b"c": b""})
    book.plan([Sending(early, entry(deadline=11_000), {b"c": b""})])
    assert answer(book, "a", "6000-0") is None


def test_a_reply_without_its_payload_is_made_again_a_few_times() -> None:
    """First other copies are used, then the message is open again; of a cancelled one nothing is."""
    book = pushed("a")
    answer(book, "a", "5-0", ("1-0",))
    answer(book, "a", "6-0", ("2-0",))
    taken = book.answers.take(Wanted({"a"}))
    assert taken is not None
    assert book.answers.use_spare(taken) == (7, "5-0", ("1-0",))
    for _ in range(3):
        assert book.answers.take(Wanted({"a"})) is taken
        reopened = book.answers.reopen(taken)
        assert reopened is not None
        assert taken.state is State.LOST
        book.sent([reopened[1]], [b"9-0"])
        answer(book, "a", "7-0", ("3-0",))
    assert book.answers.take(Wanted({"a"})) is taken
    assert book.answers.reopen(taken) is None


def test_what_is_put_back_is_the_first_to_be_taken() -> None:
    """In the order in which it was taken."""
    book = pushed("a", "b", "c")
    for number, each in enumerate("abc"):
        answer(book, each, f"{number + 5}-0")
    two = [book.answers.take(Wanted({"a", "b", "c"})) for _ in range(2)]
    book.answers.put_back([message for message in two if message])
    order = [book.answers.take(Wanted({"a", "b", "c"})) for _ in range(3)]
    assert [message.message_id for message in order if message] == ["a", "b", "c"]


def test_a_second_copy_of_a_reply_leaves_its_payload() -> None:
    """A node that did not hear the answer publishes again: the copy goes, the chunks that both name stay."""
    book = pushed("a")
    assert answer(book, "a", "5-0", ("1-0",)) is None
    for number in range(6, 12):
        assert answer(book, "a", f"{number}-0", ("1-0",)) == (7, f"{number}-0", ())


def test_a_copy_that_is_read_again_is_the_same_one() -> None:
    """After a reconnect all is read again: a copy with chunks of its own is kept once."""
    book = pushed("a")
    assert [answer(book, "a", f"{entry}-0", (f"{entry}-1",)) for entry in (5, 6, 6, 6, 6)] == [None] * 5
    found = book._index.find("a")
    assert found is not None
    assert found.copies == [(7, "5-0", ("5-1",)), (7, "6-0", ("6-1",))]


def test_what_is_being_fetched_is_not_settled() -> None:
    """Neither because somebody names it, nor by another thread's commit; what a thread yielded is its own."""
    book = pushed("a", "b")
    for number, message_id in enumerate(("a", "b"), 5):
        answer(book, message_id, f"{number}-0")
    taken = [book.answers.take(Wanted({"a"}))]
    assert book.answers.handed_over_of(["a", "b"]) == []
    elsewhere = threading.Thread(target=lambda: taken.append(book.answers.take(Wanted({"b"}))))
    elsewhere.start()
    elsewhere.join()
    here, there = taken
    assert here is not None
    assert there is not None
    for message in (here, there):
        book.answers.yielded(message)
    assert book.answers.handed_over() == [here]
    assert book.answers.handed_over_of(["a", "b"]) == [here, there]
    book.answers.hand_over([there])
    assert book.answers.handed_over() == [here, there]


def test_what_a_push_is_adopting_gets_no_verdict() -> None:
    """Not even if the app waits for its id in another thread: the push may be about to send it again."""
    book = Book(Snapshot({"a": entry()}), b"state")
    orphan = book.reserve(entry(), 0.0)
    assert orphan is not None
    book.claim("a")
    assert book.awaited() == []
    book.adopt([(orphan, None)])
    assert book.awaited() == [orphan]


def test_all_entries_of_a_message_are_known() -> None:
    """It was sent again: whoever takes it back takes both."""
    message = OpenMessage("a", entry())
    message.note_entry("1-0", True)
    message.note_entry("2-0", True)
    assert message.parcel({}).former == ("1-0", "2-0")


def test_chunks_of_a_reply_that_is_not_settled_are_needed() -> None:
    """However old they seem to be; and nothing is known of a node at which a message found no inbox."""
    book = empty()
    book.plan([sending("a"), sending("b"), sending("c", node=8), sending("d", node=8)])
    book.apply([b"100000000-0", b"100000000-1", b"100000000-0", None])
    answer(book, "a", "100000001-0", ("5-0",))
    book.answers.fail([("b", Error(3)), ("c", Error(3))])
    gone = [message for message in map(book._index.find, "bc") if message is not None]
    assert book.plan(settled=gone).needed_from == {7: "5-0"}


def test_every_step_is_told_once() -> None:
    """A listener that only counts knows how far each message came."""
    told: list[Event] = []
    book = Book(Snapshot(), b"state", told.append)
    book.plan([sending("a")])
    book.apply([b"1-0"])
    answer(book, "a")
    taken = book.answers.take(Wanted({"a"}))
    assert taken is not None
    book.answers.hand_over([taken])
    book.plan(settled=[taken])
    book.apply([])
    steps = [event.step for event in told]
    assert steps == [Step.ACCEPTED, Step.ANSWERED, Step.TAKEN, Step.HANDED_OVER, Step.SETTLED]
    assert {event.message_id for event in told} == {"a"}


class AnyHistory(RuleBasedStateMachine):
    """Pushes, replies, commits and losses in any order: what the book looks up by state is what the states say."""

    def __init__(self) -> None:
        super().__init__()
        self.book = resumed(("o1", entry(group="old")), ("o2", entry(node=8, group="old", digest=b"d")))
        self.made = 0

    def ids(self) -> list[str]:
        return list(self.book._index.messages)

    @rule(node=st.integers(7, 9), digest=st.sampled_from([b"c", b"d"]), fails=st.booleans(), lost=st.booleans())
    def push(self, node: int, digest: bytes, fails: bool, lost: bool) -> None:
        self.made += 1
        self.book.plan([sending(f"m{self.made}", node, digest=digest)])
        if fails:
            self.book.discard()
        else:
            self.book.apply(None if lost else [b"3-0"])

    @precondition(lambda self: self.ids())
    @rule(data=st.data(), large=st.booleans())
    def reply(self, data: st.DataObject, large: bool) -> None:
        message = self.book._index.messages[data.draw(st.sampled_from(self.ids()))]
        self.made += 1
        answer(self.book, message.message_id, f"{self.made}-0", ("1-0",) if large else (), message.node_id)

    @rule(end=st.sampled_from(["put back", "hand over", "yield", "reopen", "keep"]))
    def take(self, end: str) -> None:
        taken = self.book.answers.take(Wanted(set(self.ids())))
        if taken is None:
            return
        if end == "put back":
            self.book.answers.put_back([taken])
        elif end == "hand over":
            self.book.answers.hand_over([taken])
        elif end == "yield":
            self.book.answers.yielded(taken)
        elif end == "reopen":
            self.book.answers.reopen(taken)

    @rule(fails=st.booleans(), cancels=st.booleans())
    def commit(self, fails: bool, cancels: bool) -> None:
        self.book.plan(settled=self.book.answers.handed_over(), cancelled=self.book.orphans() if cancels else [])
        if fails:
            self.book.discard()
        else:
            self.book.apply([])

    @precondition(lambda self: self.ids())
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        self.book.claim(data.draw(st.sampled_from(self.ids())))

    @rule(node=st.integers(7, 9), succeeds=st.booleans())
    def adopt(self, node: int, succeeds: bool) -> None:
        found = self.book.reserve(entry(node, "old"), 0.0)
        if found is not None and succeeds:
            self.book.adopt([(found, {b"c": b""})])
        else:
            self.book.disown([])

    @rule(data=st.data())
    def compare(self, data: st.DataObject) -> None:
        there = data.draw(st.sets(st.sampled_from(self.ids()))) if self.ids() else set()
        seen = [(self.book._index.messages[each].node_id, "4-0", each) for each in sorted(there)]
        self.book.answers.doubt()
        for lost in self.book.compare(seen)[:2]:
            self.book.sent(lost, [b"8-0"] * len(lost))

    @rule()
    def fail(self) -> None:
        self.book.answers.fail((message.message_id, Error(5, "gone")) for message in self.book.awaited()[:1])

    @invariant()
    def what_is_looked_up_is_in_step(self) -> None:
        index, messages = self.book._index, list(self.book._index.messages.values())
        assert set(index.owing()) == {each.node_id for each in messages if each.state in OWING}
        assert set(index.owed()) == {each for each in messages if each.state in OWING}
        assert set(index.answered) == {each.message_id for each in messages if each.state is State.ANSWERED}
        assert set(index.taken) == {each.message_id for each in messages if each.state in TAKEN}
        assert set(self.book.orphans()) == {each for each in messages if each.state in ORPHANS}
        assert self.book._needs == Counter(each.entry.content_key for each in messages)
        assert {each for of_node in index.by_node.values() for each in of_node.values()} == set(messages)
        assert set(self.book.snapshot().entries) == {each.message_id for each in messages}


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
