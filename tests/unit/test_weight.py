"""The weight of a header: whatever its bytes announce, unpacking takes no more memory than they allow."""

import struct
import tracemalloc
from collections.abc import Callable

import pytest

from brokerfl.common import ConfigsRecord, FrameError, MessageTooLarge, MetricsRecord, RecordSet
from brokerfl.wire import weight
from brokerfl.wire.frame import CONTENT, FrameVersionError, unpack
from brokerfl.wire.record import decode_content, encode_content
from brokerfl.wire.weight import EACH, LEAST

MIB = 1024 * 1024


@pytest.fixture
def more(monkeypatch: pytest.MonkeyPatch) -> int:
    """What is free besides, a hundredth of what it is, so that small frames show it."""
    monkeypatch.setattr(weight, "MORE", MIB // 4)
    return MIB // 4


#: One item of each type and width of msgpack, as small as it can be made and as it is made by brokerfl.
ITEMS = {
    "positive fixint": b"\x01", "negative fixint": b"\xe0", "nil": b"\xc0", "bool": b"\xc3",
    "uint 8": b"\xcc\xff", "uint 16": b"\xcd\x80\x00", "uint 32": b"\xce\xff\0\0\0", "uint 64": b"\xcf\xff" + bytes(7),
    "int 8": b"\xd0\x80", "int 16": b"\xd1\x80\x00", "int 32": b"\xd2\x80\0\0\0", "int 64": b"\xd3\x80" + bytes(7),
    "float 32": b"\xca?\x80\0\1", "float 64": b"\xcb?\xf0" + bytes(5) + b"\1",
    "fixstr": b"\xa2ab", "str 8": b"\xd9\x02ab", "str 16": b"\xda\0\x02ab", "str 32": b"\xdb\0\0\0\x02ab",
    "wide str": b"\xa5a\xf0\x9f\x98\x80",
    "bin 8": b"\xc4\x02ab", "bin 16": b"\xc5\0\x02ab", "bin 32": b"\xc6\0\0\0\x02ab",
    "empty list": b"\x90", "array 16": b"\xdc\0\x01\x01", "array 32": b"\xdd\0\0\0\x01\x01",
    "empty map": b"\x80", "fixmap": b"\x81\xa1a\x01", "map 16": b"\xde\0\x01\xa1a\x01",
    "map 32": b"\xdf\0\0\0\x01\xa1a\x01",
    "ext 8": b"\xc7\0\x05", "ext 16": b"\xc8\0\0\x05", "ext 32": b"\xc9\0\0\0\0\x05", "fixext 1": b"\xd4\x05x",
    "fixext 2": b"\xd5\x05xx", "fixext 4": b"\xd6\x05xxxx", "fixext 8": b"\xd7\x05" + bytes(8),
    "fixext 16": b"\xd8\x05" + bytes(16), "time": b"\xd6\xff\0\0\0\1", "long time": b"\xc7\x0c\xff" + bytes(12),
    "never used": b"\xc1",
}  # fmt: skip


def listed(item: bytes, size: int) -> bytes:
    """A header that is one list of so many bytes of an item."""
    count = size // len(item)
    return b"\x01\xdd" + struct.pack(">I", count) + item * count


def taken(action: Callable[[], object]) -> tuple[int, bool]:
    """The bytes that an action took at most, and whether it was accepted."""
    tracemalloc.start()
    try:
        try:
            kept = action()
            accepted = kept is not None
        except FrameError:
            accepted = False
        return tracemalloc.get_traced_memory()[1], accepted
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ITEMS)
@pytest.mark.parametrize("size", [LEAST - 100, 40_000, MIB // 4])
def test_no_list_takes_nine_times_its_frame(name: str, size: int, more: int) -> None:
    """A list of any item takes at most 9 bytes for each byte of its frame, or is a FrameError, beside what is free."""
    data = listed(ITEMS[name], size)
    peak, _ = taken(lambda: unpack(data, 64 * MIB))
    assert peak <= EACH * len(data) + more


def test_what_is_free_is_at_most_what_the_largest_frames_have() -> None:
    """Of a frame of 24 MiB the decoder takes at most nine times as much."""
    assert weight.MORE <= 24 * MIB
    assert EACH + 1 == 9


@pytest.mark.parametrize("size", [LEAST - 100, MIB // 4])
@pytest.mark.parametrize(
    "begin", [b"\xdd%b", b"\xdc\xff\xff", b"\x9f", b"\xdf%b", b"\xde\xff\xff", b"\x81\xa1a", b"\x91"]
)
def test_lists_in_lists_take_no_more(begin: bytes, size: int, more: int) -> None:
    """Each promises what all together do not hold: no room is made on their word."""
    begin = begin.replace(b"%b", struct.pack(">I", size // 2))
    data = b"\x01" + begin * min(2000, (size - 100) // len(begin))
    data += b"\x01" * (size - len(data))
    peak, accepted = taken(lambda: unpack(data, 64 * MIB))
    assert peak <= EACH * len(data) + (more if size > LEAST else 24 * MIB)
    assert not accepted


@pytest.mark.parametrize("name", [name for name in ITEMS if "ext" in name or "time" in name])
def test_a_header_has_no_extensions(name: str) -> None:
    """An extension is refused alone, in a small header, and in a large one, with a text that says so."""
    for size in (len(ITEMS[name]), 4 * LEAST):
        with pytest.raises(FrameError, match=r"ext|type 0x"):
            unpack(listed(ITEMS[name], size), 64 * MIB)
    with pytest.raises(FrameVersionError):
        unpack(b"\x09" + ITEMS[name])


@pytest.mark.parametrize("value", [[-100] * 3_000_000, [300] * 3_000_000])
def test_a_sender_hears_what_no_receiver_takes(value: list[int]) -> None:
    """Small ints take 40 bytes for 2 or 3: too many of them are refused where they are sent, and arrays are named."""
    with pytest.raises(MessageTooLarge, match="put numbers into arrays"):
        encode_content(RecordSet({"m": MetricsRecord({"x": value})}))


def test_what_apps_send_is_not_too_heavy() -> None:
    """Long lists of floats, of small numbers, of texts and of bytes come back."""
    content = RecordSet(
        {
            "m": MetricsRecord({"f": [0.1 * n for n in range(500_000)], "i": [n % 100 for n in range(1_000_000)]}),
            "c": ConfigsRecord({"t": ["ä text"] * 100_000, "b": [b"bytes"] * 100_000, "n": [-9] * 500}),
        }
    )
    assert decode_content({CONTENT: encode_content(content)[CONTENT]}) == content
