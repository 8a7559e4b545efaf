""".npy files, in which Flower's arrays hold their elements. Owns how their headers are read.

numpy is imported when one is first needed.
"""

import math
import re
from io import BytesIO
from typing import Any

from brokerfl.common.errors import MissingExtra

#: How an .npy file begins.
NPY_MAGIC = b"\x93NUMPY"

#: numpy refuses longer .npy headers by itself (``max_header_size``); 12 bytes precede the header.
_NPY_HEADER = 10_000 + 12


def load_numpy() -> Any:
    """Return numpy.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import numpy
    except ImportError:
        raise MissingExtra("arrays need numpy: pip install 'brokerfl[numpy]'") from None
    return numpy


#: The header of an .npy file as numpy writes it: dtype, order and shape.
_NPY_PLAIN = re.compile(
    rb"\{'descr': '([<>|][a-zA-Z]\d+(?:\[\w+\])?)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n"
)


def read_npy_header(numpy: Any, data: bytes | memoryview) -> tuple[tuple[int, ...], bool, Any, int]:
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


def check_npy(data: bytes | memoryview) -> None:
    """Check that an .npy file, if it is one, holds what its header says: np.load allocates before it looks.

    Raises:
        ValueError: it does not.
        MissingExtra: numpy is not installed.
    """
    if data[: len(NPY_MAGIC)] == NPY_MAGIC:
        read_npy_header(load_numpy(), data)
