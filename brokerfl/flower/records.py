"""Records, converted to and from flwr's, without loss.

Owns the conversion in both directions. It must not know messages, runs or nodes.

The bytes of arrays do not change. What flwr calls ``numpy.ndarray`` is an .npy file; if brokerfl can check its dtype
and shape, it travels as brokerfl's own array, so that apps that use brokerfl's classes can read it. Others travel as
opaque data with a stype of their own: legacy strategies give neither dtype nor shape, and numpy has dtypes that
brokerfl does not carry.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from brokerfl.common import Array, ConfigsRecord, MetricsRecord, ParametersRecord, RecordSet, SType
from brokerfl.common.array import is_npy, npy_of
from brokerfl.common.npy import check_npy
from brokerfl.common.record import Record
from brokerfl.flower import compat

#: Prefix of the stype of an array that the wire layer does not inspect.
_OPAQUE = "flwr:"

#: How a value of a subclass becomes one of the type itself: str() of an enum that is also a str returns its name.
_CONVERSIONS: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
}


def record_set_of(records: Any) -> RecordSet:
    """Return flwr's RecordDict or RecordSet as brokerfl's. Arrays share their memory, which flwr never changes.

    Raises:
        TypeError, ValueError: a value that flwr accepts but that cannot be sent, such as an integer above 2**64 - 1.
    """
    made = RecordSet()
    made.add((name, _our_record(record)) for name, record in compat.records_of(records))
    return made


def _our_record(record: Any) -> Record[Any]:
    for kind in _KINDS:
        if isinstance(record, kind.flower):
            made = kind.ours()
            for key, value in compat.items_of(record):
                made[key] = kind.to_ours(value)
            return made
    raise TypeError(f"brokerfl has no kind of record for flwr's {type(record).__name__}")


def _plain(value: Any) -> Any:
    """Return a value of Python's own types: flwr accepts numpy's float64 and enums, because they are subclasses."""
    if isinstance(value, list):
        base: Any = _base(value[0]) if value else object
        return value if all(type(item) is base for item in value) else [_as(base, item) for item in value]
    base = _base(value)
    return value if type(value) is base else _as(base, value)


def _as(base: Any, value: Any) -> Any:
    is_subclass = base in _CONVERSIONS and isinstance(value, base)
    return _CONVERSIONS[base](value) if is_subclass else base(value)


def _base(value: Any) -> Any:
    return next((kind for kind in _CONVERSIONS if isinstance(value, kind)), type(value))


def our_array(array: Any) -> Array:
    """Return flwr's Array as brokerfl's, which shares its memory."""
    dtype, shape, stype = str(array.dtype), tuple(array.shape), array.stype
    data = array.data if isinstance(array.data, bytes) else bytes(array.data)
    made = Array(dtype, shape, stype, data)
    if stype.startswith(_OPAQUE) or (stype == SType.NUMPY and not _can_be_checked(made)):
        made.stype = _OPAQUE + stype
    return made


def _can_be_checked(array: Array) -> bool:
    """Return whether it is an .npy file with the declared dtype and shape, which flwr's numpy() does not check."""
    try:
        array.numpy()
    except (TypeError, ValueError):
        return False
    return is_npy(array)


def record_dict_of(content: RecordSet) -> Any:
    """Return brokerfl's records as flwr's RecordDict or RecordSet. Arrays are copied, because flwr's hold bytes.

    Raises:
        TypeError, ValueError: the data of an array do not match its dtype and shape, or flwr has no such record.
    """
    return compat.record_dict_of([(name, _flower_record(record)) for name, record in content.records()])


def _flower_record(record: Record[Any]) -> Any:
    for kind in _KINDS:
        if isinstance(record, kind.ours):
            made = kind.flower()
            for key, value in record.items():
                made[key] = kind.to_flower(value)
            return made
    raise TypeError(f"flwr has no kind of record for {type(record).__name__}")


def arrays_of(parameters: Any) -> Any:
    """Return the Parameters of a legacy strategy as the ArrayRecord that flwr sends of them."""
    stype = parameters.tensor_type
    arrays = compat.ArrayRecord()
    for number, tensor in enumerate(parameters.tensors):
        arrays[str(number)] = compat.array_of("", (), stype, tensor)
    return arrays


def parameters_of(arrays: Any, stype: str = "") -> Any:
    """Return what `arrays_of` was given; without a ``stype``, with that of the first array."""
    found = [array for _, array in compat.items_of(arrays)]
    stype = stype or (found[0].stype if found else "")
    return compat.Parameters(tensors=[array.data for array in found], tensor_type=stype)


def flower_array(array: Array) -> Any:
    """Return an Array of flwr, whose numpy() trusts the header of an .npy file, and whose legacy code any stype."""
    stype, data = array.stype, array.data
    if stype == SType.NUMPY:
        data = data if is_npy(array) else npy_of(array)
    check_npy(data)
    return compat.array_of(array.dtype, array.shape, stype.removeprefix(_OPAQUE), bytes(data))


class _Kind(NamedTuple):
    """A kind of record that both sides have: the two classes, and how values are converted to each."""

    ours: type[Record[Any]]
    flower: Any
    to_ours: Callable[[Any], Any]
    to_flower: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


_KINDS = (
    _Kind(ParametersRecord, compat.ArrayRecord, our_array, flower_array),
    _Kind(MetricsRecord, compat.MetricRecord, _plain, _same),
    _Kind(ConfigsRecord, compat.ConfigRecord, _plain, _same),
)
