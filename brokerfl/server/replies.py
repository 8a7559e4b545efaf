"""The replies, on their way from the outbox to the app.

Owns when a large reply is fetched, what happens if its payload is gone, and when a reply counts as handed over. It must
not know how replies are awaited, or how outboxes are read.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from brokerfl.broker.data import read_data
from brokerfl.broker.outbox import read_reply
from brokerfl.common import Error, ErrorCode, FrameError, Message, RedisUnreachable
from brokerfl.server.book import Book, OpenMessage
from brokerfl.server.commit import Committer
from brokerfl.server.session import Session
from brokerfl.server.wait import Waits, Wanted
from brokerfl.wire.frame import Fields
from brokerfl.wire.manifest import manifest_of
from brokerfl.wire.payload import MissingChunkError, assemble
from brokerfl.wire.reply import decode_reply, error_reply


class Replies:
    """Hands over the replies of one run. Safe to use from many threads.

    Args:
        book: the run's messages.
        session: reaches Redis.
        waits: waits for replies.
        committer: asks again for a reply whose payload is missing.
        limit: the largest reply that is accepted, in bytes.
    """

    def __init__(self, book: Book, session: Session, waits: Waits, committer: Committer, limit: int) -> None:
        self._answers = book.answers
        self._session = session
        self._owner = session.transactions.owner
        self._run_id = session.transactions.owner.run.run_id
        self._waits = waits
        self._committer = committer
        self._limit = limit

    # Handing over.

    def each(self, message_ids: set[str], until: float | None) -> Iterator[Message]:
        """Yield replies as they arrive, until a local monotonic time; None waits for all.

        Each is handed over when the iterator advances past it, or is closed.
        """
        wanted = Wanted(message_ids)
        while (found := self._next(wanted, until)) is not None:
            message, only = found[0], [found[1]]
            del found  # the reply may be half of the app's memory
            self._answers.yielded(message)
            try:
                yield only.pop()
            finally:  # even after a break, the app has the reply
                self._answers.hand_over([message])

    def all(self, message_ids: set[str], until: float | None) -> list[Message]:
        """Return what `each` yields; all of it is handed over, or nothing."""
        wanted, replies = Wanted(message_ids), []
        with self._handing_over() as taken:
            while (found := self._next(wanted, until)) is not None:
                taken.append(found[0])
                replies.append(found[1])
        return replies

    def here(self, message_ids: set[str]) -> list[Message]:
        """Return the replies that have arrived; all of them are handed over, or none."""
        replies: list[Message] = []
        with self._handing_over() as taken:
            for message in self._taken(message_ids):
                decoded = self._decode(message, time.monotonic())
                if decoded is not None:
                    replies.append(decoded)
                    taken.append(message)
        return replies

    def _taken(self, message_ids: set[str]) -> Iterator[OpenMessage]:
        while (message := self._answers.take(message_ids)) is not None:
            message_ids.discard(message.message_id)
            yield message
        for message_id in self._answers.left(message_ids):
            if (message := self._answers.take_left(message_id)) is not None:
                yield message

    @contextmanager
    def _handing_over(self) -> Iterator[list[OpenMessage]]:
        """Hand over what is put into the list at the end of the block: until then no other thread settles it.

        If the block fails, the replies can be taken again.
        """
        taken: list[OpenMessage] = []
        try:
            yield taken
        except BaseException:
            self._answers.put_back(taken)
            raise
        self._answers.hand_over(taken)

    def _next(self, wanted: Wanted, until: float | None) -> tuple[OpenMessage, Message] | None:
        """Return the next reply, taken but not handed over yet; None when none is left, or when time is up."""
        while (message := self._waits.next(wanted, until)) is not None:
            decoded = self._decode(message, until)
            if decoded is not None:
                return message, decoded
            wanted.ids.add(message.message_id)
            if until is not None and time.monotonic() >= until:
                break
        return None

    # Fetching.

    def _decode(self, message: OpenMessage, until: float | None) -> Message | None:
        """Return a reply that was taken; None if it cannot be had now: then it can be taken again.

        A payload that Redis lost is asked for again; one that does not arrive by ``until`` is left to the next call.
        """
        if isinstance(message.reply, Error):
            return error_reply(self._run_id, message.message_id, message.entry, message.reply)
        assert message.reply is not None, "the reply was handed over already"
        try:
            reply = message.reply or self._read_again(message, until)
            fetched = self._fetch(message, reply, until)
            fields = {**reply, **fetched} if fetched else reply
            return decode_reply(self._run_id, message.message_id, message.entry, fields)
        except MissingChunkError as error:
            return None if self._committer.send_again(message) else self._unreadable(message, str(error))
        except FrameError as error:
            return self._unreadable(message, str(error))
        except BaseException as error:
            self._answers.put_back([message])
            if isinstance(error, RedisUnreachable):
                return None
            raise

    def _read_again(self, message: OpenMessage, until: float | None) -> Fields:
        """Return a reply that was read when there was no room for it."""
        where = message.node_id, self._run_id, message.outbox_entry
        reply = self._session.through_outage(lambda: read_reply(self._owner.connection, *where), until)
        if not reply:
            raise MissingChunkError("Redis lost it")
        return {**reply}

    def _fetch(self, message: OpenMessage, reply: Fields, until: float | None) -> Fields:
        """Return the content of a large reply, and nothing for a small one; after an outage, continue where it was."""
        manifest = manifest_of(reply, self._limit)
        if manifest is None:
            return {}
        entries = manifest.entries
        if len(entries) != len(manifest.digests):
            raise MissingChunkError("its node could not store its chunks in Redis")

        def read(window: Sequence[int]) -> Iterator[bytes | None]:
            wanted = [entries[index] for index in window]
            while wanted:
                try:
                    for chunk in read_data(self._owner.connection, message.node_id, self._run_id, tuple(wanted)):
                        del wanted[0]
                        yield chunk
                except RedisUnreachable as error:
                    self._session.reconnect(error, until)
                    if until is not None and time.monotonic() >= until:
                        raise

        content, _ = assemble(manifest, read)
        return content

    def _unreadable(self, message: OpenMessage, reason: str) -> Message:
        error = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"the reply cannot be read: {reason}")
        return error_reply(self._run_id, message.message_id, message.entry, error)
