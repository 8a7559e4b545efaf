"""RecordSet to and from a description (msgpack) and raw buffers: one per array, and per long bytes of a config.

Owns the layout of the description and the limits of a content. It must not know messages, ids or Redis, or how a record
of one kind is described; its codec does.

A description is a list:

    the records of each of the first three kinds, as a map by name
    the kind of each record, as a byte, in the order of the records; absent if that is the order of the kinds
    a map of the records of further kinds, by the name of the kind; absent if there are none
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from brokerfl.common import Array, FrameError, MessageTooLarge, RecordSet
from brokerfl.common.config import is_utf8
from brokerfl.common.record import Record
from brokerfl.common.recordset import KINDS
from brokerfl.wire.codec import CODECS, Buffer, Buffers
from brokerfl.wire.frame import (
    CONTENT,
    MAX_CONTAINERS,
    MAX_CONTENT_BYTES,
    MAX_MESSAGE_BYTES,
    Fields,
    pack,
    size_of,
    unpack,
)
from brokerfl.wire.weight import check_weight

#: The kinds that a description distinguishes by position; it names those that came later.
_PLACED = tuple(KINDS)[:3]
_PLACES = len(_PLACED)

#: Most buffers of a content: an array is described by two lists, and a description has at most 200,000.
MAX_ARRAYS = 99_000

#: What a codec raises for a description that is malformed.
_MALFORMED = (TypeError, ValueError, AttributeError)

#: The descriptions of records, by kind and name.
_Described = dict[type[Record[Any]], dict[str, dict[str, Any]]]


def encode_content(content: RecordSet) -> Fields:
    """Return the stream fields that hold ``content``; arrays are not copied.

    Raises:
        TypeError, ValueError: a list changed after it was assigned, to what its record does not take.
        MessageTooLarge: it exceeds `frame.MAX_MESSAGE_BYTES`, or has too many records, lists or arrays.
    """
    buffers: list[Buffer] = []
    described = {
        kind: {name: _encoded(name, record, kind, buffers) for name, record in records.items()}
        for kind, records in content.by_kind().items()
        if kind in _PLACED or records
    }
    try:
        fields: Fields = {CONTENT: pack(_laid_out(described, content.kinds()), MAX_CONTENT_BYTES)}
    except MessageTooLarge as error:
        raise MessageTooLarge(
            f"metrics and configs are too large: {error}: put large data into arrays, or into bytes of a config"
        ) from None
    except ValueError as error:
        raise ValueError(_not_text(content) or str(error)) from None
    if len(buffers) > MAX_ARRAYS:
        raise MessageTooLarge(
            f"the content has {len(buffers):,} arrays and long bytes; at most {MAX_ARRAYS:,} are allowed"
        )
    if len(fields[CONTENT]) > MAX_CONTAINERS:  # each takes a byte at least
        count = _count_containers(described, len(buffers))
        if count > MAX_CONTAINERS:
            raise MessageTooLarge(
                f"the content makes {count:,} lists and maps; at most {MAX_CONTAINERS:,} are allowed, one for each "
                "record and list and two for each array: put numbers into fewer, longer lists, or into arrays"
            )
        try:
            check_weight(memoryview(fields[CONTENT])[1:])
        except FrameError as error:
            raise MessageTooLarge(f"metrics and configs are too large: {error}: put numbers into arrays") from None
    for index, buffer in enumerate(buffers):
        fields[b"%d" % index] = buffer
    size = size_of(fields)
    if size > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"the content has {size:,} bytes; the limit is {MAX_MESSAGE_BYTES:,} bytes: send fewer or smaller arrays"
        )
    return fields


def _encoded(name: str, record: Record[Any], kind: type[Record[Any]], buffers: list[Buffer]) -> dict[str, Any]:
    try:
        return CODECS[kind].encode(record, buffers)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the record {name!r}: {error}") from None


def _not_text(content: RecordSet) -> str | None:
    """Return which text of a content cannot be sent: what the system could not decode has no UTF-8."""
    for name, record in content.records():
        if not is_utf8(name):
            return f"the name {name!r} of a record is not UTF-8"
        for key, value in record.items():
            values = value if isinstance(value, list) else [value]
            if not all(is_utf8(text) for text in (key, *values) if isinstance(text, str)):
                return f"the record {name!r}: {type(record).__name__}[{key!r}]: text that is not UTF-8"
            if isinstance(value, Array) and not (is_utf8(value.dtype) and is_utf8(value.stype)):
                return f"the record {name!r}: {type(record).__name__}[{key!r}]: its dtype or stype is not UTF-8"
    return None


def decode_content(fields: Mapping[bytes, Buffer]) -> RecordSet:
    """Return the RecordSet that `encode_content` encoded; arrays are read-only views of ``fields``.

    Raises:
        FrameError: the description is malformed or does not match the buffers.
    """
    kinds, order = _description(fields.get(CONTENT))
    buffers = Buffers(fields)
    try:
        decoded = [
            {name: CODECS[kind].decode(record, buffers) for name, record in records.items()} for kind, records in kinds
        ]
        content = RecordSet()
        content.add(_in_order(decoded, *order))
        return content
    except _MALFORMED as error:
        raise FrameError(f"the content is malformed: {error}") from None


def check_description(data: bytes | memoryview, sizes: Sequence[int]) -> None:
    """Check that a description matches buffers of these ``sizes``, before any of them has arrived.

    Raises:
        FrameError: it does not, or is malformed.
    """
    try:
        kinds, _ = _description(data)
        declared = [
            size for kind, records in kinds for record in records.values() for size in CODECS[kind].sizes(record)
        ]
    except _MALFORMED as error:
        raise FrameError(f"the content is malformed: {error}") from None
    if declared != list(sizes):
        raise FrameError("the content describes other arrays than its manifest holds")


def _laid_out(described: _Described, order: list[type[Record[Any]]]) -> list[Any]:
    """Return the description of these records; ``order`` has the kind of each record, in order of insertion."""
    records = list(described.values())
    if len(records) == _PLACES:
        return records + _order_of(described, order)
    further = {KINDS[kind].name: described[kind] for kind in list(described)[_PLACES:]}
    return [*records[:_PLACES], *_order_of(described, order), further]


def _order_of(described: _Described, order: list[type[Record[Any]]]) -> list[Any]:
    """Return the kind of each record, one byte each, if the records are not in the order of the kinds."""
    if len(set(order)) < 2:
        return []
    places = bytes(map(list(described).index, order))
    return [] if places == bytes(sorted(places)) else [places]


def _count_containers(described: _Described, buffers: int) -> int:
    """Return how many lists and maps a description has, as `frame.unpack` counts them, without reading each list.

    A buffer is described by one, no matter which kind it has.
    """
    count = 1 + len(described) + (len(described) > _PLACES) + buffers
    for kind, records in described.items():
        count += len(records) + sum(map(CODECS[kind].count_containers, records.values()))
    return count


def _description(data: Buffer | None) -> tuple[list[tuple[type[Record[Any]], Any]], list[Any]]:
    """Return the described records of each kind, and their order, if there is one. Neither is checked yet."""
    description = unpack(data, MAX_CONTENT_BYTES)
    if not isinstance(description, list) or not _PLACES <= len(description) <= _PLACES + 2:
        raise FrameError("the content is not a list of three kinds of records, and their order")
    kinds, order = list(zip(_PLACED, description, strict=False)), description[_PLACES:]
    if order and order[-1] and isinstance(order[-1], dict):
        kinds += _further_kinds(order.pop())
    if len(order) > 1:
        raise FrameError("the content is not a list of three kinds of records, and their order")
    return kinds, order


def _further_kinds(described: dict[Any, Any]) -> list[tuple[type[Record[Any]], Any]]:
    by_name = {kind.name: kind.record for kind in KINDS.values() if kind.record not in _PLACED}
    for name in described:
        if name not in by_name:
            raise FrameError(
                f"the content has records of kind {reprlib.repr(name)}, which this side does not know: "
                "run the same brokerfl version on the nodes and the ServerApp"
            )
    return [(by_name[name], records) for name, records in described.items()]


def _in_order(kinds: list[dict[str, Record[Any]]], order: bytes | None = None) -> Iterator[tuple[str, Record[Any]]]:
    if order is None:
        for records in kinds:
            yield from records.items()
        return
    sorted_order = b"".join(bytes([kind]) * len(records) for kind, records in enumerate(kinds))
    if not isinstance(order, bytes) or len(order) != len(sorted_order) or bytes(sorted(order)) != sorted_order:
        raise FrameError("the order of the records does not list the records")
    remaining = [iter(records.items()) for records in kinds]
    for kind in order:
        yield next(remaining[kind])


def digest_of(content: Fields) -> bytes:
    """Return 16 bytes that identify an encoded content."""
    digest = sha256()
    for name, data in content.items():
        digest.update(b"%b %d " % (name, len(data)))
        digest.update(data)
    return digest.digest()[:16]


def frozen(content: Fields) -> Fields:
    """Return ``content`` with copies of the arrays that share the app's memory, so that it stays as it is now."""
    return {name: data if isinstance(data, bytes) else bytes(data) for name, data in content.items()}
