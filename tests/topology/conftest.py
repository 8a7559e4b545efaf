"""Fleets as fixtures: each test has one of its own if it kills servers, else one is shared."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from brokerfl.broker.embedded import find_server
from tests.conftest import Backend, real_backend
from tests.topology.fleets import ClusterFleet, Fleet, SentinelFleet, fleet_called
from tests.topology.lab import FleetLab


@pytest.fixture(scope="session")
def sentinels(redis_binary: Path) -> Iterator[SentinelFleet]:
    """A primary, two replicas and three Sentinels that no test harms."""
    with SentinelFleet(redis_binary) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def cluster(redis_binary: Path) -> Iterator[ClusterFleet]:
    """Three primaries that no test harms; slots may have been moved."""
    with ClusterFleet(redis_binary) as fleet:
        yield fleet


@pytest.fixture
def spread(cluster: ClusterFleet) -> Backend:
    """The shared Cluster, which is empty, as a backend of the contract."""
    cluster.flushall()
    return real_backend("cluster", cluster.url)


@pytest.fixture
def valkey_binary(valkey_url: str) -> Path:
    """The bundled valkey-server."""
    return find_server()


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A fleet of the test's own: the parameter names it."""
    binary = "valkey_binary" if request.param == "valkey-cluster" else "redis_binary"
    with fleet_called(request.param, request.getfixturevalue(binary)) as made:
        yield made


@pytest.fixture
def lab(fleet: Fleet, tmp_path: Path) -> Iterator[FleetLab]:
    """Processes on a fleet of the test's own."""
    made = FleetLab(tmp_path, fleet)
    with made:
        yield made
