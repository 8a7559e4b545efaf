"""Echoes: what follows, in other slots, from what a transaction has decided in the run's slot.

Owns how they are sent. It must not know what one says.

An echo decides nothing. It is idempotent, harmless when it comes late, and repeated by whoever holds the run: so none
is waited for, and one that is lost costs time. A server that forgets its last writes forgets an echo as a whole.
"""

from collections.abc import Callable, Sequence
from typing import Any

from redis.client import Pipeline
from redis.exceptions import ExecAbortError

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.sockets import Command, commands_of
from brokerfl.common import BrokerflError

#: A key that tells in whose slot it is, and what puts its commands into a pipeline.
Echo = tuple[str, Callable[[Pipeline], Any]]

#: Echoes that are sent at once.
_AT_ONCE = 500


def send_echoes(connection: Connection, echoes: Sequence[Echo]) -> None:
    """Send echoes. One that is lost counts as a lost connection, after which the run is compared with Redis."""
    for at in range(0, len(echoes), _AT_ONCE):
        try:
            with map_errors(connection.url):
                made = [_made(connection, *echo) for echo in echoes[at : at + _AT_ONCE]]
                answers = connection.scatter([(key, _whole(commands)) for key, commands in made])
                # A full Redis 7.0 refuses even deletions inside a MULTI.
                refused = [echo for echo, got in zip(made, answers, strict=True) if isinstance(got[-1], ExecAbortError)]
                if refused:
                    connection.scatter(refused)
        except BrokerflError:
            connection.losses += 1


def _made(connection: Connection, key: str, build: Callable[[Pipeline], Any]) -> tuple[str, list[Command]]:
    pipe = connection.at(key).sockets.pipe()
    build(pipe)
    return key, commands_of(pipe)


def _whole(commands: list[Command]) -> list[Command]:
    return [("MULTI",), *commands, ("EXEC",)] if len(commands) > 1 else commands
