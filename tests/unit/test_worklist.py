"""The worklist: turns, what is put back, and what happens to work that nobody wants any more."""

import threading

from brokerfl.broker.inbox import Delivery
from brokerfl.client.worklist import Worklist


def test_a_message_that_is_sent_again_is_executed_once_with_its_last_content() -> None:
    """A resumed ServerApp sends it again with another content where Redis has lost the first one."""
    worklist = Worklist()
    worklist.add(Delivery(1, "1-0", {b"c": b"lost"}), "m")
    worklist.add(Delivery(1, "2-0", {b"c": b"new"}), "m")
    work = worklist.next()
    assert (work.entries, work.fields) == (["1-0", "2-0"], {b"c": b"new"})
    worklist.release(work)
    assert not worklist


def test_an_entry_that_comes_while_its_message_is_given_up_is_queued_with_its_own_content() -> None:
    """What was judged is over; what came afterwards is another matter."""
    worklist = Worklist()
    worklist.add(Delivery(1, "1-0", {b"c": b"lost"}), "m")
    work = worklist.next()
    judged = tuple(work.entries)
    worklist.add(Delivery(1, "2-0", {b"c": b"new"}), "m")
    worklist.give_up(work, judged)
    worklist.release(work)
    again = worklist.next()
    assert (again.entries, again.fields) == (["2-0"], {b"c": b"new"})


def filled(*names: str, run: int = 1) -> Worklist:
    worklist = Worklist()
    for number, name in enumerate(names, 1):
        worklist.add(Delivery(run, f"{number}-0", {b"i": name.encode()}), name)
    return worklist


def test_what_is_put_back_is_next() -> None:
    """It could not be executed: the run goes on with it, in the order in which its messages came."""
    worklist = filled("a", "b", "c")
    first = worklist.next()
    worklist.release(first, put_back=True)
    again = [worklist.next()]
    worklist.release(again[0])
    again.append(worklist.next())
    assert [work.message_id for work in again] == ["a", "b"]


def test_nothing_is_handed_out_while_it_is_held() -> None:
    """Redis is away: workers that wait get their work when the loop has recovered, and not before."""
    worklist, got = filled("a"), threading.Event()
    worklist.hold()

    def wait() -> None:
        assert worklist.wait() is not None
        got.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not got.wait(0.1)
    worklist.resume()
    assert got.wait(10)
    waiter.join()


def test_what_was_sent_again_is_queued_when_it_is_given_up() -> None:
    """The entry that was judged is done with; one that came meanwhile is another chance, and has to be asked for."""
    worklist = filled("a")
    work = worklist.next()
    worklist.add(Delivery(1, "9-0", work.fields), "a")
    worklist.give_up(work, ["1-0"])
    worklist.release(work)
    again = worklist.next()
    assert (again.message_id, again.entries) == ("a", ["9-0"])
    assert again.queued_at < 0


def test_a_run_that_is_over_leaves_nothing() -> None:
    """What is queued for it is dropped, and can come again should Redis have forgotten the run for a moment."""
    worklist = filled("a", "b")
    work = worklist.next()
    worklist.keep_only([])
    worklist.release(work)
    assert not worklist
    worklist.add(Delivery(1, "9-0", {}), "b")
    assert worklist.next().message_id == "b"


def parked(*names: str) -> Worklist:
    """A run whose first message the site has not let in."""
    worklist = filled(*names)
    worklist.park(worklist.next())
    return worklist


def test_a_run_that_is_parked_has_no_turn() -> None:
    """Neither with what it had nor with what comes; it takes no memory, is not queued, and holds up no other run."""
    worklist = parked("a", "b")
    worklist.add(Delivery(1, "9-0", {b"i": b"c"}), "c")
    worklist.add(Delivery(1, "1-0", {b"i": b"a"}), "a")
    assert not worklist
    assert (worklist.size, worklist.queued, worklist.parked, worklist.has(1)) == (0, 0, {1}, True)
    assert worklist.entries() == {1: ["1-0", "2-0", "9-0"]}
    assert worklist.leave_out(100) == {1}
    worklist.add(Delivery(2, "1-0", {b"i": b"z"}), "z")
    assert worklist.next().message_id == "z"


def test_a_run_that_is_let_in_is_read_again() -> None:
    """Its messages are not known any more, so that they come with their contents, in their order."""
    worklist = parked("a", "b")
    worklist.unpark(1)
    assert (worklist.parked, worklist.entries(), worklist.has(1)) == (set(), {}, False)
    for name in ("a", "b"):
        worklist.add(Delivery(1, f"{name}-0", {b"i": name.encode()}, is_old=True), name)
    assert [worklist.next().fields] == [{b"i": b"a"}]


def test_a_parked_run_that_is_over_leaves_nothing() -> None:
    """It ended, or its Redis was replaced while its message was being looked at."""
    over = parked("a", "b")
    over.keep_only([])
    replaced = parked("a", "b")
    replaced.clear()
    meanwhile = filled("a")
    work = meanwhile.next()
    meanwhile.clear()
    meanwhile.park(work)
    meanwhile.unpark(1)
    for worklist in (over, replaced, meanwhile):
        assert (worklist.parked, worklist.entries(), worklist.size, worklist.has(1)) == (set(), {}, 0, False)
