"""Array: one n-dimensional array as bytes, with its dtype and shape.

Owns the conversions to and from numpy and torch. It must not know records or messages. numpy is imported when an array
is first needed. torch is never imported: an app that has a tensor has imported it already.
"""

import math
import sys
from collections.abc import Sequence
from hashlib import blake2b
from io import BytesIO
from operator import index
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast, overload

from brokerfl.common.dtypes import FOREIGN, ITEMSIZE, are_finite, carrier_of, ml_dtype, name_of
from brokerfl.common.npy import NPY_MAGIC, load_numpy, read_npy_header

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Bytes of a row of a sketch: a prime number of words, so that a row of an app's matrix begins in another column each
#: time, and rows that change places are noticed.
_ROW = 8 * 1021


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
            TypeError: not an ndarray, or a masked one, or its dtype is not in `ITEMSIZE`, such as objects or text.
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

        A bfloat16 or float8 array has the dtype of ml_dtypes, if your app has imported that, as JAX does.

        Raises:
            TypeError: the stype is not "numpy.ndarray", or neither numpy nor ml_dtypes has the dtype.
            ValueError: dtype and shape do not match the data.
            MissingExtra: numpy is not installed.
        """
        dtype = ml_dtype(self.dtype) if self.dtype in FOREIGN else None
        return self._view() if dtype is None else self._view().view(dtype)

    def is_finite(self) -> bool:
        """Return whether no element is infinite or NaN.

        Raises:
            TypeError, ValueError, MissingExtra: as `numpy`, except that every dtype can be looked at.
        """
        return are_finite(load_numpy(), self.dtype, self._view())

    def to_torch_tensor(self) -> Any:
        """Return a CPU tensor with a copy of the data, since torch has no read-only tensors.

        Raises:
            TypeError, ValueError: as `numpy`.
            RuntimeError: torch was not imported.
        """
        torch = _torch()
        tensor = torch.from_numpy(self._view().copy())
        if self.dtype not in FOREIGN:
            return tensor
        dtype = getattr(torch, self.dtype, None)
        if dtype is None:
            raise TypeError(f"torch {torch.__version__} has no {self.dtype}: install a newer one")
        return tensor.view(dtype)

    def _view(self) -> "NDArray[Any]":
        """Return a read-only view; a dtype that numpy lacks is seen as its carrier."""
        if self.stype != SType.NUMPY:
            raise TypeError(f"an Array of stype {self.stype!r} is not an ndarray; only {SType.NUMPY!r} is")
        if self.dtype not in ITEMSIZE:
            raise TypeError(f"dtype {self.dtype!r} is not one of {', '.join(ITEMSIZE)}")
        numpy = load_numpy()
        size, found = _size_of(self.dtype, self.shape), len(self.data)
        if found == size:
            dtype = numpy.dtype(carrier_of(self.dtype)).newbyteorder("<")
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
        shape, is_fortran, dtype, start = read_npy_header(numpy, self.data)
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
        f"and data (bytes or memoryview), not from ({kinds}){_hint(given[0]) if len(given) == 1 else ''}"
    )


def _hint(given: Any) -> str:
    """Return what to do with an array of another library, such as JAX."""
    return ": convert it with numpy.asarray(…)" if hasattr(given, "__array__") else ""


def _from_ndarray(ndarray: Any) -> _Fields:
    if not _is_instance(ndarray, "numpy", "ndarray"):
        raise TypeError(f"expected a numpy ndarray, not {type(ndarray).__name__}{_hint(ndarray)}")
    if _is_instance(ndarray, "numpy.ma", "MaskedArray"):
        raise TypeError("a masked array cannot be sent, for its mask would be lost: fill it, with `.filled(0)` for one")
    name, shape = name_of(ndarray.dtype), ndarray.shape
    numpy = load_numpy()
    plain = numpy.ascontiguousarray(ndarray)
    if name in FOREIGN:
        plain = plain.view(FOREIGN[name].carrier)
    plain = numpy.ascontiguousarray(plain, plain.dtype.newbyteorder("<"))
    data = memoryview(plain.reshape(-1).view(numpy.uint8)).toreadonly()
    return name, shape, SType.NUMPY, data


def _from_tensor(tensor: Any) -> _Fields:
    torch = _torch()
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"expected a torch tensor, not {type(tensor).__name__}")
    name = str(tensor.dtype).removeprefix("torch.")
    try:
        if name in FOREIGN:
            carried = tensor.detach().view(getattr(torch, FOREIGN[name].carrier)).numpy(force=True)
            return name, *_from_ndarray(carried)[1:]
        ndarray = tensor.numpy(force=True)
    except (TypeError, RuntimeError) as error:  # complex32, quantised, sparse, …
        raise TypeError(
            f"a tensor of {tensor.dtype} cannot be sent: {error}: convert it, such as with `.float()`"
        ) from None
    return _from_ndarray(ndarray)


def is_npy(array: Array) -> bool:
    """Return whether an array of stype "numpy.ndarray" holds an .npy file rather than the elements alone."""
    return len(array.data) > _size_of(array.dtype, array.shape) and array.data[: len(NPY_MAGIC)] == NPY_MAGIC


def _size_of(dtype: str, shape: Sequence[int]) -> int:
    return ITEMSIZE[dtype] * math.prod(shape)


def npy_of(array: Array) -> bytes:
    """Return an array as an .npy file, as Flower's arrays hold it.

    Raises:
        TypeError, ValueError, MissingExtra: as `Array.numpy`.
    """
    if array.dtype in FOREIGN:
        raise TypeError(f"numpy has no {array.dtype}, and so neither has an .npy file: convert it to float32")
    file = BytesIO()
    load_numpy().save(file, array.numpy(), allow_pickle=False)
    return file.getvalue()


def memory_of(data: bytes | memoryview) -> tuple[int, int]:
    """Return a key that two live buffers share if and only if they are the same bytes in memory."""
    numpy = sys.modules.get("numpy")
    if isinstance(data, bytes) or numpy is None or not data:
        return id(data), len(data)
    return numpy.frombuffer(data, numpy.uint8).__array_interface__["data"][0], len(data)


def sketch_of(ndarray: "NDArray[Any]") -> bytes:
    """Return a short sketch of an ndarray's elements: if it is the same later, they have not changed.

    It is made of sums in two directions, at the speed of memory. An app that changes elements on purpose so that all
    these sums stay as they are would not be noticed.
    """
    numpy = load_numpy()
    data = numpy.ascontiguousarray(ndarray).reshape(-1).view(numpy.uint8)
    rows = data[: len(data) // _ROW * _ROW].view(numpy.uint64).reshape(-1, _ROW // 8)
    sums = (rows.sum(axis=0, dtype=numpy.uint64), rows.sum(axis=1, dtype=numpy.uint64), data[rows.nbytes :])
    return blake2b(b"".join(each.tobytes() for each in sums), digest_size=16).digest()


def _is_instance(value: Any, module: str, name: str) -> bool:
    """Return whether ``value`` is an instance of a class whose module may never have been imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _torch() -> Any:
    torch: ModuleType | None = sys.modules.get("torch")
    if torch is None:
        raise RuntimeError("torch is not imported: to use tensors, `import torch` in your app first")
    return torch
