"""Records of flwr travel without loss, and what a hostile side sends becomes an error, not an allocation."""

import enum
import re
import struct
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokerfl import client, server
from brokerfl.common import Array as OurArray
from brokerfl.common import Context as OurContext
from brokerfl.common import ErrorCode, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.common import Message as OurMessage
from brokerfl.common.npy import NPY_MAGIC
from brokerfl.common.record import Record
from brokerfl.common.recordset import KINDS, Kind
from brokerfl.testing import FakeServer, Federation, fake_connection, run_simulation
from brokerfl.wire.frame import MANIFEST
from brokerfl.wire.manifest import decode_manifest
from brokerfl.wire.payload import EncodedContent, assemble
from brokerfl.wire.record import decode_content, encode_content
from tests.flower.names import (
    HAS_MESSAGE_API,
    Array,
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    MetricRecord,
    RecordDict,
    ServerApp,
    array_of,
    arrays_of,
    compat,
    message_to,
    ndarrays_in,
    raw_array,
    record_dict_of,
    record_in,
    record_set_of,
    records_in,
    records_of,
    reply_to,
)


def travel(records: Any) -> Any:
    """Return flwr's records as the other side reads them: converted, encoded, in chunks if large, and back."""
    content = EncodedContent(encode_content(record_set_of(records)))
    fields = content.fields
    if content.payload is not None:
        payload = content.payload
        fields, _ = assemble(
            decode_manifest(fields[MANIFEST]), lambda wanted: [bytes(payload.chunk(n)) for n in wanted]
        )
    return record_dict_of(decode_content(fields))


def described(records: Any) -> list[Any]:
    """Return all there is to know of records: kinds, names, types, values and their order."""
    return [
        (name, type(record).__name__, [(key, _described(value)) for key, value in record.items()])
        for name, record in records_in(records)
    ]


def _described(value: Any) -> Any:
    if isinstance(value, Array):
        return value.dtype, type(value.shape), list(value.shape), value.stype, value.data
    if isinstance(value, list):
        return list, [_described(item) for item in value]
    return type(value), struct.pack("d", value) if isinstance(value, float) else value


def stays(records: Any) -> bool:
    """Whether records are the same behind the wire."""
    return described(travel(records)) == described(records)


def npy_of(ndarray: "np.ndarray[Any, Any]") -> bytes:
    """An .npy file."""
    file = BytesIO()
    np.save(file, ndarray, allow_pickle=False)
    return file.getvalue()


# Values.

INTS = [-(2**63), -5, -1, 0, 1, 127, 128, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
FLOATS = [0.0, -0.0, 1.0, 0.1, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan")]
METRICS = [*INTS, *FLOATS, [], INTS, FLOATS, [0], [0.0]]
CONFIGS = [
    *METRICS, True, False, [True, False], "", "text", "日本\0", "x" * 300, ["", "a"],
    b"", b"\xff\0", [b"", bytes(range(256))],
]  # fmt: skip


@pytest.mark.parametrize("value", METRICS, ids=repr)
def test_metrics_stay(value: Any) -> None:
    """int and float keep type and value: -5 and 2**64 - 1, 1 against 1.0, inf, nan and -0.0, empty lists."""
    assert stays(records_of({"m": MetricRecord({"k": value})}))


@pytest.mark.parametrize("value", CONFIGS, ids=lambda value: ascii(value)[:40])
def test_configs_stay(value: Any) -> None:
    """So do bool, str and bytes: True is not 1, and b"" is not "" or []."""
    assert stays(records_of({"c": ConfigRecord({"k": value})}))


class Level(enum.IntEnum):
    LOW = 1


class Optimizer(str, enum.Enum):  # noqa: UP042 # a StrEnum is its value already
    SGD = "sgd"


class Rate(float, enum.Enum):
    HIGH = 0.5


class Tag(bytes, enum.Enum):
    RAW = b"\xff"


class Text(str):
    def __str__(self) -> str:
        return "something else"


def test_subclasses_become_plain() -> None:
    """What flwr takes because it is a subclass, such as numpy's float64 or an enum, arrives as its plain equal."""
    given = {
        "float": np.float64(0.5),
        "enum": Level.LOW,
        "floats": [0.5, np.float64(1)],
        "ints": [Level.LOW, Level.LOW],
        "rate": Rate.HIGH,
    }
    plain = {"float": 0.5, "enum": 1, "floats": [0.5, 1.0], "ints": [1, 1], "rate": 0.5}
    texts = {"text": Text("a"), "enum": Optimizer.SGD, "enums": [Optimizer.SGD, Optimizer.SGD], "bytes": Tag.RAW}
    plain_texts = {"text": "a", "enum": "sgd", "enums": ["sgd", "sgd"], "bytes": b"\xff"}
    arrived = travel(records_of({"m": MetricRecord(given), "c": ConfigRecord(texts)}))
    assert described(arrived) == described(records_of({"m": MetricRecord(plain), "c": ConfigRecord(plain_texts)}))


def test_keys_keep_their_order() -> None:
    """Records stand in the order in which they were put in, across the kinds, and so do the keys of each."""
    names = ["zeta", "alpha", "", "10", "2", "日本"]
    kinds: list[Callable[[], Any]] = [
        lambda: MetricRecord(dict.fromkeys(names, 1)),
        lambda: ArrayRecord({name: array_of(np.ones(1)) for name in names}),
        lambda: ConfigRecord(dict.fromkeys(names, "x")),
    ]
    records = records_of({name: kinds[number % 3]() for number, name in enumerate(names)})
    assert [name for name, _ in records_in(travel(records))] == [name for name, _ in records_in(records)]
    assert stays(records)


@pytest.mark.skipif(
    HAS_MESSAGE_API, reason="a RecordDict has one record of a name; the RecordSet of 1.13 one of each kind"
)
def test_a_name_in_several_kinds() -> None:
    """Records of several kinds may have one name, as in legacy messages of 1.13."""
    records = RecordDict()
    records.configs_records["same"] = ConfigRecord({"k": 1})
    records.metrics_records["same"] = MetricRecord({"k": 2})
    records.parameters_records["same"] = arrays_of(np.ones(2))
    assert stays(records)
    assert len(records_in(travel(records))) == 3


def test_nothing_is_something() -> None:
    """No records at all stay none, and empty records stay, each of its kind."""
    assert stays(RecordDict())
    assert stays(records_of({"c": ConfigRecord(), "a": ArrayRecord(), "m": MetricRecord()}))


def test_kinds_that_the_other_side_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of a kind that flwr, or brokerfl, does not have is refused by its name: nothing is lost on the way."""

    class OtherRecord(Record[int]):
        def check_value(self, value: Any) -> None:
            assert isinstance(value, int)

    monkeypatch.setitem(KINDS, OtherRecord, Kind("others", OtherRecord))
    with pytest.raises(TypeError, match="flwr has no kind of record for OtherRecord"):
        record_dict_of(RecordSet({"o": OtherRecord({"n": 1})}))
    monkeypatch.setattr(compat, "records_of", lambda records: records.items())
    with pytest.raises(TypeError, match="brokerfl has no kind of record for flwr's OtherRecord"):
        record_set_of({"o": OtherRecord({"n": 1})})


# Arrays.

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip

NDARRAYS: dict[str, "np.ndarray[Any, Any]"] = {
    **{dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES},
    "0-d": np.array(3.5, np.float32),
    "0-d f16": np.array(0.1, np.float16),
    "0 elements": np.zeros(0),
    "0 rows": np.zeros((3, 0, 2), np.int16),
    "Fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "Fortran f16": np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4)),
    "a view": np.arange(20.0)[::-3],
    "one row": np.arange(4.0).reshape(1, 4, 1),
    "32 dimensions": np.ones((1,) * 32, np.uint8),
    "nan and inf": np.array([np.nan, np.inf, -np.inf, -0.0]),
    "largest": np.array([2**64 - 1], np.uint64),
    "big-endian": np.arange(5, dtype=">f4"),
    "big-endian ints": np.arange(5, dtype=">u8").reshape(5, 1),
    "text": np.array(["a", "日本", ""]),
    "0-d text": np.array("ab"),
    "byte strings": np.array([b"a", b"bcd"]),
    "dates": np.array(["2024-02-29"], "datetime64[D]"),
    "long double": np.arange(3, dtype=np.longdouble),
    "records": np.array([(1, 2.5), (3, 4.5)], dtype=[("id", "<u8"), ("x", ">f4")]),
    "void": np.zeros(2, "V5"),
}


@pytest.mark.parametrize("name", NDARRAYS)
def test_arrays_stay(name: str) -> None:
    """Whatever numpy.save writes without pickle arrives byte for byte, and reads as the same array."""
    ndarray = NDARRAYS[name]
    records = records_of({"a": ArrayRecord({"x": array_of(ndarray)})})
    assert stays(records)
    [arrived] = ndarrays_in(record_in(travel(records), "a"))
    assert (arrived.dtype, arrived.shape, arrived.tobytes()) == (ndarray.dtype, ndarray.shape, ndarray.tobytes())


ARRAYS: dict[str, Any] = {
    "legacy": raw_array("", [], "numpy.ndarray", npy_of(np.arange(4.0))),
    "legacy text": raw_array("", [], "numpy.ndarray", npy_of(np.array(["a"]))),
    "no data": raw_array("", [], "", b""),
    "an own stype": raw_array("float32", [2], "torch.save", b"\x80\x02zz"),
    "a stype like the mark": raw_array("float32", [2], "flwr:", bytes(8)),
    "a marked stype": raw_array("float32", [2], "flwr:numpy.ndarray", npy_of(np.zeros(2, np.float32))),
    "a twice marked stype": raw_array("x", [1], "flwr:flwr:numpy.ndarray", b"zz"),
    "raw data": raw_array("float32", [2], "numpy.ndarray", bytes(8)),
    "raw data of another size": raw_array("float32", [3], "numpy.ndarray", bytes(8)),
    "no file": raw_array("float32", [0], "numpy.ndarray", b""),
    "an unknown dtype": raw_array("bfloat16", [2], "numpy.ndarray", bytes(4)),
    "a huge shape": raw_array("float32", [2**40, 2**20], "own", b"z"),
    "a label of another dtype": raw_array("float32", [4], "numpy.ndarray", npy_of(np.arange(4.0))),
    "a label of another shape": raw_array("float64", [2, 2], "numpy.ndarray", npy_of(np.arange(4.0))),
    "a quantised layer": raw_array("float32", [100], "numpy.ndarray", npy_of(np.zeros(100, np.uint8))),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_odd_arrays_stay(name: str) -> None:
    """So does an Array of any dtype, shape, stype and data; those of legacy strategies have neither dtype nor shape."""
    assert stays(records_of({"a": ArrayRecord({"x": ARRAYS[name]})}))


def test_many_arrays_stay() -> None:
    """A thousand arrays, too many for one message, stay apart and in order, with empty and odd ones between."""
    arrays = {
        f"layer {n}": array_of(np.full(n % 50, n)) if n % 7 else raw_array("", [], f"flwr:{n}", bytes(n))
        for n in range(1000)
    }
    records = records_of({"a": ArrayRecord(arrays), "m": MetricRecord({"n": 1000})})
    assert EncodedContent(encode_content(record_set_of(records))).payload is not None
    assert stays(records)


scalars: list[Any] = [st.integers(-(2**63), 2**64 - 1), st.floats(width=64)]
metric_values = st.one_of(*scalars, *map(st.lists, scalars))
more: list[Any] = [st.booleans(), st.text(max_size=20), st.binary(max_size=20)]
config_values = st.one_of(*scalars, *more, *map(st.lists, scalars + more))
shapes = st.lists(st.integers(0, 3), max_size=3)
made_arrays = st.builds(
    lambda shape, dtype, order: array_of(np.ones(shape, dtype, order)),
    shapes,
    st.sampled_from([*DTYPES, ">i4", "<U3", "S2", "datetime64[s]"]),
    st.sampled_from("CF"),
)
raw_arrays = st.builds(
    raw_array,
    st.sampled_from(["", "float32", "<f4", "日"]),
    shapes,
    st.one_of(st.text(max_size=8), st.sampled_from(["numpy.ndarray", "flwr:", "flwr:numpy.ndarray"])),
    st.binary(max_size=40).filter(lambda data: not data.startswith(NPY_MAGIC)),  # a broken file is refused, below
)
names = st.text(max_size=10)
a_record = st.one_of(
    st.builds(MetricRecord, st.dictionaries(names, metric_values, max_size=4)),
    st.builds(ConfigRecord, st.dictionaries(names, config_values, max_size=4)),
    st.builds(ArrayRecord, st.dictionaries(names, st.one_of(made_arrays, raw_arrays), max_size=4)),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, a_record, max_size=5))
def test_any_records_stay(records: dict[str, Any]) -> None:
    """Any records that flwr takes stay what they are."""
    assert stays(records_of(records))


# A value that cannot be sent.


def test_what_cannot_be_sent_is_named() -> None:
    """What flwr takes and no message can carry is an error that names it, and nothing of its batch is pushed."""
    redis, served = FakeServer(), []
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.query()
    def query(message: Any, context: Any) -> Any:
        served.append(message)
        return reply_to(message, records_of({"m": MetricRecord({"huge": -(2**63) - 1})}))

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        good = message_to(grid, node, records_of({"m": MetricRecord({"n": 1})}))
        bad = message_to(grid, node, records_of({"m": MetricRecord({"big": 2**64})}))
        keys = set(fake_connection(redis).redis.scan_iter())
        for send in (grid.push_messages, grid.send_and_receive):
            with pytest.raises(ValueError, match=r"'big'.*above 2\*\*64 - 1 cannot be sent"):
                send([good, bad])
        assert set(fake_connection(redis).redis.scan_iter()) == keys
        [reply] = grid.send_and_receive([good])
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "'huge'" in reply.error.reason

    with Federation(client_app, 1, connect=lambda: fake_connection(redis)) as nodes:
        nodes.run(server_app)
    assert len(served) == 1


# Hostile sides.

HUGE = 2**36


def lying_npy() -> bytes:
    """An .npy file whose header says 64 GiB."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (HUGE,)})
    return file.getvalue() + bytes(100)


#: What a hostile side may send, and what is said of it.
LIES: dict[str, tuple[OurArray, str]] = {
    "an array that hides its size": (
        OurArray("uint8", (1,), "numpy.ndarray", lying_npy()),
        f"takes {HUGE} bytes, but the .npy file has 100",
    ),
    "a legacy array": (
        OurArray("", (), "flwr:numpy.ndarray", lying_npy()),
        f"takes {HUGE} bytes, but the .npy file has 100",
    ),
    "half a header": (
        OurArray("", (), "flwr:numpy.ndarray", lying_npy()[:40]),
        "the header of the .npy file is malformed",
    ),
    "no header": (
        OurArray("", (), "flwr:numpy.ndarray", b"\x93NUMPY\x01\0\x10\0[[[[[[[[[[[[[[[["),
        "the header of the .npy file is malformed",
    ),
    "an unknown version": (
        OurArray("", (), "flwr:numpy.ndarray", b"\x93NUMPY\x09\0\x10\0" + bytes(40)),
        "the .npy file has version (9, 0), not 1.0 or 2.0",
    ),
    "a stype of its own": (
        OurArray("x", (), "x", lying_npy()),
        f"takes {HUGE} bytes, but the .npy file has 100",
    ),
    "a twice marked stype": (
        OurArray("x", (), "flwr:flwr:numpy.ndarray", lying_npy()),
        f"takes {HUGE} bytes, but the .npy file has 100",
    ),
    "a dtype that numpy has not": (
        OurArray("bfloat16", (2,), "numpy.ndarray", bytes(4)),
        "numpy has no bfloat16",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_without_room_for_them(name: str) -> None:
    """An .npy file is checked against what its header says before numpy could make room on its word."""
    array, reason = LIES[name]
    content = decode_content(encode_content(RecordSet({"a": ParametersRecord({"x": array})})))
    tracemalloc.start()
    try:
        with pytest.raises((TypeError, ValueError), match=re.escape(reason)):
            ndarrays_in(record_in(record_dict_of(content), "a"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_raw_data_that_look_like_a_file_are_raw_data() -> None:
    """A native node's array whose elements happen to be an .npy file has these elements, whatever the file says."""
    raw = np.frombuffer(lying_npy(), np.uint8)
    content = decode_content(encode_content(RecordSet({"a": ParametersRecord({"x": OurArray(raw)})})))
    [received] = ndarrays_in(record_in(record_dict_of(content), "a"))
    np.testing.assert_array_equal(received, raw, strict=True)


def our_client(answer: Callable[[OurMessage], RecordSet]) -> client.ClientApp:
    """A ClientApp of brokerfl's classes."""
    app = client.ClientApp()

    @app.query()
    def query(message: OurMessage, context: OurContext) -> OurMessage:
        return message.create_reply(answer(message))

    return app


@pytest.mark.parametrize("name", LIES)
def test_a_hostile_reply_is_error_4(name: str) -> None:
    """A reply that cannot be read is an Error reply from the node that sent it; those of the others are unharmed."""
    app, errors = ServerApp(), {}
    array, reason = LIES[name]

    @app.main()
    def main(grid: Any, context: Any) -> None:
        liar, *honest = grid.get_node_ids()
        lie = records_of({"m": MetricRecord({"lie": 1})})
        batch = [message_to(grid, liar, lie), *(message_to(grid, node, RecordDict()) for node in honest)]
        replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(batch)}
        assert replies.keys() == {liar, *honest}
        assert all(replies[node].has_content() for node in honest)
        errors[name] = replies[liar].error

    def answer(message: OurMessage) -> RecordSet:
        sent = array if message.content else OurArray(np.arange(3.0))
        return RecordSet({"a": ParametersRecord({"x": sent})})

    run_simulation(app, our_client(answer), 3)
    assert errors[name].code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    assert errors[name].reason.startswith("the reply cannot be read: ")
    assert reason in errors[name].reason


@pytest.mark.parametrize("name", LIES)
def test_a_hostile_message_is_an_error_at_the_node(name: str) -> None:
    """A message that cannot be read never reaches the ClientApp: its reply is an Error, and the next one is served."""
    array, reason = LIES[name]
    client_app, server_app, served = ClientApp(), server.ServerApp(), []

    @client_app.query()
    def query(message: Any, context: Any) -> Any:
        served.append(message)
        return reply_to(message, message.content)

    @server_app.main()
    def main(driver: server.Driver, context: OurContext) -> None:
        [node] = driver.get_node_ids()

        def ask(array: OurArray) -> OurMessage:
            content = RecordSet({"a": ParametersRecord({"x": array})})
            [reply] = driver.send_and_receive([driver.create_message(content, "query", node, "1")])
            return reply

        error = ask(array).error
        assert reason in str(error.reason)
        assert error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert not served
        assert ask(OurArray(np.arange(3.0))).has_content()

    run_simulation(server_app, client_app, 1)
    assert len(served) == 1


# With apps of brokerfl's own classes.

OWN: dict[str, "np.ndarray[Any, Any]"] = {
    name: NDARRAYS[name] for name in (*DTYPES, "0-d", "0 elements", "0 rows", "Fortran", "big-endian")
}


def test_a_flower_server_reads_our_nodes() -> None:
    """A ServerApp of flwr reads what a node on brokerfl's classes sends, which are elements without an .npy header."""
    app, read = ServerApp(), []

    @app.main()
    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        [reply] = grid.send_and_receive([message_to(grid, node, records_of({"m": MetricRecord({"n": 7})}))])
        assert dict(record_in(reply.content, "m")) == {"n": 8}
        read.extend(ndarrays_in(record_in(reply.content, "a")))

    def answer(message: OurMessage) -> RecordSet:
        number = message.content.metrics_records["m"]["n"]
        assert isinstance(number, int)
        arrays = ParametersRecord({name: OurArray(ndarray) for name, ndarray in OWN.items()})
        assert not any(bytes(array.data).startswith(NPY_MAGIC) for array in arrays.values())
        return RecordSet({"a": arrays, "m": MetricsRecord({"n": number + 1})})

    run_simulation(app, our_client(answer), 1)
    for ndarray, original in zip(read, OWN.values(), strict=True):
        assert ndarray.dtype == original.dtype.newbyteorder("=")
        np.testing.assert_array_equal(ndarray, original)


def test_our_server_reads_flower_nodes() -> None:
    """A ServerApp on brokerfl's classes reads what a node with a ClientApp of flwr sends, and the other way round."""
    client_app, server_app, read = ClientApp(), server.ServerApp(), []

    @client_app.query()
    def query(message: Any, context: Any) -> Any:
        doubled = [np.asarray(array + array) for array in ndarrays_in(record_in(message.content, "a"))]
        return reply_to(message, records_of({"a": arrays_of(*doubled)}))

    @server_app.main()
    def main(driver: server.Driver, context: OurContext) -> None:
        [node] = driver.get_node_ids()
        content = RecordSet({"a": ParametersRecord({name: OurArray(ndarray) for name, ndarray in OWN.items()})})
        [reply] = driver.send_and_receive([driver.create_message(content, "query", node, "1")])
        read.extend(array.numpy() for array in reply.content.parameters_records["a"].values())

    run_simulation(server_app, client_app, 1)
    for ndarray, original in zip(read, OWN.values(), strict=True):
        np.testing.assert_array_equal(ndarray, original + original)
