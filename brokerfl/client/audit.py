"""The audit file: one line of JSON for each reply that leaves the site, on disk before the reply is published.

Owns the lines, and that none is lost or written twice. It must not know what the site decides, or how a reply travels.

Each line is written at once, behind all others, and fsynced. A process that is killed after a line and before its reply
finds the line when it is started again. The file may be moved away at any time: the next line begins a new one.
"""

import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from brokerfl.common import Error, ErrorCode, JournalError
from brokerfl.common.private import open_private
from brokerfl.wire.frame import HEAD, ID, MANIFEST, Fields

#: The name of the file in a node's own directory.
NAME = "audit.jsonl"

#: Bytes of the end of the file that are read at the start, and messages that are remembered.
_TAIL, _REMEMBERED = 4 * 1024**2, 10_000

#: The class of what a ClientApp raised, as the reason of its Error begins.
_CLASS = re.compile(r"(\w+): ")


@dataclass(frozen=True)
class Receipt:
    """What a line says of a reply, besides its time.

    Attributes:
        node: the node's id.
        owner: whose run it is: a public key in base64, a realm, or "" if nobody knows.
        run: the run's id.
        message: the id of the message that it answers.
        type: the type of that message; "" if it could not be read.
        bytes_in: bytes of the message's content.
        bytes_out: bytes of the reply's content, or of the reason of an Error.
        sha256: of the same; None if the content is not here any more.
        outcome: ``reply``, ``error``, or ``refused`` if the site did not let the message in, or the reply out.
        error: the class of what the ClientApp raised, or what other Error it is; "" for none.
    """

    node: str
    owner: str
    run: str
    message: str
    type: str
    bytes_in: int
    bytes_out: int
    sha256: str | None
    outcome: str = "reply"
    error: str = ""


def content_of(fields: Mapping[bytes, bytes | memoryview]) -> Fields:
    """Return those of a reply's fields that have its content, in their order."""
    return {name: data for name, data in fields.items() if name not in (ID, HEAD, MANIFEST)}


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of all parts, one after the other."""
    digest = sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def outcome_of(error: Error | None) -> tuple[str, str]:
    """Return what a reply is, and its class if it is an Error."""
    if error is None:
        return "reply", ""
    if error.code == ErrorCode.MOD_FAILED_PRECONDITION:
        return "refused", ""
    found = _CLASS.match(error.reason or "") if error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION else None
    if found is not None:
        return "error", found[1]
    return "error", ErrorCode(error.code).name if error.code in tuple(ErrorCode) else str(error.code)


class Audit:
    """Writes the lines. Safe to share between threads.

    Args:
        path: the file, created if missing. Only this user can read it.

    Raises:
        JournalError: from the constructor and `write`: it cannot be written. Then nothing may be published.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._using = threading.Lock()
        self._file = -1
        self._written: OrderedDict[str, str | None] = OrderedDict()
        self._former: list[tuple[float, str, str]] = []
        try:
            self._open()
            for line in self._tail():
                self._learn(line)
        except OSError as error:
            raise self._trouble(error) from None

    def _trouble(self, error: OSError) -> JournalError:
        return JournalError(
            f"the audit file {self._path} cannot be written ({error.strerror or error}): "
            "the node sends no reply that is not in it"
        )

    def _open(self) -> None:
        """Open the file, if it is not the one that is open; begin a new line behind one that was cut off."""
        with suppress(FileNotFoundError):
            if self._file >= 0 and os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                return
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._file = open_private(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._append(b"\n")
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _tail(self) -> Iterator[dict[str, Any]]:
        size = os.fstat(self._file).st_size
        lines = os.pread(self._file, _TAIL, max(0, size - _TAIL)).splitlines()
        for line in lines[size > _TAIL :]:
            with suppress(ValueError):  # of one that was cut off
                if line and isinstance(found := json.loads(line), dict):
                    yield found

    def _learn(self, line: dict[str, Any]) -> None:
        match line:
            case {"time": str(at), "owner": str(owner), "message": str(message_id), "sha256": str() | None as digest}:
                self._remember(message_id, digest)
                with suppress(ValueError):
                    self._former.append((datetime.fromisoformat(at).timestamp(), owner, message_id))

    def _remember(self, message_id: str, digest: str | None) -> None:
        self._written[message_id] = digest
        self._written.move_to_end(message_id)
        if len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)

    def recent(self, seconds: float) -> list[tuple[float, str, str]]:
        """Return what the file had at the start of the last ``seconds``: (Unix time, owner, message id)."""
        return [each for each in self._former if time.time() - each[0] < seconds]

    def write(self, receipts: Sequence[Receipt]) -> None:
        """Write what is not written yet, and return when it is on disk."""
        with self._using:
            new = [each for each in receipts if not self._has(each)]
            if not new:
                return
            at = datetime.now().astimezone().isoformat(timespec="milliseconds")
            lines = "".join(f"{json.dumps({'time': at, **asdict(each)})}\n" for each in new)
            try:
                self._open()
                self._append(lines.encode())
                os.fsync(self._file)
            except OSError as error:
                raise self._trouble(error) from None
            for each in new:
                self._remember(each.message, each.sha256)

    def _has(self, receipt: Receipt) -> bool:
        """Whether this reply has a line. One whose content is not here any more had it before it was uploaded."""
        if receipt.message not in self._written:
            return False
        return receipt.sha256 in (None, self._written[receipt.message])

    def _append(self, data: bytes) -> None:
        written = os.write(self._file, data)
        if written < len(data):
            raise OSError(0, "only a part of a line could be written")

    def close(self) -> None:
        """Close the file."""
        with self._using:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
