"""Reconciling: after a lost connection, and after a resume, the ServerApp and Redis compare what they know.

Owns that one routine. It must not know how replies are waited for, or why the connection was lost.

A Redis that was killed forgets about a second of what it acknowledged (``appendfsync everysec``). So the holder of a
run writes the run's slot again from memory, and looks for every open message in its inbox, then in its outbox: what is
in neither is pushed again under the same id. The inbox comes first, for a message moves from there to the outbox.
"""

from collections.abc import Iterable
from logging import INFO
from typing import Any

from brokerfl.broker.attachment import Attachment
from brokerfl.broker.blobs import Blobs
from brokerfl.broker.connection import Connection, Pipeline
from brokerfl.broker.fence import Forgotten
from brokerfl.broker.inbox import entries_of, remove_message
from brokerfl.broker.ledger import Ledger, OpenMessage, State
from brokerfl.broker.runs import Holdings
from brokerfl.broker.saved import SavedContext
from brokerfl.common import RunLost, log
from brokerfl.server.delivery import Delivery
from brokerfl.server.intake import Intake


class Reconciler:
    """Compares one run with Redis.

    Args:
        connection: where the run lives.
        run_id: the run.
        attachment: this ServerApp's hold on it.
        ledger: the run's messages.
        intake: reads the outboxes.
        saved: the run's committed context.
        delivery: puts messages into inboxes.
        blobs: what the run has broadcast.
        identity: of the Redis data set that the run was created in.
    """

    def __init__(
        self,
        connection: Connection,
        run_id: int,
        attachment: Attachment,
        ledger: Ledger,
        intake: Intake,
        saved: SavedContext,
        delivery: Delivery,
        blobs: Blobs,
        identity: bytes,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._attachment = attachment
        self._ledger = ledger
        self._intake = intake
        self._saved = saved
        self._delivery = delivery
        self._blobs = blobs
        self._identity = identity

    def restore(self, *, was_cut: bool) -> None:
        """Write the run's own keys as this process remembers them.

        Args:
            was_cut: a connection was lost: Redis may have been killed. While all hold, no owner means that the run is
                over.

        Raises:
            RunStopped, RunFenced: the run is no longer ours.
            RunLost: Redis lost all its data, or another ServerApp ended the run.
            RedisUnreachable, RedisOutOfMemory: to be repeated.
        """
        if self._attachment.read_identity() != self._identity:
            raise RunLost(f"Redis lost its data: what it has now knows nothing of run {self._run_id}")
        try:
            self._attachment.fence.look()
            forgotten = False
        except Forgotten as error:
            if error.is_gone and (not was_cut or self._attachment.is_outlived()):
                self._attachment.fence.explain()
            forgotten = True
        self._blobs.look()
        self._attachment.fence.execute(self._write, reclaims=True)
        for chunks in self._blobs.forgotten():  # before any message that needs them is pushed again
            self._write_again(chunks)
        if forgotten:
            log(INFO, "Redis forgot its last writes; run %s was written again", self._run_id)

    def _write_again(self, chunks: list[bytes]) -> None:
        self._attachment.fence.execute(lambda pipe: self._blobs.write_again(pipe, chunks))
        self._blobs.written_again(chunks)

    def _write(self, pipe: Pipeline) -> None:
        key = self._connection.keys.ledger(self._run_id)
        pipe.unlink(key)
        self._saved.rewrite(pipe)
        self._blobs.rewrite(pipe)
        with self._ledger.lock:
            entries = self._ledger.in_redis()
            if entries:
                pipe.hset(key, mapping=entries)  # type: ignore[arg-type]
            # Last, for it gives all of them their lifetime.
            holdings = Holdings(self._ledger.contacted, self._blobs.digests())
            self._attachment.write(pipe, holdings, messages=self._ledger.pushed, replies=self._ledger.replied)

    def compare(self) -> None:
        """Look for every open message; push again what is neither in its inbox nor in its outbox.

        Raises:
            RunStopped, RunFenced, Forgotten: the run is no longer ours, or Redis forgot again.
            RedisUnreachable, RedisOutOfMemory: to be repeated.
        """
        with self._ledger.lock:
            nodes = set(self._ledger.contacted)
        found, stray = self._look_into_inboxes(nodes)
        self._intake.read(nodes)
        with self._ledger.lock:
            missing = [message for message in self._ledger.open_messages() if message.message_id not in found]
            for message_id, entries in found.items():
                message = self._ledger.find(message_id)
                if message is not None:
                    message.inbox_entries, message.is_lost = tuple(entries), False
            again = [message for message in missing if message.fields is not None and not message.is_coming]
            for message in missing:
                message.is_lost = True
        if again or stray:
            self._repair(again, stray)

    def _look_into_inboxes(self, nodes: Iterable[int]) -> tuple[dict[str, list[str]], list[tuple[int, str]]]:
        """Return the inbox entries of the open messages by message id, and the entries of anything else."""
        found: dict[str, list[str]] = {}
        stray: list[tuple[int, str]] = []
        for node in nodes:
            for entry_id, message_id in entries_of(self._connection, node, self._run_id):
                with self._ledger.lock:
                    message = self._ledger.find(message_id)
                    if message is not None and message.node_id == node and message.state is State.OPEN:
                        found.setdefault(message_id, []).append(entry_id)
                    else:
                        stray.append((node, entry_id))
        return found, stray

    def _repair(self, again: list[OpenMessage], stray: list[tuple[int, str]]) -> None:
        nodes, sent = {message.node_id for message in again}, again

        def build(pipe: Pipeline) -> None:
            for node, entry_id in stray:
                remove_message(pipe, self._connection.keys, node, self._run_id, entry_id)
            nonlocal sent
            sent = [message for message in again if message.fields is not None]  # not answered since
            self._delivery.deliver(pipe, sent, nodes)

        results: list[Any] = self._attachment.fence.execute(build, frees=not again)
        for message, entry in zip(sent, results[len(results) - len(sent) :], strict=True):
            if isinstance(entry, bytes):
                message.inbox_entries, message.is_lost = (entry.decode(),), False
        if again:
            log(INFO, "Redis had forgotten %s of run %s; pushed again", _count(again), self._run_id)


def _count(messages: list[OpenMessage]) -> str:
    return "1 message" if len(messages) == 1 else f"{len(messages)} messages"
