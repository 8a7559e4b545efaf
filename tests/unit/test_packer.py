"""The packer: what it sends is what redis-py would send, and large arguments are not copied."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis._parsers.encoders import Encoder
from redis.connection import PythonRespSerializer
from redis.exceptions import DataError

from brokerfl.broker.packer import Packer

_ENCODE = Encoder("utf-8", "strict", False).encode

_NAMES = st.sampled_from(["GET", "XADD", "XGROUP CREATE", "CLIENT SETNAME"])
_ARGUMENTS = st.one_of(
    st.text(),
    st.binary(),
    st.integers(),
    st.floats(),
    st.binary().map(memoryview),
    st.sampled_from([5999, 6000, 6001, 20_000]).map(lambda size: memoryview(b"x" * size)),
    st.sampled_from([5999, 6000, 6001, 20_000]).map(lambda size: "ü" * size),
)
_COMMANDS = st.lists(st.tuples(_NAMES, st.lists(_ARGUMENTS)).map(lambda each: (each[0], *each[1])), min_size=1)


def joined(pieces: Sequence[bytes | memoryview]) -> bytes:
    """What goes over the wire."""
    return b"".join(map(bytes, pieces))


@given(_COMMANDS)
def test_the_bytes_of_redis_py(commands: list[tuple[Any, ...]]) -> None:
    """Of any commands, alone or together."""
    theirs = PythonRespSerializer(6000, _ENCODE)
    packer = Packer(_ENCODE)
    assert joined(packer.pack_all(commands)) == b"".join(joined(theirs.pack(*command)) for command in commands)
    assert joined(packer.pack(*commands[0])) == joined(theirs.pack(*commands[0]))


def test_a_large_argument_is_not_copied() -> None:
    """It is a piece of its own; all small ones between two of them are one."""
    chunk, other = memoryview(b"x" * 10_000), b"y" * 10_000
    pieces = Packer(_ENCODE).pack_all(
        [("PING",), ("SET", "a", chunk), ("SET", "b", "c"), ("SET", "d", other), ("PING",)]
    )
    assert len(pieces) == 5
    assert pieces[1] is chunk
    assert pieces[3] is other


@pytest.mark.parametrize("value", [None, True, [1], object()])
def test_what_no_command_takes(value: object) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(DataError):
        Packer(_ENCODE).pack("SET", "a", value)
