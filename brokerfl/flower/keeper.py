"""The values of a record on their way to Redis: each is encoded and uploaded once, as long as it does not change.

Owns how it is found out that a value has not changed. It must not know where values are in an app, or when they are
recorded.
"""

import weakref
from collections.abc import Container, Iterable
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

from brokerfl.common.array import sketch_of
from brokerfl.flower.values import Encoded, RecordTypeError, encode
from brokerfl.server.record import Record
from brokerfl.wire.payload import INLINE, EncodedContent
from brokerfl.wire.record import encode_content
from brokerfl.wire.steps import encode_value, pack_tree, value_of


class Kept(NamedTuple):
    """A value as a record has it.

    Attributes:
        field: of the record.
        content: what it is called in Redis if it is large; "" otherwise.
        size: bytes.
        upload: what is to be there when the record is committed; None if it has been for long.
    """

    field: bytes
    content: bytes
    size: int
    upload: EncodedContent | None = None


class _Look:
    """What distinguishes a value from what it was: its tree, and each of its arrays.

    Trees are compared as bytes: as objects 0.0 equals -0.0, and 1 equals True.
    """

    def __init__(self, encoded: Encoded, tree: bytes) -> None:
        self._tree = tree
        # Bytes never change, so they only have to be the same ones.
        self._sources = [_mark_of(each) for each in encoded.sources]

    def is_of(self, encoded: Encoded, tree: bytes) -> bool:
        """Return whether a value is still as it was."""
        if tree != self._tree or len(encoded.sources) != len(self._sources):
            return False
        return all(map(_is_same, encoded.sources, self._sources))


class _Seen(NamedTuple):
    """An ndarray as it was: the same one has the same sketch until its elements change."""

    ndarray: "weakref.ref[Any]"
    dtype: Any
    shape: tuple[int, ...]
    sketch: bytes


class _Whole(NamedTuple):
    """All elements of a small ndarray, or of a tensor, which numpy sees through a new ndarray each time."""

    dtype: str
    shape: tuple[int, ...]
    digest: bytes


def _mark_of(source: Any) -> Any:
    if isinstance(source, bytes):
        return source
    if source.nbytes <= INLINE or (source.base is not None and not isinstance(source.base, type(source))):
        return _whole(source)
    return _seen(source)


def _seen(source: Any) -> _Seen:
    return _Seen(weakref.ref(source), source.dtype, source.shape, sketch_of(source))


def _whole(source: Any) -> _Whole:
    return _Whole(str(source.dtype), source.shape, blake2b(source.tobytes(), digest_size=16).digest())


def _is_same(source: Any, former: Any) -> bool:
    if isinstance(former, bytes):
        return source is former
    if isinstance(former, _Whole):
        return not isinstance(source, bytes) and _whole(source) == former
    return former.ndarray() is source and _seen(source)[1:] == former[1:]


class Keeper:
    """Encodes and uploads the values of one run's record.

    Args:
        record: the run's.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._former: dict[str, tuple[_Look, Kept]] = {}
        self._first: dict[str, _Look] = {}

    def note_first(self, values: Iterable[tuple[str, Any]]) -> None:
        """These values are as main made them: what is large among them and stays so is not recorded."""
        for name, value in values:
            encoded = encode(value)
            if encoded.size > INLINE:
                with suppress(RecordTypeError):
                    self._first[name] = _Look(encoded, _packed(encoded))

    def keep(self, name: str, value: Any, *, is_model: bool = False) -> Kept | None:
        """Return a value as a record has it, its chunks in Redis; None if main makes it as it is.

        Nothing is remembered of a model: it is kept once, and its name is never used again.

        Raises:
            RecordTypeError: it, or something in it, cannot be recorded.
            ValueError, MessageTooLarge, RedisOutOfMemory, OutageLimit, RunError: as `Record.upload`.
        """
        encoded = encode(value, self._record.known)
        tree = _packed(encoded)
        if name in self._first and self._first[name].is_of(encoded, tree):
            return None
        former = self._former.get(name)
        if former is not None and former[0].is_of(encoded, tree) and self._is_there(former[1]):
            return former[1]
        # First: what another thread changes from now on is found to have changed, whether or not it is recorded.
        look = None if is_model else _Look(encoded, tree)
        made = _kept_of(self._record.upload(value_of(tree, encoded.arrays()), is_model=is_model))
        if look is not None:
            self._former[name] = look, made._replace(upload=None)
        return made

    def forget_all_but(self, names: Container[str]) -> None:
        """Values of other names are not recorded any more."""
        self._former = {name: former for name, former in self._former.items() if name in names}

    def _is_there(self, kept: Kept) -> bool:
        return not kept.content or self._record.has(kept.content)


def _packed(encoded: Encoded) -> bytes:
    try:
        return pack_tree(encoded.tree)
    except ValueError as error:
        raise RecordTypeError(f"it {error}") from None


def _kept_of(content: EncodedContent) -> Kept:
    field = encode_value(content.fields)
    if content.payload is None:
        return Kept(field, b"", sum(map(len, content.fields.values())))
    return Kept(field, content.key, content.payload.manifest.size, content)


def small(tree: Any) -> bytes:
    """Return the field of a small value that is a tree itself."""
    return _kept_of(EncodedContent(encode_content(value_of(pack_tree(tree), [])))).field
