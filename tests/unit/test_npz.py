"""Arrays as .npz files: what numpy reads is what was written, and a file that cannot be made changes nothing."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from brokerfl.common import Array, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.common.dtypes import FOREIGN, ITEMSIZE
from brokerfl.common.npz import write_npz
from brokerfl.wire.results import decode_result, encode_result

ARRAYS = npst.arrays(st.sampled_from(sorted(ITEMSIZE.keys() - FOREIGN.keys())), npst.array_shapes(min_dims=0))

#: Names that np.savez would take for its own arguments, or for folders.
NAMES = st.sampled_from(["file", "allow_pickle", "a/b", "..", "layer.0.weight", "ä", "x.npy", ""])


@settings(deadline=None)
@given(st.dictionaries(NAMES, ARRAYS))
def test_numpy_reads_what_was_written(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> None:
    """Names, dtypes, shapes and elements are the same, in the same order."""
    path = tmp_path_factory.mktemp("npz") / "model.npz"
    write_npz(path, {name: Array(array) for name, array in arrays.items()})
    with np.load(path) as found:
        assert found.files == list(arrays)
        for name, array in arrays.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()


def test_what_flower_sends_is_copied(tmp_path: Path) -> None:
    """An .npy file without dtype and shape, as legacy strategies have it, becomes the array that it is."""
    file = BytesIO()
    np.save(file, np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    write_npz(tmp_path / "model.npz", {"0": Array("", (), "flwr:numpy.ndarray", file.getvalue())})
    with np.load(tmp_path / "model.npz") as found:
        np.testing.assert_array_equal(found["0"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (Array("bfloat16", (1,), "numpy.ndarray", b"ab"), "'w' is of bfloat16, which an .npz file cannot hold"),
        (Array("float32", (1,), "mine", b"abcd"), "'w' cannot be in an .npz file: an Array of stype 'mine'"),
        (Array("float32", (2,), "numpy.ndarray", b"abcd"), "'w' cannot be in an .npz file: float32 of shape"),
    ],
)
def test_what_no_file_holds(tmp_path: Path, array: Array, why: str) -> None:
    """The error names the array, the file that was there is as it was, and there is no other one."""
    path = tmp_path / "model.npz"
    path.write_text("mine")
    with pytest.raises(ValueError, match=why):
        write_npz(path, {"first": Array(np.zeros(3)), "w": array})
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_results_come_back() -> None:
    """Values of an app that uses brokerfl's classes come back equal, share no memory, and keep what is one object."""
    weights = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    content = RecordSet({"model": ParametersRecord({"w": Array(weights)})}, {"m": MetricsRecord({"n": [1, 2]})})
    value = {
        "plain": (1, 2**70, -0.0, None, True, "ä", b"x", {3, 4}, [1.5]),
        "weights": [weights, weights],
        "fortran": np.asfortranarray(weights),
        "text": np.array(["a", "bc"]),
        "content": content,
    }
    record = encode_result(value)
    weights += 1
    found = decode_result(record)
    assert found["plain"] == value["plain"]
    assert found["weights"][0] is found["weights"][1]
    np.testing.assert_array_equal(found["weights"][0], np.arange(6.0).reshape(2, 3))
    found["weights"][0] += 1
    assert found["fortran"].flags.f_contiguous
    assert list(found["content"]) == ["model", "m"]
    assert found["content"]["m"] == MetricsRecord({"n": [1, 2]})
    np.testing.assert_array_equal(found["content"]["model"]["w"].numpy(), np.arange(6.0).reshape(2, 3))
    assert found["text"].tolist() == ["a", "bc"]
