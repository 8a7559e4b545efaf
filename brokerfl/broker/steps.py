"""The saved steps: what a run has recorded of its own loop, as of the last commit, in Redis and in memory.

Owns the hash `P:{run:R}:steps`. The chunks of its large values are blobs like those of a broadcast. It must not know
what a step is, or when to commit.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from redis.client import Pipeline

from brokerfl.broker.blobs import read_blobs
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.keys import milliseconds
from brokerfl.broker.stream import MOST_ARGUMENTS, batches
from brokerfl.common import FrameError, RecordSet, RunLost
from brokerfl.wire.frame import SIGNATURE, Fields
from brokerfl.wire.guard import RunGuard
from brokerfl.wire.manifest import Manifest, manifest_of
from brokerfl.wire.payload import MissingChunkError, assemble
from brokerfl.wire.record import decode_content
from brokerfl.wire.steps import HEAD, contents_in, decode_value

#: What a signature of a record is of.
_SIGNED_AS = "steps"


class Recorded(NamedTuple):
    """A record as a commit writes it.

    Attributes:
        fields: of the hash, all of them; none deletes it.
        contents: what the large contents of its values are called in Redis.
    """

    fields: Mapping[bytes, bytes] = {}
    contents: frozenset[bytes] = frozenset()


class SavedSteps:
    """The committed record of one run. One thread at a time.

    Args:
        connection: to the run's Redis.
        run_id: the run.
        retention: seconds that the hash lives after it was written.
        guard: seals and signs it. Of a sealed record only its head can be read without the key.

    Attributes:
        recorded: what Redis has, in clear.
    """

    def __init__(self, connection: Connection, run_id: int, retention: float, guard: RunGuard | None = None) -> None:
        self._guard = guard or RunGuard()
        self._connection = connection
        self._run_id = run_id
        self._key = connection.keys.steps(run_id)
        self._retention = retention
        self.recorded = Recorded()

    def load(self) -> None:
        """Read what the last commit recorded.

        Raises:
            FrameError: another version wrote it, or it was changed.
        """
        with map_errors(self._connection.url):
            fields = self._connection.at(self._key).redis.hgetall(self._key)
        try:
            if fields:
                self._guard.check_state(fields, _SIGNED_AS)
            opened = dict(self._opened(*field) for field in fields.items() if field[0] != SIGNATURE)
            self.recorded = Recorded(opened, contents_in(opened))
        except FrameError as error:
            raise FrameError(f"the steps of run {self._run_id} cannot be read: {error}") from None

    def _opened(self, name: bytes, data: bytes) -> tuple[bytes, bytes]:
        opened = self._guard.state.open
        return (name, data) if name == HEAD else (bytes(opened(name)), bytes(opened(data)))

    def _stored(self, data: bytes) -> bytes:
        return bytes(self._guard.state.seal(memoryview(data)))

    def _named(self, name: bytes) -> bytes:
        """Return the name of a field as it is stored: one that is sealed is always the same."""
        return name if name == HEAD else self._stored(name)

    def read(self, value: bytes) -> RecordSet:
        """Return the content of a value, given its field.

        Raises:
            FrameError: another version wrote it, or a part of it was changed in Redis.
            RunLost: a part of it is gone from Redis.
        """
        try:
            fields = decode_value(value)
            manifest = manifest_of(fields)
            return decode_content(fields if manifest is None else self._fetched(manifest))
        except MissingChunkError as error:
            raise RunLost(
                f"run {self._run_id} cannot go on where it was: its record is incomplete ({error}); "
                "--from-start begins anew"
            ) from None
        except FrameError as error:
            raise FrameError(
                f"run {self._run_id} cannot go on where it was: its record cannot be read ({error}); "
                "--from-start begins anew"
            ) from None

    def _fetched(self, manifest: Manifest) -> Fields:
        chunks = manifest.chunks
        content, _ = assemble(
            manifest,
            lambda window: read_blobs(self._connection, self._run_id, [chunks[index] for index in window]),
            cipher=self._guard.state,
        )
        return content

    def write(self, pipe: Pipeline, recorded: Recorded) -> None:
        """Write what differs from what Redis has; the chunks are already there."""
        former = self.recorded.fields
        if not recorded.fields:
            pipe.unlink(self._key)  # with its signature
            return
        gone = [name for name in former if name not in recorded.fields]
        for names in batches(gone):
            pipe.hdel(self._key, *map(self._named, names))
        self._put(pipe, recorded, [name for name, data in recorded.fields.items() if former.get(name) != data])

    def saved(self, recorded: Recorded) -> None:
        """The commit that writes ``recorded`` was executed."""
        self.recorded = recorded

    def write_again(self, pipe: Pipeline) -> None:
        """Write all of it again: Redis may have forgotten it."""
        pipe.unlink(self._key)
        self._put(pipe, self.recorded, self.recorded.fields)

    def _put(self, pipe: Pipeline, recorded: Recorded, names: Iterable[bytes]) -> None:
        """Write some of the fields of a record; one that is signed is signed anew."""
        if self._guard.is_signed:
            whole: Fields = {
                self._named(name): data if name == HEAD else self._stored(data)
                for name, data in recorded.fields.items()
            }
            signed = self._guard.written(whole, _SIGNED_AS)
            fields = {name: bytes(signed[name]) for name in (*map(self._named, names), SIGNATURE) if name in signed}
        else:
            fields = {name: recorded.fields[name] for name in names}
        for batch in batches(fields.items(), MOST_ARGUMENTS // 2 - 5):
            pipe.hset(self._key, mapping=dict(batch))
        if fields:
            pipe.pexpire(self._key, milliseconds(self._retention))
