"""The verdicts: which messages no reply will answer.

Owns why a message ends as an Error reply, and the sweep, which looks at everything that no ring announces. It must not
know who waits for replies.
"""

from collections.abc import Collection, Iterable
from logging import INFO

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.liveness import Liveness
from brokerfl.broker.patience import within
from brokerfl.broker.presence import absent_nodes
from brokerfl.broker.rings import Rings
from brokerfl.broker.transactions import Transactions
from brokerfl.common import Error, ErrorCode, log
from brokerfl.common.logger import trace
from brokerfl.server.book import Book, OpenMessage, State
from brokerfl.server.names import Names
from brokerfl.server.outcome import CALLED_OFF, CANCELLED
from brokerfl.server.receive import Receiver
from brokerfl.server.session import Session

#: Nodes that a line of the log names.
_NAMED = 8


class Verdicts:
    """Passes verdicts on the messages of one run."""

    def __init__(self, book: Book, session: Session, receiver: Receiver, liveness: Liveness, blobs: Blobs) -> None:
        self._book = book
        self._session = session
        self._transactions: Transactions = session.transactions
        self._receiver = receiver
        self._liveness = liveness
        self._blobs = blobs
        self._rings = Rings()

    def sweep(self) -> None:
        """Look at everything that no ring announces: owner, leases, outboxes, deadlines; contact nodes that owe."""
        owner = self._transactions.owner
        owner.fence.look()
        owing = self._book.owing()
        looked_at = self._liveness.due(owing)
        absences = absent_nodes(owner.connection, looked_at)
        self._receiver.read(owing)
        self._transactions.contact(self._rings.due(self._book.owing()))
        gone = self._liveness.unavailable(looked_at, absences, owner.connection.clock.steps)
        now = owner.connection.clock.time() * 1000
        verdicts = [(message, _verdict(message, now, gone, self._session.names)) for message in self._book.awaited()]
        self._pass([(message, error) for message, error in verdicts if error is not None])
        self._session.when_quiet(self._blobs.release)

    def _pass(self, verdicts: list[tuple[OpenMessage, Error]]) -> None:
        """Take the messages out of the inboxes, then look into the outboxes once more: a reply there wins."""
        if not verdicts:
            return
        parcels, owner = [message.parcel({}) for message, _ in verdicts], self._transactions.owner
        try:
            owner.fence.execute(self._transactions.verdict(parcels))
            self._receiver.read(message.node_id for message, _ in verdicts)
            for message, error in verdicts:
                ids = {"node": message.node_id, "message_id": message.message_id}
                trace("given up", "Becomes Error %s: %s", int(error.code), error.reason, run=owner.run.run_id, **ids)
            self._book.answers.fail((message.message_id, error) for message, error in verdicts)
        except BaseException:  # no inbox may have them any more
            self._session.distrust()
            self._book.answers.put_back()
            raise

    def supply(self, nodes: Collection[int]) -> None:
        """Write again what these nodes lack of their messages' contents; answer with Error 3 what cannot be had.

        Where nothing is missing, the sweep lets the node look again.
        """
        lacking = [message for message in self._book.awaited() if message.node_id in nodes and message.entry.uploader]
        with self._session.writing:
            written, gone = self._blobs.supply({message.entry.content_key for message in lacking})
        reason = Error(ErrorCode.MESSAGE_UNAVAILABLE, "a part of the message's content is gone from Redis")
        self._pass([(message, reason) for message in lacking if message.entry.content_key in gone])
        if written:
            self._transactions.contact([node for node in nodes if node in self._book.owing()])

    def cancel(self, message_ids: Iterable[str], until: float | None) -> None:
        """Answer open messages with Error 3, and take them out of the inboxes.

        Raises:
            RedisUnreachable: Redis was away at the local monotonic time ``until``; nothing was cancelled.
        """
        self._session.check()
        wanted, reason = set(message_ids), Error(ErrorCode.MESSAGE_UNAVAILABLE, CANCELLED)

        def cancel() -> None:
            self._session.reconcile()
            self._pass([(message, reason) for message in self._book.awaited(wanted)])

        within(until, lambda: self._session.through_outage(cancel))

    def call_off(self, message_ids: Collection[str]) -> None:
        """Answer messages with Error 3 that operators asked to cancel, those that are open now."""
        found = self._book.awaited(message_ids)
        if found:
            run_id = self._transactions.owner.run.run_id
            names = sorted({self._session.names.of(message.node_id) for message in found})
            which = ", ".join(names[:_NAMED]) + (" and others" if names[_NAMED:] else "")
            log(INFO, "An operator cancelled %s messages of run %s: %s", len(found), run_id, which)
            reason = Error(ErrorCode.MESSAGE_UNAVAILABLE, CALLED_OFF)
            self._pass([(message, reason) for message in found])


def _verdict(message: OpenMessage, now: float, gone: set[int], names: Names) -> Error | None:
    """Return why no reply will come; None if one still may."""
    if message.entry.deadline <= now:
        return Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message expired before a reply came")
    if message.state is State.LOST and message.fields is None:
        reason = "Redis lost the message, and the resumed ServerApp did not push it again"
        return Error(ErrorCode.MESSAGE_UNAVAILABLE, reason)
    if message.node_id in gone and not message.entry.waits:
        return Error(ErrorCode.NODE_UNAVAILABLE, f"{names.of(message.node_id)} is unavailable: its lease has lapsed")
    return None
