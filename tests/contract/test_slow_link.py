"""A link that carries less than a chunk in the time after which a silent peer counts as gone is only slow.

Rates and times are ten times those of life: 1 MB/s and 0.7 s, in place of 0.8 Mbit/s and 7 s.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from brokerfl.broker import client, sockets
from brokerfl.broker.connection import Connection, connect
from brokerfl.client.payloads import Payloads
from brokerfl.common import ParametersRecord, RecordSet
from brokerfl.server import Driver
from brokerfl.wire.payload import Payload
from brokerfl.wire.record import encode_content
from tests.apps import driving
from tests.chaos.proxy import Proxy
from tests.conftest import PREFIX, Backend
from tests.stage import push, silent

#: Links are TCP's matter: one server will do.
WITHOUT = ("fakeredis", "redis", "redis-tls", "sentinel", "cluster", "valkey-cluster")

#: Three chunks.
SIZE = 2_500_000


@pytest.fixture
def slow(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection that takes longer for a chunk than it waits for an answer."""
    monkeypatch.setattr(client, "_SOCKET_TIMEOUT", 0.7)
    monkeypatch.setattr(sockets, "SLOWEST", 10 * sockets.SLOWEST)
    proxy = Proxy(int(backend.url.rpartition(":")[2]), rate=1_000_000.0)
    made = connect(proxy.url, prefix=PREFIX)
    try:
        yield made
        assert made.losses == 0
    finally:
        made.close()
        proxy.close()


def large() -> RecordSet:
    """Random bytes."""
    return RecordSet({"p": ParametersRecord([np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)])})


def test_a_large_reply_gets_through(backend: Backend, slow: Connection) -> None:
    """The node neither gives up nor sends anything twice."""
    with driving(backend) as driver:
        node, run = silent(backend), driver.run.run_id
        push(driver, node, RecordSet())
        content = Payload(encode_content(large()))
        manifest = Payloads(slow, node, lambda: True).upload(run, "m", "1", content, lambda: True)
        assert manifest is not None
        assert [entry.encode() for entry in manifest.entries] == [
            entry for entry, _ in backend.admin.xrange(driver.connection.keys.data(node, run))
        ]


def test_a_broadcast_gets_through(backend: Backend, slow: Connection) -> None:
    """The ServerApp's connection never breaks."""
    driver = Driver(slow, "server:app")
    assert push(driver, silent(backend), large()) != ""
    driver.end()
