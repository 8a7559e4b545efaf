"""The saved context: what a ServerApp's `context.state` was at the last commit, in Redis and in memory.

Owns the hash `P:{run:R}:context`, one field for each field of an encoded RecordSet. It must not know when to commit.
"""

from redis.client import Pipeline

from brokerfl.broker.connection import Connection, map_errors
from brokerfl.broker.keys import milliseconds
from brokerfl.wire.frame import Fields
from brokerfl.wire.record import digest_of, frozen


class SavedContext:
    """The committed state of one run. One thread at a time.

    Args:
        connection: where the run lives.
        run_id: the run.
        retention: seconds the hash lives after it was written.
        nothing: what a state without any records is encoded as: that is not written.
    """

    def __init__(self, connection: Connection, run_id: int, retention: float, nothing: Fields) -> None:
        self._connection = connection
        self._key = connection.keys.context(run_id)
        self._retention = retention
        self._nothing = self._fields = frozen(nothing)
        self._digests = _digests(self._fields)

    def load(self) -> Fields:
        """Return what the last commit wrote."""
        with map_errors(self._connection.url):
            self._fields = self._connection.redis.hgetall(self._key) or self._nothing
        self._digests = _digests(self._fields)
        return self._fields

    def stage(self, state: Fields) -> "Staged":
        """Return what a commit has to write for ``state``: only the fields that differ from the last commit."""
        digests = _digests(state)
        changed = {name for name, digest in digests.items() if self._digests.get(name) != digest}
        kept = {name: data for name, data in self._fields.items() if name in digests and name not in changed}
        fields = kept | frozen({name: state[name] for name in changed})
        return Staged(fields, digests, changed, differs=digests != self._digests)

    def write(self, pipe: Pipeline, staged: "Staged") -> None:
        """Put into ``pipe`` what `stage` returned."""
        gone = set(self._digests).difference(staged.digests)
        if staged.changed:
            # All of it the first time: the empty state was never written.
            names = staged.changed if self._fields is not self._nothing else staged.fields
            self._put(pipe, {name: staged.fields[name] for name in names})
        if gone:
            pipe.hdel(self._key, *gone)

    def committed(self, staged: "Staged") -> None:
        """The commit was executed."""
        if staged.differs:
            self._fields, self._digests = staged.fields, staged.digests

    def rewrite(self, pipe: Pipeline) -> None:
        """Put into ``pipe`` all that the last commit wrote: Redis may have forgotten it."""
        pipe.unlink(self._key)
        if self._fields is not self._nothing:
            self._put(pipe, self._fields)

    def _put(self, pipe: Pipeline, fields: Fields) -> None:
        pipe.hset(self._key, mapping=fields)  # type: ignore[arg-type]
        pipe.pexpire(self._key, milliseconds(self._retention))


class Staged:
    """A state that is about to be committed. ``differs``: the last commit saved another."""

    def __init__(self, fields: Fields, digests: dict[bytes, bytes], changed: set[bytes], differs: bool) -> None:
        self.fields = fields
        self.digests = digests
        self.changed = changed
        self.differs = differs


def _digests(fields: Fields) -> dict[bytes, bytes]:
    return {name: digest_of({name: data}) for name, data in fields.items()}
