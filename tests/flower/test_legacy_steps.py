"""An unmodified app of ``flwr.server`` outlives its ServerApp: killed anywhere, it ends as if nothing had happened."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from tests.flower.legacy_lives import LegacyLives, apps, clients_app, secure, secure_app, workflow_of
from tests.flower.lives import DEADLY, FUSE, deadly_points
from tests.flower.names import flwr_quantization


@pytest.fixture(scope="module")
def lives() -> Iterator[LegacyLives]:
    """Nodes that all runs of this module share: with other ids, sums would have another order."""
    made = LegacyLives(app=clients_app)
    with made.federation, pytest.MonkeyPatch.context() as patch, deadly_points(patch):
        LegacyLives.watch(patch)
        yield made


@pytest.fixture
def chosen(request: pytest.FixtureRequest) -> random.Random | None:
    """What chooses the points at which apps are killed; None for all of them, with --every-accident."""
    if request.config.getoption("--every-accident"):
        return None
    return random.Random(f"{request.node.name} {request.config.getoption('--seed')}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", apps())
def test_killed_anywhere(lives: LegacyLives, name: str, chosen: random.Random | None) -> None:
    """Killed at a point of rounds 2 to 5 and resumed: model and history are equal bit for bit, and nobody works twice.

    The app begins with another model and other random numbers in its second life.
    """
    main = apps()[name]
    undisturbed = lives.live(main)
    points = [point for point in FUSE[0].reached if point[0] in DEADLY]
    assert len(points) > 30
    for point in points if chosen is None else chosen.sample(points, 2):
        assert lives.live(main, point) == undisturbed, f"{name}, killed at {point}"


@pytest.fixture(scope="module")
def secure_lives() -> Iterator[LegacyLives]:
    """Nodes that mask their updates. They round to the nearest number: flwr's rounding is random."""
    made = LegacyLives(app=secure_app)
    with made.federation, pytest.MonkeyPatch.context() as patch, deadly_points(patch):
        LegacyLives.watch(patch)
        patch.setattr(flwr_quantization, "_stochastic_round", lambda array: np.rint(array).astype(np.int32))
        yield made


@pytest.mark.timeout(600)
def test_secure_aggregation_is_killed_anywhere(secure_lives: LegacyLives, chosen: random.Random | None) -> None:
    """So is SecAgg+, in any of its stages: the keys that nodes have made are still good, and nobody trains again."""
    main = workflow_of("FedAvg", fit=secure)
    undisturbed = secure_lives.live(main)
    points = [point for point in FUSE[0].reached if point[0] in DEADLY]
    assert len(points) > 80
    for point in points if chosen is None else chosen.sample(points, 2):
        assert secure_lives.live(main, point) == undisturbed, f"killed at {point}"
