"""Array: one n-dimensional array as bytes, with its dtype and shape.

Owns the dtypes that brokerfl carries and the conversions to and from numpy and torch. It must not know
records or messages. numpy is imported when an array is first needed. torch is never imported: an app that has a
tensor has imported it already.
"""

import math
import re
import sys
from collections.abc import Sequence
from io import BytesIO
from operator import index
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast, overload

from brokerfl.common.errors import MissingExtra

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The dtypes that can be sent, by the name that numpy and torch share, with the size of one element in bytes.
ITEMSIZE: dict[str, int] = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "complex64": 8,
    "complex128": 16,
}

_BFLOAT16 = "bfloat16"

#: How an .npy file begins.
NPY_MAGIC = b"\x93NUMPY"

#: numpy refuses longer .npy headers by itself (``max_header_size``); 12 bytes precede the header.
_NPY_HEADER = 10_000 + 12


class SType:
    """How the data of an `Array` are serialised."""

    NUMPY = "numpy.ndarray"


class Array:
    """An array as bytes: ``Array(ndarray)``, ``Array(tensor)`` or ``Array(dtype, shape, stype, data)``.

    An array made from an ndarray or a CPU tensor shares its memory until the message that holds it is pushed:
    pass a copy (``Array(a.copy())``) if you change it before then. Only memory that is not C-contiguous and
    little-endian is copied.

    Attributes:
        dtype: one of `ITEMSIZE`, for stype "numpy.ndarray".
        shape: size of each dimension.
        stype: "numpy.ndarray", or a name of your own for data that only your apps read.
        data: for stype "numpy.ndarray", the elements in C order, little-endian; or a whole .npy file, as in
            Flower's arrays.

    Raises:
        TypeError: the arguments do not make an array, or the dtype cannot be sent.
        ValueError: the shape has a negative size.
    """

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes | memoryview

    @overload
    def __init__(self, dtype: str, shape: Sequence[int], stype: str, data: bytes | memoryview) -> None: ...
    @overload
    def __init__(self, ndarray: "NDArray[Any]") -> None: ...
    @overload
    def __init__(self, torch_tensor: Any) -> None: ...

    def __init__(self, *args: Any, **named: Any) -> None:
        if len(args) == 4 and not named:
            self.dtype, self.shape, self.stype, self.data = _checked_fields(*args)
            return
        given = (*args, *named.values())
        only = given[0] if len(given) == 1 else None
        if named.keys() <= {"ndarray"} and _is_instance(only, "numpy", "ndarray"):
            fields = _from_ndarray(only)
        elif named.keys() <= {"torch_tensor"} and _is_instance(only, "torch", "Tensor"):
            fields = _from_tensor(only)
        else:
            fields = _from_fields(args, named)
        self.dtype, self.shape, self.stype, self.data = fields

    @classmethod
    def from_numpy_ndarray(cls, ndarray: "NDArray[Any]") -> "Array":
        """Return an array that shares the memory of ``ndarray``; a copy unless C-contiguous and little-endian.

        Raises:
            TypeError: not an ndarray, or its dtype is not in `ITEMSIZE`, such as objects or text.
        """
        return cls(*_from_ndarray(ndarray))

    @classmethod
    def from_torch_tensor(cls, tensor: Any) -> "Array":
        """Return an array that shares the memory of a contiguous CPU tensor; of any other tensor, a copy.

        Raises:
            TypeError: not a tensor, or its dtype is not in `ITEMSIZE`.
            RuntimeError: torch was not imported.
        """
        return cls(*_from_tensor(tensor))

    def numpy(self) -> "NDArray[Any]":
        """Return a read-only view of the data; its ``.copy()`` is writable.

        Raises:
            TypeError: the stype is not "numpy.ndarray", or numpy does not have the dtype.
            ValueError: dtype and shape do not match the data.
            MissingExtra: numpy is not installed.
        """
        if self.dtype == _BFLOAT16:
            raise TypeError("numpy has no bfloat16: use ParametersRecord.to_torch_state_dict()")
        return self._view()

    def to_torch_tensor(self) -> Any:
        """Return a CPU tensor with a copy of the data, since torch has no read-only tensors.

        Raises:
            TypeError, ValueError: as `numpy`.
            RuntimeError: torch was not imported.
        """
        torch = _torch()
        tensor = torch.from_numpy(self._view().copy())
        return tensor.view(torch.bfloat16) if self.dtype == _BFLOAT16 else tensor

    def _view(self) -> "NDArray[Any]":
        """Return a read-only view; bfloat16 is seen as int16."""
        if self.stype != SType.NUMPY:
            raise TypeError(f"an Array of stype {self.stype!r} is not an ndarray; only {SType.NUMPY!r} is")
        if self.dtype not in ITEMSIZE:
            raise TypeError(f"dtype {self.dtype!r} is not one of {', '.join(ITEMSIZE)}")
        numpy = _numpy()
        size, found = _size_of(self.dtype, self.shape), len(self.data)
        if found == size:
            dtype = numpy.dtype("int16" if self.dtype == _BFLOAT16 else self.dtype).newbyteorder("<")
            view = numpy.ndarray(self.shape, dtype, self.data)
        # An .npy file also has a header, so its length distinguishes it from raw data.
        elif is_npy(self):
            view = self._view_npy(numpy)
        else:
            raise ValueError(f"{self.dtype} of shape {self.shape} takes {size} bytes, but the data have {found}")
        view.flags.writeable = False
        return cast("NDArray[Any]", view)

    def _view_npy(self, numpy: Any) -> Any:
        """Return the array in an .npy file.

        Unlike np.load, this copies nothing and allocates nothing on the header's word.
        """
        shape, is_fortran, dtype, start = _read_npy_header(numpy, self.data)
        if (shape, dtype.name) != (self.shape, self.dtype):
            declared = f"{self.dtype} of shape {self.shape}"
            raise ValueError(f"the .npy file holds {dtype} of shape {shape}, not {declared}")
        return numpy.ndarray(shape, dtype, self.data, start, order="F" if is_fortran else "C")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __deepcopy__(self, memo: dict[int, Any]) -> "Array":
        return Array(self.dtype, self.shape, self.stype, bytes(self.data))

    def __repr__(self) -> str:
        return f"Array({self.dtype!r}, {self.shape}, {self.stype!r}, {len(self.data)} bytes)"


_Fields = tuple[str, tuple[int, ...], str, bytes | memoryview]

_NAMES = ("dtype", "shape", "stype", "data")


def _from_fields(args: tuple[Any, ...], named: dict[str, Any]) -> _Fields:
    given = dict(zip(_NAMES, args, strict=False)) | named
    if len(args) + len(named) != len(_NAMES) or given.keys() != set(_NAMES):
        raise _impossible(*args, *named.values())
    return _checked_fields(*(given[name] for name in _NAMES))


def _checked_fields(dtype: Any, shape: Any, stype: Any, data: Any) -> _Fields:
    if not (
        isinstance(dtype, str)
        and isinstance(shape, tuple | list | Sequence)
        and isinstance(stype, str)
        and isinstance(data, bytes | memoryview)
    ):
        raise _impossible(dtype, shape, stype, data)
    sizes = tuple([int(index(size)) for size in shape])
    if sizes and min(sizes) < 0:
        raise ValueError(f"the shape {sizes} has a negative size")
    return dtype, sizes, stype, data if isinstance(data, bytes) else data.cast("B")


def _impossible(*given: Any) -> TypeError:
    kinds = ", ".join(type(value).__name__ for value in given)
    return TypeError(
        "an Array is made from one ndarray, one torch tensor, or dtype (str), shape (ints), stype (str) "
        f"and data (bytes or memoryview), not from ({kinds})"
    )


def _from_ndarray(ndarray: Any) -> _Fields:
    if not _is_instance(ndarray, "numpy", "ndarray"):
        raise TypeError(f"expected a numpy ndarray, not {type(ndarray).__name__}")
    dtype = ndarray.dtype
    if dtype.name not in ITEMSIZE:
        raise TypeError(f"dtype {dtype} cannot be sent; it must be one of {', '.join(ITEMSIZE)}")
    numpy = _numpy()
    plain = numpy.ascontiguousarray(ndarray, dtype.newbyteorder("<"))
    data = memoryview(plain.reshape(-1).view(numpy.uint8)).toreadonly()
    return dtype.name, ndarray.shape, SType.NUMPY, data


def _from_tensor(tensor: Any) -> _Fields:
    torch = _torch()
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"expected a torch tensor, not {type(tensor).__name__}")
    if tensor.dtype != torch.bfloat16:
        return _from_ndarray(tensor.numpy(force=True))
    _, shape, stype, data = _from_ndarray(tensor.detach().view(torch.int16).numpy(force=True))
    return _BFLOAT16, shape, stype, data


#: The header of an .npy file as numpy writes it: dtype, order and shape.
_NPY_PLAIN = re.compile(
    rb"\{'descr': '([<>|][a-zA-Z]\d+(?:\[\w+\])?)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n"
)


def _read_npy_header(numpy: Any, data: bytes | memoryview) -> tuple[tuple[int, ...], bool, Any, int]:
    """Return the shape of an .npy file, whether it is in Fortran order, its dtype, and where its elements begin.

    Raises:
        ValueError: it is malformed, or its size is not what its header says.
    """
    try:
        shape, is_fortran, dtype, start = _read_plain_header(numpy, data) or _read_any_header(numpy, data)
    except Exception as error:  # numpy passes on those of its parser, such as TokenError and RecursionError
        raise ValueError(f"the header of the .npy file is malformed: {error}") from None
    size, found = dtype.itemsize * math.prod(shape), len(data) - start
    if found != size:
        raise ValueError(f"{dtype} of shape {shape} takes {size} bytes, but the .npy file has {found}")
    return shape, is_fortran, dtype, start


def _read_plain_header(numpy: Any, data: bytes | memoryview) -> tuple[tuple[int, ...], bool, Any, int] | None:
    """Read a header as numpy writes it, None for any other.

    numpy's own reader calls ast.literal_eval, which fails now and then in CPython 3.11 when threads take turns in it
    ("AST constructor recursion depth mismatch": seen with 3.11.7, not with 3.12.1; compare
    https://github.com/python/cpython/issues/106905).
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    found = _NPY_PLAIN.fullmatch(data[10:start]) if data[6:8] == b"\x01\x00" else None
    if found is None:
        return None
    shape = tuple(int(size) for size in found[3].split(b",") if size.strip())
    return shape, found[2] == b"True", numpy.dtype(found[1].decode()), start


def _read_any_header(numpy: Any, data: bytes | memoryview) -> tuple[tuple[int, ...], bool, Any, int]:
    file = BytesIO(data[:_NPY_HEADER])
    readers = {
        (1, 0): numpy.lib.format.read_array_header_1_0,
        (2, 0): numpy.lib.format.read_array_header_2_0,
    }
    version = numpy.lib.format.read_magic(file)
    if version not in readers:  # 3.0 is for structured dtypes whose names take more than Latin-1
        raise ValueError(f"the .npy file has version {version}, not 1.0 or 2.0")
    shape, is_fortran, dtype = readers[version](file)
    return shape, is_fortran, dtype, file.tell()


def is_npy(array: Array) -> bool:
    """Return whether an array of stype "numpy.ndarray" holds an .npy file rather than the elements alone."""
    return len(array.data) > _size_of(array.dtype, array.shape) and array.data[: len(NPY_MAGIC)] == NPY_MAGIC


def _size_of(dtype: str, shape: Sequence[int]) -> int:
    return ITEMSIZE[dtype] * math.prod(shape)


def check_npy(data: bytes | memoryview) -> None:
    """Check that an .npy file, if it is one, holds what its header says: np.load allocates before it looks.

    Raises:
        ValueError: it does not.
        MissingExtra: numpy is not installed.
    """
    if data[: len(NPY_MAGIC)] == NPY_MAGIC:
        _read_npy_header(_numpy(), data)


def npy_of(array: Array) -> bytes:
    """Return an array as an .npy file, as Flower's arrays hold it.

    Raises:
        TypeError, ValueError, MissingExtra: as `Array.numpy`.
    """
    file = BytesIO()
    _numpy().save(file, array.numpy(), allow_pickle=False)
    return file.getvalue()


def memory_of(data: bytes | memoryview) -> tuple[int, int]:
    """Return a key that two live buffers share if and only if they are the same bytes in memory."""
    numpy = sys.modules.get("numpy")
    if isinstance(data, bytes) or numpy is None or not data:
        return id(data), len(data)
    return numpy.frombuffer(data, numpy.uint8).__array_interface__["data"][0], len(data)


def _is_instance(value: Any, module: str, name: str) -> bool:
    """Return whether ``value`` is an instance of a class whose module may never have been imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise MissingExtra("arrays need numpy: pip install 'brokerfl[numpy]'") from None
    return numpy


def _torch() -> Any:
    torch: ModuleType | None = sys.modules.get("torch")
    if torch is None:
        raise RuntimeError("torch is not imported: to use tensors, `import torch` in your app first")
    return torch
