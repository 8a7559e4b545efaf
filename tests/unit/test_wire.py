"""The wire format: what goes in comes out, and what is malformed is a FrameError before anything is allocated."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokerfl.common import (
    Array,
    ConfigsRecord,
    Error,
    FrameError,
    Message,
    MessageTooLarge,
    Metadata,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
)
from brokerfl.common.record import Record
from brokerfl.wire import codec, frame, record
from brokerfl.wire.frame import MAX_HEADER_BYTES, FrameVersionError, pack, unpack
from brokerfl.wire.message import decode_message, encode_message, is_message_id, message_id_of, new_message_id
from brokerfl.wire.origin import Origin
from brokerfl.wire.record import decode_content, encode_content
from brokerfl.wire.run import LedgerEntry, Run, decode_entry, decode_run, encode_entry, encode_run

METADATA = Metadata(
    run_id=2**64 - 1, message_id="", src_node_id=1, dst_node_id=2**63, reply_to_message="", group_id="ä", ttl=1.5,
    message_type="train",
)  # fmt: skip

numbers = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False))
metrics = st.one_of(numbers, st.lists(st.integers(-(2**63), 2**64 - 1)), st.lists(st.floats(allow_nan=False)))
scalars = (st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(), st.binary())
configs = st.one_of(*scalars, *(st.lists(kind) for kind in scalars))
names = st.text(max_size=8)
record_sets = st.builds(
    lambda m, c: RecordSet(
        metrics_records={key: MetricsRecord(value) for key, value in m.items()},
        configs_records={key: ConfigsRecord(value) for key, value in c.items()},
    ),
    st.dictionaries(names, st.dictionaries(names, metrics, max_size=4), max_size=3),
    st.dictionaries(names, st.dictionaries(names, configs, max_size=4), max_size=3),
)


def exact(records: RecordSet) -> list[tuple[object, ...]]:
    """Everything in a RecordSet with its type, so that 1, 1.0 and True differ."""
    return [
        (name, type(record), key, [(type(item), item) for item in (value if isinstance(value, list) else [value])])
        for name, record in records.records()
        for key, value in record.items()
    ]


def sample() -> RecordSet:
    return RecordSet(
        {"p": ParametersRecord({"w": Array(np.arange(12, dtype=np.float32).reshape(3, 4)), "b": Array(np.zeros(2))})},
        {"m": MetricsRecord({"n": 3, "x": [0.5, 1.5]})},
        {"c": ConfigsRecord({"a": "text", "b": b"bytes", "l": [True, False]})},
    )


def shuffled(records: RecordSet, order: list[tuple[str, Record[Any]]]) -> RecordSet:
    """The same records, put in in another order: kinds may alternate."""
    made = RecordSet()
    for name, each in order:
        made.of_kind(each)[name] = each
    assert made == records
    return made


@settings(max_examples=200, deadline=None)
@given(record_sets.flatmap(lambda r: st.permutations(r.records()).map(lambda order: shuffled(r, order))))
def test_records_come_back_exactly(records: RecordSet) -> None:
    """Names, order, values and their types survive the wire, whatever they are."""
    names = [(name, type(record)) for name, record in decode_content(encode_content(records)).records()]
    assert names == [(name, type(record)) for name, record in records.records()]
    assert exact(decode_content(encode_content(records))) == exact(records)


@settings(max_examples=200, deadline=None)
@given(record_sets, st.integers(0, 3), st.integers(0, 3))
def test_lists_and_maps_are_counted_as_the_receiver_counts(content: RecordSet, arrays: int, long: int) -> None:
    """What a sender may send a receiver takes: exactly as many lists and maps, or one too many."""
    content.parameters_records["p"] = ParametersRecord({str(i): Array(np.zeros(i)) for i in range(arrays)})
    content.configs_records["long"] = ConfigsRecord({"l": [b"x" * codec.LONG] * long, "one": b"y" * codec.LONG})
    with pytest.MonkeyPatch.context() as patch:
        counter = _counting(patch)
        decode_content(fields := encode_content(content))
        count = counter[0]._seen
        patch.setattr(record, "MAX_CONTAINERS", count)
        patch.setattr(frame, "MAX_CONTAINERS", count)
        assert encode_content(content) == fields
        decode_content(fields)
        for module in (record, frame):
            patch.setattr(module, "MAX_CONTAINERS", count - 1)
        with pytest.raises(MessageTooLarge, match=f"makes {count:,} lists and maps; at most {count - 1:,} are allowed"):
            encode_content(content)
        with pytest.raises(FrameError, match=f"more than {count - 1:,}"):
            decode_content(fields)


def _counting(patch: pytest.MonkeyPatch) -> list[frame._Count]:
    counters: list[frame._Count] = []

    class Counter(frame._Count):
        def __init__(self) -> None:
            super().__init__()
            counters.append(self)

    patch.setattr(frame, "_Count", Counter)
    return counters


def test_what_is_packed_can_be_unpacked() -> None:
    """The writer keeps the reader's limit of bytes, to the byte, also for a limit of its own."""
    for limit, options, before in ((MAX_HEADER_BYTES, (), 4), (100_000, (100_000,), 6)):
        fits = "x" * (limit - before)
        assert unpack(pack(fits, *options), *options) == fits
        assert len(pack(fits, *options)) == limit
        with pytest.raises(MessageTooLarge, match=f"{limit + 1:,} bytes exceeds the limit of {limit:,}"):
            pack(fits + "x", *options)
        with pytest.raises(FrameError, match=f"{limit + 1:,} bytes exceeds the limit of {limit:,}"):
            unpack(pack(fits + "x", 2 * limit), *options)


def test_long_bytes_of_a_config_are_buffers() -> None:
    """They are no part of the description, which has a limit, and come back in their places, alone and in lists."""
    long = b"x" * codec.LONG
    content = RecordSet(
        {
            "c": ConfigsRecord({"long": long, "list": [long + b"1", b"short", long], "one": [long], "short": long[1:]}),
            "p": ParametersRecord({"w": Array("uint8", (3,), "numpy.ndarray", b"abc")}),
        }
    )
    fields = encode_content(content)
    assert len(fields[b"c"]) < codec.LONG + 200
    assert [len(fields[b"%d" % index]) - codec.LONG for index in range(1, 5)] == [0, 1, 0, 0]
    record.check_description(fields[b"c"], [3, *(len(fields[b"%d" % index]) for index in range(1, 5))])
    assert exact(decode_content(fields)) == exact(content)
    with pytest.raises(FrameError, match="array 4 declares"):
        decode_content({**fields, b"4": long[1:]})
    with pytest.raises(FrameError, match="describes other arrays than its manifest holds"):
        record.check_description(fields[b"c"], [3])
    for size in (-1, 0, codec.LONG - 1, True, "9", None):
        with pytest.raises(FrameError, match="long bytes are described by"):
            decode_content({b"c": pack([{}, {}, {"c": {"a": {"size": size}}}])})


def test_an_order_that_is_none_is_refused() -> None:
    """The order of kinds has one byte for each record, looked at before anything else is done with it."""
    for order in (b"", b"\x02\x01", b"\x01", b"\x03", [1], bytes(10**6)):
        with pytest.raises(FrameError, match="the order of the records does not list the records"):
            decode_content({b"c": pack([{}, {}, {"c": {}}, order], 2 * 10**6)})


def test_arrays_are_not_copied() -> None:
    """Encoding takes the array's own memory, and decoding gives a read-only view on what was received."""
    array = np.arange(1000, dtype=np.float64)
    fields = encode_content(RecordSet({"p": ParametersRecord({"w": Array(array)})}))
    assert np.shares_memory(np.frombuffer(fields[b"0"], dtype=np.float64), array)
    received = decode_content(fields).parameters_records["p"]["w"].numpy()
    assert np.shares_memory(received, array)
    assert not received.flags.writeable


def test_a_broadcast_shares_its_content() -> None:
    """Two messages made of one encoded content hold the same buffers, not copies."""
    content = encode_content(sample())
    first, second = (encode_message(new_message_id(5), METADATA, content) for _ in range(2))
    assert first[b"0"] is second[b"0"]
    assert first[b"c"] is second[b"c"]


def test_headers_come_back() -> None:
    """The metadata of a message and the error of an Error reply survive; field i is the id, in every version."""
    fields = encode_message("a" * 32, METADATA, encode_content(RecordSet()))
    message = decode_message(fields)
    assert message.metadata == Metadata(**{**METADATA.__dict__, "message_id": "a" * 32})
    assert message_id_of({b"i": b"abc", b"h": b"\x63rubbish"}) == "abc"
    reply = Metadata(**{**METADATA.__dict__, "reply_to_message": "a" * 32})
    error = decode_message(encode_message("a" * 32, reply, error=Error(2, "ValueError: x")))
    assert (error.error.code, error.error.reason) == (2, "ValueError: x")


def test_another_version_is_named() -> None:
    """A header with another version byte raises an error that names both versions."""
    with pytest.raises(FrameVersionError, match="version 9, but this side speaks version 1"):
        unpack(b"\x09" + pack([])[1:])


def test_message_ids_are_of_one_run() -> None:
    """An id is recognised by its own run only; text that is no id is not."""
    made = new_message_id(77)
    assert is_message_id(77, made)
    assert not is_message_id(78, made)
    for other in ("", "x" * 32, made[:-1], made[:-1] + ("0" if made[-1] != "0" else "1"), made + "00"):
        assert not is_message_id(77, other)


def test_the_size_limit_counts_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Description and arrays together may not exceed the limit, and the error says both numbers."""
    monkeypatch.setattr(record, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(MessageTooLarge, match=r"1,\d\d\d bytes; the limit is 1,000 bytes"):
        encode_content(RecordSet({"p": ParametersRecord({"w": Array(np.zeros(125))})}))


@pytest.mark.parametrize(
    "item",
    [
        ["float32", [3], "numpy.ndarray", 11],
        ["float32", [2**62, 2**62], "numpy.ndarray", 12],
        ["float32", [-3], "numpy.ndarray", 12],
        ["float32", [True, 3], "numpy.ndarray", 12],
        ["float32", [3.0], "numpy.ndarray", 12],
        ["float32", [1] * 65 + [3], "numpy.ndarray", 12],
        ["object", [3], "numpy.ndarray", 12],
        ["O", [3], "numpy.ndarray", 12],
        [b"float32", [3], "numpy.ndarray", 12],
        ["float32", 3, "numpy.ndarray", 12],
        ["float32", [3], "numpy.ndarray"],
        "float32",
    ],
)
def test_declared_sizes_are_checked(item: object) -> None:
    """An array whose dtype, shape and size do not fit its buffer is refused, before an array is made."""
    fields = {b"c": pack([{"p": {"w": item}}, {}, {}]), b"0": b"x" * 12}
    with pytest.raises(FrameError):
        decode_content(fields)


def test_bytes_of_other_kinds_are_opaque() -> None:
    """An Array with a stype of the user's own travels as it is: dtype, shape and data are theirs."""
    array = Array("whatever", (7,), "my.format", b"abc")
    fields = encode_content(RecordSet({"p": ParametersRecord({"w": array})}))
    assert decode_content(fields).parameters_records["p"]["w"] == array


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            RecordSet({"c": ConfigsRecord({"path": "no \udcff"})}),
            r"record 'c': ConfigsRecord\['path'\]: text that is not",
        ),
        (
            RecordSet({"c": ConfigsRecord({"l": ["a", "\udcff"]})}),
            r"record 'c': ConfigsRecord\['l'\]: text that is not",
        ),
        (RecordSet({"c": MetricsRecord({"n\udcff": 1})}), r"record 'c': MetricsRecord\['n\\udcff'\]: text that is not"),
        (RecordSet({"c\udcff": MetricsRecord()}), r"the name 'c\\udcff' of a record is not UTF-8"),
        (
            RecordSet({"c": ParametersRecord({"w": Array("x\udcff", (), "mine", b"")})}),
            r"record 'c': ParametersRecord\['w'\]: its dtype or stype is not UTF-8",
        ),
        (
            RecordSet({"c": ParametersRecord({"w": Array("int8", (2,), "numpy.ndarray", b"")})}),
            r"record 'c': ParametersRecord\['w'\]: ",
        ),
    ],
)
def test_what_cannot_be_sent_is_named(content: RecordSet, match: str) -> None:
    """The error names the record and the key."""
    with pytest.raises(ValueError, match=match):
        encode_content(content)


def test_a_list_that_has_changed_is_named() -> None:
    """So does that of a list which got what its record does not take."""
    values: list[Any] = [1, 2]
    content = RecordSet({"m": MetricsRecord({"n": values})})
    values.append("x")
    with pytest.raises(TypeError, match=r"the record 'm': MetricsRecord\['n'\]: expected an int"):
        encode_content(content)


def test_numbers_of_numpy_travel() -> None:
    """A list may mix floats with numpy's float64; they arrive as floats."""
    content = RecordSet({"m": MetricsRecord({"l": [0.5, np.float64(0.25)]})})
    received = decode_content(encode_content(content))["m"]["l"]
    assert received == [0.5, 0.25]
    assert {type(value) for value in received} == {float}


#: Frames of runs that say of their project what brokerfl never says.
UNNAMED = [
    pack(["a", 1.0, {}, *told])
    for told in (
        [None],
        [[]],
        [["p"]],
        [["p", "v", 1]],
        [["p", "v", "x"]],
        [["p" * 101, "", ""]],
        [["", "", ""], 1],
        [[], 1],
        [[], ["k"]],
        [[], [1]],
        [[], [], []],
        [[]],
    )
]


def test_runs_and_entries_come_back() -> None:
    """A run's frame and a ledger entry survive; what is malformed is a FrameError."""
    run = Run(2**64 - 1, "server:app", {"lr": 0.1, "on": True, "n": 3, "s": "x"}, 1.5)
    assert decode_run(run.run_id, encode_run(run)) == run
    named = replace(run, origin=Origin("server:app", "mnist", "1.0", "0abc"))
    for other in (named, replace(named, overrides=("lr", "s")), replace(run, overrides=())):
        assert decode_run(run.run_id, encode_run(other)) == other
    entry = LedgerEntry(2**64 - 1, "1", "train.x", 2**41, 7, b"digest", True, 2**63 - 1)
    assert decode_entry(encode_entry(entry)) == entry
    for uploader in (-1, 2**63, True, 1.0, b"1"):
        with pytest.raises(FrameError):
            decode_entry(encode_entry(entry._replace(uploader=uploader)))  # type: ignore[arg-type]
    for bad in (b"", b"\x01", pack([1]), pack(["a", 1.0, {"k": [1]}]), pack({}), b"\x02", *UNNAMED):
        with pytest.raises(FrameError):
            decode_run(5, bad)
        with pytest.raises(FrameError):
            decode_entry(bad)


def test_mutated_frames_are_frame_errors_or_messages() -> None:
    """Ten thousand frames with bytes changed, cut or added either decode or raise FrameError; nothing else escapes."""
    rng = random.Random(7)
    good = encode_message(new_message_id(5), METADATA, encode_content(sample()))
    decoded = 0
    for _ in range(10_000):
        fields = {key: bytearray(value) for key, value in good.items()}
        target = fields[rng.choice(list(fields))]
        for _ in range(rng.randint(1, 4)):
            match rng.randrange(3):
                case 0 if target:
                    target[rng.randrange(len(target))] = rng.randrange(256)
                case 1 if target:
                    del target[rng.randrange(len(target)) :]
                case _:
                    target.insert(rng.randint(0, len(target)), rng.randrange(256))
        if rng.random() < 0.05:
            del fields[rng.choice(list(fields))]
        try:
            message = decode_message({key: bytes(value) for key, value in fields.items()})
        except FrameError:
            continue
        assert isinstance(message, Message)
        decoded += 1
    assert 0 < decoded < 10_000
