"""Records: what they take, what they refuse and when, and what they give back."""

import copy
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import pytest

from brokerfl.common import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigsRecord,
    Metadata,
    MetricRecord,
    MetricsRecord,
    ParametersRecord,
    RecordDict,
    RecordSet,
)


def zeros(n: int = 2) -> Array:
    return Array("uint8", (n,), "numpy.ndarray", bytes(n))


class Level(IntEnum):
    LOW = 1


WAYS_IN: dict[str, Callable[[Any, Any, Any], Any]] = {
    "assignment": lambda record, key, value: record.__setitem__(key, value),
    "update": lambda record, key, value: record.update({key: value}),
    "update with pairs": lambda record, key, value: record.update([(key, value)]),
    "setdefault": lambda record, key, value: record.setdefault(key, value),
    "|=": lambda record, key, value: record.__ior__({key: value}),
    "constructor": lambda record, key, value: type(record)({key: value}),
}


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("kind", [ParametersRecord, MetricsRecord, ConfigsRecord])
def test_checked_on_every_way_in(kind: type[Any], way: str) -> None:
    """A wrong value or key is refused on every way into a record, by a text that names it, and changes nothing."""
    record = kind()
    with pytest.raises(TypeError, match=rf"{kind.__name__}\['key'\]"):
        WAYS_IN[way](record, "key", {"a": "dict"})
    with pytest.raises(TypeError, match="a str, not int: 1"):
        WAYS_IN[way](record, 1, 1)
    assert len(record) == 0


@pytest.mark.parametrize("way", WAYS_IN)
def test_every_way_in_works(way: str) -> None:
    """A good value gets in on every way."""
    record = MetricsRecord()
    made = WAYS_IN[way](record, "loss", 0.5)
    assert {"loss": 0.5} in (record, made)


GOOD_METRICS = [1, 0.5, -(2**63), 2**64 - 1, float("inf"), [], [1, 2], [0.5, 1.0], np.float64(0.5), Level.LOW]
GOOD_METRICS += [[0.5, np.float64(1)], [np.float64(1), 0.5], [np.float64(1)], [1, Level.LOW]]
BAD_METRICS = [
    True,
    "text",
    b"bytes",
    None,
    (1, 2),
    [True],
    ["text"],
    [[1]],
    [None],
    [1, 2.0],
    [1, True],
    [0.5, np.float32(1)],
    [0.5, np.int64(1)],
    np.float32(1),
    np.int64(1),
    np.bool_(True),
    np.zeros(2),
    1j,
]


@pytest.mark.parametrize("value", GOOD_METRICS, ids=repr)
def test_metrics_take(value: Any) -> None:
    """int, float and lists of one of them are metrics, and are kept as they are."""
    assert MetricsRecord({"a": value})["a"] is value


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (np.float32(1), r"not float32: convert it with \.item\(\)$"),
        ([0.5, np.int64(1)], r"not int64 in a list: convert it with \.item\(\)$"),
        (np.zeros(2), r"not ndarray: use \.tolist\(\)$"),
        ("text", "not str$"),
    ],
)
def test_metrics_say_what_to_do(value: Any, hint: str) -> None:
    """A value of numpy's is refused with the way to one of Python's own."""
    with pytest.raises(TypeError, match=hint):
        MetricsRecord({"a": value})


@pytest.mark.parametrize("value", BAD_METRICS, ids=repr)
def test_metrics_refuse(value: Any) -> None:
    """A bool, any other type and a list of several types are no metrics."""
    with pytest.raises(TypeError):
        MetricsRecord({"a": value})


@pytest.mark.parametrize(
    "value", [True, 1, 0.5, "text", b"bytes", "", [], [True, False], [1], [0.5], ["a", "b"], [b"a"]], ids=repr
)
def test_configs_take(value: Any) -> None:
    """bool, int, float, str, bytes and lists of one of them are configs, and are kept as they are."""
    assert ConfigsRecord({"a": value})["a"] is value


@pytest.mark.parametrize(
    "value", [None, {}, ("a",), [1, True], [1, "a"], ["a", b"a"], [None], [["a"]], bytearray(b"a"), 1j], ids=repr
)
def test_configs_refuse(value: Any) -> None:
    """Any other type and a list of several types are no configs."""
    with pytest.raises(TypeError):
        ConfigsRecord({"a": value})


@pytest.mark.parametrize("kind", [MetricsRecord, ConfigsRecord])
@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [0, 2**64], [-(2**63) - 1, 0]], ids=repr)
def test_integers_beyond_64_bits(kind: type[Any], value: Any) -> None:
    """An int that msgpack cannot carry is a ValueError when it is put in, not when it is sent."""
    with pytest.raises(ValueError, match=r"\['a'\].*-2\*\*63 or above 2\*\*64 - 1"):
        kind({"a": value})


def test_the_text_names_the_types() -> None:
    """The error of a wrong value says what was given and what is taken."""
    with pytest.raises(TypeError, match=r"^MetricsRecord\['a'\]: expected an int, a float .* not str in a list$"):
        MetricsRecord({"a": ["x"]})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="one type only, not float and int"):
        ConfigsRecord({"a": [1, 2.0]})


def test_check_items_looks_again() -> None:
    """A list that grew wrong after it was put in is found by check_items, and named."""
    record = ConfigsRecord({"good": 1, "grown": [1]})
    record.check_items()
    grown = record["grown"]
    assert isinstance(grown, list)
    grown.append("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'grown'"):
        record.check_items()
    with pytest.raises(TypeError):
        record.check_value(grown)


def test_is_a_mapping() -> None:
    """A record keeps the order of insertion and does what a dict does."""
    record = MetricsRecord({"b": 1, "a": 2})
    record["c"] = 3
    record["b"] = 4
    assert list(record) == ["b", "a", "c"]
    assert list(record.items()) == [("b", 4), ("a", 2), ("c", 3)]
    assert record == {"b": 4, "a": 2, "c": 3}
    assert record != {"b": 4}
    assert record.pop("a") == 2
    del record["c"]
    assert "a" not in record
    assert record.get("a") is None
    assert len(record) == 1
    assert repr(record) == "MetricsRecord({'b': 4})"
    with pytest.raises(KeyError):
        record["a"]


@pytest.mark.parametrize("copied", [MetricsRecord.copy, copy.copy, copy.deepcopy])
def test_copies_are_apart(copied: Callable[[MetricsRecord], MetricsRecord]) -> None:
    """A copy is equal, of the same class, still checks, and does not follow the original."""
    record = MetricsRecord({"a": 1})
    other = copied(record)
    assert type(other) is MetricsRecord
    assert other == record
    record["b"] = 2
    assert other == {"a": 1}
    with pytest.raises(TypeError):
        other["c"] = "text"  # type: ignore[assignment]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("kind", "value"), [(ParametersRecord, zeros()), (MetricsRecord, 1), (ConfigsRecord, "x")])
def test_keep_input(kind: type[Any], value: Any, keep: bool) -> None:
    """keep_input says whether the given dict is emptied; the record does not depend on it."""
    given = {"a": value}
    record = kind(given, keep_input=keep)
    assert record == {"a": value}
    assert given == ({"a": value} if keep else {})


def test_keep_input_defaults() -> None:
    """As in Flower, ParametersRecord empties its dict unless told otherwise, and the others do not."""
    arrays = {"a": zeros()}
    ParametersRecord(arrays)
    assert arrays == {}
    for kind in (MetricsRecord, ConfigsRecord):
        given = {"a": 1}
        kind(given)
        assert given == {"a": 1}


def test_a_refused_dict_is_kept() -> None:
    """A dict with a wrong value in it is not emptied halfway."""
    given = {"a": zeros(), "b": 1}
    with pytest.raises(TypeError):
        ParametersRecord(given)  # type: ignore[arg-type]
    assert list(given) == ["a", "b"]


def test_numpy_lists() -> None:
    """A list of ndarrays becomes arrays "0", "1", …, and comes back as views in the same order, without a copy."""
    before = [np.arange(3.0), np.ones((2, 2), np.int8), np.array(5)]
    record = ParametersRecord(before)
    assert list(record) == ["0", "1", "2"]
    assert record == ParametersRecord.from_numpy_ndarrays(before)
    assert len(before) == 3
    after = record.to_numpy_ndarrays()
    for one, other in zip(after, before, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.shares_memory(one, other)
        assert not one.flags.writeable
    assert len(record) == 3


def test_more_than_ten_ndarrays() -> None:
    """The order of a list is that of the record, not that of its names as text."""
    before = [np.array(n) for n in range(12)]
    assert [int(a) for a in ParametersRecord(before).to_numpy_ndarrays()] == list(range(12))


def test_to_numpy_can_empty_the_record() -> None:
    """With keep_input=False the record is empty afterwards, and the ndarrays are still good."""
    record = ParametersRecord([np.arange(3)])
    (array,) = record.to_numpy_ndarrays(keep_input=False)
    assert len(record) == 0
    assert array.tolist() == [0, 1, 2]


def test_bad_ndarrays_are_named() -> None:
    """The error of a list says which of its items cannot be sent, and why."""
    with pytest.raises(TypeError, match=r"array '1': dtype object"):
        ParametersRecord([np.zeros(1), np.array([None])])
    with pytest.raises(TypeError, match=r"array '0': .* not float"):
        ParametersRecord([1.0])  # type: ignore[list-item]


def test_ndarray_as_value() -> None:
    """An ndarray is not an Array, and the error says how to make it one."""
    with pytest.raises(TypeError, match=r"ParametersRecord\['w'\]: .* not ndarray.*from_numpy_ndarrays"):
        ParametersRecord({"w": np.zeros(1)})  # type: ignore[dict-item]


def test_count_bytes() -> None:
    """Names count by their length, numbers 8, bools 1, text and bytes their length, arrays their data."""
    parameters = ParametersRecord({"ab": zeros(10)})
    metrics = MetricsRecord({"abc": 1, "d": [0.5, 0.5]})
    configs = ConfigsRecord({"a": True, "b": "xyz", "c": [b"1", b"22"], "d": [], "e": 1, "f": ""})
    assert parameters.count_bytes() == 2 + 10
    assert metrics.count_bytes() == 4 + 8 + 16
    assert configs.count_bytes() == 6 + 1 + 3 + 3 + 0 + 8 + 0
    both = RecordSet({"p": parameters}, {"m": metrics}, {"cc": configs})
    assert both.count_bytes() == 1 + 12 + 1 + 28 + 2 + 21


KINDS = {
    "parameters_records": ParametersRecord,
    "metrics_records": MetricsRecord,
    "configs_records": ConfigsRecord,
}


@pytest.mark.parametrize("way", sorted(set(WAYS_IN) - {"constructor"}))
@pytest.mark.parametrize("attribute", KINDS)
def test_record_set_takes_one_kind_each(attribute: str, way: str) -> None:
    """Each part of a RecordSet takes its kind of record on every way in, and no other."""
    content = RecordSet()
    part = getattr(content, attribute)
    WAYS_IN[way](part, "good", KINDS[attribute]())
    for kind in (*KINDS.values(), dict):
        if kind is not KINDS[attribute]:
            with pytest.raises(TypeError, match=rf"\['bad'\]: expected a {KINDS[attribute].__name__}"):
                WAYS_IN[way](part, "bad", kind())
    assert list(part) == ["good"]


@pytest.mark.parametrize("attribute", KINDS)
def test_record_set_arguments(attribute: str) -> None:
    """The parts of a RecordSet are given by the names of its attributes, and checked."""
    record = KINDS[attribute]()
    assert getattr(RecordSet(**{attribute: {"a": record}}), attribute)["a"] is record
    with pytest.raises(TypeError):
        RecordSet(**{attribute: {"a": {}}})  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        setattr(RecordSet(), attribute, {})


def test_record_set_equality() -> None:
    """RecordSets are equal when all three parts are; a deep copy is equal and goes its own way."""
    content = RecordSet({"p": ParametersRecord([np.ones(2)])}, {"m": MetricsRecord({"a": 1})})
    other = copy.deepcopy(content)
    assert content == other
    assert content != RecordSet()
    assert content != "content"
    other.metrics_records["m"]["a"] = 2
    assert content != other
    assert content.metrics_records["m"]["a"] == 1
    assert RecordSet(None, None, {"x": ConfigsRecord()}) != RecordSet(None, {"x": MetricsRecord()})


def test_record_set_repr() -> None:
    """The repr of a RecordSet shows its records and no array's data."""
    content = RecordSet({"p": ParametersRecord({"w": zeros(9)})}, {"m": MetricsRecord({"a": 1})})
    assert repr(content) == (
        "RecordSet(parameters_records={'p': ParametersRecord({'w': Array('uint8', (9,), 'numpy.ndarray', "
        "9 bytes)})}, metrics_records={'m': MetricsRecord({'a': 1})}, configs_records={})"
    )


def test_torch_state_dict() -> None:
    """A model's state_dict, bfloat16 included, comes back with the same keys, order, dtypes and values."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1).bfloat16())
    before = model.state_dict()
    record = ParametersRecord.from_torch_state_dict(before)
    after = record.to_torch_state_dict()
    assert list(record) == list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before)
    model.load_state_dict(after)
    after["0.weight"].zero_()
    assert not torch.equal(after["0.weight"], record["0.weight"].to_torch_tensor())


def test_torch_state_dict_names_what_is_no_tensor() -> None:
    """A state_dict with something else in it is a TypeError that names the key."""
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"array 'extra': .* not int"):
        ParametersRecord.from_torch_state_dict({"weight": torch.zeros(1), "extra": 1})


# As a mapping, and under Flower's newer names.


def test_record_set_is_a_mapping_of_all_kinds() -> None:
    """As Flower's RecordDict: a name has one record, whatever its kind; the order is the one of insertion."""
    content = RecordSet({"c": ConfigsRecord({"lr": 0.1}), "m": MetricsRecord({"n": 1})})
    content["a"] = ParametersRecord({"w": zeros()})
    assert list(content) == ["c", "m", "a"]
    assert content["m"] is content.metrics_records["m"]
    content["c"] = MetricsRecord({"n": 2})
    assert not content.configs_records
    assert content.records() == [(name, content[name]) for name in ("m", "a", "c")]
    del content["m"]
    assert len(content) == 2
    assert "m" not in content.metrics_records
    for wrong in ("m", "b"):
        with pytest.raises(KeyError, match=wrong):
            del content[wrong]
        with pytest.raises(KeyError, match=wrong):
            content[wrong]
    with pytest.raises(TypeError, match="a RecordSet holds ParametersRecord, MetricsRecord, ConfigsRecord, not dict"):
        content["d"] = {}  # type: ignore[assignment]
    assert not RecordSet()


def test_kinds_may_share_a_name() -> None:
    """Through the views by kind, as in Flower up to 1.17: both are there, in order, and one can go by itself."""
    content = RecordSet()
    content.configs_records["x"] = ConfigsRecord({"lr": 0.1})
    content.metrics_records["x"] = MetricsRecord({"n": 1})
    assert [(name, type(record)) for name, record in content.records()] == [("x", ConfigsRecord), ("x", MetricsRecord)]
    del content.configs_records["x"]
    assert content.records() == [("x", {"n": 1})]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda content: RecordSet(dict(content.records()))])
def test_a_copied_record_set_is_whole(copied: Callable[[RecordSet], RecordSet]) -> None:
    """A copy has the same records in the same order, and goes on taking records."""
    content = RecordSet({"m": MetricsRecord({"n": 1}), "a": ParametersRecord({"w": zeros()})})
    made = copied(content)
    assert made == content
    assert list(made) == ["m", "a"]
    made["c"] = ConfigsRecord({"lr": 0.1})
    assert list(made) == ["m", "a", "c"]


def test_a_copied_view_is_apart() -> None:
    """What is put into a copy of a view is not in the RecordSet, nor in its order."""
    content = RecordSet({"m": MetricsRecord({"n": 1})})
    view = content.metrics_records.copy()
    view["other"] = MetricsRecord()
    del view["m"]
    assert content.records() == [("m", {"n": 1})]


def test_names_that_flower_uses_today() -> None:
    """They are the same classes and attributes under other names."""
    assert (RecordDict, ArrayRecord, MetricRecord, ConfigRecord) == (
        RecordSet,
        ParametersRecord,
        MetricsRecord,
        ConfigsRecord,
    )
    content = RecordDict({"m": MetricRecord({"n": 1})})
    assert content.metric_records == {"m": {"n": 1}}
    assert content.array_records == content.config_records == {}
    assert Metadata(1, "", 2, 3, "abc", "", 1.0, "train").reply_to_message_id == "abc"
