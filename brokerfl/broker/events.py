"""The events of a run and its log: capped streams, to which its ServerApp adds when it writes anyway.

Nodes that share their log add to that, too.

Owns `P:{run:R}:events` and `P:{run:R}:log`. It must not know what events and lines mean, or when they come about.

Nothing is decided by them. An entry of the events holds several, as fields that are numbered; one of the log a line.
The streams are made where the run's other keys are made, and no later entry makes them anew: a run that has ended stays
deleted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from redis.client import Pipeline

from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import found_or_none, map_errors
from brokerfl.broker.gather import Gather
from brokerfl.broker.stream import entries_of_one
from brokerfl.wire.event import Event, Kind, decode_event, encode_event

#: About how many entries the streams keep; a round of an app makes one or two events.
MOST_ENTRIES, MOST_LINES = 4000, 5000

#: Most events in an entry.
AT_ONCE = 16

#: The field of a line.
_LINE = b"l"

#: Most bytes of a stream that are read.
_MOST_READ = 16 * 1024 * 1024

#: Events, encoded, for one entry.
Page = Sequence[bytes]


def pages_of(events: Sequence[bytes]) -> list[Page]:
    """Return encoded events, divided for entries."""
    return [events[at : at + AT_ONCE] for at in range(0, len(events), AT_ONCE)]


class Events:
    """Writes the events and the log of one run."""

    def __init__(self, connection: Connection, run_id: int) -> None:
        self._connection = connection
        self._key, self._log = connection.keys.events(run_id), connection.keys.log(run_id)

    def open(self, pipe: Pipeline, kind: Kind) -> None:
        """Put into ``pipe`` what happened to the run, and thereby make the streams; lifetimes are set elsewhere."""
        self._add(pipe, [encode_event(Event(self.now(), kind))], is_first=True)
        pipe.xadd(self._log, {_LINE: b""}, maxlen=MOST_LINES, approximate=True)

    def add(self, pipe: Pipeline, pages: Iterable[Page]) -> None:
        """Put events into ``pipe``. A full Redis refuses them."""
        for page in pages:
            self._add(pipe, page)

    def _add(self, pipe: Pipeline, page: Page, *, is_first: bool = False) -> None:
        fields: dict[Any, Any] = {str(number): event for number, event in enumerate(page)}
        pipe.xadd(self._key, fields, maxlen=MOST_ENTRIES, approximate=True, nomkstream=not is_first)

    def send(self, pages: Sequence[Page], lines: Sequence[str] = ()) -> bool:
        """Write events, and lines of the log, in a round trip of their own, unless the run has ended.

        Returns:
            Whether there was room.

        Raises:
            RedisUnreachable: unknown whether they were written.
        """
        if not pages and not lines:
            return True
        server = self._connection.at(self._key)
        with map_errors(self._connection.url), server.redis.pipeline(transaction=False) as pipe:
            self.add(pipe, pages)
            for line in lines:
                _add_line(pipe, self._log, line)
            return not isinstance(pipe.execute(raise_on_error=False)[0], Exception)

    def now(self) -> float:
        """Return Unix time by Redis' clock, in seconds."""
        return self._connection.clock.time() + self._connection.clock.skew


def send_lines(connection: Connection, lines: Mapping[int, Iterable[str]]) -> None:
    """Write lines of a node's log into the logs of runs. What has ended, has no log, or has no room takes none.

    Raises:
        RedisUnreachable: unknown whether they were written.
    """
    gather = Gather(connection)
    for run_id, of_run in lines.items():
        key = connection.keys.log(run_id)
        for line in of_run:
            _add_line(gather.at(key), key, line)
    with map_errors(connection.url):
        gather.execute(raise_on_error=False)


def _add_line(pipe: Pipeline, key: str, line: str) -> None:
    data = line.encode(errors="replace")
    pipe.xadd(key, {_LINE: data}, maxlen=MOST_LINES, approximate=True, nomkstream=True)


def read_events(connection: Connection, run_id: int, after: str = "") -> Iterator[tuple[str, Event]]:
    """Yield the id of each entry and an event in it, the oldest first; none if there are far too many bytes.

    Args:
        connection: to the run's Redis.
        run_id: the run.
        after: only what came after the entry with this id.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    for entry_id, fields in _read(connection, connection.keys.events(run_id), after):
        for data in fields.values():
            if (event := decode_event(data)) is not None:
                yield entry_id, event


def read_log(connection: Connection, run_id: int, after: str = "") -> Iterator[tuple[str, str]]:
    """Yield the id of each entry and its line, which may have several; arguments and errors as for `read_events`."""
    for entry_id, fields in _read(connection, connection.keys.log(run_id), after):
        if line := fields.get(_LINE):
            yield entry_id, line.decode(errors="replace")


def _read(connection: Connection, key: str, after: str) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    with map_errors(connection.url):
        [answer] = connection.stream([("XRANGE", key, f"({after}" if after else "-", "+")], [_MOST_READ])
        found = None if isinstance(answer, OversizeError) else found_or_none(answer, connection.url)
    return entries_of_one(found)
