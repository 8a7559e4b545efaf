"""The dtypes of the arrays that brokerfl carries, and which of numpy's, ml_dtypes' and torch's they are.

Owns their names, sizes, and which of their values are finite. It must not know arrays or records. numpy is what the
caller passes; ml_dtypes, which JAX uses, is never imported: an app that has such an array has imported it already.
"""

import sys
from typing import Any, NamedTuple

#: The dtypes that can be sent, by the name that all share, with the size of one element in bytes.
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
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "complex64": 8,
    "complex128": 16,
}


class Foreign(NamedTuple):
    """A dtype that numpy does not have.

    Attributes:
        carrier: numpy's dtype for its bits.
        mask: a value is infinite or NaN if these bits of it …
        special: … are these.
    """

    carrier: str
    mask: int
    special: int


#: The dtypes above that numpy does not have: torch and ml_dtypes do.
FOREIGN: dict[str, Foreign] = {
    "bfloat16": Foreign("int16", 0x7F80, 0x7F80),
    "float8_e4m3fn": Foreign("uint8", 0x7F, 0x7F),
    "float8_e5m2": Foreign("uint8", 0x7C, 0x7C),
    "float8_e4m3fnuz": Foreign("uint8", 0xFF, 0x80),
    "float8_e5m2fnuz": Foreign("uint8", 0xFF, 0x80),
    "float8_e8m0fnu": Foreign("uint8", 0xFF, 0xFF),
}

#: Most elements that are looked at in one step: each needs a byte or more of memory.
_AT_ONCE = 2**20


def carrier_of(name: str) -> str:
    """Return numpy's dtype for the bits of a dtype."""
    return FOREIGN[name].carrier if name in FOREIGN else name


def name_of(dtype: Any) -> str:
    """Return the name of an ndarray's dtype, which numpy or ml_dtypes made: others may have the same name.

    Raises:
        TypeError: it cannot be sent.
    """
    if dtype.type.__module__ == "numpy" and dtype.name in ITEMSIZE:
        return str(dtype.name)
    for name in FOREIGN:
        if _ml_type(name) is dtype.type:
            return name
    raise TypeError(
        f"dtype {dtype} cannot be sent; it must be one of {', '.join(ITEMSIZE)}: convert it, such as with "
        "`.astype('float32')`"
    )


def ml_dtype(name: str) -> Any:
    """Return ml_dtypes' dtype for one of `FOREIGN`.

    Raises:
        TypeError: ml_dtypes is not imported, or does not have it.
    """
    found = _ml_type(name)
    if found is None:
        raise TypeError(
            f"numpy has no {name}: import ml_dtypes in your app first, or use ParametersRecord.to_torch_state_dict()"
        )
    return found


def _ml_type(name: str) -> Any:
    return getattr(sys.modules.get("ml_dtypes"), name, None)


def are_finite(numpy: Any, name: str, values: Any) -> bool:
    """Return whether none of the values is infinite or NaN.

    Args:
        numpy: the module.
        name: the dtype.
        values: an ndarray of its carrier.
    """
    foreign = FOREIGN.get(name)
    if foreign is None and values.dtype.kind not in "fc":
        return True
    flat = values.ravel(order="K")  # a view, in whatever order they are
    for start in range(0, len(flat), _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        finite = numpy.isfinite(part) if foreign is None else part & foreign.mask != foreign.special
        if not finite.all():
            return False
    return True
