"""The entries of a recording: a file that is only appended to, and whose end may be torn.

Owns their layout: the length, a CRC-32, and msgpack. It must not know what they say, or when they are synced.

    8 bytes   the length of what follows the checksum, big-endian
    4 bytes   CRC-32 of the length and of what follows
    …         a list in msgpack: a tag, and what belongs to it
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from brokerfl.common import FrameError
from brokerfl.wire.frame import pack, unpack

_HEAD = struct.Struct(">QI")

#: Most bytes of an entry. msgpack carries up to 4 GiB of bytes.
MAX_ENTRY_BYTES = 4 * 1024**3 - 1024**2

#: Bytes of an entry besides what it says.
OVERHEAD = _HEAD.size


def encode_entry(entry: list[Any]) -> bytes:
    """Return an entry as the file has it.

    Raises:
        ValueError: it holds something that msgpack cannot carry.
        MessageTooLarge: it is too large.
    """
    body = pack(entry, MAX_ENTRY_BYTES)
    return _HEAD.pack(len(body), _checksum(len(body), body)) + body


def _checksum(size: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(size.to_bytes(8, "big")))


def read_entries(file: BinaryIO) -> Iterator[tuple[int, int, list[Any]]]:
    """Yield each whole entry from where the file is: where it begins, where the next one does, and what it says.

    It ends at the first one that is torn, whatever comes after it.
    """
    at = file.tell()
    while (found := _read_entry(file)) is not None:
        end = file.tell()
        yield at, end, found
        file.seek(end)  # whoever looked elsewhere meanwhile
        at = end


def _read_entry(file: BinaryIO) -> list[Any] | None:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    size, checksum = _HEAD.unpack(head)
    body = file.read(size) if size <= MAX_ENTRY_BYTES else b""
    if len(body) != size or _checksum(size, body) != checksum:
        return None
    try:
        entry = unpack(body, MAX_ENTRY_BYTES)
    except FrameError:
        return None
    return entry if isinstance(entry, list) and entry else None
