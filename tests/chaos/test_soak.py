"""A short soak: everything is killed at random, and the books are exact."""

from pathlib import Path

import pytest

from tests.chaos.conftest import SERVERS, server_binary
from tests.chaos.lab import Lab
from tests.chaos.soak import soak

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("server", SERVERS)
def test_one_seed(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Two runs over four nodes, while nodes, ServerApps, connections and Redis are killed, frozen and cut."""
    with Lab(tmp_path, server_binary(server, request), seed=1) as lab:
        soak(lab, seed=1, seconds=6.0)
