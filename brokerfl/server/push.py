"""The push: messages into the ledger and the inboxes, in one fenced transaction.

Owns what is refused, what is adopted after a resume, and how a group moves the run on. It must not know how replies are
waited for.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.connection import Connection
from brokerfl.broker.keys import milliseconds
from brokerfl.broker.ledger import Ledger, OpenMessage, State
from brokerfl.broker.nodes import registered
from brokerfl.common import BrokerflError, Message, Metadata, RedisOutOfMemory, is_message_type
from brokerfl.server.commit import Committer
from brokerfl.server.intake import Intake
from brokerfl.server.link import Link
from brokerfl.server.upload import Contents
from brokerfl.wire.frame import MANIFEST, Fields, size_of
from brokerfl.wire.message import encode_message, new_message_id
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.run import LedgerEntry

#: Bytes of one transaction of a push. Redis keeps a MULTI in its query buffer, and cuts the connection at 1 GB of that
#: (``client-query-buffer-limit``); everyone else waits while it is executed.
MOST_BYTES = 64 * 1024 * 1024

#: Seconds, about 30 years: a deadline in milliseconds stays far below 64 bits.
_LONGEST_TTL = 1e9


def check_message(message: Message, run_id: int) -> Message:
    """Return the message if this run can push it.

    Raises:
        TypeError, ValueError: it is no message, or none with content, or another run's; or as `check_metadata`.
    """
    if not isinstance(message, Message):
        raise TypeError(f"push_messages takes Messages, not {type(message).__name__}")
    if not message.has_content():
        raise ValueError(f"{message!r} has no content: only nodes send errors")
    if message.metadata.run_id != run_id:
        raise ValueError(
            f"a message of run {message.metadata.run_id} cannot be pushed by run {run_id}: "
            "use create_message of this Driver"
        )
    check_metadata(message.metadata)
    return message


def check_metadata(metadata: Metadata) -> None:
    """Refuse what a frame cannot carry, or what no node would understand.

    Raises:
        ValueError: which field, and why.
    """
    if not isinstance(metadata.message_type, str) or not is_message_type(metadata.message_type):
        raise ValueError(
            f"the message type {metadata.message_type!r} is not train, evaluate or query, or one of them with an "
            "action such as train.warmup"
        )
    if type(metadata.dst_node_id) is not int or not 0 <= metadata.dst_node_id < 2**64:
        raise ValueError(f"dst_node_id is {metadata.dst_node_id!r}: it must be an int, as get_node_ids() returns them")
    if not isinstance(metadata.group_id, str):
        raise ValueError(f"group_id is {metadata.group_id!r}: it must be a str, such as str(server_round)")
    if not isinstance(metadata.ttl, int | float) or not 0 <= metadata.ttl < _LONGEST_TTL:
        raise ValueError(f"ttl is {metadata.ttl!r}: it must be seconds, from 0 to {_LONGEST_TTL:g}")


class Pusher:
    """Pushes the messages of one run; one push at a time, from any thread. What only settles does not wait for it.

    Args:
        connection: where the run lives.
        run_id: the run.
        ledger: its messages.
        intake: what goes with a reply that is none.
        link: the transactions.
        committer: changes the run's books.
        blobs: what the run has broadcast.
    """

    def __init__(
        self,
        connection: Connection,
        run_id: int,
        ledger: Ledger,
        intake: Intake,
        link: Link,
        committer: Committer,
        blobs: Blobs,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._ledger = ledger
        self._intake = intake
        self._link = link
        self._committer = committer
        self._blobs = blobs
        self._registered: set[int] = set()
        self._pushing = threading.Lock()

    def push(self, batch: list[Message], *, waits: bool = False, moves_on: bool = False) -> list[str]:
        """Push messages of this run; return their ids, ``""`` for those to unknown nodes and those that have expired.

        Args:
            batch: the messages.
            waits: they outlast their nodes' absence, and may go to nodes that are not registered yet.
            moves_on: what was handed over until now leaves, and the state is saved, as with a new group. Of what a
                former life left open, only messages of equal content are adopted.

        Raises:
            RunError, OutageLimit, RedisOutOfMemory, TypeError, ValueError, MessageTooLarge: nothing was pushed.
        """
        with self._pushing:
            self._link.check()
            if not waits:
                self._look_up({message.metadata.dst_node_id for message in batch})
            contents = Contents()
            ids: list[str] = []
            made: list[OpenMessage] = []
            adopted: list[OpenMessage] = []
            pushed: list[OpenMessage] = []
            began = time.monotonic()
            try:
                for message in batch:
                    if _is_expired(message) or not (waits or self.is_registered(message.metadata.dst_node_id)):
                        ids.append("")
                        continue
                    entered = self._adopt_or_make(message, contents, waits, exactly=moves_on)
                    ids.append(entered.message_id)
                    made.append(entered)
                    if entered.pushed:
                        adopted.append(entered)
                self._blobs.kept = needed = {message.entry.digest for message in made}
                large = [content for content in contents if content.payload is not None and content.name in needed]
                for content in large:
                    self._committer.uploader.upload(content)
                pushed = [entered for entered in made if _is_to_be_sent(entered)]
                coming = {message.message_id for message in pushed}
                for orphan in adopted:  # what is not sent now, a comparison may send if Redis forgets it
                    orphan.is_coming = orphan.message_id in coming
                _postpone(pushed, milliseconds(time.monotonic() - began))
                for part in _parts(pushed):
                    self._committer.commit(part, large, moves_on)
                if moves_on and not pushed:
                    self._committer.commit([])
                self._blobs.kept = ()
                for orphan in adopted:
                    orphan.is_coming = False
            except BaseException as error:
                self._blobs.kept = ()
                with self._ledger.lock:
                    # Of a push in several parts the first ones may be in Redis: pushed again, they are adopted.
                    self._ledger.disown(adopted + [message for message in pushed if message.pushed])
                    for orphan in adopted:  # its content may not be in Redis
                        orphan.fields, orphan.is_coming = None, False
                if isinstance(error, BrokerflError):
                    self._committer.uploader.free_idle()
                raise
            return ids

    def push_again(self, message: OpenMessage) -> bool:
        """Push a message again whose reply proved to be incomplete; return whether that is possible.

        Raises:
            RunError, OutageLimit: the run is over.
        """
        if self._intake.use_spare(message):
            return True
        with self._link.writing:
            if not self._intake.reopen(message):
                return False
            try:
                self._committer.deliver_again(message)
            except RedisOutOfMemory:
                self._link.distrust()  # the next comparison finds it missing, and delivers it when there is room
            return True

    def checkpoint(self) -> None:
        """Take what was handed over out of the ledger, and save the context.

        Raises:
            RunError, OutageLimit: the run is over.
            RedisOutOfMemory: Redis is full; nothing was saved.
        """
        self._link.check()
        try:
            self._committer.commit([])
        except BrokerflError:
            self._committer.uploader.free_idle()
            raise

    def start_over(self) -> None:
        """Take out of the books what nobody has adopted.

        Raises:
            RunError, OutageLimit: the run is over.
        """
        with self._pushing:  # which may be adopting some
            self._link.check()
            self._committer.give_up_orphans()

    def settle(self, message_ids: list[str]) -> None:
        """Take replies that were handed over out of the ledger and out of Redis, and save nothing.

        Raises:
            RunError, OutageLimit: the run is over.
        """
        self._link.check()
        self._committer.settle(message_ids)

    def is_registered(self, node_id: int) -> bool:
        """Return whether the registry knew the node when it was looked up."""
        return node_id in self._registered

    def _look_up(self, node_ids: set[int]) -> None:
        unknown = node_ids - self._registered
        if unknown:
            self._registered |= self._link.through_outage(lambda: registered(self._connection, unknown))

    def _adopt_or_make(self, message: Message, contents: Contents, waits: bool, *, exactly: bool) -> OpenMessage:
        """Return the orphan that this message stands for, else a new one; its content is encoded once for all."""
        meta, content = message.metadata, contents.encode(message.content)
        now = milliseconds(self._connection.time())
        with self._ledger.lock:
            entry = LedgerEntry(
                meta.dst_node_id,
                meta.group_id,
                meta.message_type,
                milliseconds(self._connection.time() + meta.ttl),
                self._ledger.next_sequence(),
                content.name,
                waits,
            )
            made = self._ledger.adopt(entry, now, exactly=exactly) or OpenMessage(new_message_id(self._run_id), entry)
            made.is_coming = made.pushed
            if made.state is State.OPEN or made.data_entries:
                fields = self._first_content(made, content) if made.pushed else content.fields
                made.fields = None if fields is None else encode_message(made.message_id, meta, fields)
        return made

    def _first_content(self, adopted: OpenMessage, content: EncodedContent) -> Fields | None:
        """Return what an adopted message carries: its first content stands, unless Redis has lost that.

        None where a small one stands and the present one is large: it is not sent only to be at hand.
        """
        first = adopted.entry.digest
        if first == content.name:
            return content.fields
        manifest = self._blobs.manifest(first)
        if manifest is not None:
            return {MANIFEST: manifest.encoded}
        if adopted.state is State.OPEN and (adopted.is_lost or self._blobs.knows(first)):
            adopted.entry, adopted.is_lost = replace(adopted.entry, digest=content.name), True
            return content.fields
        return content.fields if content.payload is None else None


def _is_to_be_sent(message: OpenMessage) -> bool:
    return message.fields is not None and (not message.pushed or message.is_lost)


def _postpone(pushed: list[OpenMessage], elapsed: int) -> None:
    """A ttl counts from the push, not from the start of an upload that took ``elapsed`` milliseconds."""
    for message in pushed if elapsed > 1000 else ():
        if not message.pushed:
            message.entry = replace(message.entry, deadline=message.entry.deadline + elapsed)


def _parts(pushed: list[OpenMessage]) -> Iterator[list[OpenMessage]]:
    """Divide a push so that no transaction holds more than `MOST_BYTES`."""
    part: list[OpenMessage] = []
    size = 0
    for message in pushed:
        more = size_of(message.fields or {})
        if part and size + more > MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(message)
        size += more
    if part:
        yield part


def _is_expired(message: Message) -> bool:
    """Both times are of this process's clock, which thereby decides nothing about anyone else's."""
    return time.time() - message.metadata.created_at >= message.metadata.ttl
