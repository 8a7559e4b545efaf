"""The values of an app that uses flwr's classes: how its records and arrays are recorded.

Owns that, and that an ndarray has the chunks that it has when flwr sends it. `brokerfl.wire.values` owns all other
types.
"""

from io import BytesIO
from typing import Any

from brokerfl.common import Array
from brokerfl.common.npy import load_numpy
from brokerfl.flower import compat
from brokerfl.flower.records import arrays_of, flower_array, our_array, parameters_of
from brokerfl.wire.values import (
    ARRAY,
    ARRAY_RECORD,
    CONFIG_RECORD,
    METRIC_RECORD,
    NDARRAY,
    RECORD_DICT,
    Codec,
    Decoder,
    Encoded,
    Encoder,
    Kind,
    RecordTypeError,
    check_ndarray,
    record_kind,
)

__all__ = ["Encoded", "RecordTypeError", "decode", "encode", "is_recordable"]


def _encode_ndarray(encoder: Encoder, value: Any) -> list[Any]:
    check_ndarray(value)
    return [encoder.add(value, lambda: _npy(value))]


def _npy(value: Any) -> Array:
    """Return an ndarray as flwr sends it, so that equal ones have equal chunks."""
    return our_array(compat.array_of(str(value.dtype), value.shape, "numpy.ndarray", saved(value)))


def saved(value: Any) -> bytes:
    """Return what numpy saves an ndarray as."""
    numpy, file = load_numpy(), BytesIO()
    if value.dtype.kind not in "biufc" or not value.flags.c_contiguous or not value.size:
        numpy.save(file, value, allow_pickle=False)
        return file.getvalue()
    # Into a file, numpy writes the elements by way of two more copies, and FedAdam has four models in each record.
    numpy.lib.format.write_array_header_1_0(file, numpy.lib.format.header_data_from_array_1_0(value))
    return b"".join((file.getvalue(), value.reshape(-1).view(numpy.uint8)))


def _load(decoder: Decoder, rest: list[Any]) -> Any:
    return load_numpy().load(BytesIO(bytes(decoder.arrays[rest[0]].data)), allow_pickle=False)


def _encode_array(encoder: Encoder, value: Any) -> list[Any]:
    return [encoder.add(bytes(value.data), lambda: our_array(value))]


def _load_array(decoder: Decoder, rest: list[Any]) -> Any:
    return flower_array(decoder.arrays[rest[0]])


_RECORD_DICT = Kind(
    RECORD_DICT,
    lambda encoder, value: [[name, encoder.tree(record)] for name, record in compat.records_of(value)],
    lambda decoder, rest: compat.record_dict_of([(name, decoder.value(record)) for name, record in rest]),
)

#: Legacy strategies have their models in these. brokerfl's own apps have nothing like them.
_PARAMETERS = Kind(
    "P",
    lambda encoder, value: [value.tensor_type, encoder.tree(arrays_of(value))],
    lambda decoder, rest: parameters_of(decoder.value(rest[1]), rest[0]),
)

_CODEC = Codec(
    (
        (compat.Parameters, _PARAMETERS),
        (compat.ArrayRecord, record_kind(ARRAY_RECORD, compat.ArrayRecord, compat.items_of)),
        (compat.MetricRecord, record_kind(METRIC_RECORD, compat.MetricRecord, compat.items_of)),
        (compat.ConfigRecord, record_kind(CONFIG_RECORD, compat.ConfigRecord, compat.items_of)),
        (compat.RecordDict, _RECORD_DICT),
        (compat.Array, Kind(ARRAY, _encode_array, _load_array)),
    ),
    Kind(NDARRAY, _encode_ndarray, _load),
)

encode, decode, is_recordable = _CODEC.encode, _CODEC.decode, _CODEC.is_recordable
