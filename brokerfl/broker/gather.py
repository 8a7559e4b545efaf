"""Gathering: commands for keys that may be on different servers, as pipelines that are executed together.

Owns which command goes where, and the order of the results. It must not know what is asked, or how a server is found.

For what is asked now and then: the message path sends to all servers before it reads (`Connection.scatter`).
"""

from typing import Any

from redis.client import Pipeline

from brokerfl.broker.connection import Connection
from brokerfl.broker.servers import Server


class Gather:
    """A pipeline for each server that has one of the keys."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._begin()

    def _begin(self) -> None:
        self._pipes: dict[Server, tuple[Pipeline, list[int]]] = {}
        self._count = 0

    def at(self, key: str) -> Pipeline:
        """Return where to put exactly one command, which concerns ``key``.

        Raises:
            RedisUnreachable: it is not known where the key is.
        """
        server = self._connection.at(key)
        if server not in self._pipes:
            self._pipes[server] = server.redis.pipeline(transaction=False), []
        pipe, places = self._pipes[server]
        places.append(self._count)
        self._count += 1
        return pipe

    def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Execute all of them; return the results in the order in which the commands came.

        Raises:
            RedisError: as redis-py, for `map_errors`.
        """
        results: list[Any] = [None] * self._count
        pipes = self._pipes
        self._begin()
        for pipe, places in pipes.values():
            for place, result in zip(places, pipe.execute(raise_on_error=raise_on_error), strict=True):
                results[place] = result
        return results
