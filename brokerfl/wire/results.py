"""Values of an app that uses brokerfl's classes, as the contents that a record of steps has.

Owns how its records and arrays are recorded, with copies of their memory, and reads the models that flwr's apps
recorded. `values` owns all other types. It must not know who records, or where.
"""

from typing import Any

from brokerfl.common import Array, ConfigsRecord, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.wire.steps import pack_tree, tree_and_arrays, value_of
from brokerfl.wire.values import (
    ARRAY,
    ARRAY_RECORD,
    CONFIG_RECORD,
    METRIC_RECORD,
    RECORD_DICT,
    Codec,
    Decoder,
    Encoder,
    Kind,
    record_kind,
)


def encode_result(value: Any) -> RecordSet:
    """Return a value as a content, which shares no memory with it.

    Raises:
        RecordTypeError: it is, or contains, something that cannot be recorded; the text names its type.
        ValueError, MessageTooLarge: as `steps.pack_tree` and `steps.value_of`.
    """
    encoded = _CODEC.encode(value)
    return value_of(pack_tree(encoded.tree), encoded.arrays())


def decode_result(content: RecordSet) -> Any:
    """Return the value that `encode_result` was given, equal and not the same.

    Raises:
        FrameError, ValueError: malformed.
    """
    return _CODEC.decode(*tree_and_arrays(content))


def _encode_array(encoder: Encoder, value: Array) -> list[Any]:
    data = bytes(value.data)
    return [encoder.add(data, lambda: Array(value.dtype, value.shape, value.stype, data))]


def _encode_set(encoder: Encoder, value: RecordSet) -> list[Any]:
    return [[name, encoder.tree(record)] for name, record in value.records()]


def _fill_set(decoder: Decoder, value: RecordSet, rest: list[Any]) -> None:
    value.add((name, decoder.value(record)) for name, record in rest)


def _items(record: Any) -> Any:
    return record.items()


_CODEC = Codec(
    (
        (ParametersRecord, record_kind(ARRAY_RECORD, ParametersRecord, _items)),
        (MetricsRecord, record_kind(METRIC_RECORD, MetricsRecord, _items)),
        (ConfigsRecord, record_kind(CONFIG_RECORD, ConfigsRecord, _items)),
        (RecordSet, Kind(RECORD_DICT, _encode_set, lambda decoder, rest: RecordSet(), _fill_set)),
        (Array, Kind(ARRAY, _encode_array, lambda decoder, rest: decoder.arrays[rest[0]])),
    ),
)
