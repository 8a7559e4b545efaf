"""The payload: a large content as chunks, and the manifest that says how they fit together.

Owns where a content is divided, the layout of the manifest, and the checks on what it declares and on what arrives. It
must not know Redis, or where chunks are kept.

A content of more than `INLINE` bytes leaves its message, which then carries the manifest instead. The buffers of the
content are divided in order: one that fills a chunk or more is cut into chunks of its own; smaller ones in a row share
a chunk. So a layer that did not change keeps its chunks, no matter what happened to the layers around it.
"""

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise

from brokerfl.common import FrameError
from brokerfl.wire.frame import (
    CONTENT,
    HEAD,
    ID,
    MANIFEST,
    MAX_CONTENT_BYTES,
    MAX_MESSAGE_BYTES,
    Fields,
    pack,
    size_of,
    unpack,
)
from brokerfl.wire.hashing import digest_now, digest_soon, digests_of
from brokerfl.wire.record import MAX_ARRAYS, check_description, digest_of, frozen

#: Most bytes of a content that travel in the message itself: below this, a fetch costs more than it saves
#: (``benchmarks/inline_limit.py``).
INLINE = 64 * 1024

#: Most bytes of a content that are accepted in a message itself: another version may have another limit.
MOST_INLINE = 1024 * 1024

#: Bytes of a chunk. 1 MiB is as fast as it gets; 8 MiB are slower, and keep everyone else waiting. A little less,
#: because jemalloc gives a value of exactly 1 MiB plus its header a quarter more room than it needs.
CHUNK = 1024 * 1024 - 1024

#: Chunks that are requested, or sent, in one round trip: enough for 1 Gbit/s over a round trip of 30 ms. Not more,
#: because Redis finishes what one client sent before it turns to the next.
WINDOW = 4

#: Most bytes of a manifest: it holds 48 bytes for each chunk, and up to 9 for each array.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

_DIGEST = 32
_ENTRY = struct.Struct(">QQ")

#: A packed array starts where an element of any type may start.
_ALIGNMENT = 16

#: Least bytes for which memory is requested in huge pages, which have 2 MiB on most systems.
_HUGE = 4 * 1024 * 1024


class MissingChunkError(Exception):
    """A chunk is not where the manifest says."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Buffers that are contiguous in memory: one large buffer, or several small ones.

    Attributes:
        first: index of its first buffer.
        offsets: where each buffer starts in it.
        size: in bytes.
        start: index of its first chunk.
    """

    first: int
    offsets: tuple[int, ...]
    size: int
    start: int

    @property
    def chunks(self) -> range:
        """Indices of its chunks."""
        return range(self.start, self.start + -(-self.size // CHUNK))


def divide(sizes: Iterable[int]) -> list[Piece]:
    """Return the pieces that buffers of these sizes make."""
    pieces: list[Piece] = []
    offsets: list[int] = []
    first = end = start = 0

    def close() -> None:
        nonlocal start, end
        if offsets:
            pieces.append(Piece(first, tuple(offsets), end, start))
            start = pieces[-1].chunks.stop
        offsets.clear()
        end = 0

    for index, size in enumerate(sizes):
        place = -(-end // _ALIGNMENT) * _ALIGNMENT
        if offsets and place + size > CHUNK:
            close()
            place = 0
        if not offsets:
            first = index
        offsets.append(place)
        end = place + size
    close()
    return pieces


@dataclass(frozen=True)
class Manifest:
    """How chunks form a content.

    Attributes:
        sizes: bytes of its buffers: the description first, then each array.
        digests: sha256 of each chunk.
        entries: for a reply, the entry of the node's data stream that holds each chunk, in strictly rising order.
    """

    sizes: tuple[int, ...]
    digests: tuple[bytes, ...]
    entries: tuple[str, ...] = ()

    @cached_property
    def pieces(self) -> list[Piece]:
        """The pieces of the content."""
        return divide(self.sizes)

    @cached_property
    def names(self) -> list[bytes]:
        """The name of each piece: the digests of its chunks."""
        return [b"".join(self.digests[piece.start : piece.chunks.stop]) for piece in self.pieces]

    def chunk_sizes(self) -> dict[bytes, int]:
        """Return the bytes of each chunk by its digest."""
        return {
            self.digests[index]: min(CHUNK, piece.size - (index - piece.start) * CHUNK)
            for piece in self.pieces
            for index in piece.chunks
        }

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return sum(self.sizes)

    @cached_property
    def encoded(self) -> bytes:
        """The manifest as a message carries it."""
        entries = b"".join(_ENTRY.pack(*map(int, entry.split("-"))) for entry in self.entries)
        return pack([list(self.sizes), b"".join(self.digests), entries], MAX_MANIFEST_BYTES)

    @cached_property
    def name(self) -> bytes:
        """16 bytes that identify the content."""
        return sha256(pack([list(self.sizes), b"".join(self.digests)], MAX_MANIFEST_BYTES)).digest()[:16]


def decode_manifest(data: bytes | memoryview, limit: int = MAX_MESSAGE_BYTES) -> Manifest:
    """Return the manifest encoded in ``data``. Nothing that it declares is allocated yet.

    Args:
        data: from another process.
        limit: most bytes that the content may have.

    Raises:
        FrameError: it is malformed or contradicts itself, or the content exceeds the limit.
    """
    match unpack(data, MAX_MANIFEST_BYTES):
        case [list(sizes), bytes(digests), bytes(entries)] if 0 < len(sizes) <= MAX_ARRAYS + 1 and all(
            type(n) is int and n >= 0 for n in sizes
        ):
            pass
        case _:
            raise FrameError("the manifest is malformed")
    if sizes[0] > MAX_CONTENT_BYTES:
        raise FrameError(f"the description declares {sizes[0]:,} bytes; the limit is {MAX_CONTENT_BYTES:,} bytes")
    if sum(sizes) > limit:
        raise FrameError(f"the content declares {sum(sizes):,} bytes; the limit is {limit:,} bytes")
    manifest = Manifest(
        tuple(sizes),
        tuple(digests[at : at + _DIGEST] for at in range(0, len(digests), _DIGEST)),
        tuple(f"{ms}-{seq}" for ms, seq in _ENTRY.iter_unpack(entries)) if len(entries) % _ENTRY.size == 0 else (),
    )
    count = manifest.pieces[-1].chunks.stop
    if len(digests) != count * _DIGEST or len(entries) not in (0, count * _ENTRY.size):
        raise FrameError(f"the manifest does not name the {count} chunks that its sizes require")
    if any(one >= other for one, other in pairwise(_ENTRY.iter_unpack(entries))):
        # Else one chunk, named again and again, would grow to any size.
        raise FrameError("the manifest does not name the chunks in the order in which they were sent, each once")
    return manifest


# Dividing.


class Payload:
    """A content divided into chunks. It shares the content's memory.

    Args:
        content: as `record.encode_content` returned it.
    """

    def __init__(self, content: Fields) -> None:
        self._buffers = [memoryview(data) for data in content.values()]
        self._pieces = divide(map(len, self._buffers))
        self._places = [(piece, index - piece.start) for piece in self._pieces for index in piece.chunks]

    def __len__(self) -> int:
        return len(self._places)

    def chunk(self, index: int) -> memoryview:
        """Return one chunk; one that several small arrays share is a copy."""
        piece, number = self._places[index]
        if len(piece.offsets) == 1:
            return self._buffers[piece.first][number * CHUNK : (number + 1) * CHUNK]
        packed = bytearray(piece.size)
        for buffer, offset in zip(self._buffers[piece.first :], piece.offsets, strict=False):
            packed[offset : offset + len(buffer)] = buffer
        return memoryview(packed)

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest, without entries. The first access hashes the whole content."""
        digests = digests_of(map(self.chunk, range(len(self))))
        return Manifest(tuple(map(len, self._buffers)), tuple(digests))


# Assembling.

#: Yields the chunks with these indices; None for a missing one.
Read = Callable[[Sequence[int]], Iterable[bytes | None]]


def assemble(
    manifest: Manifest, read: Read, known: Mapping[bytes, memoryview] | None = None
) -> tuple[Fields, dict[bytes, memoryview]]:
    """Fetch the chunks of a content, check each, and assemble them.

    Args:
        manifest: of the content.
        read: fetches at most `WINDOW` chunks.
        known: pieces that an earlier call returned, by name: they are not fetched.

    Returns:
        The content, read-only; and its pieces by name, sharing the same memory.

    Raises:
        MissingChunkError: a chunk is missing.
        FrameError: a chunk does not have its declared size or sha256, or the sizes do not match the description.
    """
    known, names = known or {}, manifest.names
    wanted = [
        index for name, piece in zip(names, manifest.pieces, strict=True) if name not in known for index in piece.chunks
    ]
    chunks, checks = _fetch(wanted, read, manifest), _Checks(manifest)
    memories: list[memoryview] = []
    for name, piece in zip(names, manifest.pieces, strict=True):
        memories.append(known[name] if name in known else _fill(piece, chunks, checks))
        if len(memories) == 1:  # it holds the description: nothing is allocated for arrays that do not match it
            check_description(memories[0][: manifest.sizes[0]], manifest.sizes[1:])
    checks.finish()
    return _content(manifest, memories), dict(zip(names, memories, strict=True))


def _fetch(wanted: Sequence[int], read: Read, manifest: Manifest) -> Iterator[bytes]:
    for at in range(0, len(wanted), WINDOW):
        window = wanted[at : at + WINDOW]
        for index, chunk in zip(window, read(window), strict=True):
            if chunk is None:
                raise MissingChunkError(f"chunk {index + 1} of {len(manifest.digests)} is gone from Redis")
            yield chunk


def _fill(piece: Piece, chunks: Iterator[bytes], checks: "_Checks") -> memoryview:
    """Return a piece, made from the next chunks."""
    if len(piece.chunks) == 1:
        memory = memoryview(next(chunks))
        checks.check(piece.start, memory, piece.size)
        return memory
    memory = _room(piece.size)
    for index in piece.chunks:
        place = memory[(index - piece.start) * CHUNK :][:CHUNK]
        chunk = next(chunks)
        if len(chunk) == len(place):
            place[:] = chunk
        checks.check(index, place if len(chunk) == len(place) else memoryview(chunk), len(place))
    return memory.toreadonly()


def _room(size: int) -> memoryview:
    """Return new memory, in huge pages if the system has them: that saves hundreds of page faults per chunk.

    Raises:
        FrameError: there is not enough memory.
    """
    try:
        if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return memoryview(bytearray(size))
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (MemoryError, OSError) as error:
        raise FrameError(f"this process cannot allocate {size:,} bytes for it ({error})") from None
    with suppress(OSError):  # the kernel has none
        room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)


class _Checks:
    """Checks sizes at once, and hashes while the next chunks are on their way."""

    def __init__(self, manifest: Manifest) -> None:
        self._digests = manifest.digests
        self._hashing: list[tuple[int, Future[bytes]]] = []

    def check(self, index: int, chunk: memoryview, size: int) -> None:
        if len(chunk) != size:
            raise FrameError(f"chunk {index + 1} has {len(chunk):,} bytes, but its manifest says {size:,}")
        if len(self._digests) == 1:
            self._compare(index, digest_now(chunk))
        else:
            self._hashing.append((index, digest_soon(chunk)))

    def finish(self) -> None:
        for index, digest in self._hashing:
            self._compare(index, digest.result())

    def _compare(self, index: int, digest: bytes) -> None:
        if digest != self._digests[index]:
            raise FrameError(f"chunk {index + 1} does not have the sha256 given in its manifest")


def _content(manifest: Manifest, memories: Sequence[memoryview]) -> Fields:
    content: Fields = {}
    for piece, memory in zip(manifest.pieces, memories, strict=True):
        for index, offset in enumerate(piece.offsets, piece.first):
            name = b"%d" % (index - 1) if index else CONTENT
            content[name] = memory[offset : offset + manifest.sizes[index]]
    return content


# A content before it is sent.


def is_large(content: Mapping[bytes, bytes | memoryview]) -> bool:
    """Return whether a content is sent as chunks rather than in its message."""
    return size_of(content) > INLINE


class EncodedContent:
    """A content as its message carries it: the content itself, or the manifest of a payload.

    Args:
        content: as `record.encode_content` returned it.

    Attributes:
        fields: what the message carries.
        payload: what has to be sent besides the message; None for a small content.
    """

    def __init__(self, content: Fields) -> None:
        self.payload = Payload(content) if is_large(content) else None
        self.fields: Fields = frozen(content) if self.payload is None else {MANIFEST: self.payload.manifest.encoded}

    @cached_property
    def name(self) -> bytes:
        """16 bytes that identify the content."""
        return digest_of(self.fields) if self.payload is None else self.payload.manifest.name


def manifest_of(fields: Mapping[bytes, bytes | memoryview], limit: int = MAX_MESSAGE_BYTES) -> Manifest | None:
    """Return the manifest that a message or a reply carries; None if the content is in the message itself.

    Args:
        fields: of the message.
        limit: most bytes that the content may have.

    Raises:
        FrameError: see `decode_manifest`; or the content in the message exceeds the limit, or `MOST_INLINE`.
    """
    encoded = fields.get(MANIFEST)
    if encoded is not None:
        return decode_manifest(encoded, limit)
    size = size_of(fields)
    if size > min(limit, MOST_INLINE):
        size -= sum(len(fields.get(name, b"")) for name in (ID, HEAD))
        if size > min(limit, MOST_INLINE):
            raise FrameError(
                f"the content has {size:,} bytes in the message itself; the limit is {min(limit, MOST_INLINE):,} bytes"
            )
    return None


def entries_of(reply: Mapping[bytes, bytes | memoryview]) -> tuple[str, ...]:
    """Return where the chunks of a reply are; nothing of one that cannot be read, whose chunks end with the run."""
    if MANIFEST not in reply:
        return ()
    try:
        return decode_manifest(reply[MANIFEST]).entries
    except FrameError:
        return ()
