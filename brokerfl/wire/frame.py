"""The frame: a version byte, a small msgpack header, and raw buffers next to it.

Owns the version, the limit on messages, the names of a stream entry's fields, and the packing of headers with the
limits that both sides observe. It must not know what a header means.

A stream entry holds these fields:

    i      the id of the message, or of the message replied to (ASCII). Readable in every version.
    h      version byte + msgpack header
    c      version byte + msgpack description of the content; absent in an Error reply
    m      for a large content, instead of c and the buffers: version byte + msgpack manifest of its chunks (`payload`)
    0, 1…  one raw buffer per array, in the order of the description
    e      of a sealed run, instead of c and the buffers, or with the reason of an Error: what is sealed (`cipher`)
    s      of a signed run: the signature of all that (`signing`)
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgpack

from brokerfl.common import FrameError, MessageTooLarge
from brokerfl.wire.weight import check_weight

VERSION = 1

#: Most bytes of one content, unless a ServerApp or a node allows less: what a receiver must have memory for.
MAX_MESSAGE_BYTES = 16 * 1024**3

ID, HEAD, CONTENT, MANIFEST, SEALED, SIGNATURE = b"i", b"h", b"c", b"m", b"e", b"s"

#: Most bytes of the header, and of the description of a content. Lists of small numbers grow eightfold when they are
#: unpacked.
MAX_HEADER_BYTES = 64 * 1024
MAX_CONTENT_BYTES = 64 * 1024 * 1024

#: Most lists and maps in one header or description: an empty one takes 1 byte in msgpack and about 60 in Python.
MAX_CONTAINERS = 200_000

Fields = dict[bytes, bytes | memoryview]


class FrameVersionError(FrameError):
    """The frame has a version that this process does not speak."""

    def __init__(self, theirs: int) -> None:
        self.theirs = theirs
        super().__init__(
            f"the frame has version {theirs}, but this side speaks version {VERSION}: "
            "run the same version of brokerfl on the nodes and the ServerApp"
        )


def pack(header: Any, limit: int = MAX_HEADER_BYTES) -> bytes:
    """Return the version byte and ``header`` in msgpack.

    Its lists and maps are not counted: a caller that packs many has to count them.

    Args:
        header: what to pack.
        limit: most bytes, the same as for `unpack`.

    Raises:
        ValueError: the header holds something that msgpack cannot carry; the text names it.
        MessageTooLarge: it is longer than ``limit`` bytes.
    """
    try:
        data: bytes = bytes((VERSION,)) + msgpack.packb(header, use_bin_type=True)
    except (OverflowError, UnicodeEncodeError, TypeError, ValueError) as error:
        raise ValueError(f"cannot be sent: {error}") from None
    if len(data) > limit:
        raise MessageTooLarge(f"a header of {len(data):,} bytes exceeds the limit of {limit:,}")
    return data


def unpack(data: bytes | memoryview | None, limit: int = MAX_HEADER_BYTES) -> Any:
    """Return the header that `pack` made.

    Raises:
        FrameVersionError: it has another version.
        FrameError: it is missing, longer than ``limit`` bytes, or not msgpack.
    """
    if not data:
        raise FrameError("the frame has no header")
    if data[0] != VERSION:
        raise FrameVersionError(data[0])
    if len(data) > limit:
        raise FrameError(f"a header of {len(data):,} bytes exceeds the limit of {limit:,}")
    header, count = memoryview(data)[1:], _Count()
    check_weight(header)
    try:
        return msgpack.unpackb(
            header,
            raw=False,
            strict_map_key=True,
            object_hook=count.see,
            list_hook=count.see,
            ext_hook=_refuse,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises ValueError, its own types, and UnicodeDecodeError alike
        raise FrameError(f"the header is not msgpack: {error}") from None


def _refuse(code: int, data: bytes) -> Any:
    raise FrameError(f"the header holds an extension of type {code}, which no header has")


class _Count:
    """Counts lists and maps while they are unpacked."""

    def __init__(self) -> None:
        self._seen = 0

    def see(self, container: Any) -> Any:
        self._seen += 1
        if self._seen > MAX_CONTAINERS:
            raise FrameError(f"the header has more than {MAX_CONTAINERS:,} lists and maps")
        return container


def size_of(buffers: Mapping[bytes, bytes | memoryview]) -> int:
    """Return the total size of ``buffers`` in bytes, without their names."""
    return sum(map(len, buffers.values()))


def join_fields(fields: Mapping[bytes, bytes | memoryview]) -> bytes:
    """Return all ``fields`` as one value, for storage other than streams."""
    return msgpack.packb(dict(fields), use_bin_type=True)  # type: ignore[no-any-return]


def first_fields(data: bytes) -> dict[bytes, bytes]:
    """Return those fields that are whole in the beginning of what `join_fields` made. Raises nothing for the rest."""
    unpacker, found = msgpack.Unpacker(strict_map_key=False), dict[bytes, bytes]()
    unpacker.feed(data)
    with suppress(msgpack.OutOfData):
        for _ in range(unpacker.read_map_header()):
            name = unpacker.unpack()
            found[name] = unpacker.unpack()
    return found


def split_fields(data: bytes) -> dict[bytes, bytes]:
    """Return the fields that `join_fields` joined. Only for what a node wrote itself."""
    return msgpack.unpackb(data, strict_map_key=False)  # type: ignore[no-any-return]
