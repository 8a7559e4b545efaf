"""The push: messages into the ledger and the inboxes, in one fenced transaction.

Owns what is refused, how a group moves the run on, and first contact with a node. It must not know how replies are
waited for.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from brokerfl.broker.connection import Connection, Pipeline, map_errors
from brokerfl.broker.inbox import add_message, open_inbox, ring
from brokerfl.broker.keys import milliseconds
from brokerfl.broker.ledger import OpenMessage
from brokerfl.broker.nodes import registered
from brokerfl.broker.runs import Attachment
from brokerfl.common import Error, ErrorCode, Message
from brokerfl.server.collector import Collector
from brokerfl.wire.frame import MAX_MESSAGE_BYTES, Fields
from brokerfl.wire.message import encode_message, new_message_id
from brokerfl.wire.record import encode_content
from brokerfl.wire.run import Run, encode_run

_Pushed = list[tuple[OpenMessage, Fields]]


class Pusher:
    """Pushes the messages of one run; one transaction at a time, from any thread."""

    def __init__(self, connection: Connection, run: Run, attachment: Attachment, collector: Collector) -> None:
        self._connection = connection
        self._run_id = run.run_id
        self._frame = encode_run(run)
        self._attachment = attachment
        self._collector = collector
        self._registered: set[int] = set()
        self._pushing = threading.Lock()

    def push(self, batch: list[Message]) -> list[str]:
        """Push messages of this run; return their ids, ``""`` for those to unknown nodes and those that have expired.

        Raises:
            RunError, OutageLimit, RedisOutOfMemory, TypeError, ValueError, MessageTooLarge: nothing was pushed.
        """
        with self._pushing:
            self._collector.check()
            self._look_up({message.metadata.dst_node_id for message in batch})
            contents: dict[int, Fields] = {}
            ids: list[str] = []
            pushed: _Pushed = []
            for message in batch:
                if self.is_registered(message.metadata.dst_node_id) and not _is_expired(message):
                    pushed.append(self._encode(message, contents))
                    ids.append(pushed[-1][0].message_id)
                else:
                    ids.append("")
            for part in _parts(pushed):
                self._commit(part)
            return ids

    def checkpoint(self) -> None:
        """Take what was handed over out of the ledger.

        Raises:
            RunError, OutageLimit: the run is over.
        """
        with self._pushing:
            self._collector.check()
            self._commit([])

    def is_registered(self, node_id: int) -> bool:
        """Return whether the registry knew the node when it was looked up."""
        return node_id in self._registered

    def _look_up(self, node_ids: set[int]) -> None:
        unknown = node_ids - self._registered
        if unknown:
            self._registered |= self._collector.through_outage(lambda: registered(self._connection, unknown))

    def _encode(self, message: Message, contents: dict[int, Fields]) -> tuple[OpenMessage, Fields]:
        """Encode a message, and its content once for all messages that share it."""
        meta, key = message.metadata, id(message.content)
        if key not in contents:
            contents[key] = encode_content(message.content)
        message_id = new_message_id(self._run_id)
        deadline = milliseconds(self._connection.time() + meta.ttl)
        entry = OpenMessage(message_id, meta.dst_node_id, meta.group_id, meta.message_type, deadline)
        return entry, encode_message(message_id, meta, contents[key])

    def _commit(self, pushed: _Pushed) -> None:
        """One transaction: new entries enter the ledger and the inboxes; if the run moves on, settled ones leave it."""
        collector, entries = self._collector, [entry for entry, _ in pushed]
        with collector.lock:
            moves_on = not entries or collector.ledger.is_new_group({entry.group_id for entry in entries})
            settled = collector.ledger.settled() if moves_on else []
            if not entries and not settled:
                return
            # Before the push, for a reply may be faster than its answer.
            new_groups = collector.ledger.add(entries)
            first = {entry.node_id for entry in entries} - collector.contacted
            collector.contact(first)

        def build(pipe: Pipeline) -> None:
            self._write_ledger(pipe, entries, settled)
            self._deliver(pipe, pushed, first)

        try:
            results = collector.transact(build, lambda: self._is_executed(entries, settled), frees=not entries)
        except BaseException:
            with collector.lock:
                collector.ledger.withdraw(entries, new_groups)
            raise
        for entry in entries:
            entry.pushed = True
        collector.forget(settled)
        if results is not None and entries:
            self._note_entries(pushed, results[len(results) - len(pushed) :])

    def _write_ledger(self, pipe: Pipeline, entries: list[OpenMessage], settled: list[OpenMessage]) -> None:
        keys, run = self._connection.keys, self._run_id
        if entries:
            pipe.hset(keys.ledger(run), mapping={entry.message_id: entry.encode() for entry in entries})
            pipe.hincrby(keys.meta(run), "messages", len(entries))
            pipe.pexpire(keys.meta(run), milliseconds(self._attachment.retention))
            # A hash vanishes when it is empty, and comes back without a lifetime.
            pipe.pexpire(keys.ledger(run), milliseconds(self._attachment.retention))
        if settled:
            pipe.hdel(keys.ledger(run), *(message.message_id for message in settled))
            # Outside a MULTI best effort: a full Redis refuses to count, and lets us delete.
            pipe.hincrby(keys.meta(run), "replies", len(settled))

    def _deliver(self, pipe: Pipeline, pushed: _Pushed, first: Iterable[int]) -> None:
        """Put inbox entries into ``pipe``, as its last commands; before them all that first contact takes."""
        keys, run = self._connection.keys, self._run_id
        for node in first:
            pipe.sadd(keys.run_nodes(run), str(node))
            pipe.pexpire(keys.run_nodes(run), milliseconds(self._attachment.retention))
            open_inbox(pipe, keys, node, run, self._frame)
            self._attachment.expire_node(pipe, node)
            ring(pipe, keys, node)
        for entry, fields in pushed:
            add_message(pipe, keys, entry.node_id, run, fields)

    def _is_executed(self, entries: list[OpenMessage], settled: list[OpenMessage]) -> bool:
        """Return whether a transaction took effect whose answer was lost: one EXEC does all of it or nothing."""
        probe = entries[0] if entries else settled[0]
        with map_errors(self._connection.url):
            there = self._connection.redis.hexists(self._connection.keys.ledger(self._run_id), probe.message_id)
        return bool(there) == bool(entries)

    def _note_entries(self, pushed: _Pushed, results: list[Any]) -> None:
        """Note each message's inbox entry; where the inbox was gone, contact the node again and repeat."""
        lost = []
        for (entry, fields), result in zip(pushed, results, strict=True):
            if result is None:
                lost.append((entry, fields))
            elif isinstance(result, Exception):  # somebody with the node's rights made another thing of its inbox
                self._give_up(entry, result)
            else:
                entry.inbox_entry = result.decode()
        if lost:
            nodes = {entry.node_id for entry, _ in lost}
            again = self._collector.transact(lambda pipe: self._deliver(pipe, lost, nodes), lambda: False)
            assert again is not None, "never executed unseen: it is repeated until its results are here"
            for (entry, _), result in zip(lost, again[-len(lost) :], strict=True):
                if isinstance(result, bytes):
                    entry.inbox_entry = result.decode()
                else:
                    self._give_up(entry, result)

    def _give_up(self, entry: OpenMessage, problem: Any) -> None:
        reason = f"the inbox of node {entry.node_id} takes no message: {problem}"
        with self._collector.lock:
            self._collector.ledger.fail(entry.message_id, Error(ErrorCode.NODE_UNAVAILABLE, reason))
            self._collector.lock.notify_all()


def _parts(pushed: _Pushed) -> Iterator[_Pushed]:
    """Divide a push so that no transaction holds more than one message may.

    Redis keeps a MULTI in its query buffer, and cuts the connection at 1 GB of that (``client-query-buffer-limit``).
    """
    part: _Pushed = []
    size = 0
    for entry, fields in pushed:
        more = sum(map(len, fields.values()))
        if part and size + more > MAX_MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append((entry, fields))
        size += more
    if part:
        yield part


def _is_expired(message: Message) -> bool:
    """Both times are of this process's clock, which thereby decides nothing about anyone else's."""
    return time.time() - message.metadata.created_at >= message.metadata.ttl
