"""What all tests with flwr share."""

import gc
import random
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Keep the garbage collector out: see docs/flower.md on .npy files in CPython 3.11.

    These tests have all nodes in one process, and hypothesis gives the collector a callback in Python. What is there
    already is set aside, and stays so: the next test collects what this one left, and no more. So does a test of many
    lives between them; if it did not, one collection in its end could stop all threads for longer than the nodes'
    leases.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def chosen(request: pytest.FixtureRequest) -> random.Random | None:
    """What chooses the points at which apps are killed; None for all of them, with --every-accident."""
    if request.config.getoption("--every-accident"):
        return None
    return random.Random(f"{request.node.name} {request.config.getoption('--seed')}")
