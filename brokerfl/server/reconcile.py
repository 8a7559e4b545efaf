"""Reconciling: after a lost connection or a resume, compares the run with what Redis has of it.

Owns that one routine. It must not know how replies are awaited, or why the connection was lost.

A Redis that was killed forgets about a second of what it acknowledged (``appendfsync everysec``). So the owner of a run
writes the run's slot again from memory, and looks for every open message in its inbox, then in its outbox: what is in
neither is sent again under the same id. The inbox comes first, because a message moves from there to the outbox.
"""

from collections.abc import Sequence
from contextlib import suppress
from logging import INFO

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.change import Parcel
from brokerfl.broker.ending import Footprint
from brokerfl.broker.fence import RedisForgot
from brokerfl.broker.inbox import entries_of
from brokerfl.broker.transactions import Transactions
from brokerfl.common import RedisOutOfMemory, RunLost, log
from brokerfl.server.book import Book
from brokerfl.server.receive import Receiver


class Reconciler:
    """Compares one run with Redis. Used by the thread that holds `Session.writing`.

    Args:
        transactions: for what is written again.
        book: the run's messages.
        receiver: reads the outboxes.
        blobs: what the run has broadcast.
        identity: of the Redis data set that the run was created in.
    """

    def __init__(
        self, transactions: Transactions, book: Book, receiver: Receiver, blobs: Blobs, identity: bytes | None
    ) -> None:
        self._transactions = transactions
        self._owner = transactions.owner
        self._book = book
        self._receiver = receiver
        self._blobs = blobs
        self._identity = identity
        self._run_id = transactions.owner.run.run_id

    def restore(self) -> None:
        """Write the run's own keys as this process remembers them.

        Raises:
            RunStopped, RunFenced: the run no longer belongs to this process.
            RunLost: Redis lost all its data, the run expired, or another ServerApp ended it.
            RedisUnreachable, RedisOutOfMemory: to be repeated.
        """
        self.identify()
        has_forgotten = self._has_forgotten()
        self._blobs.look()
        snapshot = self._book.snapshot()
        footprint = Footprint(snapshot.nodes, self._blobs.chunks())
        self._owner.fence.execute(self._transactions.restore(snapshot, footprint), reclaims=True)
        for chunks in self._blobs.forgotten():  # before any message that needs them is sent again
            self._blobs.write_again(chunks)
        if has_forgotten:
            log(INFO, "Redis had lost its last writes; run %s was restored", self._run_id)

    def identify(self) -> None:
        """Make sure that Redis still has the data set in which the run was created.

        Raises:
            RunLost: it has another one.
            RedisUnreachable: Redis could not be asked.
        """
        if self._owner.read_identity() != self._identity:
            raise RunLost(f"Redis lost its data, and run {self._run_id} with them")

    def _has_forgotten(self) -> bool:
        try:
            self._owner.fence.look()
        except RedisForgot:
            if self._owner.is_outlived():
                raise RunLost(f"run {self._run_id} is gone from Redis: it expired") from None
            return True
        return False

    def compare(self) -> None:
        """Look for every open message, and every large reply read before; send again what is nowhere.

        Raises:
            RunStopped, RunFenced, RedisForgot, RedisUnreachable, RedisOutOfMemory: as for `restore`.
        """
        nodes = self._book.contacts.all()
        seen = [
            (node_id, entry_id, message_id)
            for node_id in nodes
            for entry_id, message_id in entries_of(self._owner.connection, node_id, self._run_id)
        ]
        self._receiver.read(nodes)
        lost, doubtful, strays = self._book.compare(seen)
        if lost or strays:
            self._repair(lost, strays)
        if doubtful:
            with suppress(RedisOutOfMemory):  # then the reply is asked for when the app wants it
                self._repair(doubtful)
        self._transactions.contact(self._book.owing())

    def _repair(self, lost: list[Parcel], strays: Sequence[tuple[int, str]] = ()) -> None:
        parcels = self._book.still_lost(lost)
        results = self._owner.fence.execute(self._transactions.send(parcels, strays))
        self._book.sent(parcels, results)
        if parcels:
            count = "1 message" if len(parcels) == 1 else f"{len(parcels)} messages"
            log(INFO, "Redis had lost %s of run %s; sent again", count, self._run_id)
