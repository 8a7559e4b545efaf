"""Arrays as an .npz file, which `numpy.load` reads. Owns how arrays become one, and that there is never half a file.

An .npz file is a zip of .npy files, so that what holds one already is copied.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from brokerfl.common.array import Array, npy_of
from brokerfl.common.dtypes import FOREIGN
from brokerfl.common.npy import NPY_MAGIC, load_numpy, read_npy_header


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to a file, in place of the one that may be there.

    Raises:
        ValueError: one of them cannot be in such a file; the text names it. The file is as it was.
        OSError: the file cannot be written; it is as it was.
        MissingExtra: numpy is not installed.
    """
    load_numpy()
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with made.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, array in arrays.items():
                    _add(archive, name, array)
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    if "\0" in name or len(name.encode(errors="replace")) > 2**15:
        raise ValueError(f"the name {name[:40]!r} cannot be in an .npz file")
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        entry.write(_npy(name, array))


def _npy(name: str, array: Array) -> bytes | memoryview:
    """Return an array as an .npy file; legacy strategies of flwr have such files without dtype and shape."""
    if array.dtype in FOREIGN:
        raise ValueError(f"{name!r} is of {array.dtype}, which an .npz file cannot hold: convert the model to float32")
    try:
        if array.data[: len(NPY_MAGIC)] != NPY_MAGIC:
            return npy_of(array)
        _, _, dtype, _ = read_npy_header(load_numpy(), array.data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be in an .npz file: {error}") from None
    if dtype.hasobject or (dtype.kind == "V" and dtype.names is None):
        raise ValueError(f"{name!r} is of a dtype that numpy does not have, which an .npz file cannot hold")
    return array.data
