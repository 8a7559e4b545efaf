"""The replies, on their way from the outbox to the app.

Owns when a large reply is fetched, what happens if its payload is gone, and when a reply counts as handed over. It must
not know how replies are awaited, or how outboxes are read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from brokerfl.broker.data import read_data
from brokerfl.broker.outbox import read_reply
from brokerfl.broker.patience import time_is_up, within
from brokerfl.common import Error, ErrorCode, FrameError, Message, RedisUnreachable
from brokerfl.common.form import Form
from brokerfl.common.job import current_job
from brokerfl.server.book import OpenMessage, Wanted
from brokerfl.server.commit import Committer
from brokerfl.server.outcome import Outcome
from brokerfl.server.session import Session
from brokerfl.server.wait import Waits
from brokerfl.wire.frame import Fields, size_of
from brokerfl.wire.manifest import manifest_of
from brokerfl.wire.payload import MissingChunkError, assemble
from brokerfl.wire.reply import decode_reply, error_reply


class Loop(map):  # type: ignore[type-arg]
    """Iterates over replies; notes whose loop it is: of the job that made it, or that later began to loop over it.

    What ``next(loop)`` returns in another job, such as an executor's task, is on its way to the app. A map, because
    that is C: no exception of a signal handler comes between it and the app.
    """

    wanted: Wanted
    ids: Sequence[str]  # which the app holds as long as it holds this

    def __iter__(self) -> "Loop":
        self.wanted.job = current_job()
        return self


class Replies:
    """Hands over the replies of one run. Safe to use from many threads.

    Args:
        session: reaches Redis.
        waits: waits for replies.
        committer: asks again for a reply whose payload is missing.
        outcome: is told of each reply.
        limit: the largest reply that is accepted, in bytes.
    """

    def __init__(self, session: Session, waits: Waits, committer: Committer, outcome: Outcome, limit: int) -> None:
        self._answers = waits.answers
        self._outcome = outcome
        self._session = session
        self._owner = session.transactions.owner
        self._run_id = session.transactions.owner.run.run_id
        self._waits = waits
        self._committer = committer
        self._limit = limit

    # Handing over.

    def each(
        self,
        first: Iterable[Message],
        message_ids: set[str],
        until: float | None,
        form: Form | None = None,
        ids: Sequence[str] = (),
    ) -> Iterator[Message]:
        """Yield ``first``, then replies as they arrive, until a local monotonic time; None waits for all.

        Each is handed over when the iterator advances past it, or is closed. One that does not fit is an Error. The
        app holds ``ids`` as long as it holds the iterator.
        """
        wanted = Wanted(message_ids)
        loop = Loop(list.pop, chain(([message] for message in first), self._each(wanted, until, form)))
        loop.wanted, loop.ids = wanted, ids
        return loop

    def _each(self, wanted: Wanted, until: float | None, form: Form | None) -> Iterator[list[Message]]:
        while True:
            try:
                wanted.taken.clear()
                found = self._next(wanted, until, form)
                if found is None:
                    return
                message, only = found[0], [found[1]]
                del found  # the reply may be half of the app's memory
                self._answers.yielded(message)
            except BaseException:
                self._give_up(wanted)
                raise
            try:
                yield only
            finally:  # even after a break, the app has the reply
                self._answers.hand_over([message])

    def all(self, message_ids: set[str], until: float | None, form: Form | None = None) -> list[Message]:
        """Return what `each` yields; all of it is handed over, or nothing."""
        wanted, replies = Wanted(message_ids), []
        try:
            while (found := self._next(wanted, until, form)) is not None:
                replies.append(found[1])
            self._answers.giving(wanted)
            wanted.is_given = True
            return replies
        except BaseException:
            self._give_up(wanted)
            raise

    def refused(self, messages: Iterable[Message], refuse: Callable[[Message], Message]) -> list[Message]:
        """Return the Error replies to those of these messages that a push has refused."""
        refused = [refuse(message) for message in messages if not message.metadata.message_id]
        for reply in refused:
            self._outcome.note(reply)
        return refused

    def _give_up(self, wanted: Wanted) -> None:
        """An exception ends the call, maybe one of a signal handler: the app has nothing of what it took."""
        self._session.distrust()
        self._answers.put_back(wanted.taken)

    def _next(self, wanted: Wanted, until: float | None, form: Form | None) -> tuple[OpenMessage, Message] | None:
        """Return the next reply, taken but not handed over yet; None when none is left, or when time is up."""

        def fetch() -> tuple[OpenMessage, Message] | None:
            while (message := self._waits.next(wanted, until)) is not None:
                decoded = self._decode(message, form)
                if decoded is not None:
                    is_failure = self._outcome.note(decoded)
                    self._session.diary.replied(decoded, is_failure)
                    return message, decoded
                wanted.taken.pop()
                if not time_is_up():  # otherwise the next call gets it
                    wanted.ids.add(message.message_id)
            return None

        return within(until, fetch)

    # Fetching.

    def _decode(self, message: OpenMessage, form: Form | None) -> Message | None:
        """Return a reply that was taken; None if it cannot be had now: then it can be taken again.

        A payload that Redis lost is asked for again; one that does not arrive in time is left to the next call.
        """
        if isinstance(message.reply, Error):
            return error_reply(self._run_id, message.message_id, message.entry, message.reply)
        assert message.reply is not None, "the reply was handed over already"
        try:
            return self._read(message, message.reply, form)
        except FrameError as error:
            return self._unreadable(message, error)
        except RedisUnreachable:
            self._answers.put_back([message])
            return None

    def _read(self, message: OpenMessage, fields: Fields, form: Form | None) -> Message | None:
        try:
            fields = fields or self._read_again(message)
            fetched = self._fetch(message, fields)
            fields = {**fields, **fetched} if fetched else fields
            self._outcome.weigh(size_of(fields))
            reply = decode_reply(self._run_id, message.message_id, message.entry, fields)
            misfit = form.misfit(reply.content) if form is not None and reply.has_content() else None
            return reply if misfit is None else self._refused(message, f"the reply does not fit: {misfit}")
        except MissingChunkError as error:
            return None if self._committer.send_again(message) else self._unreadable(message, error)

    def _read_again(self, message: OpenMessage) -> Fields:
        """Return a reply that was read when there was no room for it."""
        where = message.node_id, self._run_id, message.outbox_entry
        reply = self._session.through_outage(lambda: read_reply(self._owner.connection, *where))
        if not reply:
            raise MissingChunkError("Redis lost it")
        return {**reply}

    def _fetch(self, message: OpenMessage, reply: Fields) -> Fields:
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
                    self._session.reconnect(error)
                    if time_is_up():
                        raise

        content, _ = assemble(manifest, read)
        return content

    def _unreadable(self, message: OpenMessage, error: Exception) -> Message:
        return self._refused(message, f"the reply cannot be read: {error}")

    def _refused(self, message: OpenMessage, reason: str) -> Message:
        error = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)
        return error_reply(self._run_id, message.message_id, message.entry, error)
