"""The payload: a large content as chunks, divided and assembled.

Owns the memory of both, and the checks on what arrives. It must not know Redis, or where chunks are kept.

A content of more than `INLINE` bytes or `MOST_FIELDS` fields leaves its message, which then carries the manifest
instead.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property

from brokerfl.common import FrameError
from brokerfl.wire.cipher import CLEAR, Cipher
from brokerfl.wire.digests import Digests
from brokerfl.wire.frame import CONTENT, MANIFEST, Fields, size_of
from brokerfl.wire.hashing import digest_now, digest_soon, digests_of
from brokerfl.wire.manifest import Manifest, Piece, divide, uploaded_by
from brokerfl.wire.record import check_description, digest_of

#: Most bytes of a content that travel in the message itself: below this, a fetch costs more than it saves
#: (``benchmarks/inline_limit.py``).
INLINE = 64 * 1024

#: Most fields, one for each array and one more, of such a content: each takes two arguments of a command, which has at
#: most 1,000.
MOST_FIELDS = 480

#: Chunks that are requested, or sent, in one round trip: enough for 1 Gbit/s over a round trip of 30 ms. Not more,
#: because Redis finishes what one client sent before it turns to the next.
WINDOW = 4

#: Least bytes for which memory is requested in huge pages, which have 2 MiB on most systems.
_HUGE = 4 * 1024 * 1024


class MissingChunkError(Exception):
    """A chunk is not where the manifest says."""


# Dividing.


class Payload:
    """A content divided into chunks, as they are stored. It shares the content's memory; each chunk is sealed anew.

    Args:
        content: as `record.encode_content` returned it.
        uploader: the number of the run's owner that uploads it; 0 for a reply.
        cipher: seals the chunks.
        digests: those that are known already, of chunks in clear.
    """

    def __init__(
        self, content: Fields, uploader: int = 0, cipher: Cipher = CLEAR, digests: Digests | None = None
    ) -> None:
        self._uploader = uploader
        self._cipher = cipher
        self._digests = Digests() if digests is None or cipher.overhead else digests
        self._buffers = [memoryview(data) for data in content.values()]
        self._pieces = divide(map(len, self._buffers))
        self._places = [(piece, piece.place(index)) for piece in self._pieces for index in piece.chunks]

    def __len__(self) -> int:
        return len(self._places)

    def size(self, index: int) -> int:
        """Return the bytes of one chunk."""
        piece, place = self._places[index]
        return self._cipher.overhead + (place.stop - place.start if len(piece.offsets) == 1 else piece.size)

    def chunk(self, index: int) -> memoryview:
        """Return one chunk; one that several small arrays share is a copy."""
        return self._cipher.seal(self._plain(index))

    def _plain(self, index: int) -> memoryview:
        piece, place = self._places[index]
        if len(piece.offsets) == 1:
            return self._buffers[piece.first][place]
        packed = bytearray(piece.size)
        for buffer, offset in zip(self._buffers[piece.first :], piece.offsets, strict=False):
            packed[offset : offset + len(buffer)] = buffer
        return memoryview(packed)

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest, without entries. The first access hashes the whole content."""
        known: dict[int, bytes] = {}
        for piece in self._large():
            known |= dict(zip(piece.chunks, self._digests.of(self._buffers[piece.first]) or (), strict=False))
        unknown = digests_of(self.chunk(index) for index in range(len(self)) if index not in known)
        digests = tuple(known[index] if index in known else next(unknown) for index in range(len(self)))
        return Manifest(tuple(map(len, self._buffers)), digests, uploader=self._uploader)

    def _large(self) -> Iterator[Piece]:
        """Yield the buffers that have chunks of their own."""
        return (piece for piece in self._pieces if len(piece.offsets) == 1 and piece.size > INLINE)

    def note(self, digests: Digests) -> None:
        """Let what is sent later know its large buffers that cannot change, and their digests if they are in clear."""
        chunks = () if self._cipher.overhead else self.manifest.digests
        found = [(self._buffers[piece.first].obj, piece) for piece in self._large()]
        noted = [
            (data, chunks[piece.start : piece.chunks.stop])
            for data, piece in found
            if isinstance(data, bytes) and len(data) == piece.size
        ]
        digests.note(self.manifest.key, noted)


# Assembling.

#: Yields the chunks with these indices; None for a missing one.
Read = Callable[[Sequence[int]], Iterable[bytes | None]]


def assemble(
    manifest: Manifest, read: Read, known: Mapping[bytes, memoryview] | None = None, cipher: Cipher = CLEAR
) -> tuple[Fields, dict[bytes, memoryview]]:
    """Fetch the chunks of a content, check each, and assemble them.

    Args:
        manifest: of the content.
        read: fetches at most `WINDOW` chunks.
        known: pieces that an earlier call returned, by name: they are not fetched.
        cipher: opens the chunks.

    Returns:
        The content, read-only; and its pieces by name, sharing the same memory.

    Raises:
        MissingChunkError: a chunk is missing.
        FrameError: a chunk does not have its declared size or sha256 or cannot be opened, or the sizes do not match
            the description.
    """
    known, names = known or {}, manifest.names
    wanted = [
        index for name, piece in zip(names, manifest.pieces, strict=True) if name not in known for index in piece.chunks
    ]
    checks = _Checks(manifest)
    chunks = _fetch(wanted, read, manifest)
    if cipher.overhead:
        chunks, checks = _opened(zip(wanted, chunks, strict=False), manifest, cipher), _Checks(None)
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


def _opened(chunks: Iterable[tuple[int, bytes]], manifest: Manifest, cipher: Cipher) -> Iterator[bytes]:
    """Yield chunks in clear. Each is checked first, so that no more than one of them is in memory twice."""
    for index, stored in chunks:
        if digest_now(memoryview(stored)) != manifest.digests[index]:
            raise _is_other(index)
        try:
            yield bytes(cipher.open(stored))
        except FrameError as error:
            raise FrameError(f"chunk {index + 1}: {error}") from None


def _is_other(index: int) -> FrameError:
    return FrameError(f"chunk {index + 1} does not have the sha256 given in its manifest")


def _fill(piece: Piece, chunks: Iterator[bytes], checks: "_Checks") -> memoryview:
    """Return a piece, made from the next chunks."""
    if len(piece.chunks) == 1:
        memory = memoryview(next(chunks))
        checks.check(piece.start, memory, piece.size)
        return memory
    memory = _room(piece.size)
    for index in piece.chunks:
        place = memory[piece.place(index)]
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
    """Checks sizes at once, and hashes while the next chunks are on their way; without a manifest, only sizes."""

    def __init__(self, manifest: Manifest | None) -> None:
        self._digests = () if manifest is None else manifest.digests
        self._hashing: list[tuple[int, Future[bytes]]] = []

    def check(self, index: int, chunk: memoryview, size: int) -> None:
        if len(chunk) != size:
            raise FrameError(f"chunk {index + 1} has {len(chunk):,} bytes, but its manifest says {size:,}")
        if len(self._digests) == 1:
            self._compare(index, digest_now(chunk))
        elif self._digests:
            self._hashing.append((index, digest_soon(chunk)))

    def finish(self) -> None:
        for index, digest in self._hashing:
            self._compare(index, digest.result())

    def _compare(self, index: int, digest: bytes) -> None:
        if digest != self._digests[index]:
            raise _is_other(index)


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
    return size_of(content) > INLINE or len(content) > MOST_FIELDS


class EncodedContent:
    """A content as its message carries it: the content itself, or the manifest of a payload.

    Args:
        content: as `record.encode_content` returned it.
        uploader: as for a `Payload`.
        cipher: seals it, wherever it goes.
        digests: as for a `Payload`.

    Attributes:
        fields: what the message carries.
        payload: what has to be sent besides the message; None for a small content.
    """

    def __init__(
        self, content: Fields, uploader: int = 0, cipher: Cipher = CLEAR, digests: Digests | None = None
    ) -> None:
        self.payload = Payload(content, uploader, cipher, digests) if is_large(content) else None
        self.fields: Fields = (
            cipher.inline(content) if self.payload is None else {MANIFEST: self.payload.manifest.encoded}
        )

    @cached_property
    def name(self) -> bytes:
        """16 bytes that identify the content."""
        return digest_of(self.fields) if self.payload is None else self.payload.manifest.name

    @property
    def uploader(self) -> int:
        """Who uploads it; 0 for a small content."""
        return 0 if self.payload is None else self.payload.manifest.uploader

    @property
    def key(self) -> bytes:
        """What a large content is called in Redis; nothing there is called like a small one."""
        return uploaded_by(self.uploader, self.name)
