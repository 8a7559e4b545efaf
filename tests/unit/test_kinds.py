"""The table of kinds: what an entry makes of a class of records, and what a side without the entry says."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from brokerfl.common import (
    Array,
    ConfigsRecord,
    FrameError,
    Message,
    MessageTooLarge,
    Metadata,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
)
from brokerfl.common.record import Record
from brokerfl.common.recordset import KINDS, Kind
from brokerfl.wire import codec, frame, record
from brokerfl.wire.codec import CODECS, Codec
from brokerfl.wire.frame import pack, unpack
from brokerfl.wire.record import check_description, decode_content, encode_content


class TextsRecord(Record[list[str]]):
    """Lists of str by name."""

    def check_value(self, value: Any) -> None:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise TypeError(f"a list of str is needed, not {value!r}")


class Beside(Codec[TextsRecord]):
    """A codec that keeps texts in buffers, as those of arrays are."""

    def encode(self, record: TextsRecord, buffers: list[bytes | memoryview]) -> dict[str, Any]:
        data = {key: "\n".join(texts).encode() for key, texts in record.items()}
        buffers += data.values()
        return {key: [len(text)] for key, text in data.items()}

    def decode(self, described: Any, buffers: codec.Buffers) -> TextsRecord:
        return TextsRecord({key: bytes(buffers.take(size)).decode().splitlines() for key, [size] in described.items()})

    def sizes(self, described: Any) -> Iterable[int]:
        return (size for [size] in described.values())

    def count_containers(self, described: dict[str, Any]) -> int:
        return 0


@pytest.fixture
def unregister() -> Iterator[Callable[[], None]]:
    """A fourth kind of record, by one entry and its codec; the function takes both back, as the end of a test does."""
    entry = Kind("texts", TextsRecord)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordSet, "texts_records", entry, raising=False)  # as a line of the table does
        patch.setitem(KINDS, TextsRecord, entry)
        patch.setitem(CODECS, TextsRecord, Codec(TextsRecord))
        yield patch.undo
    assert not hasattr(RecordSet, "texts_records")


def texts(*items: str) -> TextsRecord:
    return TextsRecord({"t": list(items)})


def mixed() -> RecordSet:
    """Records of all four kinds, in no order of kinds; two have the same name."""
    content = RecordSet({"t": texts("a", "b"), "c": ConfigsRecord({"lr": 0.5, "long": b"x" * codec.LONG})})
    content.add([("p", ParametersRecord({"w": Array("uint8", (3,), "numpy.ndarray", b"abc")})), ("c", texts())])
    content["m"] = MetricsRecord({"n": [1, 2]})
    return content


def containers(tree: Any) -> int:
    """How many lists and maps there are in what was unpacked."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if inner is None else 1 + sum(map(containers, inner))


@pytest.mark.parametrize("coded", [Codec, Beside])
def test_a_new_kind_travels(unregister: Callable[[], None], coded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry and its codec: names, order and values survive the wire, in the description and in buffers."""
    monkeypatch.setitem(CODECS, TextsRecord, coded(TextsRecord))
    fields = encode_content(mixed())
    received = decode_content(fields)
    assert received == mixed()
    assert [(name, type(each)) for name, each in received.records()] == [
        ("t", TextsRecord), ("c", ConfigsRecord), ("p", ParametersRecord), ("c", TextsRecord), ("m", MetricsRecord),
    ]  # fmt: skip
    assert received.texts_records["t"] == {"t": ["a", "b"]}  # type: ignore[attr-defined]
    check_description(fields[b"c"], [len(fields[b"%d" % index]) for index in range(len(fields) - 1)])
    *_, order, further = unpack(fields[b"c"], 10**6)
    assert (order, list(further), list(further["texts"])) == (b"\x03\x02\x00\x03\x01", ["texts"], ["t", "c"])


@pytest.mark.parametrize("coded", [Codec, Beside])
def test_its_lists_are_counted(unregister: Callable[[], None], coded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender counts the lists and maps of a new kind as the receiver does."""
    monkeypatch.setitem(CODECS, TextsRecord, coded(TextsRecord))
    fields = encode_content(mixed())
    count = containers(unpack(fields[b"c"], 10**6))
    for module in (record, frame):
        monkeypatch.setattr(module, "MAX_CONTAINERS", count)
    assert decode_content(encode_content(mixed())) == mixed()
    for module in (record, frame):
        monkeypatch.setattr(module, "MAX_CONTAINERS", count - 1)
    with pytest.raises(MessageTooLarge, match=f"makes {count} lists and maps; at most {count - 1} are allowed"):
        encode_content(mixed())
    with pytest.raises(FrameError, match=f"more than {count - 1}"):
        decode_content(fields)


def test_a_record_set_treats_a_new_kind_as_the_others(unregister: Callable[[], None]) -> None:
    """It is found by name, compared, copied, shown, counted and checked, and has a property."""
    content = RecordSet({"m": MetricsRecord({"n": 1}), "t": texts("a")})
    assert list(content) == ["m", "t"]
    assert content["t"] == content.texts_records["t"] == {"t": ["a"]}  # type: ignore[attr-defined]
    assert content == content.copy() == RecordSet({"t": texts("a"), "m": MetricsRecord({"n": 1})})
    assert content != RecordSet({"m": MetricsRecord({"n": 1}), "t": texts("b")})
    assert repr(content) == (
        "RecordSet(parameters_records={}, metrics_records={'m': MetricsRecord({'n': 1})}, configs_records={}, "
        "texts_records={'t': TextsRecord({'t': ['a']})})"
    )
    assert content.count_bytes() == 2 + 9 + 2
    message = Message(Metadata(1, "", 2, 3, "", "", 1.0, "train"), content=content)
    assert "content: 0 parameters, 1 metrics, 0 configs, 1 texts, 13 bytes" in repr(message)
    with pytest.raises(TypeError, match=r"RecordSet\['x'\]: expected a TextsRecord, not MetricsRecord"):
        content.texts_records["x"] = MetricsRecord()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="MetricsRecord, ConfigsRecord, TextsRecord, not dict"):
        content["x"] = {}  # type: ignore[assignment]
    content["m"] = texts()
    assert not content.metrics_records
    del content["t"]
    assert content.records() == [("m", {"t": []})]


def test_a_side_without_the_kind_names_it(unregister: Callable[[], None]) -> None:
    """An older decoder refuses such a content by the name of the kind, before it takes the arrays or any other part."""
    fields = encode_content(RecordSet({"m": MetricsRecord({"n": 1}), "t": texts("a")}))
    unregister()
    for refuse in (lambda: decode_content(fields), lambda: check_description(fields[b"c"], [])):
        with pytest.raises(FrameError, match="records of kind 'texts', which this side does not know: run the same"):
            refuse()
    with pytest.raises(TypeError, match="ParametersRecord, MetricsRecord, ConfigsRecord, not TextsRecord"):
        RecordSet({"t": texts()})


def test_an_entry_changes_no_content_without_its_records(unregister: Callable[[], None]) -> None:
    """A side that knows a kind more sends the same bytes, as long as it sends no record of that kind."""
    content = RecordSet({"c": ConfigsRecord({"lr": 0.5}), "m": MetricsRecord({"n": 1})})
    fields = encode_content(content)
    unregister()
    assert encode_content(RecordSet(dict(content.records()))) == fields
    assert decode_content(fields) == RecordSet(dict(content.records()))


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ([{}], "the order of the records does not list"),
        ([{}, {}], "not a list of three kinds"),
        ([b"", b""], "not a list of three kinds"),
        ([b"", b"", {"texts": {}}], "not a list of three kinds"),
        ([{"texts": {}}, b""], "not a list of three kinds"),
        ([{"metrics": {}}], "kind 'metrics', which this side does not know"),
        ([{b"texts": {}}], "kind b'texts', which this side does not know"),
        ([{"texts": {}, "x" * 100: {}}], r"kind 'xxxxxxxxxxxx\.\.\.xxxxxxxxxxxxx', which"),
        ([{"texts": 5}], "is malformed"),
        ([{"texts": {"t": 5}}], "is malformed"),
        ([{"texts": {"t": {"a": [1]}}}], "a list of str is needed"),
        ([b"\x03\x03", {"texts": {"t": {}}}], "the order of the records does not list"),
        ([b"\x00", {"texts": {"t": {}}}], "the order of the records does not list"),
    ],
)
def test_malformed_further_kinds(unregister: Callable[[], None], rest: list[Any], reason: str) -> None:
    """What stands behind the first three kinds is checked like these."""
    with pytest.raises(FrameError, match=reason):
        decode_content({b"c": pack([{}, {}, {}, *rest])})


def test_the_bytes_of_the_first_three_kinds() -> None:
    """They are those of every version: three maps by place, and an order only where it is another."""
    content = RecordSet(
        {"p": ParametersRecord({"w": Array("uint8", (3,), "numpy.ndarray", b"abc")})},
        {"m": MetricsRecord({"n": 3, "x": [0.5]})},
        {"c": ConfigsRecord({"a": "text", "b": b"bytes", "l": [True], "z": b"z" * codec.LONG})},
    )
    description = (
        b"\x01\x93\x81\xa1p\x81\xa1w\x94\xa5uint8\x91\x03\xadnumpy.ndarray\x03"
        b"\x81\xa1m\x82\xa1n\x03\xa1x\x91\xcb\x3f\xe0\0\0\0\0\0\0"
        b"\x81\xa1c\x84\xa1a\xa4text\xa1b\xc4\x05bytes\xa1l\x91\xc3\xa1z\x81\xa4size\xcd\x40\x00"
    )
    assert encode_content(content) == {b"c": description, b"0": b"abc", b"1": b"z" * codec.LONG}
    assert encode_content(RecordSet()) == {b"c": b"\x01\x93\x80\x80\x80"}
    turned = RecordSet({"c": ConfigsRecord(), "m": MetricsRecord(), "p": ParametersRecord()})
    assert encode_content(turned) == {b"c": b"\x01\x94\x81\xa1p\x80\x81\xa1m\x80\x81\xa1c\x80\xc4\x03\x02\x01\x00"}


def test_the_table() -> None:
    """The first three kinds keep their names and places, and each kind is the property that it says."""
    assert [(kind.name, kind.record) for kind in KINDS.values()][:3] == [
        ("parameters", ParametersRecord), ("metrics", MetricsRecord), ("configs", ConfigsRecord),
    ]  # fmt: skip
    assert all(getattr(RecordSet, kind.attribute) is kind for kind in KINDS.values())
    assert {kind: kind.record for kind in KINDS.values()} == dict(zip(KINDS.values(), KINDS, strict=True))
    with pytest.raises(AttributeError, match="metrics_records of a RecordSet cannot be assigned to"):
        RecordSet().metrics_records = {}  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("KINDS[Record] = Kind('texts', Record)", "Record"),
        ("del KINDS[ConfigsRecord]", "ConfigsRecord"),
    ],
    ids=["an entry without a codec", "a codec without an entry"],
)
def test_entry_and_codec_come_together(change: str, name: str) -> None:
    """The wire layer cannot be imported while a kind has only one of the two; the error names the kind."""
    imports = "from brokerfl.common.record import *\nfrom brokerfl.common.recordset import *"
    code = f"{imports}\n{change}\nimport brokerfl.wire.record"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(f"in the table of RecordSet and in CODECS, unlike {name}\n")
