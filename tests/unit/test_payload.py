"""Payloads: how a content is divided, what its manifest says, and the checks on what arrives."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokerfl.common import Array, FrameError, ParametersRecord, RecordSet
from brokerfl.wire import manifest, payload
from brokerfl.wire.frame import CONTENT, MANIFEST, Fields, FrameVersionError, pack
from brokerfl.wire.manifest import (
    CHUNK,
    MAX_MANIFEST_BYTES,
    Manifest,
    Piece,
    decode_manifest,
    divide,
    manifest_of,
    uploaded_by,
)
from brokerfl.wire.payload import WINDOW, EncodedContent, MissingChunkError, Payload, assemble
from brokerfl.wire.record import decode_content, encode_content

#: Chunk and inline limit of the tests that need many chunks.
SMALL_CHUNK, SMALL_INLINE = 256, 300

#: Sizes around those of a chunk, and any below three of them.
sizes_of_buffers = st.lists(
    st.one_of(st.sampled_from([0, 1, 15, 16, 17, CHUNK - 16, CHUNK - 1, CHUNK, CHUNK + 1]), st.integers(0, 3 * CHUNK)),
    min_size=1,
    max_size=12,
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hundred bytes make many chunks, and pieces come from the system where large ones do."""
    monkeypatch.setattr(manifest, "CHUNK", SMALL_CHUNK)
    monkeypatch.setattr(payload, "INLINE", SMALL_INLINE)
    monkeypatch.setattr(payload, "_HUGE", 4 * SMALL_CHUNK)


def record(*sizes: int) -> RecordSet:
    """A RecordSet with an array of random bytes of each size."""
    rng = np.random.default_rng(7)
    arrays = {str(i): Array(rng.integers(0, 256, size, dtype=np.uint8)) for i, size in enumerate(sizes)}
    return RecordSet({"p": ParametersRecord(arrays)})


class Store:
    """The chunks of a content, as a `payload.Read` finds them.

    Attributes:
        asked: the indices that were asked for.
        windows: how many at a time.
    """

    def __init__(self, content: Payload) -> None:
        self.chunks: list[bytes | None] = [bytes(content.chunk(index)) for index in range(len(content))]
        self.asked: list[int] = []
        self.windows: list[int] = []

    def read(self, window: Sequence[int]) -> Iterable[bytes | None]:
        self.asked += window
        self.windows.append(len(window))
        return [self.chunks[index] for index in window]


def stored(content: RecordSet) -> tuple[Fields, Manifest, Store]:
    """A content as it was encoded, its manifest, and its chunks."""
    fields = encode_content(content)
    made = Payload(fields)
    return fields, made.manifest, Store(made)


def same(received: Fields, sent: Fields) -> bool:
    """Whether two contents are equal byte for byte, in the same order."""
    return [(name, bytes(data)) for name, data in received.items()] == [
        (name, bytes(data)) for name, data in sent.items()
    ]


# Dividing.


@settings(max_examples=300, deadline=None)
@given(sizes_of_buffers)
def test_pieces_tile_all_buffers(sizes: list[int]) -> None:
    """Whatever the sizes: each buffer is in one piece, in order, aligned, apart; what is shared fits into one chunk."""
    pieces = divide(sizes)
    assert [index for piece in pieces for index in range(piece.first, piece.first + len(piece.offsets))] == list(
        range(len(sizes))
    )
    chunks = 0
    for piece in pieces:
        end = 0
        for index, offset in enumerate(piece.offsets, piece.first):
            assert offset % 16 == 0
            assert end <= offset < end + 16
            end = offset + sizes[index]
        assert piece.size == end
        assert len(piece.offsets) == 1 or piece.size <= CHUNK
        assert piece.chunks == range(chunks, chunks + -(-piece.size // CHUNK))
        chunks = piece.chunks.stop


def test_small_buffers_share_a_chunk_and_large_ones_have_their_own() -> None:
    """A large array starts a chunk of its own, what follows the next: so neighbours do not move its chunks."""
    sizes = [100, 50, CHUNK + 1, 10, 2 * CHUNK, 20, CHUNK - 48, 40]
    assert [(piece.first, piece.offsets, piece.size, list(piece.chunks)) for piece in divide(sizes)] == [
        (0, (0, 112), 162, [0]),
        (2, (0,), CHUNK + 1, [1, 2]),
        (3, (0,), 10, [3]),
        (4, (0,), 2 * CHUNK, [4, 5]),
        (5, (0, 32), CHUNK - 16, [6]),
        (7, (0,), 40, [7]),
    ]
    assert divide([0]) == [Piece(0, (0,), 0, 0)]
    assert list(divide([0])[0].chunks) == []


@pytest.mark.usefixtures("small_chunks")
def test_a_layer_keeps_its_chunks_when_others_change() -> None:
    """Whatever comes before a large array, small or large, the digests of its chunks stay as they were."""
    kept = np.arange(5 * SMALL_CHUNK).astype(np.uint8)

    def digests(*before: int) -> tuple[bytes, ...]:
        content = record(*before)
        content.parameters_records["p"]["kept"] = Array(kept)
        return Payload(encode_content(content)).manifest.digests[-5:]

    assert digests(10, 200) == digests(10, 3, 1000) == digests()


@pytest.mark.usefixtures("small_chunks")
def test_a_payload_shares_the_memory_of_large_arrays() -> None:
    """Chunks of a large array are views on it; only what small arrays share is copied."""
    array = np.arange(3 * SMALL_CHUNK).astype(np.uint8)
    made = Payload(encode_content(RecordSet({"p": ParametersRecord({"w": Array(array)})})))
    for index in (-3, -2, -1):
        chunk = np.frombuffer(made.chunk(len(made) + index), dtype=np.uint8)
        assert np.shares_memory(chunk, array)


def test_a_content_is_inline_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A content of INLINE bytes, description included, is in its message, frozen; one of a byte more is a manifest."""
    array = np.zeros(1000, dtype=np.uint8)
    fields = encode_content(RecordSet({"p": ParametersRecord({"w": Array(array)})}))
    size = sum(map(len, fields.values()))
    monkeypatch.setattr(payload, "INLINE", size)
    inline = EncodedContent(fields)
    array[:] = 1
    assert inline.payload is None
    assert inline.fields[b"0"] == bytes(1000)
    monkeypatch.setattr(payload, "INLINE", size - 1)
    large = EncodedContent(fields)
    assert large.payload is not None
    assert set(large.fields) == {MANIFEST}
    assert manifest_of(large.fields) == large.payload.manifest
    assert manifest_of(inline.fields) is None


@pytest.mark.usefixtures("small_chunks")
def test_names_tell_contents_apart() -> None:
    """Equal contents have one name, whoever encoded them; another value, shape or order has another."""
    values = np.arange(400).astype(np.uint8)

    def name(**arrays: Any) -> bytes:
        made = RecordSet({"p": ParametersRecord({key: Array(array) for key, array in arrays.items()})})
        return EncodedContent(encode_content(made)).name

    assert name(a=values) == name(a=values.copy())
    others = [
        name(a=values),
        name(b=values),
        name(a=values[::-1]),
        name(a=values.reshape(2, 200)),
        name(a=values[:300]),
    ]
    assert len(set(others)) == len(others)
    assert {len(made) for made in others} == {16}


# The manifest.


@settings(max_examples=100, deadline=None)
@given(sizes_of_buffers, st.booleans(), st.integers(0, 2**63 - 1))
def test_manifests_come_back(sizes: list[int], is_reply: bool, uploader: int) -> None:
    """Sizes, digests, entries and uploader survive the wire, whatever they are."""
    count = divide(sizes)[-1].chunks.stop
    digests = tuple(random.Random(3).randbytes(32) for _ in range(count))
    entries = tuple(f"{2**64 - 1 - count + index}-{count - index}" for index in range(count)) if is_reply else ()
    manifest = Manifest(tuple(sizes), digests, entries, uploader)
    assert decode_manifest(manifest.encoded) == manifest
    assert decode_manifest(memoryview(manifest.encoded)) == manifest


SIZES = [10, CHUNK + 1]  # three chunks


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([], id="nothing"),
        pytest.param({}, id="no list"),
        pytest.param([SIZES, bytes(96)], id="no entries"),
        pytest.param([SIZES, bytes(96), b""], id="no uploader"),
        pytest.param([SIZES, bytes(96), b"", 0, b""], id="five parts"),
        pytest.param([SIZES, bytes(96), b"", b"1"], id="bytes for the uploader"),
        pytest.param([SIZES, bytes(96), b"", True], id="a bool for the uploader"),
        pytest.param([SIZES, bytes(96), b"", 1.0], id="a float for the uploader"),
        pytest.param([SIZES, bytes(96), b"", -1], id="a negative uploader"),
        pytest.param([SIZES, bytes(96), b"", 2**63], id="an uploader that no owner reaches"),
        pytest.param([[], b"", b"", 0], id="no sizes"),
        pytest.param([10, bytes(32), b"", 0], id="a size alone"),
        pytest.param([["10"], bytes(32), b"", 0], id="text for a size"),
        pytest.param([[10.0], bytes(32), b"", 0], id="a float for a size"),
        pytest.param([[True], bytes(32), b"", 0], id="a bool for a size"),
        pytest.param([[None], bytes(32), b"", 0], id="none for a size"),
        pytest.param([[-1, 11], bytes(32), b"", 0], id="a negative size"),
        pytest.param([[[10]], bytes(32), b"", 0], id="a list for a size"),
        pytest.param([SIZES, "x" * 96, b"", 0], id="text for digests"),
        pytest.param([SIZES, [bytes(32)] * 3, b"", 0], id="a list of digests"),
        pytest.param([SIZES, bytes(64), b"", 0], id="a digest too few"),
        pytest.param([SIZES, bytes(128), b"", 0], id="a digest too many"),
        pytest.param([SIZES, bytes(95), b"", 0], id="a digest cut"),
        pytest.param([SIZES, bytes(96), bytes(32), 0], id="an entry too few"),
        pytest.param([SIZES, bytes(96), bytes(64), 0], id="an entry too many"),
        pytest.param([SIZES, bytes(96), bytes(47), 0], id="an entry cut"),
        pytest.param([SIZES, bytes(96), bytes(48), 0], id="one entry three times"),
        pytest.param([SIZES, bytes(96), bytes(32) + bytes(15) + b"\x01", 0], id="one entry twice"),
        pytest.param([SIZES, bytes(96), b"\2" * 16 + b"\1" * 16 + b"\3" * 16, 0], id="entries that go back"),
        pytest.param([SIZES, bytes(96), "1-0", 0], id="text for entries"),
        pytest.param([[10, 2**40], bytes(96), b"", 0], id="more than any content may have"),
        pytest.param([[2**63, 2**63], bytes(96), b"", 0], id="sizes that overflow"),
    ],
)
def test_a_malformed_manifest_is_a_frame_error(parts: object) -> None:
    """A manifest that is no manifest, or contradicts itself, is refused."""
    with pytest.raises(FrameError):
        decode_manifest(pack(parts))
    decode_manifest(pack([SIZES, bytes(96), b"", 2**63 - 1]))
    decode_manifest(pack([SIZES, bytes(96), bytes(15) + b"\x01" + bytes(15) + b"\x02" + bytes(14) + b"\x01\0", 0]))


def test_a_manifest_of_rubbish_is_a_frame_error() -> None:
    """No bytes, bytes that are no msgpack, and another version are refused; the version is named."""
    for rubbish in (b"", b"\x01", b"\x01\xc1", b"\x01\x93", bytes(MAX_MANIFEST_BYTES + 1)):
        with pytest.raises(FrameError):
            decode_manifest(rubbish)
    with pytest.raises(FrameError, match=r"exceeds the limit of 4,194,304"):
        decode_manifest(b"\x01" + bytes(MAX_MANIFEST_BYTES))
    with pytest.raises(FrameVersionError, match="version 9"):
        decode_manifest(b"\x09\x93")


def test_the_limit_is_the_receivers() -> None:
    """A content beyond what the receiver allows is refused by its declared sizes, and the error says both numbers."""
    manifest = Manifest((10, CHUNK + 1), (bytes(32),) * 3)
    assert decode_manifest(manifest.encoded, manifest.size) == manifest
    with pytest.raises(FrameError, match=rf"declares {CHUNK + 11:,} bytes; the limit is {CHUNK + 10:,} bytes"):
        decode_manifest(manifest.encoded, manifest.size - 1)


def test_mutated_manifests_are_frame_errors_or_manifests() -> None:
    """Ten thousand manifests with bytes changed, cut or added decode consistently or raise FrameError, nothing else."""
    rng = random.Random(11)
    good = Manifest((10, CHUNK + 1, 70), tuple(rng.randbytes(32) for _ in range(4)), ("1-0", "1-1", "2-0", "3-0"), 7)
    decoded = 0
    for _ in range(10_000):
        data = bytearray(good.encoded)
        for _ in range(rng.randint(1, 3)):
            match rng.randrange(3):
                case 0 if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
                case 1 if data and rng.random() < 0.3:
                    del data[rng.randrange(len(data)) :]
                case _ if rng.random() < 0.3:
                    data.insert(rng.randint(0, len(data)), rng.randrange(256))
        try:
            manifest = decode_manifest(bytes(data))
        except FrameError:
            continue
        assert len(manifest.digests) == manifest.pieces[-1].chunks.stop
        assert len(manifest.entries) in (0, len(manifest.digests))
        assert len(manifest.key) == 24, "an uploader has 8 bytes"
        decoded += 1
    assert 0 < decoded < 10_000


def test_what_is_uploaded_is_called_by_its_uploader() -> None:
    """Content and chunks have other names when another owner uploads them; what they are is the same."""
    fields = encode_content(RecordSet({"p": ParametersRecord({"w": Array(np.zeros(100_000))})}))
    first, second, reply = EncodedContent(fields, 1), EncodedContent(fields, 2), EncodedContent(fields)
    assert first.name == second.name == reply.name
    assert (first.key, second.key) == (bytes(7) + b"\1" + first.name, bytes(7) + b"\2" + first.name)
    for content in (first, second):
        assert content.payload is not None
        manifest = content.payload.manifest
        assert decode_manifest(content.fields[MANIFEST]) == manifest
        assert manifest.key == content.key
        assert manifest.chunks == [uploaded_by(content.uploader, digest) for digest in manifest.digests]
        assert list(manifest.chunk_sizes()) == list(dict.fromkeys(manifest.chunks))
    small = encode_content(RecordSet())
    assert EncodedContent(small, 1).key == EncodedContent(small, 2).key, "it is in its message"


# Putting together.


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1000,), id="one large"),
        pytest.param((0, 10, 1000, 0, 7, 2000, 0), id="mixed"),
        pytest.param((SMALL_CHUNK, SMALL_CHUNK + 1, SMALL_CHUNK - 1), id="around a chunk"),
        pytest.param((3, 5) * 40, id="all small"),
        pytest.param((SMALL_CHUNK * WINDOW * 2 + 1,), id="several windows"),
        pytest.param((), id="no array"),
    ],
)
def test_contents_come_back(sizes: tuple[int, ...]) -> None:
    """What was divided is put together byte for byte, read-only, on memory aligned to 16 bytes."""
    content, manifest, store = stored(record(*sizes))
    received, pieces = assemble(manifest, store.read)
    assert same(received, content)
    assert list(decode_content(received).parameters_records["p"]) == [str(i) for i in range(len(sizes))]
    for data in received.values():
        assert isinstance(data, memoryview)
        assert data.readonly
        if len(data):
            assert np.frombuffer(data, dtype=np.uint8).ctypes.data % 16 == 0
    assert list(pieces) == list(dict.fromkeys(manifest.names))
    assert max(store.windows) <= WINDOW
    assert store.asked == list(range(len(manifest.digests)))


@pytest.mark.usefixtures("small_chunks")
def test_known_pieces_are_not_read() -> None:
    """Of a content whose former version is known only the pieces that changed are read, the others are not copied."""
    former = record(300, 500, 40, 40, 700)
    _, manifest, store = stored(former)
    _, known = assemble(manifest, store.read)
    former.parameters_records["p"]["1"] = Array(np.ones(500, dtype=np.uint8))
    content, manifest, store = stored(former)
    received, pieces = assemble(manifest, store.read, known)
    assert same(received, content)
    changed = manifest.pieces[2]
    assert store.asked == list(changed.chunks)
    assert [name for name in pieces if name not in known] == [manifest.names[2]]
    assert all(pieces[name] is known[name] for name in pieces if name in known)
    store.asked.clear()
    assert same(assemble(manifest, store.read, pieces)[0], content)
    assert store.asked == []


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("index", [0, 1, 3, -1])
def test_a_chunk_that_is_not_there_is_missing(index: int) -> None:
    """Whichever chunk is gone, the error says which of how many."""
    _, manifest, store = stored(record(300, 500, 10))
    store.chunks[index] = None
    count = len(manifest.digests)
    with pytest.raises(MissingChunkError, match=f"chunk {index % count + 1} of {count} is gone"):
        assemble(manifest, store.read)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("index", [1, 4, -1])
@pytest.mark.parametrize("fault", ["shorter", "longer", "empty", "other"])
def test_a_chunk_that_differs_is_refused(index: int, fault: str) -> None:
    """Whichever chunk has another size or other bytes than declared, no content comes of it, and the error says why."""
    _, manifest, store = stored(record(300, 500, 10))
    chunk = store.chunks[index]
    assert chunk
    store.chunks[index] = {
        "shorter": chunk[:-1],
        "longer": chunk + b"x",
        "empty": b"",
        "other": bytes((chunk[0] ^ 1,)) + chunk[1:],
    }[fault]
    reason = "sha256" if fault == "other" else rf"bytes, but its manifest says {len(chunk):,}"
    with pytest.raises(FrameError, match=f"chunk {index % len(manifest.digests) + 1} .*{reason}"):
        assemble(manifest, store.read)


def test_the_only_chunk_is_checked_too() -> None:
    """A content of one chunk, which is hashed at once, is refused when a byte differs."""
    _, manifest, store = stored(record(100))
    [chunk] = store.chunks
    assert chunk is not None
    store.chunks = [chunk[:-1] + bytes((chunk[-1] ^ 1,))]
    with pytest.raises(FrameError, match="sha256"):
        assemble(manifest, store.read)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((300, 2**20), id="larger"),
        pytest.param((300, 400), id="smaller"),
        pytest.param((500, 300), id="swapped"),
        pytest.param((300, 500, 500), id="one more"),
        pytest.param((300,), id="one fewer"),
        pytest.param((), id="none"),
    ],
)
def test_no_room_is_made_for_sizes_that_do_not_fit(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that the description does not have are refused when it has come, before memory is made for any array."""
    _, manifest, store = stored(record(300, 500))
    lying = Manifest((manifest.sizes[0], *sizes), ())
    count = lying.pieces[-1].chunks.stop
    lying = Manifest(lying.sizes, (manifest.digests * count)[:count])
    store.chunks = (store.chunks * count)[:count]
    monkeypatch.setattr(payload, "_room", _no_room)
    with pytest.raises(FrameError, match="other arrays than its manifest holds"):
        assemble(decode_manifest(lying.encoded), store.read)
    assert len(store.windows) == 1


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "item",
    [
        pytest.param(["float32", [300], "numpy.ndarray", 300], id="too few bytes"),
        pytest.param(["float32", [2**62, 2**62], "numpy.ndarray", 300], id="a shape that overflows"),
        pytest.param(["object", [300], "numpy.ndarray", 300], id="another dtype"),
        pytest.param(["uint8", [-300], "numpy.ndarray", 300], id="a negative shape"),
        pytest.param("uint8", id="no description"),
    ],
)
def test_no_room_is_made_for_an_impossible_array(item: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A description whose dtype and shape do not need the declared size is refused before memory is made for it."""
    made = Payload({CONTENT: pack([{"p": {"0": item}}, {}, {}]), b"0": bytes(300)})
    monkeypatch.setattr(payload, "_room", _no_room)
    with pytest.raises(FrameError):
        assemble(made.manifest, Store(made).read)


def _no_room(size: int) -> memoryview:
    raise AssertionError(f"{size} bytes were allocated")


@pytest.mark.parametrize("size", [payload._HUGE - 1, payload._HUGE])
def test_room_is_as_large_as_asked_for(size: int) -> None:
    """Memory for large pieces, in huge pages or not, holds exactly the bytes asked for, and can be written."""
    room = payload._room(size)
    room[-1:] = b"x"
    assert (len(room), room[0], room[-1]) == (size, 0, ord("x"))
