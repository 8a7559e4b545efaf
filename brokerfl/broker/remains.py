"""What remains of a run: a record of it, for as long as its tombstone.

Owns `P:{run:R}:past` and `P:{run:R}:curves`. It must not know how a run ends.

Both are written with the tombstone, if there is room, and never again. They are no part of the run: whoever ends it
reads what they are made of before that is deleted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from redis.client import Pipeline

from brokerfl.broker.books import summary_commands, summary_of
from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import Connection
from brokerfl.broker.events import read_events
from brokerfl.broker.failure import found_or_none, map_errors
from brokerfl.broker.keys import MOST_RETENTION, Keys, milliseconds
from brokerfl.broker.ownership import STOPPED, Ownership
from brokerfl.broker.sockets import Command
from brokerfl.common import RedisAuthError
from brokerfl.wire.event import MOST_VALUES
from brokerfl.wire.past import (
    MAX_CURVES_BYTES,
    MAX_PAST_BYTES,
    Curves,
    Past,
    curves_of,
    decode_curves,
    decode_past,
    encode_curves,
    encode_past,
)
from brokerfl.wire.status import MAX_STATUS_BYTES, RunStatus, decode_status

#: Most bytes of a run's meta.
_MOST_META = 256 * 1024


@dataclass(frozen=True)
class Remains:
    """What is to remain of a run."""

    past: Past
    curves: Curves

    def encoded(self, keys: Keys, tombstone: Ownership) -> dict[str, bytes]:
        """Return what each key is to hold, with how and when the run ended."""
        ended = replace(self.past, ended_at=tombstone.sequence / 1000, was_stopped=tombstone.token == STOPPED)
        run_id, curves = ended.run.run_id, encode_curves(self.curves) if self.curves else b""
        found = {keys.past(run_id): encode_past(ended), keys.curves(run_id): curves}
        return {key: value for key, value in found.items() if value}


def write_remains(pipe: Pipeline, encoded: Mapping[str, bytes]) -> None:
    """Put what `Remains.encoded` returned into ``pipe``, one command for each key."""
    for key, value in encoded.items():
        pipe.set(key, value, px=milliseconds(MOST_RETENTION))


def read_remains(connection: Connection, run_id: int) -> Remains | None:
    """Return what is to remain of a run that has not ended; None if its books are gone, or may not be read.

    Raises:
        RedisUnreachable: Redis does not answer.
    """
    keys = connection.keys
    commands: list[Command] = [*summary_commands(keys, run_id), ("GET", keys.run_status(run_id))]
    try:
        with map_errors(connection.url):
            meta, nodes, told = _found(connection, commands, [_MOST_META, _MOST_META, MAX_STATUS_BYTES])
        summary = summary_of(run_id, meta, nodes or 0)
        if summary is None:
            return None
        events = [event for _, event in read_events(connection, run_id)]
    except RedisAuthError:
        return None
    status, curves = decode_status(RunStatus, told) or RunStatus(), curves_of(events)
    past = Past(
        summary.run,
        nodes=summary.nodes,
        messages=summary.messages,
        replies=summary.replies,
        errors=max(status.errors, sum(event.errors for event in events)),
        metrics={name: curve[-1][1] for name, curve in [*curves.items()][:MOST_VALUES]},
    )
    return Remains(past, curves)


def _found(connection: Connection, commands: list[Command], most: list[int]) -> list[Any]:
    answers = connection.stream(commands, most)
    return [None if isinstance(each, OversizeError) else found_or_none(each, connection.url) for each in answers]


def read_past(connection: Connection, run_id: int) -> Past | None:
    """Return what remains of a run that has ended; None if nothing does.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    with map_errors(connection.url):
        [data] = _found(connection, [past_command(connection.keys, run_id)], [MAX_PAST_BYTES])
    return decode_past(run_id, data)


def past_command(keys: Keys, run_id: int) -> Command:
    """Return the command whose answer `wire.past.decode_past` reads."""
    return "GET", keys.past(run_id)


def read_curves(connection: Connection, run_id: int) -> Curves:
    """Return how the numbers of a run went, whether it has ended or not.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    curves = curves_of(event for _, event in read_events(connection, run_id))
    if curves:
        return curves
    with map_errors(connection.url):
        [data] = _found(connection, [("GET", connection.keys.curves(run_id))], [MAX_CURVES_BYTES])
    return decode_curves(data)
