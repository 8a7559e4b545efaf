"""fakeredis without a protocol in between: commands reach it as they are, and answers come back as it makes them.

Owns that short cut, for packing, parsing, pools and locks take a third of a case's time. It must not know processes or
accidents.
"""

from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from fakeredis import FakeRedis, FakeRedisConnection, FakeServer
from redis import ConnectionPool

from brokerfl.broker.client import NO_RETRY

Fields = list[bytes]


class DirectClient(FakeRedis):
    """A client of redis-py for one thread."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server=server, retry=NO_RETRY, connection_class=_Connection, connection_pool_class=_Pool)


class _Pool(ConnectionPool):
    """Keeps no statistics."""

    def get_connection(self, *_: Any, **__: Any) -> Any:
        found = self._available_connections
        connection = found.pop() if found else self.make_connection()
        self._in_use_connections.add(connection)
        connection.connect()
        return connection

    def release(self, connection: Any) -> None:
        self._in_use_connections.discard(connection)
        self._available_connections.append(connection)


class _Connection(FakeRedisConnection):
    """A packed command is the list of its fields."""

    def on_connect(self) -> None:
        """There is nobody to greet."""
        self._reset_himport_state()

    def _connect(self) -> Any:
        socket: Any = super()._connect()
        socket.responses, socket.response_ready = SimpleQueue(), _Nobody()
        return socket

    def pack_command(self, *args: Any) -> list[Fields]:
        name = args[0].encode() if isinstance(args[0], str) else args[0]
        encode = self.encoder.encode
        fields = [arg if type(arg) is bytes else bytes(encode(arg)) for arg in args[1:]]
        return [[*name.split(), *fields]]  # such as XGROUP CREATE

    def pack_commands(self, commands: Sequence[Sequence[Any]]) -> list[Fields]:
        return [self.pack_command(*args)[0] for args in commands]

    def send_command(self, *args: Any, **_: Any) -> None:
        self.send_packed_command(self.pack_command(*args))

    def send_packed_command(self, command: list[Fields], check_health: bool = True) -> None:
        if not self._sock:
            self.connect()
        for fields in command:
            self._sock._process_command(fields)


class _Nobody:
    """In the place of an Event for which nobody waits."""

    def set(self) -> None:
        pass
