"""An unmodified Flower app outlives its ServerApp: killed anywhere, it ends as if nothing had happened."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.flower.lives import Lives, app_of, deadly_points
from tests.flower.names import HAS_MESSAGE_API

if not HAS_MESSAGE_API:
    pytest.skip("flwr 1.13 has no strategies of the message API", allow_module_level=True)


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    """Nodes that all runs of this module share: with other ids, sums would have another order."""
    made = Lives()
    with made.federation, pytest.MonkeyPatch.context() as patch, deadly_points(patch):
        yield made


def test_quick(lives: Lives) -> None:
    main = app_of("FedAvg")
    undisturbed = lives.live(main)
    assert len(undisturbed.executed) == 30
    from tests.flower.lives import FUSE

    print(FUSE[0].reached)
    for point in list(FUSE[0].reached):
        if point[0] == 2:
            print(point)
            again = lives.live(main, point)
            assert again == undisturbed, point
