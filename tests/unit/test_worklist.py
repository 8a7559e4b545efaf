"""The worklist: what becomes of a message that is sent again while it is in hand."""

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
