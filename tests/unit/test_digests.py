"""The digests of what is sent again and again."""

from brokerfl.wire.digests import Digests, are_equal
from brokerfl.wire.manifest import CHUNK
from brokerfl.wire.payload import EncodedContent, Payload

#: Two buffers with chunks of their own, of which only the middle differs.
MODEL = bytes(range(256)) * (CHUNK // 128)
OTHER = MODEL[: len(MODEL) // 2] + b"x" + MODEL[len(MODEL) // 2 + 1 :]


def content(data: bytes | memoryview) -> dict[bytes, bytes | memoryview]:
    """A content of a description and one large buffer."""
    return {b"c": b"\x01\x80", b"0": data}


def test_equal_buffers_have_known_digests() -> None:
    """The same bytes, or equal ones elsewhere, are not hashed again; others are, however much alike they look."""
    digests = Digests()
    payload = Payload(content(MODEL), 1)
    payload.note(digests)
    expected = payload.manifest.digests
    for buffer in (memoryview(MODEL), memoryview(bytearray(MODEL))):
        assert digests.of(buffer) == expected[1:]
    for buffer in (memoryview(OTHER), memoryview(MODEL)[1:], memoryview(OTHER[:-1] + b"y")):
        assert digests.of(buffer) is None
    for data in (MODEL, OTHER, memoryview(bytearray(OTHER))):
        with_them, without = (EncodedContent(content(data), 1, digests=known) for known in (digests, None))
        assert (with_them.key, with_them.fields) == (without.key, without.fields)


def test_what_may_change_is_not_remembered() -> None:
    """Only bytes are; and only as long as their content is kept."""
    digests = Digests()
    Payload(content(memoryview(bytearray(MODEL))), 1).note(digests)
    assert digests.of(memoryview(MODEL)) is None
    payload = Payload(content(MODEL), 1)
    payload.note(digests)
    digests.keep([payload.manifest.key])
    assert digests.of(memoryview(MODEL)) is not None
    digests.keep([])
    assert digests.of(memoryview(MODEL)) is None


def test_elements_behind_a_header_are_found() -> None:
    """They are those of a model that was sent; others that only begin or end like it are not."""
    digests = Digests()
    Payload(content(MODEL), 1).note(digests)
    assert digests.ending(memoryview(bytearray(MODEL))[128:]) is MODEL
    for buffer in (MODEL, MODEL[300:], MODEL[:-128], OTHER[128:]):
        assert digests.ending(memoryview(bytearray(buffer))) is None


def test_buffers_of_any_kind_are_compared() -> None:
    """Equal bytes are equal, whoever has them; one that differs anywhere or is longer is not."""
    kinds = (bytes, bytearray, lambda data: memoryview(bytearray(data)))
    for one in kinds:
        for other in kinds:
            first, second = memoryview(one(MODEL)), other(MODEL)  # type: ignore[operator]
            assert are_equal(first, second)
            assert are_equal(bytes(first), second)
            for changed in (MODEL[:-1] + b"?", b"?" + MODEL[1:], OTHER, MODEL + b"x", MODEL[:-1]):
                assert not are_equal(first, other(changed))  # type: ignore[operator]
                assert not are_equal(other(changed), first)  # type: ignore[operator]
