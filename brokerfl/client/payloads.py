"""The payloads: large contents that a node receives and sends besides its messages.

Owns the memory that is kept for them: the content of the last message of each run, so that the next one with the same
model transfers nothing, and the last large reply of each run, in case Redis forgets it. It must not know ClientApp, the
journal, or what a content says.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from brokerfl.broker.blobs import read_blobs
from brokerfl.broker.connection import Connection
from brokerfl.broker.data import read_data
from brokerfl.client.upload import Upload
from brokerfl.client.waiting import UnwantedError, WaitingRoom
from brokerfl.wire.frame import MAX_MESSAGE_BYTES, Fields, size_of
from brokerfl.wire.guard import NodeGuard
from brokerfl.wire.hashing import digests_of
from brokerfl.wire.manifest import Manifest
from brokerfl.wire.payload import WINDOW, Payload, assemble

#: Most bytes of received contents that are kept, for all runs together. The ClientApp's arrays share this memory.
CACHE = 1024**3

#: Seconds that the last large reply of a run stays in memory, in case Redis forgets it.
KEEP_REPLY = 60.0


class Payloads:
    """Fetches and uploads the large contents of one node. Safe to share between its workers.

    Args:
        connection: to Redis.
        node_id: the node.
        stopping: true gives up waiting for a Redis that is unreachable or full.
        limit: the largest content that is accepted, in bytes.
        guard: opens what arrives; also an attribute.
    """

    def __init__(
        self,
        connection: Connection,
        node_id: int,
        stopping: Callable[[], bool] = lambda: False,
        limit: int = MAX_MESSAGE_BYTES,
        guard: NodeGuard | None = None,
    ) -> None:
        self.guard = guard or NodeGuard()
        self._connection = connection
        self._node_id = node_id
        self._waiting = WaitingRoom(connection, stopping, "large replies")
        self.limit = limit
        self._lock = threading.Lock()
        self._received: OrderedDict[int, dict[bytes, memoryview]] = OrderedDict()
        self._held: dict[int, tuple[str, str, Payload, float]] = {}

    # Receiving.

    def fetch(self, run_id: int, manifest: Manifest) -> Fields:
        """Return the content of a message.

        Raises:
            MissingChunkError: a chunk is gone from Redis.
            FrameError: a chunk is not what the manifest says, or the content's description does not match it.
            RedisUnreachable: Redis is unreachable.
        """
        known = self._keep(run_id, manifest)
        chunks = manifest.chunks

        def read(window: Sequence[int]) -> Iterable[bytes | None]:
            return read_blobs(self._connection, run_id, [chunks[index] for index in window])

        content, pieces = assemble(manifest, read, known, self.guard.contents(run_id))
        with self._lock:
            if self._received.pop(run_id, None) is not None and size_of(pieces) <= CACHE:  # else the run is over
                self._received[run_id] = pieces
            while sum(map(size_of, self._received.values())) > CACHE:
                self._received.popitem(last=False)
        return content

    def _keep(self, run_id: int, manifest: Manifest) -> dict[bytes, memoryview]:
        """Release what the run's last message brought before the next is fetched, except what both have."""
        with self._lock:
            former = self._received.pop(run_id, {})
            kept = {name: former[name] for name in manifest.names if name in former}
            self._received[run_id] = kept
        return kept

    # Sending.

    @property
    def is_full(self) -> bool:
        """Whether a large reply waits for room in a full Redis."""
        return self._waiting.is_full

    def upload(
        self, run_id: int, message_id: str, group_id: str, payload: Payload, is_wanted: Callable[[], bool]
    ) -> Manifest | None:
        """Put the content of a reply into the data stream, through outages and a full Redis.

        It is held in memory, where the ClientApp left it, for a minute or until the next one.

        Args:
            run_id: the run.
            message_id: the id of the message that it answers.
            group_id: the group of that message.
            payload: the content.
            is_wanted: whether the reply is still wanted; called when Redis is full.

        Returns:
            Its manifest; without entries if the run is over, or Redis forgot the stream: then it is asked for again.
            None if Redis is full and the reply is no longer wanted.

        Raises:
            RedisUnreachable, RedisOutOfMemory: the node is stopping.
        """
        try:
            entries = Upload(self._connection, self._node_id, run_id, payload, self._waiting).bring(is_wanted)
        except UnwantedError:
            return None
        with self._lock:
            self._held[run_id] = message_id, group_id, payload, time.monotonic()
        return Manifest(payload.manifest.sizes, payload.manifest.digests, entries)

    def has_uploaded(self, run_id: int, manifest: Manifest) -> bool:
        """Return whether all chunks of a reply are in the data stream."""
        entries = manifest.entries
        if not entries:
            return False
        for start in range(0, len(entries), WINDOW):
            if None in read_data(self._connection, self._node_id, run_id, entries[start : start + WINDOW]):
                return False
        return True

    def held(self, run_id: int, message_id: str) -> Payload | None:
        """Return the content of a reply if it is still in memory and unchanged."""
        with self._lock:
            held_id, _, payload, _ = self._held.get(run_id, ("", "", None, 0.0))
        if payload is None or held_id != message_id:
            return None
        now = digests_of(map(payload.chunk, range(len(payload))))
        return payload if tuple(now) == payload.manifest.digests else None

    # Releasing.

    def moves_on(self, run_id: int, group_id: str) -> None:
        """A message of this group begins: the run no longer needs the replies of other groups."""
        with self._lock:
            if run_id in self._held and self._held[run_id][1] != group_id:
                del self._held[run_id]

    def hold_on(self) -> None:
        """Redis was unreachable, and may have forgotten replies: hold them as long again."""
        with self._lock:
            for run_id, (message_id, group_id, payload, _) in self._held.items():
                self._held[run_id] = message_id, group_id, payload, time.monotonic()

    def release(self) -> None:
        """Release replies that were held long enough."""
        with self._lock:
            for run_id, (_, _, _, since) in list(self._held.items()):
                if time.monotonic() - since > KEEP_REPLY:
                    del self._held[run_id]

    def forget(self, run_id: int) -> None:
        """The run is over, or Redis forgot it for a while: release its message, but hold its reply."""
        with self._lock:
            self._received.pop(run_id, None)

    def clear(self) -> None:
        """Redis was replaced: release everything."""
        with self._lock:
            self._received.clear()
            self._held.clear()
