"""Codecs: a record of one kind to and from its part of a description, and the buffers next to that.

Owns the table of codecs, the counterpart of the table of kinds in `brokerfl.common.record`, and the checks on a record
that arrives: declared sizes against dtype and shape before an array is made. It must not know the other records of a
content, or the limits of the whole content.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic

from brokerfl.common import Array, ConfigsRecord, FrameError, MetricsRecord, ParametersRecord, SType
from brokerfl.common.dtypes import ITEMSIZE
from brokerfl.common.npy import NPY_MAGIC
from brokerfl.common.record import Record
from brokerfl.common.recordset import KINDS, R

Buffer = bytes | memoryview

#: numpy allows 64 dimensions since 2.0 (NPY_MAXDIMS).
MAX_DIMENSIONS = 64

#: From this size on, the bytes in a config are a buffer of their own: secure aggregation puts a whole model into one.
LONG = 16 * 1024


class Buffers:
    """The buffer fields of a content, in their order."""

    def __init__(self, fields: Mapping[bytes, Buffer]) -> None:
        self._fields = fields
        self._next = 0

    def take(self, size: int) -> Buffer:
        """Return the next buffer.

        Raises:
            FrameError: it is missing, or does not have ``size`` bytes.
        """
        data = self._fields.get(b"%d" % self._next)
        if data is None or len(data) != size:
            found = "none" if data is None else f"{len(data)} bytes"
            raise FrameError(f"array {self._next} declares {size} bytes, but its buffer holds {found}")
        self._next += 1
        return data


class Codec(Generic[R]):
    """How one kind of record is described. This class is for kinds whose values msgpack carries unchanged.

    Args:
        kind: the class of the records.
    """

    def __init__(self, kind: type[R]) -> None:
        self._kind = kind

    def encode(self, record: R, buffers: list[Buffer]) -> dict[str, Any]:
        """Return the description of a record, and append to ``buffers`` what travels next to the description.

        Raises:
            TypeError, ValueError: a list changed after it was assigned, to what the record does not take.
        """
        record.check_items()  # a list may have grown since it was assigned
        return dict(record.items())

    def decode(self, described: Any, buffers: Buffers) -> R:
        """Return the record that `encode` described.

        Raises:
            FrameError: it is malformed, or does not match its buffers.
            TypeError, ValueError, AttributeError: it is malformed in another way.
        """
        return self._kind(described)

    def sizes(self, described: Any) -> Iterable[int]:
        """Return the sizes that a described record declares for its buffers.

        Raises:
            FrameError, TypeError, ValueError, AttributeError: as for `decode`.
        """
        return ()

    def count_containers(self, described: dict[str, Any]) -> int:
        """Return how many lists and maps the description of a record contains, besides one for each buffer."""
        return sum(isinstance(value, list) for value in described.values())


class _Arrays(Codec[ParametersRecord]):
    """An array is a list: its dtype, shape, stype, and the size of its buffer."""

    def encode(self, record: ParametersRecord, buffers: list[Buffer]) -> dict[str, Any]:
        return {key: _describe(key, array, buffers) for key, array in record.items()}

    def decode(self, described: Any, buffers: Buffers) -> ParametersRecord:
        return ParametersRecord({key: _array(item, buffers) for key, item in described.items()}, keep_input=True)

    def sizes(self, described: Any) -> Iterable[int]:
        return map(_size_of, described.values())

    def count_containers(self, described: dict[str, Any]) -> int:
        return len(described)  # the shapes


class _Configs(Codec[ConfigsRecord]):
    """Long bytes are a buffer, described by a map with their size; no value of a config is a map."""

    def encode(self, record: ConfigsRecord, buffers: list[Buffer]) -> dict[str, Any]:
        record.check_items()
        return _without_long(record, buffers)

    def decode(self, described: Any, buffers: Buffers) -> ConfigsRecord:
        return super().decode(_with_long(described, buffers), buffers)

    def sizes(self, described: Any) -> Iterable[int]:
        return (size for value in described.values() for size in _long_sizes(value))


#: The codec of each kind of record.
CODECS: dict[type[Record[Any]], Codec[Any]] = {
    ParametersRecord: _Arrays(ParametersRecord),
    MetricsRecord: Codec(MetricsRecord),
    ConfigsRecord: _Configs(ConfigsRecord),
}

if KINDS.keys() != CODECS.keys():
    _names = ", ".join(sorted(kind.__name__ for kind in KINDS.keys() ^ CODECS.keys()))
    raise TypeError(f"a kind of record must be both in the table of RecordSet and in CODECS, unlike {_names}")


# Long bytes.

_SIZE = "size"


def _without_long(record: ConfigsRecord, buffers: list[Buffer]) -> dict[str, Any]:
    """Return a config's values with long bytes replaced by their sizes, and append these bytes to ``buffers``."""

    def short(item: Any) -> Any:
        if type(item) is not bytes or len(item) < LONG:
            return item
        buffers.append(item)
        return {_SIZE: len(item)}

    def described(value: Any) -> Any:
        return list(map(short, value)) if type(value) is list and value and type(value[0]) is bytes else short(value)

    return {key: described(value) for key, value in record.items()}


def _with_long(record: Any, buffers: Buffers) -> dict[str, Any]:
    """Return a config's values with the long bytes put back."""

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


# Arrays.


def _describe(key: str, array: Array, buffers: list[Buffer]) -> list[Any]:
    if array.stype == SType.NUMPY:
        try:
            _check_numpy(array.dtype, array.shape, array.data)
        except FrameError as error:
            raise FrameError(f"ParametersRecord[{key!r}]: {error}") from None
    buffers.append(array.data)
    return [array.dtype, list(array.shape), array.stype, len(array.data)]


def _array(item: Any, buffers: Buffers) -> Array:
    dtype, shape, stype, size = _checked_item(item)
    data = buffers.take(size)
    if stype == SType.NUMPY:
        _check_numpy(dtype, shape, data)
    return Array(dtype, tuple(shape), stype, data)


def _checked_item(item: Any) -> tuple[str, list[int], str, int]:
    """Return dtype, shape, stype and size of a described array."""
    if not isinstance(item, list) or len(item) != 4:
        raise FrameError("an array is not described by dtype, shape, stype and size")
    dtype, shape, stype, size = item
    if not (isinstance(dtype, str) and isinstance(stype, str) and type(size) is int):
        raise FrameError("an array's dtype, stype or size has the wrong type")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise FrameError(f"an array's shape is {reprlib.repr(shape)}, not a list of sizes")
    return dtype, shape, stype, size


def _size_of(item: Any) -> int:
    """Return the declared size of an array, which must match its dtype and shape, or be that of an .npy file."""
    dtype, shape, stype, size = _checked_item(item)
    if stype == SType.NUMPY:
        _check_size(dtype, shape, size, exactly=False)
    return size


def _check_numpy(dtype: str, shape: Sequence[int], data: Buffer) -> None:
    _check_size(dtype, shape, len(data), exactly=data[: len(NPY_MAGIC)] != NPY_MAGIC)


def _check_size(dtype: str, shape: Sequence[int], size: int, *, exactly: bool) -> None:
    """Check a numpy array's size; not ``exactly`` for an .npy file, whose header precedes the elements."""
    itemsize = ITEMSIZE.get(dtype)
    if itemsize is None:
        raise FrameError(f"an array has dtype {reprlib.repr(dtype)}, which brokerfl does not carry")
    if len(shape) > MAX_DIMENSIONS:
        raise FrameError(f"an array has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
    expected = itemsize * math.prod(shape)
    if size < expected or (exactly and size != expected):
        raise FrameError(f"an array of dtype {dtype} and shape {tuple(shape)} needs {expected} bytes, but has {size}")
