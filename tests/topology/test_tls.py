"""Sentinels and a Cluster over TLS: what they announce is what the certificates have to fit."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis as redis_py

from brokerfl.broker.connection import TLS, connect
from brokerfl.broker.embedded import free_port
from brokerfl.common import ConfigError, RedisTLSError, RedisUnreachable
from tests.conftest import Certificates
from tests.topology.fleets import SERVICE, ClusterFleet, start_sentinel, until
from tests.topology.lab import KEYS, PREFIX

pytestmark = pytest.mark.timeout(120)


def files(certificates: Certificates) -> dict[str, str]:
    return {
        "tls-ca-cert-file": certificates.ca,
        "tls-cert-file": certificates.server_cert,
        "tls-key-file": certificates.server_key,
        "tls-auth-clients": "no",
        "tls-replication": "yes",
    }


@pytest.fixture
def cluster(redis_binary: Path, certificates: Certificates) -> Iterator[ClusterFleet]:
    """Three primaries that speak TLS with everybody, and announce a name."""
    named = {
        **files(certificates),
        "tls-cluster": "yes",
        "cluster-announce-hostname": "localhost",
        "cluster-preferred-endpoint-type": "hostname",
    }
    options = [part for name, value in named.items() for part in (f"--{name}", value)]
    with ClusterFleet(redis_binary, options=options) as fleet:
        yield fleet


def test_a_cluster(cluster: ClusterFleet, certificates: Certificates) -> None:
    """The connection goes to the names and the ports that the Cluster announces; another authority is refused."""
    connection = connect(cluster.url, prefix=PREFIX, tls=TLS(certificates.ca))
    for key in (KEYS.identity, "bar", "hello", "foo"):
        assert connection.at(key).redis.set(key, 1)
        assert connection.at(key).redis.connection_pool.connection_kwargs["host"] == "localhost"
    assert cluster.scan() == {KEYS.identity, "bar", "hello", "foo"}
    connection.close()
    with pytest.raises(RedisTLSError, match="check --ca-cert"):
        connect(cluster.url, prefix=PREFIX, tls=TLS(certificates.other_ca))
    with pytest.raises(ConfigError, match=r"is not a TLS URL: write rediss\+cluster://"):
        connect(cluster.url.replace("rediss", "redis"), prefix=PREFIX, tls=TLS(certificates.ca))
    with pytest.raises(RedisUnreachable, match="no server of the Cluster answers"):
        connect(cluster.url.replace("rediss", "redis"), prefix=PREFIX)


def test_a_sentinel(redis_binary: Path, redis_tls_url: str, certificates: Certificates) -> None:
    """Sentinel and server take the same certificates, also those of mutual TLS."""
    port, server = free_port(), int(redis_tls_url.rpartition(":")[2])
    mutual = TLS(certificates.ca, certificates.client_cert, certificates.client_key)
    lines = [f"{name} {value}" for name, value in {**files(certificates), "tls-auth-clients": "yes"}.items()]
    with ExitStack() as stack:
        start_sentinel(
            stack,
            redis_binary,
            "port 0",
            f"tls-port {port}",
            *lines,
            f"sentinel monitor {SERVICE} 127.0.0.1 {server} 1",
        )
        with redis_py.Redis(port=port, ssl=True, retry=None, **mutual.options()) as sentinel:
            until(lambda: sentinel.sentinel_get_master_addr_by_name(SERVICE), "it knows the service")
        url = f"rediss+sentinel://127.0.0.1:{port}/{SERVICE}"
        connection = connect(url, tls=mutual)
        assert connection.redis.ping()
        connection.close()
        with pytest.raises(RedisTLSError, match="check --ca-cert"):
            connect(url, tls=TLS(certificates.other_ca, certificates.client_cert, certificates.client_key))
