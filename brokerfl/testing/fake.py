"""fakeredis as brokerfl needs it. Owns where fakeredis differs from Redis; must not know apps or messages."""

from collections.abc import Mapping
from typing import Any

from brokerfl.broker.connection import NO_RETRY, Connection
from brokerfl.broker.keys import DEFAULT_PREFIX, Keys
from brokerfl.common import MissingExtra

try:
    from fakeredis import FakeRedis, FakeServer
except ModuleNotFoundError as missing:
    raise MissingExtra("brokerfl.testing needs fakeredis: pip install 'brokerfl[testing]'") from missing

__all__ = ["FakeServer", "fake_connection"]


class _Redis(FakeRedis):
    """A FakeRedis whose XREADGROUP blocks.

    fakeredis 2.40 answers an XREADGROUP with BLOCK and COUNT at once when there is nothing to read, and one without
    COUNT misses earlier entries. Its XREAD blocks as it should, so this waits with XREAD, starting after the last entry
    that this client has read.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last: dict[str, str] = {}

    def xreadgroup(  # type: ignore[override]
        self,
        groupname: str,
        consumername: str,
        streams: Mapping[str, str],
        *,
        count: int | None = None,
        block: int | None = None,
        **options: Any,
    ) -> Any:
        found = self._read(groupname, consumername, dict(streams), count, options)
        if found or block is None:
            return found
        self.xread({key: self._last.get(key, "0-0") for key in streams}, block=block)
        return self._read(groupname, consumername, dict(streams), count, options)

    def _read(
        self,
        groupname: str,
        consumername: str,
        streams: Mapping[str, str],
        count: int | None,
        options: dict[str, Any],
    ) -> Any:
        wanted: Any = dict(streams)
        response: Any = super().xreadgroup(groupname, consumername, wanted, count=count, **options)
        for key, entries in response:
            if entries and streams[key.decode()] == ">":
                self._last[key.decode()] = entries[-1][0].decode()
        return response


def fake_connection(server: FakeServer | None = None, prefix: str = DEFAULT_PREFIX) -> Connection:
    """Return a connection to ``server``, or to a new fakeredis server."""
    client = _Redis(server=server or FakeServer(), retry=NO_RETRY)
    connection = Connection(client, Keys(prefix), "fakeredis")
    connection.read_time()
    return connection
