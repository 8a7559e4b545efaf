"""The digests of a model that one process sends again and again.

Owns how it is found out that a buffer has bytes that were hashed before, which takes a tenth of the time of a sha256.
It must not know what the bytes are.
"""

from collections.abc import Collection, Sequence

#: Bytes that are compared at once where neither side is bytes.
STRETCH = 1024 * 1024

#: Most bytes of what may precede the elements in a buffer: the header of an .npy file has 128.
_HEADER = 256


def are_equal(one: bytes | memoryview, other: bytes | memoryview) -> bool:
    """Compare as bytes, which is memcmp: memoryviews compare element by element."""
    if len(one) != len(other):
        return False
    if isinstance(other, bytes):
        one, other = other, one
    if isinstance(one, bytes):
        return one.startswith(other)
    return all(bytes(one[at : at + STRETCH]).startswith(other[at : at + STRETCH]) for at in range(0, len(one), STRETCH))


class Digests:
    """The digests of buffers by what they are part of. Only bytes are remembered, because they never change."""

    def __init__(self) -> None:
        self._known: dict[bytes, list[tuple[bytes, Sequence[bytes]]]] = {}

    def note(self, content: bytes, buffers: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
        """Remember the digests of the chunks of these buffers, and hold the buffers, until `keep`."""
        self._known = {**self._known, content: list(buffers)}  # another thread may be looking

    def keep(self, contents: Collection[bytes]) -> None:
        """Forget all but these."""
        self._known = {content: buffers for content, buffers in self._known.items() if content in contents}

    def ending(self, elements: memoryview) -> bytes | None:
        """Return a buffer that has these bytes behind a short header; None if none has."""
        for buffers in self._known.values():
            for data, _ in buffers:
                if 0 < len(data) - len(elements) <= _HEADER and data.endswith(elements):
                    return data
        return None

    def of(self, buffer: memoryview) -> Sequence[bytes] | None:
        """Return the digests of a buffer's chunks; None if they are not known."""
        for buffers in self._known.values():
            for data, digests in buffers:
                if len(buffer) == len(data) and (buffer.obj is data or data.startswith(buffer)):
                    return digests
        return None
