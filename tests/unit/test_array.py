"""Array: what it holds, what it refuses, and that nothing is copied that need not be."""

import copy
import io
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from brokerfl.common import Array, ParametersRecord, SType, dtypes
from brokerfl.common.dtypes import FOREIGN, ITEMSIZE
from brokerfl.common.npy import _read_any_header, _read_plain_header

NUMPY_DTYPES = sorted(set(ITEMSIZE) - set(FOREIGN))

BFLOAT16 = ml_dtypes.bfloat16


def npy(array: "np.ndarray[Any, Any]", version: tuple[int, int] | None = None) -> bytes:
    """Return the bytes of an .npy file, which is what Flower's arrays hold."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue()


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_import_leaves_numpy_out() -> None:
    """Importing brokerfl.common imports neither numpy nor torch, nor redis nor msgpack."""
    run(
        "import sys, brokerfl.common\n"
        "assert not {'numpy', 'torch', 'redis', 'msgpack'} & sys.modules.keys(), sys.modules.keys()"
    )


def test_works_without_numpy() -> None:
    """Without numpy an Array can be made of fields and looked at, and only .numpy() names the missing extra."""
    run(
        "import sys; sys.modules['numpy'] = None\n"
        "from brokerfl.common import Array, MissingExtra\n"
        "a = Array('int8', (2,), 'numpy.ndarray', b'ab')\n"
        "assert len(a.data) == 2 and repr(a)\n"
        "try: a.numpy()\n"
        "except MissingExtra as error: assert 'brokerfl[numpy]' in str(error)\n"
        "else: raise SystemExit('no MissingExtra')"
    )


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3, 4)])
def test_numpy_round_trip(dtype: str, shape: tuple[int, ...]) -> None:
    """Every dtype of the list comes back from bytes as it was, also without dimensions and without elements."""
    before = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    array = Array(before)
    assert (array.dtype, array.shape, array.stype) == (dtype, shape, SType.NUMPY)
    assert len(array.data) == ITEMSIZE[dtype] * before.size

    after = Array(array.dtype, array.shape, array.stype, bytes(array.data)).numpy()
    assert after.dtype == before.dtype
    assert after.shape == before.shape
    np.testing.assert_array_equal(after, before)


def test_no_copy() -> None:
    """Making an Array of contiguous memory and reading it back copies nothing."""
    before = np.ones((100, 3), np.float32)
    array = Array.from_numpy_ndarray(before)
    assert np.shares_memory(array.numpy(), before)
    before[0, 0] = 7
    assert array.numpy()[0, 0] == 7


def test_received_data_are_not_copied() -> None:
    """The view on received bytes lies on those bytes."""
    data = bytes(range(8))
    assert np.shares_memory(Array("uint8", (8,), SType.NUMPY, data).numpy(), np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("data", [b"abcd", memoryview(b"abcd"), memoryview(bytearray(b"abcd"))])
def test_view_is_read_only(data: bytes | memoryview) -> None:
    """What .numpy() returns cannot be written to, whatever holds the data."""
    view = Array("uint8", (4,), SType.NUMPY, data).numpy()
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_data_of_an_ndarray_are_read_only() -> None:
    """Nobody can change an ndarray through the Array made of it."""
    data = Array(np.zeros(3)).data
    assert isinstance(data, memoryview)
    assert (data.readonly, data.format, data.ndim) == (True, "B", 1)


@pytest.mark.parametrize(
    "before",
    [
        np.arange(12, dtype="int16").reshape(3, 4).T,
        np.asfortranarray(np.arange(12, dtype="float64").reshape(3, 4)),
        np.arange(12, dtype="float32")[::2],
        np.arange(12, dtype="float32")[::-1],
        np.broadcast_to(np.float32(3), (2, 2)),
        np.arange(4, dtype=">i4"),
        np.array(5, dtype=">f8"),
    ],
    ids=["transposed", "fortran", "strided", "reversed", "broadcast", "big-endian", "big-endian scalar"],
)
def test_other_layouts(before: "np.ndarray[Any, Any]") -> None:
    """Memory that is not C-contiguous and little-endian is stored so, with the same values and a plain dtype."""
    array = Array(before)
    assert array.dtype == before.dtype.name
    assert bytes(array.data) == before.astype(before.dtype.newbyteorder("<")).tobytes(order="C")
    np.testing.assert_array_equal(array.numpy(), before)


@pytest.mark.parametrize(
    "before",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        np.zeros(2, dtype="datetime64[s]"),
        np.zeros(2, dtype="V4"),
        np.zeros(2, dtype=np.longdouble),
    ],
    ids=["object", "str", "bytes", "structured", "datetime", "void", "longdouble"],
)
def test_refused_dtypes(before: "np.ndarray[Any, Any]") -> None:
    """A dtype outside the list is a TypeError that names it."""
    with pytest.raises(TypeError) as caught:
        Array(before)
    assert str(before.dtype) in str(caught.value)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize(
    "before",
    [
        np.arange(6, dtype="float32").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype="int64").reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        np.array(1.5),
        np.zeros((0, 2)),
    ],
    ids=["C", "fortran", "big-endian", "scalar", "empty"],
)
def test_npy(before: "np.ndarray[Any, Any]", version: tuple[int, int]) -> None:
    """Data as Flower's Array holds them, a whole .npy file, are read without a copy."""
    data = npy(before, version)
    view = Array(before.dtype.name, before.shape, SType.NUMPY, data).numpy()
    np.testing.assert_array_equal(view, before)
    assert view.shape == before.shape
    assert not view.flags.writeable
    assert before.size == 0 or np.shares_memory(view, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (1, 0, 4), (10**5, 1)])
@pytest.mark.parametrize("dtype", [*NUMPY_DTYPES, ">f4", "<U5", "S3", "<M8[ns]"])
def test_a_header_as_numpy_writes_it(dtype: str, shape: tuple[int, ...], order: Any) -> None:
    """It is read without numpy's parser, which CPython 3.11 does not let threads share, and means the same."""
    before = np.zeros(shape, dtype, order=order)
    data = npy(before)
    found = _read_plain_header(np, data)
    assert found == _read_any_header(np, data)
    assert found is not None
    assert found[0] == shape


def test_raw_data_that_look_like_npy() -> None:
    """Raw data that begin as an .npy file does are raw data, for their length fits."""
    data = npy(np.zeros(2))
    view = Array("uint8", (len(data),), SType.NUMPY, data).numpy()
    assert view.tobytes() == data


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (npy(np.zeros(4, "float32")), r"\(4,\), not float32 of shape \(3,\)"),
        (npy(np.zeros(3, "int32")), "int32 of shape .*, not float32"),
        (npy(np.zeros(3, "float32"))[:-1], "takes 12 bytes, but the .npy file has 11"),
        (npy(np.zeros(3, "float32")) + b"x", "takes 12 bytes, but the .npy file has 13"),
        (npy(np.zeros(3, "float32"), (3, 0)), r"version \(3, 0\)"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"x" * 20, "array header"),
        (npy(np.zeros(3, "float32")).replace(b"(3,), }   ", b"(3**1,), }"), "malformed|Cannot parse"),
    ],
    ids=["shape", "dtype", "short", "long", "version", "truncated", "expression"],
)
def test_broken_npy(data: bytes, match: str) -> None:
    """An .npy file that does not fit what the Array declares is a ValueError that says how."""
    with pytest.raises(ValueError, match=match):
        Array("float32", (3,), SType.NUMPY, data).numpy()


def test_npy_with_objects() -> None:
    """An .npy file that holds pickled objects is refused, not unpickled."""
    file = io.BytesIO()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="object"):
        Array("int8", (1,), SType.NUMPY, file.getvalue()).numpy()


@pytest.mark.parametrize("size", [0, 11, 13])
def test_wrong_size(size: int) -> None:
    """Data that do not fit dtype and shape are a ValueError that names both sizes."""
    with pytest.raises(ValueError, match=rf"float32 of shape \(3,\) takes 12 bytes, but the data have {size}"):
        Array("float32", (3,), SType.NUMPY, bytes(size)).numpy()


def test_other_stype() -> None:
    """Data of another stype can be carried, and .numpy() says that they are no ndarray."""
    array = Array("anything", (3,), "my.format", b"12345")
    with pytest.raises(TypeError, match=r"my\.format"):
        array.numpy()


@pytest.mark.parametrize("dtype", ["object", "O", "float128", "f4", "<f4", ""])
def test_unknown_dtype(dtype: str) -> None:
    """A dtype outside the list is not handed to numpy, even if numpy would know it."""
    with pytest.raises(TypeError, match=f"dtype '{dtype}'"):
        Array(dtype, (1,), SType.NUMPY, b"1234").numpy()


@pytest.mark.parametrize("dtype", FOREIGN)
def test_what_numpy_lacks_has_no_ndarray(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ml_dtypes, bfloat16 and float8 are carried, and .numpy() names the ways out."""
    monkeypatch.delitem(sys.modules, "ml_dtypes")
    with pytest.raises(TypeError, match=rf"no {dtype}: import ml_dtypes .*to_torch_state_dict"):
        Array(dtype, (2,), SType.NUMPY, bytes(2 * ITEMSIZE[dtype])).numpy()


@pytest.mark.parametrize("dtype", FOREIGN)
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_what_jax_has_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    """An array of ml_dtypes', which JAX's arrays become, comes back with its dtype, also if it is not contiguous."""
    kind = getattr(ml_dtypes, dtype)
    before = np.ones(shape, kind)
    array = Array(before)
    assert (array.dtype, array.shape, array.stype) == (dtype, shape, SType.NUMPY)
    after = Array(dtype, shape, SType.NUMPY, bytes(array.data)).numpy()
    assert after.dtype == np.dtype(kind)
    assert not after.flags.writeable
    np.testing.assert_array_equal(after, before)
    layer = np.linspace(1, 2, 6).astype(kind).reshape(2, 3).T
    np.testing.assert_array_equal(Array(layer).numpy(), layer)
    assert before.size == 0 or np.shares_memory(np.frombuffer(array.data, np.uint8), before)


@pytest.mark.parametrize("dtype", ["int4", "float8_e4m3", "float8_e3m4", "float6_e2m3fn"])
def test_what_only_ml_dtypes_has_is_refused(dtype: str) -> None:
    """The text says what to do."""
    with pytest.raises(TypeError, match=rf"dtype {dtype} cannot be sent; .* convert it, such as with `.astype"):
        Array(np.zeros(3, getattr(ml_dtypes, dtype)))


def test_a_name_does_not_make_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype that only has the name of one that can be sent is refused: its bits may mean something else."""
    monkeypatch.setattr(ml_dtypes, "bfloat16", type("bfloat16", (), {}))
    with pytest.raises(TypeError, match="dtype bfloat16 cannot be sent"):
        Array(np.zeros(3, BFLOAT16))


def test_what_could_be_an_ndarray_is_refused() -> None:
    """An array of JAX, or of another library, is not converted unasked; the text says how to."""

    class Other:
        def __array__(self) -> "np.ndarray[Any, Any]":
            return np.zeros(3)

    for make in (Array, Array.from_numpy_ndarray):
        with pytest.raises(TypeError, match=r"Other.*: convert it with numpy\.asarray\(…\)"):
            make(Other())


def test_masked_arrays_are_refused() -> None:
    """Their masks would be lost, and what is below them sent."""
    masked = np.ma.masked_array([1.0, 2.0], mask=[True, False])
    for make in (Array, Array.from_numpy_ndarray, lambda array: ParametersRecord([array])):
        with pytest.raises(TypeError, match=r"a masked array cannot be sent.*`\.filled\(0\)`"):
            make(masked)
    assert Array(masked.filled(0)).numpy().tolist() == [0.0, 2.0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_not_finite(dtype: str, value: float, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One such element is enough, wherever it is, raw or in an .npy file."""
    monkeypatch.setattr(dtypes, "_AT_ONCE", 4)
    for place in range(6):
        array = np.zeros((2, 3), dtype, order)
        assert Array(array).is_finite()
        array[np.unravel_index(place, array.shape)] = value
        assert not Array(array).is_finite()
        assert not Array(dtype, array.shape, SType.NUMPY, npy(array)).is_finite()


@pytest.mark.parametrize("dtype", FOREIGN)
def test_what_is_not_finite_of_what_numpy_lacks(dtype: str) -> None:
    """Of all the bits that a value can have, those are finite that ml_dtypes says."""
    size = ITEMSIZE[dtype]
    data = np.arange(2 ** (8 * size), dtype=f"u{size}").tobytes()
    values = np.frombuffer(data, getattr(ml_dtypes, dtype))
    expected = np.isfinite(values.astype(np.float32))
    found = [
        Array(dtype, (1,), SType.NUMPY, data[start : start + size]).is_finite() for start in range(0, len(data), size)
    ]
    assert found == expected.tolist()


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64"])
def test_what_cannot_be_infinite(dtype: str) -> None:
    """Integers and booleans are finite, whatever their bits."""
    assert Array(dtype, (8,), SType.NUMPY, b"\1" * 8 * ITEMSIZE[dtype]).is_finite()


def test_keywords() -> None:
    """The fields and the ndarray may be given by keyword, and a list as shape becomes a tuple."""
    fields = Array(dtype="int8", shape=[2], stype=SType.NUMPY, data=b"\1\2")
    assert fields == Array(ndarray=np.array([1, 2], np.int8))
    assert fields == Array("int8", (2,), stype=SType.NUMPY, data=b"\1\2")
    assert fields.shape == (2,)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), {}),
        ((None,), {}),
        (([1, 2],), {}),
        ((np.float32(1),), {}),
        (("int8", (1,), SType.NUMPY), {}),
        (("int8", (1,), SType.NUMPY, b"1", b"2"), {}),
        (("int8", (1,), SType.NUMPY, "1"), {}),
        (("int8", 1, SType.NUMPY, b"1"), {}),
        ((np.int8, (1,), SType.NUMPY, b"1"), {}),
        (("int8", (1,), SType.NUMPY), {"dtype": "int8"}),
        (("int8", (1,), SType.NUMPY), {"bytes": b"1"}),
        ((np.zeros(1),), {"stype": SType.NUMPY}),
        ((), {"torch_tensor": np.zeros(1)}),
        (("int8", (1.5,), SType.NUMPY, b"1"), {}),
    ],
)
def test_wrong_arguments(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Anything but one ndarray, one tensor or four fields is a TypeError."""
    with pytest.raises(TypeError):
        Array(*args, **named)


def test_negative_shape() -> None:
    """A negative size in the shape is a ValueError that shows it."""
    with pytest.raises(ValueError, match=r"\(2, -3\)"):
        Array("int8", (2, -3), SType.NUMPY, b"")


def test_from_numpy_ndarray_needs_an_ndarray() -> None:
    """A list is not taken for an ndarray."""
    with pytest.raises(TypeError, match="not list"):
        Array.from_numpy_ndarray([1.0])  # type: ignore[arg-type]


def test_equality() -> None:
    """Arrays are equal when all four fields are, whether the data are bytes or a memoryview."""
    array = Array(np.array([1, 2], np.int16))
    assert array == Array("int16", (2,), SType.NUMPY, bytes(array.data))
    assert array != Array("uint16", (2,), SType.NUMPY, bytes(array.data))
    assert array != Array("int16", (2, 1), SType.NUMPY, bytes(array.data))
    assert array != Array("int16", (2,), "other", bytes(array.data))
    assert array != Array(np.array([1, 3], np.int16))
    assert array != "array"


def test_deepcopy() -> None:
    """A deep copy is equal and no longer shares memory."""
    source = np.array([1, 2])
    array = Array(source)
    copied = copy.deepcopy(array)
    assert copied == array
    source[0] = 9
    assert copied != array


def test_repr_shows_no_data() -> None:
    """The repr tells dtype, shape, stype and size, and stays short however large the data are."""
    text = repr(Array(np.zeros((1000, 100), np.float32)))
    assert text == "Array('float32', (1000, 100), 'numpy.ndarray', 400000 bytes)"


def test_torch_absent() -> None:
    """Without torch imported, tensors are a RuntimeError that says what to do."""
    run(
        "from brokerfl.common import Array\n"
        "for call in (lambda: Array.from_torch_tensor(1), Array('int8', (), 'x', b'').to_torch_tensor):\n"
        "    try: call()\n"
        "    except RuntimeError as error: assert 'import torch' in str(error)\n"
        "    else: raise SystemExit('no RuntimeError')"
    )


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_torch_round_trip(dtype: str, shape: tuple[int, ...]) -> None:
    """A tensor comes back from bytes as it was, bfloat16 included, and can be written to."""
    torch = pytest.importorskip("torch")
    before = torch.ones(shape, dtype=getattr(torch, dtype))
    array = Array(before)
    assert (array.dtype, array.shape, array.stype) == (dtype, shape, SType.NUMPY)
    after = Array(dtype, shape, SType.NUMPY, bytes(array.data)).to_torch_tensor()
    assert after.dtype == before.dtype
    assert torch.equal(after, before)
    after.zero_()
    assert array == Array(torch_tensor=before)


@pytest.mark.parametrize("dtype", FOREIGN)
def test_torch_bits(dtype: str) -> None:
    """Of a dtype that numpy lacks, all bits come back, whether or not this torch can compute with them."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch, dtype):
        pytest.skip(f"torch {torch.__version__} has no {dtype}")
    bits = torch.arange(2 * ITEMSIZE[dtype], dtype=torch.uint8)
    array = Array(bits.view(getattr(torch, dtype)))
    assert (array.dtype, array.shape, bytes(array.data)) == (dtype, (2,), bytes(bits.numpy()))
    after = array.to_torch_tensor()
    assert after.dtype == getattr(torch, dtype)
    assert torch.equal(after.view(torch.uint8), bits)


def test_torch_layouts() -> None:
    """A tensor with a gradient, or not contiguous, is stored by its values, bfloat16 included."""
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    assert torch.equal(Array(parameter).to_torch_tensor(), parameter)
    for dtype in (torch.float32, torch.bfloat16):
        transposed = torch.arange(6, dtype=dtype).reshape(2, 3).T
        assert torch.equal(Array(transposed).to_torch_tensor(), transposed)


@pytest.mark.filterwarnings("ignore:ComplexHalf")  # torch warns of the dtype
def test_torch_refuses_others() -> None:
    """What is no tensor, or of a dtype that cannot be sent, is a TypeError."""
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="not list"):
        Array.from_torch_tensor([1.0])
    with pytest.raises(TypeError, match=r"a tensor of torch\.complex32 cannot be sent: .*`\.float\(\)`"):
        Array(torch.zeros(1, dtype=torch.complex32))
    with pytest.raises(TypeError, match=r"cannot be sent: .*to_dense\(\)"):
        Array(torch.eye(2).to_sparse())


class Tensor:
    """What of torch's class a sender uses: where torch is not installed, it stands for it."""

    def __init__(self, values: "np.ndarray[Any, Any]", dtype: str) -> None:
        self._values, self.dtype = values, f"torch.{dtype}"

    def detach(self) -> "Tensor":
        return self

    def view(self, dtype: str) -> "Tensor":
        return Tensor(self._values.view(dtype), dtype)

    def numpy(self, *, force: bool) -> "np.ndarray[Any, Any]":
        assert force
        name = self.dtype.removeprefix("torch.")
        if name in FOREIGN or name not in ITEMSIZE:
            raise TypeError(f"Got unsupported ScalarType {name.capitalize()}")
        return self._values


def test_torch_dtypes_that_numpy_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bits are sent, and what cannot be sent says what to do; also where torch is not installed."""
    names = {foreign.carrier: foreign.carrier for foreign in FOREIGN.values()}
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=Tensor, **names))
    bits = np.arange(16, dtype="uint8")
    for name in FOREIGN:
        array = Array(Tensor(bits, name))
        assert (array.dtype, array.shape) == (name, (16 // ITEMSIZE[name],))
        assert bytes(array.data) == bytes(bits)
    for name in ("float4_e2m1fn_x2", "complex32"):
        with pytest.raises(TypeError, match=rf"tensor of torch\.{name} cannot be sent: Got unsupp.*`\.float\(\)`"):
            Array(Tensor(bits, name))
