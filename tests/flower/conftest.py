"""What all tests with flwr share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Keep the garbage collector out: see docs/flower.md on .npy files in CPython 3.11.

    These tests have all nodes in one process, and hypothesis gives the collector a callback in Python.
    """
    gc.disable()
    yield
    gc.enable()
