"""The intake: brings what is in the outboxes into the ledger, and takes out of Redis what is of no use any more.

Owns the cursors, and which replies are to be deleted. It must not know who waits, or what happens in an outage.
"""

from collections.abc import Iterable
from logging import DEBUG
from typing import Any

from brokerfl.broker.connection import Connection, Pipeline
from brokerfl.broker.ledger import Ledger, OpenMessage
from brokerfl.broker.outbox import Outboxes, Reply, Settled, remove_replies
from brokerfl.broker.stream import entries_of_one
from brokerfl.common import FrameError, log
from brokerfl.wire.message import message_id_of
from brokerfl.wire.payload import manifest_of


class Intake:
    """Reads the outboxes of one run. One thread at a time reads; any may say what is to be deleted.

    Args:
        connection: where the run lives.
        run_id: the run.
        ledger: what the replies are matched with.
    """

    def __init__(self, connection: Connection, run_id: int, ledger: Ledger) -> None:
        self._connection = connection
        self._run_id = run_id
        self._ledger = ledger
        self._outboxes = Outboxes(connection, run_id)
        self._settled: list[Settled] = []
        self._dropped: list[Settled] = []

    def reset(self) -> None:
        """Read everything again: Redis may have forgotten, and ids come anew."""
        self._outboxes.reset()

    def wait(self, block: float | None) -> set[int] | None:
        """Return the nodes that rang; see `Outboxes.wait`."""
        return self._outboxes.wait(block)

    def read(self, node_ids: Iterable[int]) -> None:
        """Bring what is new in these nodes' outboxes into the ledger."""
        nodes = set(node_ids)
        with self._ledger.lock:
            settled, self._settled = self._settled, []
        if not nodes and not settled:
            return
        replies, is_deleted = self._outboxes.read(nodes, settled)
        self._take(replies)
        if not is_deleted:
            with self._ledger.lock:
                self._settled += settled

    def _take(self, replies: Iterable[Reply]) -> None:
        with self._ledger.lock:  # with the cursors: who looks meanwhile, for a last time, sees what is not matched yet
            for node, entry_id, fields in replies:
                if self._outboxes.advance(node, entry_id):
                    self._match(node, entry_id, fields)

    def read_more(self, pipe: Pipeline, nodes: Iterable[int]) -> None:
        """Put a last look into some outboxes into ``pipe``."""
        for node in nodes:
            self._outboxes.read_more(pipe, node)

    def take_more(self, nodes: Iterable[int], results: Iterable[Any]) -> None:
        """Take what `read_more` found. Called with the ledger's lock."""
        for node, found in zip(nodes, results, strict=True):
            self._take((node, *reply) for reply in entries_of_one(found if isinstance(found, list) else ()))

    def _match(self, node: int, entry_id: str, fields: dict[bytes, bytes]) -> None:
        message_id = message_id_of(fields)
        data_entries = _data_entries(fields)
        if self._ledger.answer(node, entry_id, message_id, fields, data_entries):  # type: ignore[arg-type]
            return
        message = self._ledger.find(message_id)
        if message is not None and message.node_id == node:
            if message.data_entries == data_entries:
                data_entries = ()  # a second copy of the reply that counts: the payload is still needed
            elif self._ledger.spare(message, entry_id, fields, data_entries):  # type: ignore[arg-type]
                return
        self._dropped.append((node, entry_id, data_entries))
        log(DEBUG, "Dropped a reply of node %s that fits no open message", node)

    # What goes.

    def forget(self, settled: list[OpenMessage]) -> None:
        """A commit took these out of the hash: their replies go with the next look at the outboxes."""
        with self._ledger.lock:
            self._ledger.remove(settled)
            for message in settled:
                copies = [(message.outbox_entry, message.data_entries)]
                copies += [(outbox_entry, data_entries) for outbox_entry, _, data_entries in message.spares]
                self._settled += [(message.node_id, *copy) for copy in copies if copy[0]]

    def reopen(self, message: OpenMessage) -> bool:
        """The payload of a reply is missing: drop it, if its message can be pushed again."""
        with self._ledger.lock:
            outbox_entry, data_entries = message.outbox_entry, message.data_entries
            if not self._ledger.reopen(message):
                return False
            self._dropped.append((message.node_id, outbox_entry, data_entries))
            return True

    def use_spare(self, message: OpenMessage) -> bool:
        """The payload of a reply is missing: drop it, if there is another copy, which takes its place."""
        with self._ledger.lock:
            former = message.node_id, message.outbox_entry, message.data_entries
            if not self._ledger.use_spare(message):
                return False
            self._dropped.append(former)
            return True

    def take_dropped(self) -> list[Settled]:
        """Return the replies that fitted nothing; only a fenced transaction may delete them."""
        with self._ledger.lock:
            dropped, self._dropped = self._dropped, []
            return dropped

    def put_back(self, dropped: list[Settled]) -> None:
        """They could not be deleted now."""
        with self._ledger.lock:
            self._dropped += dropped

    def remove(self, pipe: Pipeline, dropped: Iterable[Settled]) -> None:
        """Put their deletion into ``pipe``."""
        remove_replies(pipe, self._connection, self._run_id, dropped)


def _data_entries(reply: dict[bytes, bytes]) -> tuple[str, ...]:
    """Return where the chunks of a reply are; nothing of one that cannot be read: its end is that of the run."""
    try:
        manifest = manifest_of(reply)
    except FrameError:
        return ()
    return manifest.entries if manifest is not None else ()
