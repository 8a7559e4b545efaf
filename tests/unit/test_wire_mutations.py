"""Mutated and made-up frames: a decoder accepts them or raises FrameError, in bounded memory."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokerfl.wire.frame import CONTENT, HEAD, MANIFEST, pack, unpack
from tests.fuzz import DECODERS, check, fuzz
from tests.mutations import MOST_CONTENT, ONLY, VALID, Frame, mutate

pytestmark = pytest.mark.timeout(180)

#: What a value in a header may become; the words and sizes that decoders look for more often than by chance.
values = st.one_of(
    st.sampled_from((
        None, True, 1.5, "numpy.ndarray", "float32", MOST_CONTENT, MOST_CONTENT + 1, 2**60, [], {}, [[]],
        {"p": {"w": []}}, {"w": ["float32", [2**60], "numpy.ndarray", 2**62]},
    )),
    st.integers(-(2**63), 2**64 - 1),
    st.binary(max_size=32),
)  # fmt: skip


#: Which decoder, the valid frame, and the field that is changed.
fields = st.sampled_from([(decoder, frame, name) for decoder, frame in VALID for name in sorted(frame)])
headers = st.sampled_from(
    [(decoder, frame, name) for decoder, frame in VALID for name in (HEAD, CONTENT, MANIFEST, ONLY) if name in frame]
)
places = st.integers(0, 2**21)


def with_value(chosen: tuple[str, Frame, bytes], place: int, value: Any) -> tuple[str, Frame]:
    """A frame in which a value of a header is another."""
    decoder, frame, name = chosen
    return decoder, {**frame, name: pack(replaced(unpack(frame[name]), place, value))}


def replaced(tree: Any, place: int, value: Any) -> Any:
    """A tree of lists and maps with ``value`` in one place, of which each octal digit of ``place`` is a step down."""
    if place == 0 or not isinstance(tree, list | dict) or not tree:
        return value
    step, rest = place % 8 % len(tree), place // 8
    if isinstance(tree, dict):
        return {key: replaced(item, rest, value) if at == step else item for at, (key, item) in enumerate(tree.items())}
    return [replaced(item, rest, value) if at == step else item for at, item in enumerate(tree)]


def with_bytes(chosen: tuple[str, Frame, bytes], place: int, gone: int, new: bytes) -> tuple[str, Frame]:
    """A frame in which some bytes of a field are others, more or fewer."""
    decoder, frame, name = chosen
    data, at = frame[name], place % (len(frame[name]) + 1)
    return decoder, {**frame, name: data[:at] + new + data[at + gone :]}


frames = st.builds(with_value, headers, places, values) | st.builds(
    with_bytes, fields, places, st.integers(0, 8), st.binary(max_size=8)
)


@settings(max_examples=2_000, deadline=None)
@given(frames)
def test_no_frame_breaks_a_decoder(drawn: tuple[str, Frame]) -> None:
    """Of two thousand frames of which hypothesis made up a part, each is accepted or is a FrameError, within memory."""
    check(*drawn)


def test_the_seeded_loop_reaches_every_decoder() -> None:
    """What scripts/fuzz makes is accepted and refused by every decoder, so it goes beyond the first checks."""
    seen = fuzz(3000, seed=2)
    assert all(seen[decoder, accepted] > 10 for decoder in DECODERS for accepted in (True, False)), seen
    first, second = (mutate(random.Random(5), VALID[0][1]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_the_check_notices(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that lets another exception out, or takes memory on a frame's word, fails the check."""

    def leaks(frame: Any) -> None:
        raise KeyError("w")

    def hoards(frame: Any) -> bytes:
        return bytes(50 * 1024 * 1024)

    frame = {ONLY: b"x"}
    monkeypatch.setitem(DECODERS, decoder, leaks)
    with pytest.raises(AssertionError, match=r"KeyError.*no FrameError"):
        check(decoder, frame)
    monkeypatch.setitem(DECODERS, decoder, hoards)
    with pytest.raises(AssertionError, match="took 52,4"):
        check(decoder, frame)
