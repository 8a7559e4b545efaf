"""The latest model that a run has recorded, whether or not its ServerApp is alive.

Owns which one that is, and where it comes from. It must not know who recorded it, or how it is shown.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from brokerfl.broker.connection import Connection
from brokerfl.broker.steps import SavedSteps
from brokerfl.common import Array, FrameError, ParametersRecord, RecordMissing, RecordSet, RunLost
from brokerfl.wire.frame import CONTENT, MANIFEST
from brokerfl.wire.results import decode_result
from brokerfl.wire.steps import MODEL, RESULT, decode_pages, decode_value, named

#: Looks at a record that a ServerApp changes meanwhile.
_MOST_LOOKS = 10


class Model(NamedTuple):
    """A model.

    Attributes:
        arrays: by their names.
        origin: where it comes from, in words, such as "round 3".
    """

    arrays: Mapping[str, Array]
    origin: str


def read_model(connection: Connection, run_id: int) -> Model:
    """Return the latest model in the record of a run.

    Raises:
        RecordMissing: it has no record, or none with a model.
        RunLost: a part of the model is gone from Redis.
        FrameError: it cannot be read.
    """
    for _ in range(_MOST_LOOKS):
        saved = SavedSteps(connection, run_id, retention=0.0)
        saved.load()
        try:
            return _model_in(saved, run_id)
        except RunLost:  # unless its ServerApp has moved on since, and has deleted what it does not need any more
            former = saved.recorded.fields
            saved.load()
            if saved.recorded.fields == former:
                raise RunLost(f"the model of run {run_id} is incomplete: Redis has lost a part of it") from None
    raise RunLost(f"run {run_id} changes its record faster than it can be read: try again")


def _model_in(saved: SavedSteps, run_id: int) -> Model:
    fields = saved.recorded.fields
    if not fields:
        raise RecordMissing(
            f"run {run_id} has no record: strategies of flwr record their models, and driver.step(name, function) "
            "what it returns"
        )
    models = {int(step): field for step, field in named(fields, MODEL)}
    results = sorted(((*_number_and_name(rest), field) for rest, field in named(fields, RESULT)), reverse=True)
    candidates = [(_origin(fields, step), models[step]) for step in sorted(models, reverse=True)]
    candidates += [(f"step {name!r}", field) for _, name, field in results]
    for origin, field in candidates:
        arrays = _arrays_in(_value(saved, field, run_id))
        if arrays:
            return Model(arrays, origin)
    raise RecordMissing(f"the record of run {run_id} has no model")


def _number_and_name(rest: str) -> tuple[int, str]:
    number, _, name = rest.partition(":")
    return int(number), name


def _value(saved: SavedSteps, field: bytes, run_id: int) -> Any:
    try:
        if not {CONTENT, MANIFEST} & decode_value(field).keys():
            raise FrameError("it is sealed, or another version wrote it")
        return decode_result(saved.read(field))
    except ValueError as error:
        raise FrameError(f"the record of run {run_id} cannot be read: {error}") from None


def _origin(fields: Mapping[bytes, bytes], step: int) -> str:
    steps = decode_pages(fields)
    number = steps[step][1] if step < len(steps) else 0
    return f"round {number}" if number else "its beginning"


def _arrays_in(value: Any) -> Mapping[str, Array]:
    """Return the arrays of what an app calls its model; none if it is something else."""
    if isinstance(value, RecordSet):
        value = next(iter(value.parameters_records.values()), None)
    if isinstance(value, list | tuple):
        value = {str(place): each for place, each in enumerate(value)}
    if not isinstance(value, dict | ParametersRecord):
        return {}
    found = {str(name): _array(each) for name, each in value.items()}
    arrays = {name: array for name, array in found.items() if array is not None}
    return arrays if len(arrays) == len(found) else {}


def _array(value: Any) -> Array | None:
    if isinstance(value, Array):
        return value
    try:
        return Array(value)
    except TypeError:
        return None
