"""The weight of a header: about how many bytes of Python objects it becomes, found before anything is made of it.

Owns what each item of msgpack weighs. It must not know what a header means.

msgpack makes whatever a header announces: a byte becomes 40 (an int), 64 (a map), and a list has its room before its
items have come. So a header is weighed first; runs of numbers of one kind are skipped as one.
"""

import re

from brokerfl.common import FrameError

#: Bytes that objects may take for each byte of their header, and beside that for its smallest items: the shortest
#: descriptions of 99,000 arrays take 12 for each. A header of 24 MiB or more grows at most ninefold.
EACH, MORE = 8, 24 * 1024 * 1024

#: Bytes below which a header is not weighed, because it cannot take `MORE`.
LEAST = 2 * 1024

#: Runs of numbers: bytes of one, and bytes of the object that it becomes beside its place in a list. Python has the
#: ints from -5 to 256, None and the booleans already.
_RUNS = (
    (rb"[\x00-\x7f\xc0\xc2\xc3\xfb-\xff]", 1, 0),
    (rb"\xcc.", 2, 0),
    (rb"[\xe0-\xfa]", 1, 28),
    (rb"\xd0.", 2, 28),
    (rb"[\xcd\xd1].{2}", 3, 28),
    (rb"[\xca\xce\xd2].{4}", 5, 32),
    (rb"[\xcb\xcf\xd3].{8}", 9, 36),
)
#: ``++`` does not keep each item, to go back to it, as ``+`` would.
_FIND = [(re.compile(b"(?:" + item + b")++", re.DOTALL).match, size, weight) for item, size, weight in _RUNS]
_KIND = {lead: find for find in _FIND for lead in range(256) if find[0](bytes([lead]) + bytes(8))}

#: Bytes of a list or a map itself, of a pair of a map that still grows, and of a text or bytes beside its letters.
_LIST, _MAP, _PAIR, _TEXT = 56, 300, 104, 57

#: Of each kind that announces a length: how it is written, and in how many bytes.
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def check_weight(data: bytes | memoryview) -> None:
    """Check that the objects of a header take no more than `EACH` of its bytes allow, and `MORE`.

    Raises:
        FrameError: they would; or it announces more than it has, or holds what no header of brokerfl does.
    """
    size = len(data)
    if size < LEAST:
        return
    limit, weight, announced, at = EACH * size + MORE, 0, 1, 0
    while at < size:
        lead = data[at]
        if lead in _KIND:
            find, each, weighs = _KIND[lead]
            found = find(data, at)
            if found is None:
                raise FrameError("the header ends within a number")
            weight += (found.end() - at) // each * weighs
            at = found.end()
        elif 0xA0 <= lead <= 0xBF or lead in _TEXTS:
            at, length = (at + 1, lead & 0x1F) if lead <= 0xBF else _length(data, at, _TEXTS[lead])
            weight += _TEXT + (length if bytes(data[at : at + length]).isascii() else 16 + 4 * length)
            at += length
        elif lead in _BYTES:
            at, length = _length(data, at, _BYTES[lead])
            weight += _TEXT + length
            at += length
        elif 0x90 <= lead <= 0x9F or lead in _LISTS:
            at, length = (at + 1, lead & 0xF) if lead <= 0x9F else _length(data, at, _LISTS[lead])
            weight += _LIST + 8 * length
            announced += length
        elif 0x80 <= lead <= 0x8F or lead in _MAPS:
            at, length = (at + 1, lead & 0xF) if lead <= 0x8F else _length(data, at, _MAPS[lead])
            weight += _MAP * (length > 0) + 64 + _PAIR * length
            announced += 2 * length
        else:
            raise FrameError(f"the header holds a value of type {lead:#x}, which no header has")
        if announced > size:
            raise FrameError("the header announces more than it holds")
        if weight > limit:
            raise FrameError(f"a header of {size:,} bytes would take more than {limit:,} bytes of memory")


def _length(data: bytes | memoryview, at: int, size: int) -> tuple[int, int]:
    """Return where an item begins that announces its length in so many bytes, and the length."""
    start = at + 1 + size
    return start, int.from_bytes(data[at + 1 : start], "big")
