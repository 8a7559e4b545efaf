"""The file that says which run a service is at, so that it resumes its run when it is started again.

Owns that file, and when it goes. It must not know Redis.
"""

import os
from pathlib import Path

from brokerfl.cli.exits import Exit
from brokerfl.common import ConfigError
from brokerfl.common.private import open_private

#: How a run ends for good; after anything else it is resumed.
_OVER = frozenset({Exit.OK, Exit.RUN_NOT_FOUND, Exit.RUN_STOPPED, Exit.RUN_LOST})


class RunFile:
    """Holds the id of a run that has not ended.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str | None:
        """Return the run's id; None if there is no file.

        Raises:
            ConfigError: the file cannot be read, or holds something else.
        """
        try:
            text = self._path.read_text().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the run file {self._path} cannot be read: {error}") from None
        if not text.isascii() or not text.isdecimal() or not 2 <= int(text) < 2**64:
            raise ConfigError(f"the run file {self._path} holds no run id: delete it, and a new run is started")
        return text

    def write(self, run_id: int) -> None:
        """Note a run; a kill in between leaves no half of it.

        Raises:
            ConfigError: the file cannot be written.
        """
        made = self._path.with_name(f"{self._path.name}.new")
        try:
            with open(open_private(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
                file.write(f"{run_id}\n")
            made.replace(self._path)
        except OSError as error:
            raise ConfigError(f"the run file {self._path} cannot be written: {error}") from None

    def leave(self, code: int) -> None:
        """The command ends with this exit code: forget a run that is over."""
        if code in _OVER:
            self._path.unlink(missing_ok=True)
