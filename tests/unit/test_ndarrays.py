"""ndarrays in a record: they come back as they were, and those of a model that was sent are found again."""

import io
from typing import Any

import numpy as np
import pytest

from brokerfl.common import Array, SType
from brokerfl.common.array import npy_of
from brokerfl.wire.ndarrays import array_in, array_of, ndarray_of


@pytest.mark.parametrize(
    "ndarray",
    [
        np.array(1.5),
        np.zeros((0, 3)),
        np.eye(3, dtype=">f4"),
        np.arange(24, dtype=np.int8).reshape(2, 3, 4)[:, ::2],
        np.asfortranarray(np.eye(3)[:2]),
        np.array([1 + 2j, 3], np.complex64),
        np.array([True, False]),
        np.array(["a", "bc"]),
        np.array([(1, 2.0)], [("first", "i4"), ("second", "f8")]),
        np.arange(4, dtype=np.float16),
        np.arange(4, dtype=np.longdouble),
        np.array(["2026-11-30"], "M8[D]"),
    ],
    ids=lambda ndarray: f"{ndarray.dtype} {ndarray.shape}",
)
def test_an_ndarray_comes_back_as_it_was(ndarray: Any) -> None:
    """With its dtype and byte order, its shape and the order of its elements; and it can be changed."""
    found = ndarray_of(array_of(ndarray))
    assert (found.dtype, found.shape, found.tobytes()) == (ndarray.dtype, ndarray.shape, ndarray.tobytes())
    assert found.flags.f_contiguous == ndarray.copy(order="K").flags.f_contiguous
    assert found.flags.writeable
    assert not np.shares_memory(found, ndarray)


def test_elements_are_copied() -> None:
    """What an app changes later does not change what is recorded."""
    ndarray = np.arange(6.0).reshape(2, 3)
    array = array_of(ndarray)
    ndarray += 1
    assert np.array_equal(ndarray_of(array), ndarray - 1)


def test_an_ndarray_in_a_file() -> None:
    """An .npy file of another dtype, shape or order does not hold it, though its elements have the same bytes."""
    square = np.arange(4.0).reshape(2, 2)
    found = array_in(npy_of(Array(square)), square)
    assert found is not None
    assert found.stype == SType.NUMPY
    assert np.array_equal(ndarray_of(found), square)
    others = (square.reshape(4), square.view(np.int64), square.astype(">f8").view(">f8"))
    for other in others:
        assert array_in(npy_of(Array(square)), other) is None
    file = io.BytesIO()
    np.save(file, np.asfortranarray(square))
    assert array_in(file.getvalue(), square) is None
    assert array_in(b"no header" + square.tobytes(), square) is None
