"""The blobs: the chunks of what a run broadcasts, stored once no matter how many messages need them.

Owns the strings `P:blob:R:{D}`, named by the sha256 of their value, and the hash `P:{run:R}:blobs`: the manifests of
the contents that the run may have uploaded, by name. It must not know messages, or whether a content is needed.

Only the ServerApp that owns the run writes and deletes blobs, always in a fenced transaction, so that nobody deletes a
chunk that a new message needs.
"""

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from redis.client import Pipeline

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import found_or_none, map_errors
from brokerfl.broker.keys import Keys, milliseconds
from brokerfl.broker.oversize import MOST_CHUNK
from brokerfl.common import FrameError, MessageTooLarge
from brokerfl.wire.manifest import Manifest, decode_manifest
from brokerfl.wire.payload import WINDOW, Payload

#: Seconds that an uploaded chunk also stays in memory, counted only while Redis answers. With ``appendfsync everysec``,
#: Redis forgets what it acknowledged in the last second, or two if the disk is slow
#: (https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/).
KEEP_UPLOADED = 5.0


def read_blobs(connection: Connection, run_id: int, digests: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yield the chunks with these digests; None for one that is not there, or is none."""
    commands = [("GET", connection.keys.blob(run_id, digest)) for digest in digests]
    with map_errors(connection.url):
        for answer in connection.sockets.stream(commands, [MOST_CHUNK] * len(commands)):
            yield found_or_none(answer, connection.url)


def chunks_of(connection: Connection, run_id: int) -> set[bytes]:
    """Return the digests of all chunks that a run may have in Redis."""
    with map_errors(connection.url):
        found = connection.redis.hvals(connection.keys.blobs(run_id))
    return {digest for manifest in _readable(found) for digest in manifest.digests}


def remove_blobs(pipe: Pipeline, keys: Keys, run_id: int, digests: Iterable[bytes]) -> None:
    """Put the deletion of chunks into ``pipe``."""
    names = [keys.blob(run_id, digest) for digest in digests]
    if names:
        pipe.unlink(*names)


def expire_blobs(pipe: Pipeline, keys: Keys, run_id: int, digests: Iterable[bytes], retention: float) -> None:
    """Put the lifetime of chunks, in seconds, into ``pipe``. Each result says whether the chunk is there."""
    for digest in digests:
        pipe.pexpire(keys.blob(run_id, digest), milliseconds(retention))


def _readable(found: Iterable[bytes]) -> Iterator[Manifest]:
    for encoded in found:
        try:
            yield decode_manifest(encoded)
        except FrameError:
            continue  # of another version: its chunks expire


@dataclass(slots=True)
class _Broadcast:
    """A content that the run has in Redis, or is about to upload.

    Attributes:
        manifest: its manifest.
        is_noted: whether Redis has the manifest.
    """

    manifest: Manifest
    is_noted: bool = False


class Blobs:
    """What one run has broadcast and may still have in Redis.

    Only for the thread that holds the run's `Session.writing`, except for `digests`.

    Args:
        connection: to the run's Redis.
        run_id: the run.
        retention: seconds that a chunk lives after it was written or renewed.
        limit: most bytes that the run may have in Redis at once; None for no limit.
    """

    def __init__(self, connection: Connection, run_id: int, retention: float, limit: int | None = None) -> None:
        self._connection = connection
        self._run_id = run_id
        self._retention = retention
        self._limit = limit
        self._broadcasts: dict[bytes, _Broadcast] = {}
        self._users: dict[bytes, int] = {}
        self._counting = threading.Lock()  # other threads may read `digests`
        self._size = 0
        self._present: set[bytes] = set()
        self._strays: set[bytes] = set()
        self._held: dict[bytes, tuple[memoryview, float]] = {}

    def load(self) -> None:
        """Take over what a former ServerApp left, for a resumed run."""
        keys, run = self._connection.keys, self._run_id
        with map_errors(self._connection.url):
            found = self._connection.redis.hgetall(keys.blobs(run))
        for manifest in _readable(found.values()):
            self._enter(manifest).is_noted = True
        self._present = self._look(self.digests())

    def _look(self, digests: Collection[bytes]) -> set[bytes]:
        """Return which of these chunks Redis has, and renew their lifetimes."""
        with map_errors(self._connection.url), self._connection.redis.pipeline(transaction=False) as pipe:
            expire_blobs(pipe, self._connection.keys, self._run_id, digests, self._retention)
            answers = pipe.execute() if digests else []
        return {digest for digest, answer in zip(digests, answers, strict=True) if answer}

    def digests(self) -> list[bytes]:
        """Return the chunks that the run may have in Redis."""
        with self._counting:
            return list(self._users)

    @property
    def names(self) -> Collection[bytes]:
        """The names of the contents that the run has broadcast and may still have in Redis."""
        return self._broadcasts.keys()

    def manifest(self, name: bytes) -> Manifest | None:
        """Return the manifest of a content if Redis has all of its chunks."""
        found = self._broadcasts.get(name)
        return found.manifest if found is not None and self._present.issuperset(found.manifest.digests) else None

    # Uploading.

    def enter(self, payload: Payload) -> list[list[int]]:
        """Note a content that is about to be sent; return which of its chunks Redis lacks, divided for `upload`.

        Redis is asked, because chunks may have been deleted while no connection was lost. Safe to repeat.

        Raises:
            MessageTooLarge: the run would exceed its limit in Redis.
            RedisUnreachable, RedisAuthError: Redis could not be asked.
        """
        manifest = payload.manifest
        found = self._broadcasts.get(manifest.name)
        if found is None:
            self._check_limit(manifest)
            found = self._enter(manifest)
        asked = self._present.intersection(manifest.digests)
        self._present -= asked - self._look(asked)
        lacking = {digest: index for index, digest in enumerate(manifest.digests) if digest not in self._present}
        indices = list(lacking.values())
        windows = [indices[at : at + WINDOW] for at in range(0, len(indices), WINDOW)]
        return windows if windows or found.is_noted else [[]]  # others may have all of its chunks

    def _check_limit(self, manifest: Manifest) -> None:
        if self._limit is None:
            return
        more = sum(size for digest, size in manifest.chunk_sizes().items() if digest not in self._users)
        if self._size + more > self._limit:
            raise MessageTooLarge(
                f"the content needs {more:,} bytes and run {self._run_id} already has {self._size:,} in Redis, which "
                f"together exceed its limit of {self._limit:,}"
            )

    def _enter(self, manifest: Manifest) -> _Broadcast:
        found = self._broadcasts[manifest.name] = _Broadcast(manifest)
        with self._counting:
            for digest, size in manifest.chunk_sizes().items():
                if digest not in self._users:
                    self._size += size
                self._users[digest] = self._users.get(digest, 0) + 1
        return found

    def write_manifest(self, pipe: Pipeline, manifest: Manifest) -> None:
        """Put the manifest by which the chunks are found again into ``pipe``, where Redis lacks it."""
        if not self._broadcasts[manifest.name].is_noted:
            self._write(pipe, {manifest.name: manifest.encoded})

    def write_chunks(self, pipe: Pipeline, payload: Payload, indices: Iterable[int]) -> None:
        """Put some chunks of a content into ``pipe``."""
        for index in indices:
            self._set(pipe, payload.manifest.digests[index], payload.chunk(index))

    def _write(self, pipe: Pipeline, manifests: Mapping[bytes, bytes]) -> None:
        key = self._connection.keys.blobs(self._run_id)
        pipe.hset(key, mapping=manifests)  # type: ignore[arg-type]
        pipe.pexpire(key, milliseconds(self._retention))

    def _set(self, pipe: Pipeline, digest: bytes, chunk: memoryview) -> None:
        key = self._connection.keys.blob(self._run_id, digest)
        pipe.set(key, chunk, px=milliseconds(self._retention))

    def uploaded(self, payload: Payload, indices: Iterable[int]) -> None:
        """These chunks are in Redis. As long as a killed Redis might forget them, hold them in memory, too."""
        self._broadcasts[payload.manifest.name].is_noted = True
        for index in indices:
            digest = payload.manifest.digests[index]
            self._present.add(digest)
            if self._connection.persists:
                self._held[digest] = memoryview(bytes(payload.chunk(index))), time.monotonic()

    def release(self) -> None:
        """Release the chunks that Redis has had for long enough. Call only if no connection was lost since."""
        for digest, (_, since) in list(self._held.items()):
            if time.monotonic() - since > KEEP_UPLOADED:
                self._held.pop(digest, None)

    # Deleting.

    def remove_manifests(self, pipe: Pipeline, names: Collection[bytes]) -> None:
        """Put the deletion of manifests into ``pipe``."""
        if names:
            pipe.hdel(self._connection.keys.blobs(self._run_id), *names)

    def remove_chunks(self, pipe: Pipeline, names: Iterable[bytes]) -> None:
        """Put into ``pipe`` the deletion of the chunks that only these contents have."""
        remove_blobs(pipe, self._connection.keys, self._run_id, self._only_in(names))

    def _only_in(self, names: Iterable[bytes]) -> list[bytes]:
        counts: dict[bytes, int] = {}
        for name in names:
            for digest in set(self._broadcasts[name].manifest.digests):
                counts[digest] = counts.get(digest, 0) + 1
        return [digest for digest, count in counts.items() if count == self._users[digest]]

    def removed(self, names: Iterable[bytes]) -> None:
        """These contents are not in Redis any more."""
        with self._counting:
            for name in names:
                for digest, size in self._broadcasts.pop(name).manifest.chunk_sizes().items():
                    self._users[digest] -= 1
                    if not self._users[digest]:
                        del self._users[digest]
                        self._size -= size
                        self._present.discard(digest)
                        self._held.pop(digest, None)

    # After a lost connection.

    def look(self) -> None:
        """Find out what Redis has."""
        self._strays = chunks_of(self._connection, self._run_id) - self._users.keys()
        self._present = self._look(self.digests())

    def forgotten(self) -> Iterator[list[bytes]]:
        """Yield the chunks that `look` did not find and that are at hand, divided for `write_chunks_again`."""
        again = [digest for digest in self._held if digest not in self._present and digest in self._users]
        for at in range(0, len(again), WINDOW):
            yield again[at : at + WINDOW]

    def write_chunks_again(self, pipe: Pipeline, digests: Iterable[bytes]) -> None:
        """Put chunks that Redis forgot into ``pipe``."""
        for digest in digests:
            self._set(pipe, digest, self._held[digest][0])

    def written_again(self, digests: Iterable[bytes]) -> None:
        """Redis has these chunks again."""
        for digest in digests:
            self._present.add(digest)
            self._held[digest] = self._held[digest][0], time.monotonic()

    def write_manifests_again(self, pipe: Pipeline) -> None:
        """Put all manifests into ``pipe``: Redis may have forgotten them, or that some were deleted."""
        pipe.unlink(self._connection.keys.blobs(self._run_id))
        if self._broadcasts:
            self._write(pipe, {name: found.manifest.encoded for name, found in self._broadcasts.items()})

    def remove_strays(self, pipe: Pipeline) -> None:
        """Put the deletion of the chunks into ``pipe`` that `look` found and no content has."""
        remove_blobs(pipe, self._connection.keys, self._run_id, self._strays)
