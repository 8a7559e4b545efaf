"""The tape: a file with what a ServerApp pushed and the replies that it got, in the order in which it got them.

Owns the file: that a torn end is cut off, what is synced, and that it stays within its limit. It must not know when
anything is to be recorded, or what is done with it later.

    h run_id app config                 the beginning
    p [[id, node, type, group], …]      a push; the id is "" if the message was refused
    a id id                             a message was pushed again after a resume, and got another id
    b digest bytes                      bytes of contents, each once
    r id metadata error fields          a reply: fields are bytes, or the digests of such
    l [id, …]                           the app stopped waiting for these
    n [id, …] thread                    the nodes that a thread of the app was told
    i [[id, online, name, …], …] thread what it was told of nodes
    t text thread                       it waited for nodes in vain
    g                                   another ServerApp goes on: what was told after the last push led to nothing
    x reason                            the end: the rest was not recorded
"""

import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from hashlib import sha256
from logging import WARNING
from pathlib import Path
from typing import Any, BinaryIO

from brokerfl.broker.node_info import NodeInfo
from brokerfl.common import ConfigError, Error, FrameError, Message, Metadata, RunAttached, log
from brokerfl.common.lockfile import LockFile
from brokerfl.common.private import open_private, private_directory
from brokerfl.server.told import asking
from brokerfl.wire.entries import encode_entry, read_entries
from brokerfl.wire.frame import Fields
from brokerfl.wire.record import decode_content, encode_content
from brokerfl.wire.run import Run
from brokerfl.wire.told import sendable

#: Bytes of a content from which on they are recorded apart, so that equal ones are there once.
_APART = 1024

#: Most bytes of an entry without fields.
_MARK = 64

#: The suffix of a tape's name.
SUFFIX = ".replies"


def path_of(folder: Path, run_id: int) -> Path:
    """Return where the tape of a run is."""
    return folder / f"{run_id}{SUFFIX}"


def prepare(folder: Path) -> None:
    """Make the directory of tapes, or check one that is there: only this user may read it.

    Raises:
        ConfigError: it cannot be used.
    """
    try:
        private_directory(folder)
    except OSError as error:
        raise ConfigError(f"--record: {folder} cannot be used: {error.strerror or error}") from None


class Recorded:
    """What a tape has.

    Args:
        file: the tape.

    Attributes:
        entries: what was recorded, besides bytes of contents.
        reason: why the recording was given up, so that it is not to be used; "" if it was not.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._places: dict[bytes, int] = {}
        self.entries: list[list[Any]] = []
        self.reason = ""
        self._end = 0
        for at, end, entry in read_entries(file):
            self._end = end
            if entry[0] == "b":
                self._places[entry[1]] = at
            elif entry[0] == "x":
                self.reason = str(entry[1])
            else:
                self.entries.append(entry)

    @property
    def run(self) -> Run:
        """The run.

        Raises:
            ConfigError: the file is not a recording.
        """
        match self.entries[:1]:
            case [["h", int(run_id), str(app), dict(config)]]:
                return Run(run_id, app, config, 0.0)
        raise ConfigError(f"{self._file.name} is not a recording")

    def content(self, digest: bytes) -> bytes:
        """Return bytes that were recorded apart.

        Raises:
            FrameError: they are not there.
        """
        with self._lock:
            if digest not in self._places:
                raise FrameError("the recording lacks the bytes of a reply")
            self._file.seek(self._places[digest])
            try:
                for _, _, entry in read_entries(self._file):
                    data: bytes = entry[2]
                    return data
            finally:
                self._file.seek(0, os.SEEK_END)
            raise FrameError("the recording lacks the bytes of a reply")

    def message(self, entry: Sequence[Any]) -> Message:
        """Return the reply that an entry has.

        Raises:
            FrameError: malformed.
        """
        try:
            _, _, told, error, recorded = entry
            metadata = Metadata(*told)
            if error is not None:
                return Message(metadata, error=Error(*error))
            fields: Fields = {
                name: data if isinstance(data, bytes) else self.content(data[0]) for name, data in recorded.items()
            }
        except (TypeError, ValueError, LookupError) as wrong:
            raise FrameError(f"the recording is malformed: {wrong}") from None
        return Message(metadata, content=decode_content(fields))


class Tape(Recorded):
    """The tape of one run, from any thread.

    Args:
        folder: the directory that it is in, made if it is missing.
        run_id: the run.
        limit: most bytes.
        is_new: `begin` begins a new one, whatever there is.

    Attributes:
        is_over: nothing is recorded any more, and what was recorded is not to be used.
        place: where it is, as ``host:directory``.

    Raises:
        ConfigError: there is no tape of this run, or the directory cannot be used.
        RunAttached: another process writes it.
    """

    def __init__(self, folder: Path, run_id: int, limit: int, *, is_new: bool) -> None:
        path, self._run_id, self._limit, self._is_new = path_of(folder, run_id), run_id, limit, is_new
        self.place = f"{socket.gethostname()}:{folder}"
        if not is_new and not path.exists():
            raise ConfigError(f"--record: {folder} has no recording of {run_id}: give the directory that has it")
        prepare(folder)
        try:
            self._held = LockFile(path.with_suffix(".lock"))
            file = os.fdopen(open_private(path), "r+b")
        except BlockingIOError:
            raise RunAttached(
                f"run {run_id} is being recorded to {folder} by another process: end that first"
            ) from None
        except OSError as error:
            raise ConfigError(f"--record: {folder} cannot be used: {error.strerror or error}") from None
        super().__init__(file)
        self.is_over, self._is_dirty = False, False
        self._folder = folder

    def begin(self, run: Run) -> None:
        """Begin to record this run, behind what there is of it."""
        if self._is_new:
            self._file.seek(0)
            self._file.truncate()
            self._end, self._places, self.entries, self.reason = 0, {}, [], ""
        self.is_over = bool(self.reason)
        if self.is_over:
            log(WARNING, "Run %s resumes from the start: its recording was given up: %s", run.run_id, self.reason)
        self._cut_off()
        if self.entries:
            self._append(["g"], self._end + _MARK)  # the limit may be lower than it was
        elif not self.is_over:
            self._append(["h", run.run_id, run.app, dict(run.run_config)])
            self._sync_folder(self._folder)

    def _cut_off(self) -> None:
        """Cut off what is torn at the end."""
        torn = self._file.seek(0, os.SEEK_END) - self._end
        if torn:
            log(WARNING, "The recording of run %s has %s bytes of an entry at its end: cut off", self._run_id, torn)
            self._file.truncate(self._end)
            self._file.seek(self._end)

    # Writing.

    def push(self, batch: Sequence[tuple[str, Message]]) -> None:
        """Messages were pushed, and got these ids."""
        told = [[each, it.metadata.dst_node_id, it.metadata.message_type, it.metadata.group_id] for each, it in batch]
        self._append(["p", told])

    def again(self, former: str, message_id: str) -> None:
        """A message of a former ServerApp was pushed again, and got another id."""
        self._append(["a", former, message_id])

    def reply(self, reply: Message) -> None:
        """The app gets a reply."""
        metadata, error, fields = list(astuple(reply.metadata)), None, {}
        if reply.has_error():
            error = [reply.error.code, reply.error.reason]
        else:
            for name, data in encode_content(reply.content).items():
                fields[name] = bytes(data) if len(data) < _APART else [self._apart(data)]
        self._append(["r", reply.metadata.reply_to_message, metadata, error, fields])

    def _apart(self, data: bytes | memoryview) -> bytes:
        digest = sha256(data).digest()
        with self._lock:
            if digest not in self._places:
                self._places[digest] = self._file.tell()
                self._append(["b", digest, bytes(data)])
        return digest

    def left(self, message_ids: Iterable[str]) -> None:
        """The app stopped waiting for these."""
        self._append(["l", list(map(str, message_ids))])

    def nodes(self, node_ids: Sequence[int]) -> None:
        """The app was told that these are online."""
        self._append(["n", list(node_ids), asking()])

    def infos(self, infos: Iterable[NodeInfo]) -> None:
        """The app was told this of nodes."""
        told = [[each.node_id, each.online, each.name, _clean(each.labels), each.version, each.since] for each in infos]
        self._append(["i", told, asking()])

    def waited(self, error: TimeoutError) -> None:
        """The app waited for nodes in vain."""
        self._append(["t", str(error), asking()])

    def _append(self, entry: list[Any], limit: int = 0) -> None:
        with self._lock:
            if self.is_over or self._file.closed:  # closed: the run is detached, and nothing of it can be settled
                return
            try:
                data = encode_entry(entry)
                if self._file.tell() + len(data) > max(self._limit, limit):
                    self.give_up(f"it would have more than the {self._limit:,} bytes of --record-limit")
                    return
                self._file.write(data)
                self._is_dirty = True
            except (OSError, ValueError) as error:
                self.give_up(str(error))

    def sync(self) -> None:
        """Bring to the disk what was recorded so far. To be called before anything of that may leave Redis."""
        with self._lock:
            if self.is_over or self._file.closed or not self._is_dirty:
                return
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._is_dirty = False
            except OSError as error:
                self.give_up(str(error))

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def give_up(self, reason: str) -> None:
        """From now on nothing is recorded, and what was recorded is deleted: it would soon lag behind the replies."""
        with self._lock:
            if self.is_over:
                return
            self.is_over = True
            log(WARNING, "Run %s is not recorded any more, and would resume from the start: %s", self._run_id, reason)
            try:
                self._file.seek(0)
                self._file.truncate()
                self._file.write(encode_entry(["x", reason]))
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                log(WARNING, "The recording of run %s is not to be used: %s", self._run_id, error)

    def close(self) -> None:
        """Sync, and let others have the file."""
        with self._lock:
            if not self._file.closed:
                self.sync()
                self._file.close()
                self._held.close()


def _clean(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels that can be encoded: a node's may have half of a surrogate pair."""
    return {sendable(key): sendable(value) for key, value in labels.items()}
