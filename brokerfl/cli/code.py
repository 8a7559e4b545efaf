"""The code of a project, as a digest. Owns which files count; must not know what they hold."""

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

#: Most files and directories that are looked at, and most bytes that are read: a project's folder may be a home
#: directory.
_MOST_ENTRIES = 20_000
_MOST_BYTES = 64 * 1024**2

#: Directories whose code is not the project's, besides hidden ones and virtual environments.
_OTHERS = {"__pycache__", "node_modules", "site-packages"}


class _TooMuch(Exception):  # noqa: N818
    """The folder holds more than a project does."""


def digest_of_code(folder: Path) -> str:
    """Return a digest of the names and contents of all Python files in a folder; "" if they are too many.

    Two machines with the same files get the same digest, wherever the folder is.
    """
    digest, size = sha256(), 0
    try:
        for name in sorted(_python_files(folder), key=Path.as_posix):
            with (folder / name).open("rb") as file:
                content = file.read(_MOST_BYTES + 1 - size)
            size += len(content)
            if size > _MOST_BYTES:
                return ""
            path = os.fsencode(name.as_posix())
            digest.update(b"%d %b %d " % (len(path), path, len(content)))
            digest.update(content)
    except (OSError, _TooMuch):
        return ""
    return digest.hexdigest()[:16]


def _python_files(folder: Path) -> Iterator[Path]:
    seen = 0
    for where, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if seen > _MOST_ENTRIES:
            raise _TooMuch
        folders[:] = [name for name in folders if _is_searched(Path(where, name))]
        for name in files:
            path = Path(where, name)
            if name.endswith(".py") and path.is_file():  # not a pipe, which nobody may ever write
                yield path.relative_to(folder)


def _is_searched(folder: Path) -> bool:
    name = folder.name
    return not (name.startswith(".") or name in _OTHERS or (folder / "pyvenv.cfg").exists())
