"""ndarrays as the arrays of a content, and back: bit for bit, in their own order, whatever their dtype.

Owns which of them are sent as their elements, and which as an .npy file. It must not know what they are part of.
"""

from io import BytesIO
from typing import Any

from brokerfl.common import Array, SType
from brokerfl.common.dtypes import name_of
from brokerfl.common.npy import load_numpy

#: The stype of an ndarray whose dtype no Array has, such as text or a foreign byte order: its data are an .npy file.
_NPY = "npy"


def array_of(ndarray: Any) -> Array:
    """Return an ndarray as an Array, with a copy of its elements."""
    try:
        name_of(ndarray.dtype)
    except TypeError:
        return _npy_of(ndarray, _NPY)
    if not ndarray.dtype.isnative:
        return _npy_of(ndarray, _NPY)
    if not ndarray.flags.c_contiguous:
        return _npy_of(ndarray, SType.NUMPY)  # in its own order: sums of floats depend on it
    shared = Array(ndarray)
    return Array(shared.dtype, shared.shape, shared.stype, bytes(shared.data))


def _npy_of(ndarray: Any, stype: str) -> Array:
    file = BytesIO()
    load_numpy().save(file, ndarray, allow_pickle=False)
    return Array(str(ndarray.dtype), ndarray.shape, stype, file.getvalue())


def ndarray_of(array: Array) -> Any:
    """Return a writable copy of the ndarray that `array_of` was given.

    Raises:
        ValueError: the data are not what dtype and shape say.
    """
    if array.stype == SType.NUMPY:
        return array.numpy().copy(order="K")
    return load_numpy().load(BytesIO(bytes(array.data)), allow_pickle=False)


def array_in(data: bytes, ndarray: Any) -> Array | None:
    """Return an .npy file, whose elements are those of an ndarray, as an Array; None if its header is another's."""
    array = Array(str(ndarray.dtype), ndarray.shape, SType.NUMPY, data)
    try:
        found = array.numpy()
    except (TypeError, ValueError):
        return None
    return array if found.dtype == ndarray.dtype and found.flags.c_contiguous else None
