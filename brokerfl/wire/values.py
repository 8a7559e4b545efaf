"""Values of an app, as trees of lists and scalars with their arrays aside, and back.

Owns which types can be recorded, and that a value comes back bit for bit. Nothing is pickled: a tree holds what msgpack
holds, and a list whose first item is a tag. It must not know whose value it is; a `Codec` is given classes of records.
"""

import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from brokerfl.common import Array
from brokerfl.common.config import is_utf8
from brokerfl.common.npy import load_numpy
from brokerfl.wire.ndarrays import array_of, ndarray_of

#: The tags of the classes that flwr and brokerfl both have: what one has recorded, the other can read.
ARRAY_RECORD, METRIC_RECORD, CONFIG_RECORD, RECORD_DICT, ARRAY, NDARRAY = "A", "m", "c", "r", "y", "a"

#: Returns the Array that an ndarray is recorded as already; None if there is none.
Known = Callable[[Any], Array | None]


class RecordTypeError(TypeError):
    """A value has a type that no record holds."""


class Encoded(NamedTuple):
    """A value as a tree, and the arrays that it refers to by number.

    Attributes:
        tree: lists and scalars.
        sources: what each array is made of: an ndarray, or the bytes of flwr's Array, which never change.
        makes: makes each of them.
    """

    tree: Any
    sources: list[Any]
    makes: list[Callable[[], Array]]

    @property
    def size(self) -> int:
        """Bytes of the elements of all arrays."""
        return sum(len(source) if isinstance(source, bytes) else source.nbytes for source in self.sources)

    def arrays(self) -> list[Array]:
        """Return the arrays as they are now."""
        return [make() for make in self.makes]


class Kind(NamedTuple):
    """A type that has a tag: how what follows the tag is made, and how a value is made of that.

    ``make`` makes an empty value, which ``fill`` then fills: what it contains may refer to it.
    """

    tag: str
    encode: Callable[["Encoder", Any], list[Any]]
    make: Callable[["Decoder", list[Any]], Any]
    fill: Callable[["Decoder", Any, list[Any]], None] = lambda decoder, value, rest: None
    is_shared: bool = True  # the same value may be met again


class Codec:
    """Encodes and decodes values.

    Args:
        classes: of records and arrays, each with its kind; a value is of the first one that it is an instance of.
    """

    def __init__(self, classes: Sequence[tuple[type, Kind]]) -> None:
        self._classes = classes
        kinds = (*_PLAIN.values(), *_OTHERS, *(kind for _, kind in classes))
        self.by_tag: Mapping[str, Kind] = {kind.tag: kind for kind in kinds}

    def encode(self, value: Any, known: Known = lambda ndarray: None) -> Encoded:
        """Return a value as a tree and arrays, which are not copied yet; what is ``known`` never has to be.

        Raises:
            RecordTypeError: it is, or contains, something of another type; the text names that.
        """
        encoder = Encoder(self.kind_of, known)
        return Encoded(encoder.tree(value), encoder.sources, encoder.makes)

    def decode(self, tree: Any, arrays: list[Array]) -> Any:
        """Return the value that `encode` was given, equal and not the same.

        Raises:
            ValueError: the tree is malformed.
        """
        try:
            return Decoder(self.by_tag, arrays).value(tree)
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"a recorded value is malformed: {error!r}") from None

    def is_recordable(self, value: Any) -> bool:
        """Return whether a value has one of the types that can be recorded; what it contains may not."""
        return type(value) in _SCALARS or type(value) is int or self.kind_of(value) is not None

    def kind_of(self, value: Any) -> Kind | None:
        """Return the kind of a value that is no scalar; None if it cannot be recorded."""
        found = _PLAIN.get(type(value))
        if found is not None:
            return found
        if type(value) is defaultdict:
            return _DEFAULTDICT if value.default_factory in (None, *_FACTORIES.values()) else None
        if isinstance(value, PurePath):
            return _PATH
        found = next((kind for each, kind in self._classes if isinstance(value, each)), None)
        return found or self._foreign_kind_of(value)

    def _foreign_kind_of(self, value: Any) -> Kind | None:
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        if torch is not None and type(value) is getattr(torch, "Tensor", None):
            return _TENSOR
        if torch is not None and type(value) is getattr(torch, "Generator", None):
            return _TORCH_GENERATOR
        if numpy is None:
            return None
        if type(value) is numpy.ndarray:
            return _NDARRAY
        if isinstance(value, numpy.generic):
            return _SCALAR
        if type(value) is numpy.random.Generator:
            return _GENERATOR
        return _RANDOM_STATE if type(value) is numpy.random.RandomState else None


def record_kind(tag: str, kind: Any, items: Callable[[Any], Iterable[tuple[str, Any]]]) -> Kind:
    """Return the kind of a record: a class without arguments, which is filled by name, and how its items are read."""

    def encode(encoder: "Encoder", value: Any) -> list[Any]:
        return [[key, encoder.tree(item)] for key, item in items(value)]

    def fill(decoder: "Decoder", value: Any, rest: list[Any]) -> None:
        for key, item in rest:
            value[key] = decoder.value(item)

    return Kind(tag, encode, lambda decoder, rest: kind(), fill)


#: What a tree holds as it is.
_SCALARS = frozenset({type(None), bool, float, str, bytes})

_FACTORIES = {each.__name__: each for each in (list, dict, set, int, float, str)}


def _items(encoder: "Encoder", values: Iterable[Any]) -> list[Any]:
    return [encoder.tree(value) for value in values]


def _pairs(encoder: "Encoder", mapping: Any) -> list[Any]:
    return [[encoder.tree(key), encoder.tree(value)] for key, value in list(mapping.items())]


def _encode_ndarray(encoder: "Encoder", value: Any) -> list[Any]:
    dtype = value.dtype
    # Nothing is pickled, and an .npy file has no name for a dtype of ml_dtypes.
    if dtype.hasobject or dtype.type.__module__ != "numpy" or (dtype.kind == "V" and dtype.names is None):
        raise RecordTypeError(f"an ndarray of {dtype}")
    return [encoder.add(value, lambda: encoder.known(value) or array_of(value))]


def _encode_scalar(encoder: "Encoder", value: Any) -> list[Any]:
    if value.dtype.hasobject or value.dtype.kind == "V":
        raise RecordTypeError(f"a numpy scalar of {value.dtype}")
    return [value.dtype.str, value.tobytes()]


def _encode_tensor(encoder: "Encoder", value: Any) -> list[Any]:
    try:
        ndarray = value.numpy()
    except (TypeError, RuntimeError):  # on a GPU, sparse, with a gradient, or of a dtype that numpy lacks
        raise RecordTypeError(f"a tensor of {value.dtype} on {value.device}") from None
    return [encoder.tree(ndarray)]


def _encode_torch_generator(encoder: "Encoder", value: Any) -> list[Any]:
    if value.device.type != "cpu":
        raise RecordTypeError(f"a generator on {value.device}")
    return [encoder.tree(value.get_state().numpy().tobytes())]


def _encode_generator(encoder: "Encoder", value: Any) -> list[Any]:
    state = value.bit_generator.state
    return [str(state["bit_generator"]), encoder.tree(state)]


def _extend(decoder: "Decoder", value: Any, rest: list[Any]) -> None:
    value.extend(map(decoder.value, rest))


def _update(decoder: "Decoder", value: Any, rest: list[Any]) -> None:
    for key, item in rest:
        made = decoder.value(key)
        value[made] = decoder.value(item)


def _update_set(decoder: "Decoder", value: Any, rest: list[Any]) -> None:
    value.update(map(decoder.value, rest))


def _load_scalar(decoder: "Decoder", rest: list[Any]) -> Any:
    return load_numpy().frombuffer(rest[1], rest[0])[0]


def _torch() -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        raise ValueError("a tensor or generator was recorded, and torch is not imported")
    return torch


def _load_tensor(decoder: "Decoder", rest: list[Any]) -> Any:
    return _torch().from_numpy(decoder.value(rest[0]))


def _torch_generator(decoder: "Decoder", rest: list[Any]) -> Any:
    made = _torch().Generator()
    made.set_state(_torch().frombuffer(bytearray(rest[0]), dtype=_torch().uint8))
    return made


def _generator(decoder: "Decoder", rest: list[Any]) -> Any:
    numpy = load_numpy()
    made = numpy.random.Generator(getattr(numpy.random, rest[0])())
    made.bit_generator.state = decoder.value(rest[1])
    return made


def _python_random(decoder: "Decoder", rest: list[Any]) -> Any:
    made = random.Random()
    made.setstate(decoder.value(rest[0]))
    return made


def _random_state(decoder: "Decoder", rest: list[Any]) -> Any:
    made = load_numpy().random.RandomState()
    made.set_state(decoder.value(rest[0]))
    return made


_PLAIN = {
    list: Kind("l", _items, lambda decoder, rest: [], _extend),
    dict: Kind("d", _pairs, lambda decoder, rest: {}, _update),
    OrderedDict: Kind("o", _pairs, lambda decoder, rest: OrderedDict(), _update),
    Counter: Kind("C", _pairs, lambda decoder, rest: Counter(), _update),
    set: Kind("s", _items, lambda decoder, rest: set(), _update_set),
    bytearray: Kind("b", lambda encoder, value: [bytes(value)], lambda decoder, rest: bytearray(rest[0])),
    tuple: Kind("t", _items, lambda decoder, rest: tuple(map(decoder.value, rest)), is_shared=False),
    frozenset: Kind("f", _items, lambda decoder, rest: frozenset(map(decoder.value, rest)), is_shared=False),
    complex: Kind(
        "x", lambda encoder, value: [value.real, value.imag], lambda decoder, rest: complex(*rest), is_shared=False
    ),
    deque: Kind(
        "q",
        lambda encoder, value: [value.maxlen, *_items(encoder, value)],
        lambda decoder, rest: deque(maxlen=rest[0]),
        lambda decoder, value, rest: _extend(decoder, value, rest[1:]),
    ),
    random.Random: Kind("R", lambda encoder, value: [encoder.tree(value.getstate())], _python_random),
}

_DEFAULTDICT = Kind(
    "D",
    lambda encoder, value: [value.default_factory and value.default_factory.__name__, *_pairs(encoder, value)],
    lambda decoder, rest: defaultdict(_FACTORIES[rest[0]] if rest[0] else None),
    lambda decoder, value, rest: _update(decoder, value, rest[1:]),
)
_PATH = Kind("p", lambda encoder, value: [str(value)], lambda decoder, rest: type(PurePath())(rest[0]), is_shared=False)
_SCALAR = Kind("n", _encode_scalar, _load_scalar, is_shared=False)
_GENERATOR = Kind("g", _encode_generator, _generator)
_RANDOM_STATE = Kind("S", lambda encoder, value: [encoder.tree(value.get_state(legacy=False))], _random_state)
_TENSOR = Kind("T", _encode_tensor, _load_tensor)
_TORCH_GENERATOR = Kind("G", _encode_torch_generator, _torch_generator)
_NDARRAY = Kind(NDARRAY, _encode_ndarray, lambda decoder, rest: ndarray_of(decoder.arrays[rest[0]]))
_OTHERS = (_DEFAULTDICT, _PATH, _NDARRAY, _SCALAR, _GENERATOR, _RANDOM_STATE, _TENSOR, _TORCH_GENERATOR)

#: The tags of what was met before, and of an int that msgpack does not carry.
_AGAIN, _LONG = "@", "i"


class Encoder:
    """Makes one tree. The same list, dict or array met twice is one in the value that comes back, too."""

    def __init__(self, kind_of: Callable[[Any], Kind | None], known: Known) -> None:
        self._kind_of = kind_of
        self.known = known
        self.sources: list[Any] = []
        self.makes: list[Callable[[], Array]] = []
        self._numbers: dict[int, int] = {}
        self._held: list[Any] = []  # so that no id is used twice

    def add(self, source: Any, make: Callable[[], Array]) -> int:
        """Take an array aside; return its number."""
        self.sources.append(source)
        self.makes.append(make)
        return len(self.sources) - 1

    def tree(self, value: Any) -> Any:
        """Return a value as a tree."""
        if type(value) in _SCALARS:
            if type(value) is str and not is_utf8(value):
                raise RecordTypeError("text that is not UTF-8")
            return value
        if type(value) is int:
            return value if -(2**63) <= value < 2**64 else [_LONG, hex(value)]
        kind = self._kind_of(value)
        if kind is None:
            raise RecordTypeError(f"a {type(value).__module__}.{type(value).__qualname__}")
        if kind.is_shared:
            if id(value) in self._numbers:
                return [_AGAIN, self._numbers[id(value)]]
            self._numbers[id(value)] = len(self._numbers)
            self._held.append(value)
        return [kind.tag, *kind.encode(self, value)]


class Decoder:
    """Makes the value of one tree."""

    def __init__(self, by_tag: Mapping[str, Kind], arrays: list[Array]) -> None:
        self._by_tag = by_tag
        self.arrays: list[Array] = arrays
        self._met: list[Any] = []

    def value(self, tree: Any) -> Any:
        """Return what a tree stands for."""
        if not isinstance(tree, list):
            return tree
        tag, *rest = tree
        if tag == _AGAIN:
            return self._met[rest[0]]
        if tag == _LONG:
            return int(rest[0], 16)
        kind = self._by_tag.get(tag)
        if kind is None:
            raise ValueError(f"the record has a value of kind {tag!r}, which this version does not know")
        if not kind.is_shared:
            return kind.make(self, rest)
        place = len(self._met)
        self._met.append(None)
        made = self._met[place] = kind.make(self, rest)
        kind.fill(self, made, rest)
        return made
