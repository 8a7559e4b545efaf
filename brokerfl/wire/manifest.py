"""The manifest: how chunks form a large content.

Owns where a content is divided, the layout of the manifest, and the checks on what it declares. It must not know Redis,
or the bytes of a chunk.

The buffers of a content are divided in order: one that fills a chunk or more is cut into chunks of its own; smaller
ones in a row share a chunk. So a layer that did not change keeps its chunks, no matter what happened to the layers
around it.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise

from brokerfl.common import FrameError
from brokerfl.wire.frame import (
    HEAD,
    ID,
    MANIFEST,
    MAX_CONTENT_BYTES,
    MAX_MESSAGE_BYTES,
    pack,
    size_of,
    unpack,
)
from brokerfl.wire.record import MAX_ARRAYS

#: Most bytes of a content that are accepted in a message itself: another version may have another limit.
MOST_INLINE = 1024 * 1024

#: Bytes of a chunk. 1 MiB is as fast as it gets; 8 MiB are slower, and keep everyone else waiting. A little less,
#: because jemalloc gives a value of exactly 1 MiB plus its header a quarter more room than it needs.
CHUNK = 1024 * 1024 - 1024

#: Most bytes of a manifest: it holds 48 bytes for each chunk, and up to 9 for each array.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

_DIGEST = 32
_ENTRY = struct.Struct(">QQ")

#: A packed array starts where an element of any type may start.
_ALIGNMENT = 16


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

    def place(self, index: int) -> slice:
        """Where the chunk with this index is in it, in bytes."""
        at = (index - self.start) * CHUNK
        return slice(at, min(at + CHUNK, self.size))


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


def uploaded_by(uploader: int, name: bytes) -> bytes:
    """Return what a chunk or a content is called in Redis: the number of its uploader, 8 bytes, and its own name."""
    return uploader.to_bytes(8, "big") + name


def is_uploader(number: object) -> bool:
    """Return whether this may be the number of an uploader."""
    return type(number) is int and 0 <= number < 2**63


@dataclass(frozen=True)
class Manifest:
    """How chunks form a content.

    Attributes:
        sizes: bytes of its buffers: the description first, then each array.
        digests: sha256 of each chunk.
        entries: for a reply, the entry of the node's data stream that holds each chunk, in strictly rising order.
        uploader: the number of the run's owner that uploaded the chunks; 0 for a reply.
    """

    sizes: tuple[int, ...]
    digests: tuple[bytes, ...]
    entries: tuple[str, ...] = ()
    uploader: int = 0

    @cached_property
    def pieces(self) -> list[Piece]:
        """The pieces of the content."""
        return divide(self.sizes)

    @cached_property
    def names(self) -> list[bytes]:
        """The name of each piece: the digests of its chunks."""
        return [b"".join(self.digests[piece.start : piece.chunks.stop]) for piece in self.pieces]

    @cached_property
    def chunks(self) -> list[bytes]:
        """What each chunk is called in Redis."""
        return [uploaded_by(self.uploader, digest) for digest in self.digests]

    def chunk_sizes(self) -> dict[bytes, int]:
        """Return the bytes of each chunk by what it is called in Redis."""
        return {
            self.chunks[index]: place.stop - place.start
            for piece in self.pieces
            for index in piece.chunks
            for place in [piece.place(index)]
        }

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return sum(self.sizes)

    @cached_property
    def encoded(self) -> bytes:
        """The manifest as a message carries it."""
        entries = b"".join(_ENTRY.pack(*map(int, entry.split("-"))) for entry in self.entries)
        return pack([list(self.sizes), b"".join(self.digests), entries, self.uploader], MAX_MANIFEST_BYTES)

    @cached_property
    def name(self) -> bytes:
        """16 bytes that identify the content, whoever uploaded it."""
        return sha256(pack([list(self.sizes), b"".join(self.digests)], MAX_MANIFEST_BYTES)).digest()[:16]

    @cached_property
    def key(self) -> bytes:
        """What the content is called in Redis."""
        return uploaded_by(self.uploader, self.name)


def decode_manifest(data: bytes | memoryview, limit: int = MAX_MESSAGE_BYTES) -> Manifest:
    """Return the manifest encoded in ``data``. Nothing that it declares is allocated yet.

    Args:
        data: from another process.
        limit: most bytes that the content may have.

    Raises:
        FrameError: it is malformed or contradicts itself, or the content exceeds the limit.
    """
    match unpack(data, MAX_MANIFEST_BYTES):
        case [list(sizes), bytes(digests), bytes(entries), uploader] if (
            0 < len(sizes) <= MAX_ARRAYS + 1 and all(type(n) is int and n >= 0 for n in sizes) and is_uploader(uploader)
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
        uploader,
    )
    count = manifest.pieces[-1].chunks.stop
    if len(digests) != count * _DIGEST or len(entries) not in (0, count * _ENTRY.size):
        raise FrameError(f"the manifest does not name the {count} chunks that its sizes require")
    if any(one >= other for one, other in pairwise(_ENTRY.iter_unpack(entries))):
        # Else one chunk, named again and again, would grow to any size.
        raise FrameError("the manifest does not name the chunks in the order in which they were sent, each once")
    return manifest


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
