"""Divides what is to be played among tests, so that workers share it evenly. The options are in tests/conftest.py."""

import pytest

#: Tests that one is divided into when all is played.
PARTS = 8


@pytest.hookimpl(trylast=True)  # the part is the last word of a test's id
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests that ask for it a ``part``: which one, of how many."""
    if "part" in metafunc.fixturenames:
        _, slices = metafunc.config.getoption("--slice")
        parts = max(1, PARTS // slices)
        metafunc.parametrize("part", [(part, parts) for part in range(parts)], ids=range(parts))
