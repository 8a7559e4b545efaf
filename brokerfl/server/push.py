"""The push: messages into the book and the inboxes.

Owns what is refused, what is adopted after a resume, and what is sent in which transaction. It must not know how
replies are awaited.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from logging import WARNING

from brokerfl.broker.keys import milliseconds
from brokerfl.broker.origins import read_origins
from brokerfl.broker.presence import registered
from brokerfl.broker.steps import Recorded
from brokerfl.common import BrokerflError, Message, Metadata, log
from brokerfl.common.text import shown
from brokerfl.server.book import Book, OpenMessage, Sending
from brokerfl.server.book.orphans import Match
from brokerfl.server.book.state import LOST, NEW
from brokerfl.server.commit import Committer
from brokerfl.server.progress import Progress
from brokerfl.server.record import Stage
from brokerfl.server.session import Session
from brokerfl.server.upload import Uploader
from brokerfl.wire.contents import Contents
from brokerfl.wire.frame import MANIFEST, Fields, size_of
from brokerfl.wire.message import new_message_id
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.reply import drained_reply, refused_reply
from brokerfl.wire.run import LedgerEntry
from brokerfl.wire.status import Phase

#: Most bytes in one transaction of a push. Redis keeps a MULTI in its query buffer, and closes the connection if that
#: exceeds 1 GB (``client-query-buffer-limit``); all other clients wait while it is executed.
MOST_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class _Draft:
    """What a message of a push becomes: a new one, or the orphan that it adopts."""

    message: OpenMessage
    entry: LedgerEntry  # its future entry in the ledger
    fields: Fields | None  # what is sent; None if that is not at hand, or not needed
    is_new: bool = False
    is_replaced: bool = False  # the orphan's content is lost, and replaced by this one

    @property
    def is_due(self) -> bool:
        """Whether it is to be sent: what is adopted is not, unless Redis lost it."""
        return self.fields is not None and (self.is_new or self.is_replaced or self.message.state in LOST)

    def postponed(self, elapsed: int) -> "_Draft":
        """Return it with a deadline that is so many milliseconds later."""
        return replace(self, entry=self.entry._replace(deadline=self.entry.deadline + elapsed))


class Pusher:
    """Pushes the messages of one run; one push at a time, from any thread. What only settles does not wait for it."""

    def __init__(
        self, session: Session, book: Book, committer: Committer, uploader: Uploader, progress: Progress
    ) -> None:
        self._session = session
        self._connection = session.transactions.owner.connection
        self._run_id = session.transactions.owner.run.run_id
        self._origin = session.transactions.owner.run.origin
        self._uploads_as = session.transactions.owner.fence.counter
        self._guard = session.transactions.owner.guard
        self._book = book
        self._committer = committer
        self._uploader = uploader
        self._progress = progress
        self._registered: set[int] = set()
        self._pushing = threading.Lock()

    def push(self, batch: list[Message], *, waits: bool = False, moves_on: bool | Stage = False) -> list[str]:
        """Push messages of this run; return their ids, ``""`` if the node is not registered or the ttl has passed.

        A run that is being drained accepts nothing, neither new messages nor adopted ones.

        Args:
            batch: the messages.
            waits: they wait for nodes that are offline or not registered yet.
            moves_on: move the run on, as a new group does, and adopt only orphans of equal content; or what a loop
                that records its steps says of this.
        """
        activity = self._progress.begin(Phase.PUSHING)
        try:
            return self._push(batch, waits, moves_on)
        finally:
            self._progress.finish(activity)

    def _push(self, batch: list[Message], waits: bool, moves_on: bool | Stage) -> list[str]:
        stage = moves_on if isinstance(moves_on, Stage) else Stage(moves_on or None, match=Match(exactly=moves_on))
        with self._pushing:
            self._session.check()
            if self._progress.is_draining:
                return [""] * len(batch)
            if not waits:
                self._look_up({message.metadata.dst_node_id for message in batch})
            contents = Contents(self._uploads_as, self._guard.contents, self._uploader.digests)
            drafts: list[_Draft | None] = []
            began = time.monotonic()
            try:
                for message in batch:
                    is_refused = _is_expired(message) or not (waits or self.is_registered(message.metadata.dst_node_id))
                    drafts.append(None if is_refused else self._draft(message, contents, waits, stage.match))
                self._send([draft for draft in drafts if draft], contents, began, stage)
            except BaseException as error:
                # Some parts of a push may be in Redis already: pushed again, their messages are adopted.
                if isinstance(error, BrokerflError):
                    _tell(error, drafts, len(batch))
                self._book.disown([draft.message for draft in drafts if draft and draft.is_new])
                self._book.keep(())
                if isinstance(error, BrokerflError):
                    self._committer.free_idle()
                raise
            return [self._book.hand_out(draft.message.message_id) if draft else "" for draft in drafts]

    def _send(self, drafts: list[_Draft], contents: Iterable[EncodedContent], began: float, stage: Stage) -> None:
        needed = {draft.entry.content_key for draft in drafts}
        self._book.keep(needed)
        large = [content for content in contents if content.payload is not None and content.key in needed]
        for content in large:
            self._uploader.upload(content)
        due = _postponed((draft for draft in drafts if draft.is_due), time.monotonic() - began)
        sizes = {content.key: content.payload.manifest.size for content in large if content.payload is not None}
        moves_on, steps, uploaded = stage.moves_on, stage.steps, [*large, *stage.contents]
        for part, size in _parts(due):
            self._committer.commit(part, uploaded, moves_on=moves_on, steps=steps)
            self._progress.bytes_out += size + sum(sizes.get(one.entry.content_key, 0) for one in part if sizes)
        if moves_on and not due:
            self._committer.commit(contents=stage.contents, moves_on=True, steps=steps)
        if self._book.adopt((draft.message, draft.fields) for draft in drafts if not draft.is_new):
            self._session.distrust()  # Redis lost one in the meantime: the next comparison sends it
        self._book.keep(())

    def checkpoint(self) -> None:
        """Save the context, and settle the replies that were handed over."""
        self._session.check()
        try:
            self._committer.commit()
        except BrokerflError:
            self._committer.free_idle()
            raise

    def start_over(self) -> None:
        """Cancel the orphans that have not been adopted; every group is new, and no step is recorded."""
        with self._pushing:  # a push may be adopting some
            self._session.check()
            self._committer.cancel_orphans()
            self._book.start_over()
            if self._book.kept.is_recorded:
                self._committer.commit(moves_on=True, steps=Recorded())

    def is_registered(self, node_id: int) -> bool:
        """Return whether the node was registered when it was looked up."""
        return node_id in self._registered

    def refused(self, message: Message) -> Message:
        """Return the Error reply to a message that was refused."""
        if self._progress.is_draining:
            return drained_reply(self._run_id, message)
        return refused_reply(self._run_id, message, self.is_registered(message.metadata.dst_node_id))

    def _look_up(self, node_ids: set[int]) -> None:
        unknown = node_ids - self._registered
        if unknown:
            found = self._session.through_outage(lambda: registered(self._connection, unknown))
            self._registered |= found
            if found and self._origin is not None:
                self._compare_code(found)

    def _compare_code(self, node_ids: set[int]) -> None:
        """Warn of nodes with other code of this run's project, once for each."""
        for node_id, origin in self._session.through_outage(lambda: list(read_origins(self._connection, node_ids))):
            if origin.is_other_code_than(self._origin):
                log(
                    WARNING,
                    "Other code of this run's project on %s: %s there, %s here",
                    self._session.names.of(node_id),
                    shown(str(origin)),
                    shown(str(self._origin)),
                )

    def _draft(self, message: Message, contents: Contents, waits: bool, match: Match) -> _Draft:
        """Return the orphan that this message adopts, otherwise a new message; equal contents are encoded once."""
        meta, content = message.metadata, contents.encode(message.content)
        now = self._connection.clock.time()
        entry = LedgerEntry(
            meta.dst_node_id,
            meta.group_id,
            meta.message_type,
            milliseconds(now + meta.ttl),
            self._book.next_sequence(),
            content.name,
            waits,
            content.uploader,
        )
        orphan = self._book.reserve(entry, milliseconds(now), match)
        if orphan is not None:
            return self._adopt(orphan, meta, content)
        message_id = new_message_id(self._run_id)
        fields = self._guard.encode(message_id, meta, content.fields)
        return _Draft(OpenMessage(message_id, entry, fields), entry, fields, is_new=True)

    def _adopt(self, orphan: OpenMessage, meta: Metadata, content: EncodedContent) -> _Draft:
        """An adopted message keeps its first content, whoever uploaded it, unless Redis has lost it.

        A small first content is not at hand. If the new content is large, neither is kept at hand: the new one would be
        uploaded only for that.
        """
        entry, first = orphan.entry, orphan.entry.content_key
        if not (orphan.is_open or orphan.is_fetched):
            return _Draft(orphan, entry, None)
        carried: Fields | None = content.fields if content.payload is None or first == content.key else None
        is_replaced = False
        with self._session.writing:
            is_known = entry.digest == content.name or not self._guard.is_signed  # what others may have written is not
            manifest = self._uploader.manifest(first) if first != content.key and is_known else None
            if manifest is not None:
                carried = {MANIFEST: manifest.encoded}
            elif first != content.key and (orphan.is_open or entry.digest == content.name):
                is_replaced = orphan.state in LOST or bool(entry.uploader)
        if is_replaced:
            entry, carried = entry._replace(digest=content.name, uploader=content.uploader), content.fields
        fields = None if carried is None else self._guard.encode(orphan.message_id, meta, carried)
        return _Draft(orphan, entry, fields, is_replaced=is_replaced)


def _tell(error: BrokerflError, drafts: list[_Draft | None], total: int) -> None:
    """Let the error of a push say which of its messages are in the ledger."""
    ids = [draft.message.message_id if draft and draft.message.state not in NEW else "" for draft in drafts]
    if any(ids):
        count = sum(map(bool, ids))
        error.message_ids = [*ids, *[""] * (total - len(ids))]
        error.args = (f"{error}; {count} of {total} messages were pushed: see message_ids of this exception",)


def _postponed(drafts: Iterable[_Draft], elapsed: float) -> list[_Draft]:
    """Count the ttl from the push, not from the start of an upload that took ``elapsed`` seconds."""
    if elapsed <= 1:
        return list(drafts)
    return [draft.postponed(milliseconds(elapsed)) if draft.is_new else draft for draft in drafts]


def _parts(due: Iterable[_Draft]) -> Iterator[tuple[list[Sending], int]]:
    """Divide a push so that no transaction exceeds `MOST_BYTES`; yield each part, and its size in bytes."""
    part: list[Sending] = []
    size = 0
    for draft in due:
        fields = draft.fields or {}
        more = size_of(fields)
        if part and size + more > MOST_BYTES:
            yield part, size
            part, size = [], 0
        part.append(Sending(draft.message, draft.entry, fields))
        size += more
    if part:
        yield part, size


def _is_expired(message: Message) -> bool:
    """Whether the ttl has passed. Both times are from this process's clock, so no other clock matters."""
    return time.time() - message.metadata.created_at >= message.metadata.ttl
