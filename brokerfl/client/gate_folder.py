"""What waits at a gate, and what the site decided: files in the node's directory, by run.

Owns their names and contents, and how another process finds and writes them. It must not know why anything waits.

    gate/RUN.pending              what the node holds back; the node writes and deletes it
    gate/RUN.approved, .denied    what the site decided; `brokerfl gate` writes them
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from brokerfl.common import ConfigError
from brokerfl.common.private import open_private, private_directory

#: The name of the directory within a node's own.
FOLDER = "gate"

#: Most bytes of a file.
_LONGEST = 1024 * 1024


class Verdict(StrEnum):
    """What a site decided about a run. The names end files."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"


class GateFolder:
    """The files of one node.

    Args:
        path: the directory ``gate``; made by the node.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        """Make the directory, and forget what a former process held back: the node is given it again.

        Raises:
            OSError: it cannot be made.
        """
        private_directory(self.path.parent)
        private_directory(self.path)
        for run_id, verdict in self._files():
            if verdict is Verdict.PENDING:
                self.remove(run_id)

    def _files(self) -> list[tuple[int, Verdict]]:
        found = [path.name.partition(".") for path in self.path.iterdir()]
        return [(int(run), Verdict(kind)) for run, _, kind in found if run.isdecimal() and kind in tuple(Verdict)]

    def verdicts(self) -> dict[int, Verdict]:
        """Return what was decided, by run. A run that was approved and denied is denied."""
        found = dict[int, Verdict]()
        for run_id, verdict in self._files():
            if verdict is not Verdict.PENDING and found.get(run_id) is not Verdict.DENIED:
                found[run_id] = verdict
        return found

    def write(self, run_id: int, verdict: Verdict, record: Mapping[str, Any]) -> None:
        """Write what is known of a run, at once as a whole.

        Raises:
            OSError: it cannot be written.
        """
        made = self.path / f"{run_id}.{os.getpid()}.new"
        with open(open_private(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            if verdict is not Verdict.PENDING:
                os.fsync(file.fileno())
        made.replace(self._path(run_id, verdict))

    def remove(self, run_id: int, verdict: Verdict = Verdict.PENDING) -> None:
        """Delete a file, if it is there."""
        self._path(run_id, verdict).unlink(missing_ok=True)

    def _path(self, run_id: int, verdict: Verdict) -> Path:
        return self.path / f"{run_id}.{verdict}"

    # Of another process.

    def entries(self) -> list["Entry"]:
        """Return what waits, and what was decided.

        Raises:
            ConfigError: the files cannot be read.
        """
        found: dict[int, Entry] = {}
        try:
            for run_id, verdict in sorted(self._files(), key=lambda file: [*Verdict].index(file[1])):
                if (record := self._read(run_id, verdict)) is not None:
                    known = found[run_id].record if run_id in found else {}
                    found[run_id] = Entry(run_id, self, verdict, {**known, **record})
        except OSError as error:
            raise ConfigError(f"the gate of the node in {self.path} cannot be read ({error.strerror})") from None
        return list(found.values())

    def _read(self, run_id: int, verdict: Verdict) -> dict[str, Any] | None:
        try:
            with open(open_private(self._path(run_id, verdict), os.O_RDONLY), encoding="utf-8") as file:
                record = json.loads(file.read(_LONGEST))
        except FileNotFoundError:  # it was decided, or is over, in the meantime
            return None
        except ValueError:
            record = None
        return record if isinstance(record, dict) else {}

    def decide(self, run_id: int, verdict: Verdict, record: Mapping[str, Any]) -> None:
        """Approve or deny a run.

        Raises:
            ConfigError: that cannot be written.
        """
        try:
            self.write(run_id, verdict, record)
            self.remove(run_id, Verdict.DENIED if verdict is Verdict.APPROVED else Verdict.APPROVED)
        except OSError as error:
            raise ConfigError(f"the gate of the node in {self.path} cannot be written ({error.strerror})") from None


@dataclass(frozen=True)
class Entry:
    """What a gate knows of one run.

    Attributes:
        run_id: the run.
        folder: that of the node.
        verdict: what was decided.
        record: owner, app, type, configs and reason, as far as they are known.
    """

    run_id: int
    folder: GateFolder
    verdict: Verdict
    record: dict[str, Any]

    @property
    def node_id(self) -> str:
        """The node."""
        return self.folder.path.parent.name


def gate_folders(state_dir: Path) -> list[GateFolder]:
    """Return those of all nodes that keep their state in one directory."""
    found = sorted(state_dir.glob(f"*/{FOLDER}"))
    return [GateFolder(path) for path in found if path.parent.name.isdigit()]
