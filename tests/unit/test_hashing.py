"""Hashing: the threads that do it."""

import os
import sys

import pytest

from brokerfl.wire import hashing
from brokerfl.wire.hashing import NICENESS, digests_of


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_hashing_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that hash are nicer than the others of their process."""
    found: list[int] = []

    def spy(data: memoryview) -> bytes:
        found.append(os.getpriority(os.PRIO_PROCESS, 0))
        return b""

    monkeypatch.setattr(hashing, "digest_now", spy)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    list(digests_of(map(memoryview, [b"a", b"b", b"c"])))
    assert found == [min(19, own + NICENESS)] * 3
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
