"""The saved steps: what a run has recorded of its own loop, as of the last commit, in Redis and in memory.

Owns the hash `P:{run:R}:steps`. The chunks of its large values are blobs like those of a broadcast. It must not know
what a step is, or when to commit.
"""

from collections.abc import Mapping
from typing import NamedTuple

from redis.client import Pipeline

from brokerfl.broker.blobs import read_blobs
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.keys import milliseconds
from brokerfl.broker.stream import MOST_ARGUMENTS, batches
from brokerfl.common import RecordSet, RunLost
from brokerfl.wire.manifest import manifest_of
from brokerfl.wire.payload import MissingChunkError, assemble
from brokerfl.wire.record import decode_content
from brokerfl.wire.steps import contents_in, decode_value


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

    Attributes:
        recorded: what Redis has.
    """

    def __init__(self, connection: Connection, run_id: int, retention: float) -> None:
        self._connection = connection
        self._run_id = run_id
        self._key = connection.keys.steps(run_id)
        self._retention = retention
        self.recorded = Recorded()

    def load(self) -> None:
        """Read what the last commit recorded.

        Raises:
            FrameError: another version wrote it.
        """
        with map_errors(self._connection.url):
            fields = self._connection.at(self._key).redis.hgetall(self._key)
        self.recorded = Recorded(fields, contents_in(fields))

    def read(self, value: bytes) -> RecordSet:
        """Return the content of a value, given its field.

        Raises:
            FrameError: another version wrote it.
            RunLost: a part of it is gone from Redis.
        """
        fields = decode_value(value)
        manifest = manifest_of(fields)
        if manifest is None:
            return decode_content(fields)
        chunks = manifest.chunks
        try:
            content, _ = assemble(
                manifest,
                lambda window: read_blobs(self._connection, self._run_id, [chunks[index] for index in window]),
            )
        except MissingChunkError as error:
            raise RunLost(
                f"run {self._run_id} cannot go on where it was: its record is incomplete ({error}); "
                "--from-start begins anew"
            ) from None
        return decode_content(content)

    def write(self, pipe: Pipeline, recorded: Recorded) -> None:
        """Write what differs from what Redis has; the chunks are already there."""
        former = self.recorded.fields
        gone = [name for name in former if name not in recorded.fields]
        for names in batches(gone):
            pipe.hdel(self._key, *names)
        self._put(pipe, {name: data for name, data in recorded.fields.items() if former.get(name) != data})

    def saved(self, recorded: Recorded) -> None:
        """The commit that writes ``recorded`` was executed."""
        self.recorded = recorded

    def write_again(self, pipe: Pipeline) -> None:
        """Write all of it again: Redis may have forgotten it."""
        pipe.unlink(self._key)
        self._put(pipe, self.recorded.fields)

    def _put(self, pipe: Pipeline, fields: Mapping[bytes, bytes]) -> None:
        for batch in batches(fields.items(), MOST_ARGUMENTS // 2 - 5):
            pipe.hset(self._key, mapping=dict(batch))
        if fields:
            pipe.pexpire(self._key, milliseconds(self._retention))
