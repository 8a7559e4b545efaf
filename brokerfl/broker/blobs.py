"""The blobs: the chunks of what a run broadcasts, stored once no matter how many messages need them.

Owns the strings `P:blob:R:c:{D}`, named by their uploader and the sha256 of their value, and the hash
`P:{run:R}:blobs`: the manifests of the contents that the run may have uploaded. Contents and chunks are called as
`manifest.uploaded_by` says. It must not know messages, or whether a content is needed.

Only the ServerApp that owns the run writes and deletes blobs. On a Cluster a chunk is on another server than the owner
key, so neither can be fenced, and both may come late, from a ServerApp that was fenced in the meantime:

    deletion   new messages use only chunks that their own ServerApp uploaded: what a former one deletes, they do not
               need
    upload     manifests come first, fenced; a chunk expires soon unless its uploader still owns the run after that
"""

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from redis.client import Pipeline

from brokerfl.broker.connection import Connection
from brokerfl.broker.echoes import Echo
from brokerfl.broker.failure import found_or_none, map_errors, meaning
from brokerfl.broker.gather import Gather
from brokerfl.broker.keys import Keys, milliseconds
from brokerfl.broker.oversize import MOST_CHUNK
from brokerfl.broker.stream import MOST_ARGUMENTS, batches
from brokerfl.common import FrameError, MessageTooLarge
from brokerfl.wire.manifest import Manifest, decode_manifest
from brokerfl.wire.payload import WINDOW, Payload

#: Seconds that an uploaded chunk also stays in memory, counted only while Redis answers. With ``appendfsync everysec``,
#: Redis forgets what it acknowledged in the last second, or two if the disk is slow
#: (https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/).
KEEP_UPLOADED = 5.0

#: Seconds that a chunk lives until its uploader is seen to own the run still.
TRIAL = 600.0

#: Seconds that the manifest of deleted chunks stays, so that who has to delete them again finds them by it: a Redis
#: that is killed, or a replica that takes its place, may forget their deletion.
_KEEP_MANIFEST = KEEP_UPLOADED


def read_blobs(connection: Connection, run_id: int, chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yield these chunks; None for one that is not there, or is none."""
    commands = [("GET", connection.keys.blob(run_id, chunk)) for chunk in chunks]
    with map_errors(connection.url):
        for answer in connection.stream(commands, [MOST_CHUNK] * len(commands)):
            yield found_or_none(answer, connection.url)


def chunks_of(connection: Connection, run_id: int) -> set[bytes]:
    """Return all chunks that a run may have in Redis."""
    manifests = connection.keys.blobs(run_id)
    with map_errors(connection.url):
        found = connection.at(manifests).redis.hvals(manifests)
    return {chunk for manifest in _readable(found) for chunk in manifest.chunks}


def remove_blobs(keys: Keys, run_id: int, chunks: Iterable[bytes]) -> tuple[Echo, ...]:
    """Return the deletion of chunks."""
    names = [keys.blob(run_id, chunk) for chunk in chunks]
    return tuple((name, lambda pipe, name=name: pipe.unlink(name)) for name in names)


def expire_blobs(keys: Keys, run_id: int, chunks: Iterable[bytes], retention: float) -> tuple[Echo, ...]:
    """Return the lifetime of chunks, in seconds."""
    names = [keys.blob(run_id, chunk) for chunk in chunks]
    return tuple((name, lambda pipe, name=name: pipe.pexpire(name, milliseconds(retention))) for name in names)


def _readable(found: Iterable[bytes]) -> Iterator[Manifest]:
    for encoded in found:
        try:
            yield decode_manifest(encoded)
        except FrameError:  # of another version: its chunks expire
            continue


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

    Only for the thread that holds the run's `Session.writing`, except for `chunks` and `size`.

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
        self._counting = threading.Lock()  # other threads may read `chunks`
        self.size = 0  # bytes of these chunks
        self._present: set[bytes] = set()
        self._strays: set[bytes] = set()
        self._held: dict[bytes, tuple[memoryview, float]] = {}
        self._leaving: dict[bytes, tuple[Manifest, float]] = {}
        self._dropping: list[bytes] = []

    def load(self) -> None:
        """Take over what a former ServerApp left, for a resumed run."""
        keys, run = self._connection.keys, self._run_id
        with map_errors(self._connection.url):
            found = self._connection.at(keys.blobs(run)).redis.hgetall(keys.blobs(run))
        for manifest in _readable(found.values()):
            self._enter(manifest).is_noted = True
        self._present = self._look(self.chunks())

    def _look(self, chunks: Collection[bytes]) -> set[bytes]:
        """Return which of these chunks Redis has, and renew their lifetimes."""
        names = [self._connection.keys.blob(self._run_id, chunk) for chunk in chunks]
        with map_errors(self._connection.url):
            gather = Gather(self._connection)
            for name in names:
                gather.at(name).pexpire(name, milliseconds(self._retention))
            answers = gather.execute()
        return {chunk for chunk, answer in zip(chunks, answers, strict=True) if answer}

    def chunks(self) -> list[bytes]:
        """Return the chunks that the run may have in Redis, besides those that were deleted."""
        with self._counting:
            return list(self._users)

    def leaving(self) -> set[bytes]:
        """Return the chunks that were deleted so lately that Redis may forget it."""
        return {chunk for manifest, _ in self._leaving.values() for chunk in manifest.chunks}

    @property
    def contents(self) -> Collection[bytes]:
        """The contents that the run has broadcast and may still have in Redis."""
        return self._broadcasts.keys()

    def manifest(self, content: bytes) -> Manifest | None:
        """Return the manifest of a content if Redis has all of its chunks."""
        found = self._broadcasts.get(content)
        return found.manifest if found is not None and self._present.issuperset(found.manifest.chunks) else None

    # Uploading.

    def enter(self, payload: Payload) -> list[list[int]]:
        """Note a content that is about to be sent; return which of its chunks Redis lacks, divided for `upload`.

        Redis is asked, because chunks may have been deleted while no connection was lost. Safe to repeat.

        Raises:
            MessageTooLarge: the run would exceed its limit in Redis.
            RedisUnreachable, RedisAuthError: Redis could not be asked.
        """
        manifest = payload.manifest
        found = self._broadcasts.get(manifest.key)
        if found is None:
            self._check_limit(manifest)
            found = self._enter(manifest)
        asked = self._present.intersection(manifest.chunks)
        self._present -= asked - self._look(asked)
        lacking = {chunk: index for index, chunk in enumerate(manifest.chunks) if chunk not in self._present}
        indices = list(lacking.values())
        windows = [indices[at : at + WINDOW] for at in range(0, len(indices), WINDOW)]
        return windows if windows or found.is_noted else [[]]  # others may have all of its chunks

    def _check_limit(self, manifest: Manifest) -> None:
        if self._limit is None:
            return
        more = sum(size for chunk, size in manifest.chunk_sizes().items() if chunk not in self._users)
        if self.size + more > self._limit:
            raise MessageTooLarge(
                f"the content needs {more:,} bytes and run {self._run_id} already has {self.size:,} in Redis, which "
                f"together exceed its limit of {self._limit:,}"
            )

    def _enter(self, manifest: Manifest) -> _Broadcast:
        found = self._broadcasts[manifest.key] = _Broadcast(manifest, self._leaving.pop(manifest.key, None) is not None)
        with self._counting:
            for chunk, size in manifest.chunk_sizes().items():
                if chunk not in self._users:
                    self.size += size
                self._users[chunk] = self._users.get(chunk, 0) + 1
        return found

    def is_noted(self, manifest: Manifest) -> bool:
        """Return whether Redis has the manifest by which the chunks are found again."""
        return self._broadcasts[manifest.key].is_noted

    def write_manifest(self, pipe: Pipeline, manifest: Manifest) -> None:
        """Put the manifest into ``pipe``."""
        self._write(pipe, {manifest.key: manifest.encoded})

    def noted(self, manifest: Manifest) -> None:
        """Redis has this manifest."""
        self._broadcasts[manifest.key].is_noted = True

    def bring(self, payload: Payload, indices: Iterable[int]) -> None:
        """Write some chunks of a content, whose manifest Redis has.

        Raises:
            RedisUnreachable, RedisOutOfMemory, RedisAuthError: Redis may have some of them.
        """
        self._set({payload.manifest.chunks[index]: payload.chunk(index) for index in indices}, TRIAL)

    def _write(self, pipe: Pipeline, manifests: Mapping[bytes, bytes]) -> None:
        key = self._connection.keys.blobs(self._run_id)
        for batch in batches(manifests.items(), MOST_ARGUMENTS // 2 - 5):
            pipe.hset(key, mapping=dict(batch))
        pipe.pexpire(key, milliseconds(self._retention))

    def _set(self, chunks: Mapping[bytes, memoryview], lives: float) -> None:
        keys, run_id, px = self._connection.keys, self._run_id, milliseconds(min(lives, self._retention))
        with map_errors(self._connection.url):
            names = {keys.blob(run_id, chunk): data for chunk, data in chunks.items()}
            answers = self._connection.scatter(
                [(name, [("SET", name, data, "PX", px)]) for name, data in names.items()]
            )
        for [answer] in answers:
            if isinstance(answer, Exception):
                raise meaning(answer, self._connection.url)

    def uploaded(self, payload: Payload, indices: Iterable[int]) -> None:
        """These chunks are in Redis. As long as a killed Redis might forget them, hold them in memory, too."""
        for index in indices:
            chunk = payload.manifest.chunks[index]
            self._present.add(chunk)
            if self._connection.persists:
                self._held[chunk] = memoryview(bytes(payload.chunk(index))), time.monotonic()

    def release(self) -> None:
        """Release the chunks that Redis has had for long enough. Call only if no connection was lost since."""
        for chunk, (_, since) in list(self._held.items()):
            if time.monotonic() - since > KEEP_UPLOADED:
                self._held.pop(chunk, None)

    # Deleting.

    def remove_manifests(self, pipe: Pipeline) -> None:
        """Put into ``pipe`` the deletion of the manifests whose chunks were deleted long enough ago."""
        now = time.monotonic()
        self._dropping = [content for content, (_, since) in self._leaving.items() if now - since > _KEEP_MANIFEST]
        for contents in batches(self._dropping):
            pipe.hdel(self._connection.keys.blobs(self._run_id), *contents)

    def dropped(self) -> None:
        """These manifests are not in Redis any more."""
        for content in self._dropping:
            self._leaving.pop(content, None)
        self._dropping = []

    def remove_chunks(self, contents: Iterable[bytes]) -> tuple[Echo, ...]:
        """Return the deletion of the chunks that only these contents have."""
        return remove_blobs(self._connection.keys, self._run_id, self._only_in(contents))

    def _only_in(self, contents: Iterable[bytes]) -> list[bytes]:
        counts: dict[bytes, int] = {}
        for content in contents:
            for chunk in set(self._broadcasts[content].manifest.chunks):
                counts[chunk] = counts.get(chunk, 0) + 1
        return [chunk for chunk, count in counts.items() if count == self._users[chunk]]

    def removed(self, contents: Iterable[bytes]) -> None:
        """Nothing needs these contents any more, and their chunks are deleted."""
        with self._counting:
            for content in contents:
                manifest = self._broadcasts.pop(content).manifest
                self._leaving[content] = manifest, time.monotonic()
                for chunk, size in manifest.chunk_sizes().items():
                    self._users[chunk] -= 1
                    if not self._users[chunk]:
                        del self._users[chunk]
                        self.size -= size
                        self._present.discard(chunk)
                        self._held.pop(chunk, None)

    # After a lost connection.

    def look(self) -> None:
        """Find out what Redis has."""
        self._strays = chunks_of(self._connection, self._run_id) - self._users.keys()
        self._present = self._look(self.chunks())

    def forgotten(self) -> Iterator[list[bytes]]:
        """Yield the chunks that `look` did not find and that are at hand, divided for `write_again`."""
        again = [chunk for chunk in self._held if chunk not in self._present and chunk in self._users]
        for at in range(0, len(again), WINDOW):
            yield again[at : at + WINDOW]

    def write_again(self, chunks: Collection[bytes]) -> None:
        """Write chunks that Redis forgot; errors are those of `bring`."""
        self._set({chunk: self._held[chunk][0] for chunk in chunks}, self._retention)
        for chunk in chunks:
            self._present.add(chunk)
            self._held[chunk] = self._held[chunk][0], time.monotonic()

    def supply(self, contents: Collection[bytes]) -> tuple[bool, set[bytes]]:
        """Write again what Redis lacks of these contents; return whether that was so, and which cannot be had.

        Raises:
            RedisUnreachable, RedisOutOfMemory, RedisAuthError: Redis may have some of what it lacked.
        """
        manifests = {content: found.manifest for content in contents if (found := self._broadcasts.get(content))}
        sizes = {chunk: size for each in manifests.values() for chunk, size in each.chunk_sizes().items()}
        lacking = self._lacking(sizes)
        self._present -= lacking
        at_hand = [chunk for chunk in lacking if chunk in self._held]
        for at in range(0, len(at_hand), WINDOW):
            self.write_again(at_hand[at : at + WINDOW])
        there = {content for content, each in manifests.items() if self._present.issuperset(each.chunks)}
        return bool(at_hand), {*contents} - there

    def _lacking(self, sizes: Mapping[bytes, int]) -> set[bytes]:
        """Return the chunks that are gone or have another size. `_look` takes any that exists: it renews lifetimes."""
        names = [self._connection.keys.blob(self._run_id, chunk) for chunk in sizes]
        with map_errors(self._connection.url):
            lengths = self._connection.scatter([(name, [("STRLEN", name)]) for name in names])
        return {
            chunk
            for (chunk, size), [length] in zip(sizes.items(), lengths, strict=True)
            if found_or_none(length, self._connection.url) != size
        }

    def write_manifests_again(self, pipe: Pipeline) -> None:
        """Put all manifests into ``pipe``: Redis may have forgotten them, or that some were deleted."""
        pipe.unlink(self._connection.keys.blobs(self._run_id))
        manifests = {content: found.manifest for content, found in self._broadcasts.items()}
        manifests |= {content: manifest for content, (manifest, _) in self._leaving.items()}
        self._write(pipe, {content: manifest.encoded for content, manifest in manifests.items()})

    def remove_strays(self) -> tuple[Echo, ...]:
        """Return the deletion of the chunks that Redis may have and no content has."""
        strays = (self._strays | self.leaving()) - self._users.keys()
        return remove_blobs(self._connection.keys, self._run_id, strays)
