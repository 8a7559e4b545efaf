"""The states of a message, as its run sees it, and the steps between them.

Owns the table of both. It must not know what a message carries, Redis, or threads.
"""

from enum import Enum


class State(Enum):
    """Where a message is between its push and the commit that settles it."""

    __hash__ = object.__hash__  # it is hashed at each step, and Enum's hash takes three times as long

    UNSENT = "unsent"  # the transaction that sends it is not known to have been executed
    EARLY = "early"  # like unsent, but its reply has already arrived
    SENT = "sent"  # in its inbox, or with its node
    LOST = "lost"  # in the ledger, but neither in an inbox nor in an outbox: Redis forgot it
    ANSWERED = "answered"  # its reply has arrived, or a verdict was passed
    TAKEN = "taken"  # a thread of the app is fetching the reply
    YIELDED = "yielded"  # an iterator has yielded the reply, but not gone past it
    HANDED_OVER = "handed over"  # the app has the reply
    ORPHAN = "orphan"  # sent before the resume
    ORPHAN_LOST = "orphan, lost"
    ORPHAN_ANSWERED = "orphan, answered"
    GONE = "gone"  # no longer in the books


class Step(Enum):
    """What happens to a message."""

    __hash__ = object.__hash__

    ACCEPTED = "accepted"  # the transaction of its push was executed
    SENT = "sent"  # it was put into its inbox again
    FOUND = "found"  # a comparison with Redis found it in its inbox
    MISSED = "missed"  # a comparison with Redis found it nowhere
    ANSWERED = "answered"
    ADOPTED = "adopted"
    DISOWNED = "disowned"  # the push that got it accepted failed later: the app may push it again
    TAKEN = "taken"
    PUT_BACK = "put back"  # the reply could not be fetched now
    REOPENED = "reopened"  # the payload of its reply is gone, so there is no reply
    YIELDED = "yielded"
    HANDED_OVER = "handed over"
    SETTLED = "settled"
    CANCELLED = "cancelled"  # an orphan that was not adopted leaves the books


#: The steps that can be taken, and where each leads; there are no others. An orphan may be adopted while the commit
#: that cancels it is under way, and take further steps before that is executed: it is cancelled all the same.
_S, _T = State, Step
TRANSITIONS: dict[State, dict[Step, State]] = {
    _S.UNSENT: {_T.ACCEPTED: _S.SENT, _T.ANSWERED: _S.EARLY},
    _S.EARLY: {_T.ACCEPTED: _S.ANSWERED},
    _S.SENT: {_T.SENT: _S.SENT, _T.FOUND: _S.SENT, _T.MISSED: _S.LOST, _T.ANSWERED: _S.ANSWERED,
              _T.DISOWNED: _S.ORPHAN, _T.CANCELLED: _S.GONE},
    _S.LOST: {_T.SENT: _S.SENT, _T.FOUND: _S.SENT, _T.MISSED: _S.LOST, _T.ANSWERED: _S.ANSWERED,
              _T.DISOWNED: _S.ORPHAN_LOST, _T.CANCELLED: _S.GONE},
    _S.ANSWERED: {_T.TAKEN: _S.TAKEN, _T.DISOWNED: _S.ORPHAN_ANSWERED, _T.CANCELLED: _S.GONE},
    _S.TAKEN: {_T.PUT_BACK: _S.ANSWERED, _T.REOPENED: _S.LOST, _T.YIELDED: _S.YIELDED,
               _T.HANDED_OVER: _S.HANDED_OVER, _T.CANCELLED: _S.GONE},
    _S.YIELDED: {_T.PUT_BACK: _S.ANSWERED, _T.HANDED_OVER: _S.HANDED_OVER, _T.SETTLED: _S.GONE, _T.CANCELLED: _S.GONE},
    _S.HANDED_OVER: {_T.SETTLED: _S.GONE, _T.CANCELLED: _S.GONE},
    _S.ORPHAN: {_T.SENT: _S.ORPHAN, _T.FOUND: _S.ORPHAN, _T.MISSED: _S.ORPHAN_LOST,
                _T.ANSWERED: _S.ORPHAN_ANSWERED, _T.ADOPTED: _S.SENT, _T.CANCELLED: _S.GONE},
    _S.ORPHAN_LOST: {_T.SENT: _S.ORPHAN, _T.FOUND: _S.ORPHAN, _T.MISSED: _S.ORPHAN_LOST,
                     _T.ANSWERED: _S.ORPHAN_ANSWERED, _T.ADOPTED: _S.LOST, _T.CANCELLED: _S.GONE},
    _S.ORPHAN_ANSWERED: {_T.ADOPTED: _S.ANSWERED, _T.CANCELLED: _S.GONE},
    _S.GONE: {},
}  # fmt: skip

# What is asked of every message is a set: CPython 3.11 takes four times as long to read a member off its Enum.

#: No transaction that sends it is known to be executed.
NEW = frozenset({State.UNSENT, State.EARLY})

#: Nobody has answered it.
OPEN = frozenset(state for state, steps in TRANSITIONS.items() if Step.ANSWERED in steps)

#: Redis has accepted it, and nobody has answered it: its node owes a reply.
OWING = OPEN - NEW

LOST = frozenset({State.LOST, State.ORPHAN_LOST})

ORPHANS = frozenset({State.ORPHAN, State.ORPHAN_LOST, State.ORPHAN_ANSWERED})

#: The app has the reply, or one of its threads is fetching it.
TAKEN = frozenset({State.TAKEN, State.YIELDED, State.HANDED_OVER})

#: Its reply may be in memory.
HOLDING = frozenset({State.EARLY, State.ANSWERED, State.TAKEN, State.YIELDED, State.ORPHAN_ANSWERED})

#: The app is being given the reply.
GIVEN = TAKEN - {State.HANDED_OVER}
