"""RecordSet to and from a description (msgpack) and raw buffers: one per array, and per long bytes of a config.

Owns the layout of the description and every check on what arrives: declared sizes against dtype and shape before an
array is made. It must not know messages, ids or Redis.

In the description a map of their size stands for long bytes of a config: no config's value is a map.
"""

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from brokerfl.common import (
    Array,
    ConfigsRecord,
    FrameError,
    MessageTooLarge,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
    SType,
)
from brokerfl.common.array import ITEMSIZE, NPY_MAGIC
from brokerfl.common.record import KINDS, Record
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

#: numpy allows 64 dimensions since 2.0 (NPY_MAXDIMS).
MAX_DIMENSIONS = 64

#: Most buffers of a content: what describes an array is two lists, and a description holds 200,000.
MAX_ARRAYS = 99_000

#: Bytes of a config that are a buffer of their own from this size on: secure aggregation has a whole model in one.
LONG = 16 * 1024


def encode_content(content: RecordSet) -> Fields:
    """Return the stream fields that hold ``content``; arrays are not copied.

    Raises:
        TypeError, ValueError: a value changed after it was assigned to a type that a record does not take.
        MessageTooLarge: more than `frame.MAX_MESSAGE_BYTES`, or more records, lists and arrays than a receiver takes.
    """
    buffers: list[bytes | memoryview] = []
    parameters = {
        name: {key: _describe(array, buffers) for key, array in record.items()}
        for name, record in content.parameters_records.items()
    }
    metrics = {name: _checked(record) for name, record in content.metrics_records.items()}
    configs = {name: _without_long(_checked(record), buffers) for name, record in content.configs_records.items()}
    try:
        fields: Fields = {CONTENT: pack([parameters, metrics, configs, *_order_of(content)], MAX_CONTENT_BYTES)}
    except MessageTooLarge as error:
        raise MessageTooLarge(
            f"metrics and configs are too large: {error}: put large data into arrays, or into bytes of a config"
        ) from None
    if len(buffers) > MAX_ARRAYS:
        raise MessageTooLarge(
            f"the content has {len(buffers):,} arrays and long bytes, at most {MAX_ARRAYS:,} are allowed"
        )
    if len(fields[CONTENT]) > MAX_CONTAINERS:  # each takes a byte at least
        count = _count_containers(parameters, metrics, configs, len(buffers))
        if count > MAX_CONTAINERS:
            raise MessageTooLarge(
                f"the content makes {count:,} lists and maps, at most {MAX_CONTAINERS:,} are allowed, one for each "
                "record and list and two for each array: put numbers into fewer, longer lists, or into arrays"
            )
    for index, buffer in enumerate(buffers):
        fields[b"%d" % index] = buffer
    size = size_of(fields)
    if size > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"the content has {size:,} bytes, the limit is {MAX_MESSAGE_BYTES:,} bytes: send fewer or smaller arrays"
        )
    return fields


def decode_content(fields: Mapping[bytes, bytes | memoryview]) -> RecordSet:
    """Return the RecordSet that `encode_content` made; arrays are read-only views on ``fields``.

    Raises:
        FrameError: a description that is malformed or does not fit the buffers.
    """
    description = _description(fields.get(CONTENT))
    buffers = _Buffers(fields)
    with _malformed():
        parameters, metrics, configs, *order = description
        kinds: list[dict[str, Record]] = [
            {name: _parameters(record, buffers) for name, record in parameters.items()},
            {name: MetricsRecord(record) for name, record in metrics.items()},
            {name: ConfigsRecord(_with_long(record, buffers)) for name, record in configs.items()},
        ]
        content = RecordSet()
        content.add(_in_order(kinds, *order))
        return content


def check_description(data: bytes | memoryview, sizes: Sequence[int]) -> None:
    """Check that a description fits buffers of these ``sizes``, before any of them is there.

    Raises:
        FrameError: it does not, or is malformed.
    """
    with _malformed():
        parameters, _, configs, *_ = _description(data)
        declared = [_size_of(item) for record in parameters.values() for item in record.values()]
        declared += [size for record in configs.values() for value in record.values() for size in _long_sizes(value)]
    if declared != list(sizes):
        raise FrameError("the arrays that the content describes are not the ones that its manifest holds")


def _description(data: bytes | memoryview | None) -> list[Any]:
    description = unpack(data, MAX_CONTENT_BYTES)
    if not isinstance(description, list) or len(description) not in (3, 4):
        raise FrameError("the content is not a list of three kinds of records, and their order")
    return description


def _count_containers(
    parameters: dict[str, dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    configs: dict[str, dict[str, Any]],
    buffers: int,
) -> int:
    """Return how many lists and maps a description has, as `frame.unpack` counts them, without a look into each list.

    An array is a list with its shape in it, long bytes are a map: so each buffer is one, and each array one more.
    """
    arrays = sum(map(len, parameters.values()))
    lists = sum(
        isinstance(value, list)
        for records in (metrics, configs)
        for record in records.values()
        for value in record.values()
    )
    return 4 + len(parameters) + len(metrics) + len(configs) + buffers + arrays + lists


def _order_of(content: RecordSet) -> list[bytes]:
    """Return the kind of each record, one byte each, where they do not stand in the order of the kinds."""
    order = bytes(map(KINDS.index, content.kinds()))
    return [] if order == bytes(sorted(order)) else [order]


def _in_order(kinds: list[dict[str, Record]], order: bytes | None = None) -> Iterator[tuple[str, Record]]:
    if order is None:
        for records in kinds:
            yield from records.items()
        return
    sorted_order = b"".join(bytes([kind]) * len(records) for kind, records in enumerate(kinds))
    if not isinstance(order, bytes) or len(order) != len(sorted_order) or bytes(sorted(order)) != sorted_order:
        raise FrameError("the order of the records is not one of the records")
    remaining = [iter(records.items()) for records in kinds]
    for kind in order:
        yield next(remaining[kind])


@contextmanager
def _malformed() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        raise FrameError(f"the content is malformed: {error}") from None


def digest_of(content: Fields) -> bytes:
    """Return 16 bytes that tell one encoded content from another."""
    digest = sha256()
    for name, data in content.items():
        digest.update(b"%b %d " % (name, len(data)))
        digest.update(data)
    return digest.digest()[:16]


def frozen(content: Fields) -> Fields:
    """Return ``content`` with the arrays copied that share the app's memory: it stays as it is now."""
    return {name: data if isinstance(data, bytes) else bytes(data) for name, data in content.items()}


def _checked(record: MetricsRecord | ConfigsRecord) -> dict[str, Any]:
    record.check_items()  # a list may have grown since it was assigned
    return dict(record)


_SIZE = "size"


def _without_long(record: dict[str, Any], buffers: list[bytes | memoryview]) -> dict[str, Any]:
    """Return a config's values with what stands for long bytes, and put these into ``buffers``."""

    def short(item: Any) -> Any:
        if type(item) is not bytes or len(item) < LONG:
            return item
        buffers.append(item)
        return {_SIZE: len(item)}

    def described(value: Any) -> Any:
        return list(map(short, value)) if type(value) is list and value and type(value[0]) is bytes else short(value)

    return {key: described(value) for key, value in record.items()}


def _with_long(record: Any, buffers: "_Buffers") -> dict[str, Any]:
    """Return a config's values with long bytes in their places."""

    def whole(item: Any) -> Any:
        return bytes(buffers.take(_long_size(item))) if type(item) is dict else item

    def value_of(value: Any) -> Any:
        return list(map(whole, value)) if type(value) is list else whole(value)

    return {key: value_of(value) for key, value in record.items()}


def _long_sizes(value: Any) -> list[int]:
    """Return the declared sizes of the long bytes in a config's value."""
    return [_long_size(item) for item in (value if type(value) is list else [value]) if type(item) is dict]


def _long_size(item: dict[Any, Any]) -> int:
    size = item.get(_SIZE)
    if len(item) != 1 or type(size) is not int or size < LONG:
        raise FrameError(f"long bytes are described by {reprlib.repr(item)}, not by their size")
    return size


def _describe(array: Array, buffers: list[bytes | memoryview]) -> list[Any]:
    if array.stype == SType.NUMPY:
        _check_numpy(array.dtype, array.shape, array.data)
    buffers.append(array.data)
    return [array.dtype, list(array.shape), array.stype, len(array.data)]


class _Buffers:
    """Hands out the buffer fields in their order."""

    def __init__(self, fields: Mapping[bytes, bytes | memoryview]) -> None:
        self._fields = fields
        self._next = 0

    def take(self, size: int) -> bytes | memoryview:
        data = self._fields.get(b"%d" % self._next)
        if data is None or len(data) != size:
            found = "none" if data is None else f"{len(data)} bytes"
            raise FrameError(f"array {self._next} declares {size} bytes, its buffer holds {found}")
        self._next += 1
        return data


def _parameters(record: Any, buffers: _Buffers) -> ParametersRecord:
    return ParametersRecord({key: _array(item, buffers) for key, item in record.items()}, keep_input=True)


def _array(item: Any, buffers: _Buffers) -> Array:
    dtype, shape, stype, size = _checked_item(item)
    data = buffers.take(size)
    if stype == SType.NUMPY:
        _check_numpy(dtype, shape, data)
    return Array(dtype, tuple(shape), stype, data)


def _checked_item(item: Any) -> tuple[str, list[int], str, int]:
    """Return what describes an array."""
    if not isinstance(item, list) or len(item) != 4:
        raise FrameError("an array is not described by dtype, shape, stype and size")
    dtype, shape, stype, size = item
    if not (isinstance(dtype, str) and isinstance(stype, str) and type(size) is int):
        raise FrameError("an array's dtype, stype or size has the wrong type")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise FrameError(f"an array's shape is {reprlib.repr(shape)}, not a list of sizes")
    return dtype, shape, stype, size


def _size_of(item: Any) -> int:
    """Return the declared size of an array, which must be what its dtype and shape need, or that of an .npy file."""
    dtype, shape, stype, size = _checked_item(item)
    if stype == SType.NUMPY:
        _check_size(dtype, shape, size, exactly=False)
    return size


def _check_numpy(dtype: str, shape: Sequence[int], data: bytes | memoryview) -> None:
    _check_size(dtype, shape, len(data), exactly=data[: len(NPY_MAGIC)] != NPY_MAGIC)


def _check_size(dtype: str, shape: Sequence[int], size: int, *, exactly: bool) -> None:
    """Check a numpy array's size; ``exactly`` unless it is an .npy file, whose header comes before the elements."""
    itemsize = ITEMSIZE.get(dtype)
    if itemsize is None:
        raise FrameError(f"an array has dtype {reprlib.repr(dtype)}, which brokerfl does not carry")
    if len(shape) > MAX_DIMENSIONS:
        raise FrameError(f"an array has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are allowed")
    expected = itemsize * math.prod(shape)
    if size < expected or (exactly and size != expected):
        raise FrameError(f"an array of dtype {dtype} and shape {tuple(shape)} needs {expected} bytes, it has {size}")
