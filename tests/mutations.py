"""Valid frames of every kind, and what they are mutated into.

Owns both, and depends on nothing but a seed. What decoders make of it is the business of `fuzz`.
"""

import random
from dataclasses import replace
from io import BytesIO
from typing import Any

import msgpack
import numpy as np

from brokerfl.common import Array, ConfigsRecord, Error, Metadata, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.wire.codec import LONG
from brokerfl.wire.frame import CONTENT, HEAD, MANIFEST, VERSION
from brokerfl.wire.manifest import Manifest, divide
from brokerfl.wire.message import encode_message
from brokerfl.wire.origin import Origin
from brokerfl.wire.payload import Payload
from brokerfl.wire.record import encode_content
from brokerfl.wire.run import LedgerEntry, Run, encode_entry, encode_run

#: A frame by its fields; one that is a single value has it in `ONLY`.
Frame = dict[bytes, bytes]

ONLY = b"only"

#: Most bytes of a content that a manifest may declare here. When manifest and description agree, there is room for a
#: large array before its first chunk has come.
MOST_CONTENT = 4 * 1024 * 1024


def _npy() -> bytes:
    file = BytesIO()
    np.save(file, np.arange(6, dtype=np.int16))
    return file.getvalue()


def _content(elements: int = 12) -> RecordSet:
    arrays = {
        "w": Array(np.arange(elements, dtype=np.float32).reshape(3, -1)),
        "b": Array(np.zeros(())),
        "file": Array("int16", (6,), "numpy.ndarray", _npy()),
        "opaque": Array("whatever", (7,), "my.format", b"abc"),
    }
    return RecordSet(
        {
            "c": ConfigsRecord({"a": "text", "b": b"bytes", "l": [True, False], "t": ["ä", ""]}),
            "p": ParametersRecord(arrays),
            "m": MetricsRecord({"n": 3, "x": [0.5, 1.5], "many": [2**63, 1, 0]}),
            "long": ConfigsRecord({"one": bytes(LONG), "some": [b"", bytes(LONG)]}),
            "none": ParametersRecord({}),
        }
    )


def _message(**changed: Any) -> Frame:
    fields: dict[str, Any] = {
        "run_id": 2**64 - 1, "message_id": "", "src_node_id": 1, "dst_node_id": 2**63, "reply_to_message": "",
        "group_id": "ä", "created_at": 1.7e9, "ttl": 1.5, "message_type": "train",
    } | changed  # fmt: skip
    error = fields.pop("error", None)
    content = None if error else encode_content(_content())
    return _bytes(encode_message("ab" * 16, Metadata(**fields), content, error))


def _bytes(fields: dict[bytes, Any]) -> Frame:
    return {name: bytes(data) for name, data in fields.items()}


def _payload(entries: bool) -> Frame:
    """A manifest, and its chunks in fields that are called like chunks nowhere else."""
    made = Payload(encode_content(_content(3 * 100_000)))
    ids = tuple(f"1700000000000-{index}" for index in range(len(made))) if entries else ()
    manifest = Manifest(made.manifest.sizes, made.manifest.digests, ids, 0 if entries else 2**63 - 1)
    return {MANIFEST: manifest.encoded, **{b"chunk%d" % index: bytes(made.chunk(index)) for index in range(len(made))}}


def _largest() -> Frame:
    """A manifest of the largest content that is allowed."""
    sizes = (100, MOST_CONTENT - 100)
    count = divide(sizes)[-1].chunks.stop
    return {MANIFEST: Manifest(sizes, (b"d" * 32,) * count, uploader=1).encoded}


_RUN = Run(2**64 - 1, "server:app", {"lr": 0.1, "on": True, "n": 3, "s": "x"}, 1.5)
_NAMED = replace(_RUN, origin=Origin("server:app", "mnist", "1.0", "0123456789abcdef"), overrides=("lr", "s"))
_ENTRY = LedgerEntry(2**64 - 1, "1", "train.x", 2**41, 7, b"digest", True, 3)

#: Valid frames, each with the decoder that it is for.
VALID: list[tuple[str, Frame]] = [
    ("message", _message()),
    ("message", _message(reply_to_message="a" * 32)),
    ("message", _message(error=Error(2, "ValueError: x"))),
    ("content", _bytes(encode_content(_content()))),
    ("content", _bytes(encode_content(RecordSet()))),
    ("run", {ONLY: encode_run(_RUN)}),
    ("run", {ONLY: encode_run(_NAMED)}),
    ("ledger entry", {ONLY: encode_entry(_ENTRY)}),
    ("manifest", {MANIFEST: _payload(entries=True)[MANIFEST]}),
    ("manifest", _largest()),
    ("payload", _payload(entries=False)),
    ("payload", _payload(entries=True)),
]


# What it is mutated into.

#: Beginnings in msgpack that promise more than follows, or what no frame holds: lists, maps, texts, bytes and
#: extensions of 2^32 - 1, the same in 16 bits, time stamps, the byte that is never used, and lists in lists in lists.
TOKENS = (
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x05", b"\xdc\xff\xff", b"\xde\xff\xff", b"\xd6\xff\x00\x00\x00\x01", b"\xd4\x05x",
    b"\xc7\0\x05", b"\xc8\xff\xff\x05", b"\xd5\x05xx", b"\xd7\x05" + bytes(8), b"\xd8\x05" + bytes(16),
    b"\xd9\xff", b"\xda\xff\xff", b"\xc4\xff", b"\xc5\xff\xff", b"\xd9\x02ab", b"\xc4\x02ab",
    b"\xa2ab" * 300,
    b"\xc7\0\x05" * 300, b"\xd4\x05x" * 300, b"\xc4\x02ab" * 300, b"\x81\xa1a\x01" * 300, b"\xe0" * 3000,
    b"\xde\xff\xff" * 300, b"\xdc\xff\xff" * 300, b"\xc1",
    b"\x91" * 2000, b"\x81\xa1x" * 500, b"\xdd\x00\x0f\xff\xff" * 50, b"\x90" * 500,
)  # fmt: skip


def _listed(item: bytes, count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + item * count


#: More empty lists than there may be, and many of what takes much for its bytes. They cost time, so there are few.
HEAVY = (
    _listed(b"\x90", 400_000), _listed(b"\x01", 200_000), _listed(b"\xe0", 200_000), _listed(b"\xd0\x80", 100_000),
    _listed(b"\xa2ab", 100_000), _listed(b"\xd9\x02ab", 100_000), _listed(b"\xc4\x02ab", 100_000),
    _listed(b"\xd4\x05x", 200_000), _listed(b"\xc7\0\x05", 200_000), _listed(b"\xd6\xff\0\0\0\1", 100_000),
    _listed(b"\x81\xa1a\x01", 100_000), _listed(b"\xde\0\x01\xa1a\x01", 60_000), b"\xdd\0\x0f\xff\xff" * 60_000,
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 255, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "\0", "numpy.ndarray", "object", "O", "|O8", "bfloat16", "float64", "a" * 300,
    b"", b"\0" * 32, b"\x93NUMPY\x01\0", [], [[]], [0] * 100, [2**40] * 64, [1] * 65, [2**62, 2**62, 0], {}, {"": {}},
    {"p": {"w": ["float32", [2**60], "numpy.ndarray", 2**62]}}, {"p": {"w": []}}, msgpack.Timestamp(1, 2),
    msgpack.ExtType(5, b"x"),
)  # fmt: skip


def mutate(rng: random.Random, frame: Frame) -> Frame:
    """Return a frame with one to four things changed: bits, bytes, values in a header, or fields."""
    made = dict(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(_KINDS)(rng, made)
    return made


def _mutate_bytes(rng: random.Random, made: Frame) -> None:
    name = _some_field(rng, made)
    data = bytearray(made.get(name, b""))
    place = rng.randint(0, min(len(data), rng.choice((16, 1 << 30))))
    match rng.randrange(7):
        case 0 if data:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[place:]
        case 2:
            data[place:place] = rng.randbytes(rng.randint(1, 9))
        case 3:
            heavy = rng.random() < 0.005
            place = rng.choice((1, 2)) if heavy else place
            data[place : place + rng.choice((0, 1, 5))] = rng.choice(HEAVY if heavy else TOKENS)
        case 4:
            data[place:place] = data[place : place + rng.randint(1, 64)]
        case 5:
            other = rng.choice(rng.choice(VALID)[1].copy().popitem())
            data[place:] = other[rng.randint(0, len(other)) :]
        case _:
            del data[place : place + rng.randint(1, 9)]
    made[name] = bytes(data)


def _mutate_value(rng: random.Random, made: Frame) -> None:
    """Change a value in a header, and pack it well: such frames come further than those with broken bytes."""
    name = rng.choice([name for name in made if name in (HEAD, CONTENT, MANIFEST, ONLY)] or [_some_field(rng, made)])
    try:
        tree = msgpack.unpackb(made[name][1:], strict_map_key=False)
        made[name] = bytes((VERSION,)) + msgpack.packb(_changed(rng, tree))
    except Exception:  # it was broken before
        made[name] = bytes((VERSION,)) + msgpack.packb(rng.choice(VALUES))


def _changed(rng: random.Random, tree: Any) -> Any:
    """Return a tree of lists and maps in which one thing is another, twice there, gone, or in another place."""
    inner = isinstance(tree, list | dict) and tree and rng.random() < 0.85
    if not inner:
        return _other(rng, tree)
    items: list[Any] = list(tree.items()) if isinstance(tree, dict) else list(tree)
    place = rng.randrange(len(items))
    match rng.randrange(12):
        case 0:
            items.append(items[place])
        case 1:
            del items[place]
        case 2:
            rng.shuffle(items)
        case 3 if isinstance(tree, dict):
            items[place] = (rng.choice(("", "x", b"", 5)), items[place][1])
        case _ if isinstance(tree, dict):
            key, value = items[place]
            items[place] = (key, _changed(rng, value))
        case _:
            items[place] = _changed(rng, items[place])
    return dict(items) if isinstance(tree, dict) else items


def _other(rng: random.Random, value: Any) -> Any:
    """Return another value: often a near one, for limits have edges."""
    if type(value) is int and rng.random() < 0.5:
        return max(-(2**63), min(2**64 - 1, rng.choice((value - 1, value + 1, -value, value * 2**32, value // 2))))
    if isinstance(value, bytes | str) and value and rng.random() < 0.5:
        return rng.choice((value[:-1], value + value, value[1:], value * 100))
    return rng.choice(VALUES)


def _mutate_fields(rng: random.Random, made: Frame) -> None:
    name, other = _some_field(rng, made), _some_field(rng, made)
    match rng.randrange(5):
        case 0:
            made.pop(name, None)
        case 1:
            made[other] = made.get(name, b"")
        case 2:
            made[name], made[other] = made.get(other, b""), made.get(name, b"")
        case 3:
            made.update(rng.choice(VALID)[1])
        case _:
            made[rng.choice((b"0", b"1", b"99", b"00", HEAD, CONTENT, MANIFEST, b"chunk1"))] = made.get(name, b"")


def _some_field(rng: random.Random, made: Frame) -> bytes:
    return rng.choice(list(made) or [HEAD])


_KINDS = (_mutate_bytes, _mutate_bytes, _mutate_value, _mutate_value, _mutate_value, _mutate_fields)
