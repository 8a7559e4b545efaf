"""The values of an app that uses flwr's classes: how its records and arrays are recorded.

Owns that. `brokerfl.wire.values` owns all other types.
"""

from typing import Any

from brokerfl.flower import compat
from brokerfl.flower.records import arrays_of, flower_array, our_array, parameters_of
from brokerfl.wire.values import (
    ARRAY,
    ARRAY_RECORD,
    CONFIG_RECORD,
    METRIC_RECORD,
    RECORD_DICT,
    Codec,
    Decoder,
    Encoded,
    Encoder,
    Kind,
    RecordTypeError,
    record_kind,
)

__all__ = ["Encoded", "RecordTypeError", "decode", "encode", "is_recordable"]


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
)

encode, decode, is_recordable = _CODEC.encode, _CODEC.decode, _CODEC.is_recordable
