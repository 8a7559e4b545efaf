"""The record: what a loop that is not the app's own code has recorded of its steps, and the next record of it.

Owns the way of a record to Redis and back. It must not know what a step is, or what a value means: whoever makes
records (`brokerfl.flower`) does.

A record is committed in the transaction that sends the messages which its last step made, together with the state,
and that settles the replies of the steps before. So it is never ahead of the messages, and no reply leaves Redis before
what it taught is recorded.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from brokerfl.broker.steps import Recorded, SavedSteps
from brokerfl.common import Array, RecordSet
from brokerfl.server.book import Book
from brokerfl.server.book.orphans import ANY, Match
from brokerfl.server.progress import Progress
from brokerfl.server.session import Session
from brokerfl.server.upload import Uploader
from brokerfl.wire.cipher import CLEAR
from brokerfl.wire.ndarrays import array_in
from brokerfl.wire.payload import INLINE, EncodedContent, is_large
from brokerfl.wire.record import encode_content
from brokerfl.wire.steps import HEAD, Head, decode_head, value_field


class Stage(NamedTuple):
    """What a push is to a loop that records its steps.

    Attributes:
        moves_on: whether it moves the run on; None if it pushes a new group.
        steps: the record that it commits; None leaves it as it is.
        contents: the large contents of that, already uploaded.
        match: which unsettled messages of a former ServerApp it may adopt.
    """

    moves_on: bool | None = None
    steps: Recorded | None = None
    contents: Collection[EncodedContent] = ()
    match: Match = ANY


class Record:
    """The record of one run. For the thread of the loop.

    Attributes:
        is_kept: the run is to stay when its app has ended, so that it can go on later.
        is_replayed: the app gets what a former ServerApp got, and needs neither a state nor a record.
    """

    is_kept = is_replayed = False

    def __init__(self, session: Session, saved: SavedSteps, book: Book, uploader: Uploader, progress: Progress) -> None:
        self._session = session
        self._progress = progress
        self._saved = saved
        self._book = book
        self._uploader = uploader
        owner = session.transactions.owner
        self._uploads_as, self._cipher = owner.fence.counter, owner.guard.state

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """What Redis has, in the layout of `brokerfl.wire.steps`; empty if nothing was recorded."""
        return self._saved.recorded.fields

    @property
    def head(self) -> Head | None:
        """Where the run was at the last commit; None if no loop was recorded."""
        return decode_head(self.fields[HEAD]) if HEAD in self.fields else None

    def read(self, name: str) -> RecordSet | None:
        """Return a recorded value; None if there is none of this name.

        Raises:
            FrameError: another version wrote it.
            RunLost: a part of it is gone from Redis.
            OutageLimit: Redis was unreachable for too long.
        """
        value = self.fields.get(value_field(name))
        return None if value is None else self._session.through_outage(lambda: self._saved.read(value))

    @property
    def executed(self) -> int:
        """How many messages of former ServerApps are answered, and need not be executed again."""
        return self._book.snapshot().replies + sum(not orphan.is_open for orphan in self._book.orphans())

    def tell(self, server_round: int) -> None:
        """Let whoever looks at the run see its round, and how large its record is."""
        head = self.head
        self._progress.round, self._progress.record = str(server_round), head.size if head is not None else 0

    def tell_size(self, size: int) -> None:
        """Let whoever looks at the run see how large its record is, in bytes."""
        self._progress.record = size

    def mark(self) -> int:
        """Return a number that all messages pushed so far have not exceeded, and all later ones will."""
        return self._book.next_sequence()

    def upload(self, value: RecordSet, *, is_model: bool = False) -> EncodedContent:
        """Encode a value, frozen as it is now, and bring its chunks to Redis.

        They stay there until `keep` is called without it, and as long as a committed record has it. The arrays of a
        model will be sent to nodes, and need not be hashed again for that.

        Raises:
            MessageTooLarge: the run would exceed its limit in Redis.
            RedisOutOfMemory, OutageLimit, RunError: as for a push.
        """
        content = self.encode(value)
        if content.payload is not None:
            if is_model:
                content.payload.note(self._uploader.digests)
            self.keep([*self._book.kept.recording, content.key])
            self.bring(content)
        return content

    def known(self, ndarray: Any) -> Array | None:
        """Return the array of a model in Redis that has the elements of an ndarray; None if there is none."""
        if ndarray.nbytes <= INLINE or not ndarray.flags.c_contiguous or not ndarray.dtype.isnative:
            return None
        data = self._uploader.digests.ending(memoryview(ndarray.reshape(-1).view("u1")))
        return None if data is None else array_in(data, ndarray)

    def encode(self, value: RecordSet) -> EncodedContent:
        """Encode a value, frozen as it is now."""
        fields = encode_content(value)
        cipher = self._cipher if is_large(fields) else CLEAR  # a small one is in the record, which is sealed itself
        return EncodedContent(fields, self._uploads_as, cipher, self._uploader.digests)

    def bring(self, content: EncodedContent) -> None:
        """Bring the chunks of a value to Redis, if it has any; raises as `upload`."""
        self._uploader.upload(content)

    def keep(self, contents: Collection[bytes]) -> None:
        """Of what was uploaded and not committed, only these will be needed."""
        with self._book.lock:
            self._book.kept.recording = contents

    def settle(self, contents: Collection[bytes]) -> None:
        """These are what the next commit needs: forget the digests of all others."""
        self.keep(contents)
        self._uploader.digests.keep(contents)

    def has(self, content: bytes) -> bool:
        """Return whether, as far as this process knows, Redis has all of a large content."""
        return self._uploader.manifest(content) is not None
