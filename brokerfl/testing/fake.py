"""Connections to fakeredis. Owns how they are made; must not know apps or messages."""

from brokerfl.broker.client import NO_RETRY
from brokerfl.broker.connection import Connection
from brokerfl.broker.keys import DEFAULT_PREFIX, Keys
from brokerfl.broker.servers import OneServer
from brokerfl.common import MissingExtra

try:
    from fakeredis import FakeRedis, FakeServer
except ModuleNotFoundError as missing:
    raise MissingExtra("brokerfl.testing needs fakeredis: pip install 'brokerfl[testing]'") from missing

__all__ = ["FakeServer", "fake_connection"]


def fake_connection(server: FakeServer | None = None, prefix: str = DEFAULT_PREFIX) -> Connection:
    """Return a connection to ``server``, or to a new fakeredis server."""
    client = FakeRedis(server=server or FakeServer(), retry=NO_RETRY)
    connection = Connection(OneServer(client), Keys(prefix), "fakeredis")
    connection.read_time()
    return connection
