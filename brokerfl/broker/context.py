"""The saved context: a ServerApp's `context.state` as of the last commit, in Redis and in memory.

Owns the hash `P:{run:R}:context`: the fields of an encoded RecordSet, or the manifest of a large one, whose chunks are
blobs like those of a broadcast. It must not know when to commit.
"""

from redis.client import Pipeline

from brokerfl.broker.blobs import read_blobs
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.keys import milliseconds
from brokerfl.common import FrameError, RecordSet, RunLost
from brokerfl.wire.frame import Fields
from brokerfl.wire.guard import RunGuard
from brokerfl.wire.manifest import manifest_of
from brokerfl.wire.payload import EncodedContent, MissingChunkError, assemble
from brokerfl.wire.record import decode_content, encode_content


class SavedContext:
    """The committed state of one run. One thread at a time.

    Args:
        connection: to the run's Redis.
        run_id: the run.
        retention: seconds that the hash lives after it was written.
        guard: seals and signs it.
    """

    def __init__(self, connection: Connection, run_id: int, retention: float, guard: RunGuard | None = None) -> None:
        self._guard = guard or RunGuard()
        self._connection = connection
        self._run_id = run_id
        self._key = connection.keys.context(run_id)
        self._retention = retention
        self._fields: Fields = {}
        self._nothing = EncodedContent(encode_content(RecordSet()), cipher=self._guard.state).key

    def load(self) -> tuple[RecordSet, bytes]:
        """Return what the last commit saved, and what that is called in Redis; an empty state is never written.

        Raises:
            FrameError: another version wrote it, or it was changed.
            RunLost: a part of it is gone from Redis.
        """
        with map_errors(self._connection.url):
            self._fields = self._connection.at(self._key).redis.hgetall(self._key)
        if not self._fields:
            return RecordSet(), self._nothing
        try:
            return self._read()
        except FrameError as error:
            raise FrameError(f"the state of run {self._run_id} cannot be read: {error}") from None

    def _read(self) -> tuple[RecordSet, bytes]:
        cipher = self._guard.state
        self._guard.check_state(self._fields)
        manifest = manifest_of(self._fields)
        if manifest is None:
            state = decode_content(cipher.opened(self._fields))
            return state, EncodedContent(encode_content(state), cipher=cipher).key
        chunks = manifest.chunks
        try:
            content, _ = assemble(
                manifest,
                lambda window: read_blobs(self._connection, self._run_id, [chunks[index] for index in window]),
                cipher=cipher,
            )
        except MissingChunkError as error:
            raise RunLost(f"run {self._run_id} cannot be resumed: its state is incomplete ({error})") from None
        return decode_content(content), manifest.key

    def write(self, pipe: Pipeline, state: EncodedContent) -> None:
        """Save ``state``, whose chunks are already in Redis."""
        self._put(pipe, self._fields_of(state))

    def saved(self, state: EncodedContent) -> None:
        """The commit that saves ``state`` was executed."""
        self._fields = self._fields_of(state)

    def write_again(self, pipe: Pipeline) -> None:
        """Save again what the last commit saved: Redis may have forgotten it."""
        self._put(pipe, self._fields)

    def _fields_of(self, state: EncodedContent) -> Fields:
        return self._guard.written(state.fields) if state.key != self._nothing else {}

    def _put(self, pipe: Pipeline, fields: Fields) -> None:
        pipe.unlink(self._key)
        if fields:
            pipe.hset(self._key, mapping=fields)  # type: ignore[arg-type]
            pipe.pexpire(self._key, milliseconds(self._retention))
