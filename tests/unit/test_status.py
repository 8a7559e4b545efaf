"""What nodes and ServerApps say of themselves: it comes back as it was, and nothing that others write raises."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerfl.wire.frame import pack
from brokerfl.wire.status import (
    LONGEST_TOLD,
    MAX_STATUS_BYTES,
    MOST_TOLD,
    Awaited,
    Doing,
    NodeStatus,
    Phase,
    RunStatus,
    decode_status,
    encode_status,
)

times = st.floats(0, 1e12, allow_nan=False)
counts = st.integers(0, 2**63)
texts = st.text(max_size=20)
doing = st.builds(Doing, counts, texts, texts, texts, times, times)
nodes = st.builds(
    NodeStatus, times, times, texts, counts, st.booleans(), st.booleans(), st.lists(doing, max_size=4).map(tuple),
    counts, counts, counts, texts, times, times, counts,
)  # fmt: skip
runs = st.builds(
    RunStatus, at=times, phase=st.sampled_from([str(phase) for phase in Phase]), group=texts, sent=counts, owing=counts,
    awaited=st.lists(st.builds(Awaited, counts, times), max_size=4).map(tuple),
    rounds=st.lists(times, max_size=8).map(tuple), is_full=st.booleans(),
)  # fmt: skip
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = [*NodeStatus.__dataclass_fields__, *RunStatus.__dataclass_fields__, *Doing.__dataclass_fields__]


@given(st.one_of(nodes, runs))
def test_a_status_comes_back(status: NodeStatus | RunStatus) -> None:
    """All fields, with their types."""
    assert decode_status(type(status), encode_status(status)) == status


@given(st.one_of(anything, st.dictionaries(st.sampled_from(NAMES), anything, max_size=6)))
def test_what_others_write_never_raises(told: Any) -> None:
    """A field that is not what it should be counts as not told, and the others are read."""
    for kind in (NodeStatus, RunStatus):
        status = decode_status(kind, pack(told))
        assert status is None or isinstance(encode_status(status), bytes)


@pytest.mark.parametrize("data", [None, b"", b"\x01", b"\x09\x80", b"\x01\x80" + bytes(MAX_STATUS_BYTES)])
def test_no_status(data: bytes | None) -> None:
    """Nothing, another version, and too much are no status."""
    assert decode_status(NodeStatus, data) is None


def test_one_field_does_not_spoil_the_others() -> None:
    """Another version may tell more, or the same in another way."""
    told = {"at": 5, "queue": "many", "disk": -1, "median": float("inf"), "new": 1, "doing": [{"run": 7}, {"run": "x"}]}
    assert decode_status(NodeStatus, pack(told)) == NodeStatus(at=5.0, doing=(Doing(run=7), Doing()))
    assert decode_status(NodeStatus, pack({"doing": [1], "done": 3})) == NodeStatus(done=3)


def test_a_status_is_never_too_large() -> None:
    """Texts and lists are cut; what remains has room, whatever its characters are."""
    many = tuple(Doing(2**63, "\U0001f600" * 500, "\U0001f600" * 500, "\U0001f600" * 500, 1.5, 1.5) for _ in range(50))
    status = NodeStatus(
        1.5, 1.5, "h" * 500, 2**63, True, True, many, 2**63, 2**63, 2**63, "\U0001f600" * 500, 1.5, 1.5, 2**63
    )
    assert (len(status.doing), len(status.doing[0].group), len(status.error)) == (MOST_TOLD, LONGEST_TOLD, LONGEST_TOLD)
    data = encode_status(status)
    assert len(data) <= MAX_STATUS_BYTES
    assert decode_status(NodeStatus, data) == status


def test_a_name_that_is_no_text() -> None:
    """A class of an exception may have any name; it is told as far as it can be."""
    assert decode_status(NodeStatus, encode_status(NodeStatus(error="\ud800x"))) == NodeStatus(error="?x")
