"""The states of a message, as its run sees it, and the steps between them.

Owns the one table of both. It must not know what a message carries, Redis, or threads.
"""

from enum import Enum


class State(Enum):
    """Where a message is between its push and the commit that settles it."""

    __hash__ = object.__hash__  # it is looked up at each step, and Enum's takes three times as long

    UNSENT = "unsent"  # the transaction that is to send it is not known to be executed
    EARLY = "early"  # as before, but its node was faster with the reply
    SENT = "sent"  # in its inbox, or with its node
    LOST = "lost"  # in the ledger, but neither in an inbox nor in an outbox: Redis forgot it
    ANSWERED = "answered"  # its reply is here, or a verdict
    TAKEN = "taken"  # a thread of the app is fetching the reply
    YIELDED = "yielded"  # an iterator has yielded the reply and not gone past it
    HANDED_OVER = "handed over"  # the app has the reply
    ORPHAN = "orphan"  # sent by a former life of the run
    ORPHAN_LOST = "orphan, lost"
    ORPHAN_ANSWERED = "orphan, answered"
    GONE = "gone"  # no longer in the books


class Step(Enum):
    """What happens to a message."""

    __hash__ = object.__hash__

    ACCEPTED = "accepted"  # the transaction of its push was executed
    SENT = "sent"  # it was put into its inbox once more
    FOUND = "found"  # a comparison with Redis found it in its inbox
    MISSED = "missed"  # a comparison with Redis found it nowhere
    ANSWERED = "answered"
    ADOPTED = "adopted"
    DISOWNED = "disowned"  # the push that had it accepted failed later on: its app may push it again
    TAKEN = "taken"
    PUT_BACK = "put back"  # the reply could not be fetched now
    REOPENED = "reopened"  # the payload of its reply is gone: there is no reply
    YIELDED = "yielded"
    HANDED_OVER = "handed over"
    SETTLED = "settled"
    CANCELLED = "cancelled"  # an orphan that nobody adopted leaves the books


#: The steps that may be taken, and where each leads; no other can be taken. An orphan may be adopted while the commit
#: that cancels it is under way, and may have gone on by the time that is executed: it is cancelled all the same.
TRANSITIONS: dict[State, dict[Step, State]] = {
    State.UNSENT: {Step.ACCEPTED: State.SENT, Step.ANSWERED: State.EARLY},
    State.EARLY: {Step.ACCEPTED: State.ANSWERED},
    State.SENT: {
        Step.SENT: State.SENT,
        Step.FOUND: State.SENT,
        Step.MISSED: State.LOST,
        Step.ANSWERED: State.ANSWERED,
        Step.DISOWNED: State.ORPHAN,
        Step.CANCELLED: State.GONE,
    },
    State.LOST: {
        Step.SENT: State.SENT,
        Step.FOUND: State.SENT,
        Step.MISSED: State.LOST,
        Step.ANSWERED: State.ANSWERED,
        Step.DISOWNED: State.ORPHAN_LOST,
        Step.CANCELLED: State.GONE,
    },
    State.ANSWERED: {
        Step.TAKEN: State.TAKEN,
        Step.DISOWNED: State.ORPHAN_ANSWERED,
        Step.CANCELLED: State.GONE,
    },
    State.TAKEN: {
        Step.PUT_BACK: State.ANSWERED,
        Step.REOPENED: State.LOST,
        Step.YIELDED: State.YIELDED,
        Step.HANDED_OVER: State.HANDED_OVER,
        Step.CANCELLED: State.GONE,
    },
    State.YIELDED: {
        Step.HANDED_OVER: State.HANDED_OVER,
        Step.SETTLED: State.GONE,
        Step.CANCELLED: State.GONE,
    },
    State.HANDED_OVER: {Step.SETTLED: State.GONE, Step.CANCELLED: State.GONE},
    State.ORPHAN: {
        Step.SENT: State.ORPHAN,
        Step.FOUND: State.ORPHAN,
        Step.MISSED: State.ORPHAN_LOST,
        Step.ANSWERED: State.ORPHAN_ANSWERED,
        Step.ADOPTED: State.SENT,
        Step.CANCELLED: State.GONE,
    },
    State.ORPHAN_LOST: {
        Step.SENT: State.ORPHAN,
        Step.FOUND: State.ORPHAN,
        Step.MISSED: State.ORPHAN_LOST,
        Step.ANSWERED: State.ORPHAN_ANSWERED,
        Step.ADOPTED: State.LOST,
        Step.CANCELLED: State.GONE,
    },
    State.ORPHAN_ANSWERED: {Step.ADOPTED: State.ANSWERED, Step.CANCELLED: State.GONE},
    State.GONE: {},
}

#: Nobody has answered it.
OPEN = frozenset(state for state, steps in TRANSITIONS.items() if Step.ANSWERED in steps)

#: Redis has accepted it, and nobody has answered it: its node owes a reply.
OWING = OPEN - {State.UNSENT}

ORPHANS = frozenset({State.ORPHAN, State.ORPHAN_LOST, State.ORPHAN_ANSWERED})

#: The app has the reply, or a thread of it is fetching it.
TAKEN = frozenset({State.TAKEN, State.YIELDED, State.HANDED_OVER})
