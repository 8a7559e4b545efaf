"""The record of a run's steps, as Redis holds it: a hash of a head, of values by name, and of pages of steps.

Owns the layout of its fields. It must not know keys, Redis, or what a step or a value means.

    head     where the run is, and how large the record is
    v:NAME   a value: a content as a message carries it, so either the content itself or the manifest of a large one
    s:N      the steps from number N on, each a list that begins with its hook and its round; a page is written once

The results of an app's own steps are values only: there is no head and no page.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from brokerfl.common import ConfigsRecord, FrameError, MessageTooLarge, ParametersRecord, RecordSet
from brokerfl.common.array import Array
from brokerfl.wire.frame import CONTENT, MAX_CONTENT_BYTES, Fields, pack, unpack
from brokerfl.wire.manifest import MAX_MANIFEST_BYTES, manifest_of
from brokerfl.wire.payload import INLINE

HEAD = b"head"

_VALUE, _PAGE = b"v:", b"s:"

#: How the name of a value begins that is a model, before the number of the step that gave it; and one that is the
#: result of an app's own step, before its number and its name.
MODEL, RESULT = "model:", "result:"

#: Most bytes of a value in the hash: a manifest, or a small content with the names of its fields.
_MAX_VALUE_BYTES = MAX_MANIFEST_BYTES + 2 * INLINE

#: Names of the two records that a value is made of.
_TREE, _ARRAYS = "tree", "arrays"


class Head(NamedTuple):
    """Where a run is.

    Attributes:
        round: the round of the step that is under way.
        hook: the name of that step.
        steps: how many steps came before it.
        sequence: the number of the last message that was pushed before it.
        size: bytes of all values.
    """

    round: int
    hook: str
    steps: int
    sequence: int
    size: int


def encode_head(head: Head) -> bytes:
    """Return the field `HEAD`."""
    return pack(list(head))


def decode_head(data: bytes) -> Head:
    """Return the head that `encode_head` made.

    Raises:
        FrameError: malformed, or written by another version.
    """
    match unpack(data):
        case [int(number), str(hook), int(steps), int(sequence), int(size), *_]:
            return Head(number, hook, steps, sequence, size)
    raise FrameError("the head of a record of steps is malformed")


# Values.


def pack_tree(tree: Any) -> bytes:
    """Return lists and scalars as `value_of` takes them: equal ones of equal types are equal bytes.

    Raises:
        ValueError: the tree is nested too deeply.
    """
    return pack(tree, sys.maxsize)


def value_of(tree: bytes, arrays: Sequence[Array]) -> RecordSet:
    """Return a value as a content: its packed tree, and the arrays that this refers to by number.

    Raises:
        MessageTooLarge: the tree is too large.
    """
    if len(tree) > MAX_CONTENT_BYTES:
        raise MessageTooLarge(f"a value of {len(tree):,} bytes exceeds the limit of {MAX_CONTENT_BYTES:,}")
    content = RecordSet()
    if arrays:
        content[_ARRAYS] = ParametersRecord({str(number): array for number, array in enumerate(arrays)})
    content[_TREE] = ConfigsRecord({_TREE: tree})
    return content


def tree_and_arrays(content: RecordSet) -> tuple[Any, list[Array]]:
    """Return what `value_of` made a content of.

    Raises:
        FrameError: malformed.
    """
    try:
        tree = unpack(content.configs_records[_TREE][_TREE], MAX_CONTENT_BYTES)  # type: ignore[arg-type]
    except KeyError:
        raise FrameError("a value in the record of steps is malformed") from None
    return tree, list(content.parameters_records.get(_ARRAYS, {}).values())


def value_field(name: str) -> bytes:
    """Return the name of the field that holds a value."""
    return _VALUE + name.encode()


def named(record: Mapping[bytes, bytes], beginning: str) -> Iterator[tuple[str, bytes]]:
    """Yield the values whose names begin so: the rest of the name, and the field."""
    prefix = value_field(beginning)
    for name, field in record.items():
        if name.startswith(prefix):
            yield name[len(prefix) :].decode(), field


def value_names(record: Iterable[bytes]) -> list[str]:
    """Return the names of the values of a record, given its fields."""
    return [name[len(_VALUE) :].decode() for name in record if name.startswith(_VALUE)]


def encode_value(fields: Fields) -> bytes:
    """Return the field of a value: what a message would carry of its content."""
    return pack({name: bytes(data) for name, data in fields.items()}, _MAX_VALUE_BYTES)


def decode_value(data: bytes) -> Fields:
    """Return what `encode_value` was given.

    Raises:
        FrameError: malformed, or written by another version.
    """
    fields = unpack(data, _MAX_VALUE_BYTES)
    if isinstance(fields, dict) and all(isinstance(item, bytes) for pair in fields.items() for item in pair):
        return fields
    raise FrameError("a value in the record of steps is malformed")


def size_of_value(data: bytes) -> int:
    """Return how many bytes a value has, given its field.

    Raises:
        FrameError: as for `decode_value`.
    """
    fields = decode_value(data)
    manifest = None if CONTENT in fields else manifest_of(fields)
    return sum(map(len, fields.values())) if manifest is None else manifest.size


def contents_in(record: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """Return what the large contents of a record are called in Redis.

    Raises:
        FrameError: as for `decode_value`.
    """
    found = set()
    for name, data in record.items():
        if name.startswith(_VALUE):
            fields = decode_value(data)
            manifest = None if CONTENT in fields else manifest_of(fields)
            if manifest is not None:
                found.add(manifest.key)
    return frozenset(found)


# Steps.


def page_field(first: int) -> bytes:
    """Return the name of the field that holds the steps from a number on."""
    return b"%b%d" % (_PAGE, first)


def encode_page(steps: Iterable[Sequence[Any]]) -> bytes:
    """Return a page of steps.

    Raises:
        ValueError, MessageTooLarge: as for `pack_tree` and `value_of`.
    """
    return pack([list(step) for step in steps], MAX_CONTENT_BYTES)


def decode_pages(record: Mapping[bytes, bytes]) -> list[list[Any]]:
    """Return the steps of a record, in their order.

    Raises:
        FrameError: malformed, or some are missing.
    """
    pages = {int(name[len(_PAGE) :]): data for name, data in record.items() if name.startswith(_PAGE)}
    steps: list[list[Any]] = []
    for first in sorted(pages):
        page = unpack(pages[first], MAX_CONTENT_BYTES)
        if first != len(steps) or not isinstance(page, list) or not all(isinstance(step, list) for step in page):
            raise FrameError("the record of steps is malformed")
        steps += page
    return steps
