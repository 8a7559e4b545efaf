"""Values of an app, as trees of lists and scalars with their arrays aside, and back.

Owns which types can be recorded, and that a value comes back as it was, bit for bit. Nothing is pickled: a tree holds
what msgpack holds, and a list whose first item is a tag. It must not know whose value it is, or where it goes.
"""

import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import PurePath
from typing import Any, NamedTuple

from brokerfl.common import Array
from brokerfl.common.config import is_utf8
from brokerfl.common.npy import load_numpy
from brokerfl.flower import compat
from brokerfl.flower.records import arrays_of, flower_array, our_array, parameters_of


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


def encode(value: Any) -> Encoded:
    """Return a value as a tree and arrays; arrays are not copied yet.

    Raises:
        RecordTypeError: it is, or contains, something of another type; the text names that.
    """
    encoder = _Encoder()
    return Encoded(encoder.tree(value), encoder.sources, encoder.makes)


def decode(tree: Any, arrays: list[Array]) -> Any:
    """Return the value that `encode` was given, equal and not the same.

    Raises:
        ValueError: the tree is malformed.
    """
    return _Decoder(arrays).value(tree)


def is_recordable(value: Any) -> bool:
    """Return whether a value has one of the types that can be recorded; what it contains may not."""
    return type(value) in _SCALARS or type(value) is int or _kind_of(value) is not None


#: What a tree holds as it is.
_SCALARS = frozenset({type(None), bool, float, str, bytes})

_FACTORIES = {each.__name__: each for each in (list, dict, set, int, float, str)}


def _items(encoder: "_Encoder", values: Iterable[Any]) -> list[Any]:
    return [encoder.tree(value) for value in values]


def _pairs(encoder: "_Encoder", mapping: Any) -> list[Any]:
    return [[encoder.tree(key), encoder.tree(value)] for key, value in list(mapping.items())]


def _named(encoder: "_Encoder", record: Any) -> list[Any]:
    return [[key, encoder.tree(value)] for key, value in compat.items_of(record)]


def _encode_ndarray(encoder: "_Encoder", value: Any) -> list[Any]:
    dtype = value.dtype
    if dtype.hasobject or (dtype.kind == "V" and dtype.names is None):
        raise RecordTypeError(f"an ndarray of {dtype}")
    return [encoder.add(value, lambda: _npy(value))]


def _npy(value: Any) -> Array:
    """Return an ndarray as flwr sends it, so that equal ones have equal chunks."""
    file = BytesIO()
    load_numpy().save(file, value, allow_pickle=False)
    return our_array(compat.array_of(str(value.dtype), value.shape, "numpy.ndarray", file.getvalue()))


def _encode_scalar(encoder: "_Encoder", value: Any) -> list[Any]:
    if value.dtype.hasobject or value.dtype.kind == "V":
        raise RecordTypeError(f"a numpy scalar of {value.dtype}")
    return [value.dtype.str, value.tobytes()]


def _encode_tensor(encoder: "_Encoder", value: Any) -> list[Any]:
    if value.device.type != "cpu" or value.requires_grad or str(value.dtype) in ("torch.bfloat16",):
        raise RecordTypeError(f"a tensor of {value.dtype} on {value.device}")
    return [encoder.tree(value.numpy().copy())]


def _encode_array(encoder: "_Encoder", value: Any) -> list[Any]:
    return [encoder.add(bytes(value.data), lambda: our_array(value))]


def _encode_generator(encoder: "_Encoder", value: Any) -> list[Any]:
    state = value.bit_generator.state
    return [str(state["bit_generator"]), encoder.tree(state)]


class _Kind(NamedTuple):
    """A type that has a tag: how what follows the tag is made, and how a value is made of that.

    ``make`` makes an empty value, which ``fill`` then fills: what it contains may refer to it.
    """

    tag: str
    encode: Callable[["_Encoder", Any], list[Any]]
    make: Callable[["_Decoder", list[Any]], Any]
    fill: Callable[["_Decoder", Any, list[Any]], None] = lambda decoder, value, rest: None
    is_shared: bool = True  # the same value may be met again


def _extend(decoder: "_Decoder", value: Any, rest: list[Any]) -> None:
    value.extend(map(decoder.value, rest))


def _update(decoder: "_Decoder", value: Any, rest: list[Any]) -> None:
    for key, item in rest:
        made = decoder.value(key)
        value[made] = decoder.value(item)


def _update_set(decoder: "_Decoder", value: Any, rest: list[Any]) -> None:
    value.update(map(decoder.value, rest))


def _load(decoder: "_Decoder", rest: list[Any]) -> Any:
    return load_numpy().load(BytesIO(bytes(decoder.arrays[rest[0]].data)), allow_pickle=False)


def _load_scalar(decoder: "_Decoder", rest: list[Any]) -> Any:
    return load_numpy().frombuffer(rest[1], rest[0])[0]


def _load_tensor(decoder: "_Decoder", rest: list[Any]) -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        raise ValueError("a tensor was recorded, and torch is not imported")
    return torch.from_numpy(decoder.value(rest[0]))


def _generator(decoder: "_Decoder", rest: list[Any]) -> Any:
    numpy = load_numpy()
    made = numpy.random.Generator(getattr(numpy.random, rest[0])())
    made.bit_generator.state = decoder.value(rest[1])
    return made


def _python_random(decoder: "_Decoder", rest: list[Any]) -> Any:
    made = random.Random()
    made.setstate(decoder.value(rest[0]))
    return made


def _random_state(decoder: "_Decoder", rest: list[Any]) -> Any:
    made = load_numpy().random.RandomState()
    made.set_state(decoder.value(rest[0]))
    return made


_PLAIN = {
    list: _Kind("l", _items, lambda decoder, rest: [], _extend),
    dict: _Kind("d", _pairs, lambda decoder, rest: {}, _update),
    OrderedDict: _Kind("o", _pairs, lambda decoder, rest: OrderedDict(), _update),
    Counter: _Kind("C", _pairs, lambda decoder, rest: Counter(), _update),
    set: _Kind("s", _items, lambda decoder, rest: set(), _update_set),
    bytearray: _Kind("b", lambda encoder, value: [bytes(value)], lambda decoder, rest: bytearray(rest[0])),
    tuple: _Kind("t", _items, lambda decoder, rest: tuple(map(decoder.value, rest)), is_shared=False),
    frozenset: _Kind("f", _items, lambda decoder, rest: frozenset(map(decoder.value, rest)), is_shared=False),
    complex: _Kind(
        "x", lambda encoder, value: [value.real, value.imag], lambda decoder, rest: complex(*rest), is_shared=False
    ),
    deque: _Kind(
        "q",
        lambda encoder, value: [value.maxlen, *_items(encoder, value)],
        lambda decoder, rest: deque(maxlen=rest[0]),
        lambda decoder, value, rest: _extend(decoder, value, rest[1:]),
    ),
    random.Random: _Kind("R", lambda encoder, value: [encoder.tree(value.getstate())], _python_random),
}

_DEFAULTDICT = _Kind(
    "D",
    lambda encoder, value: [value.default_factory and value.default_factory.__name__, *_pairs(encoder, value)],
    lambda decoder, rest: defaultdict(_FACTORIES[rest[0]] if rest[0] else None),
    lambda decoder, value, rest: _update(decoder, value, rest[1:]),
)
_PATH = _Kind(
    "p", lambda encoder, value: [str(value)], lambda decoder, rest: type(PurePath())(rest[0]), is_shared=False
)
_NDARRAY = _Kind("a", _encode_ndarray, _load)
_SCALAR = _Kind("n", _encode_scalar, _load_scalar, is_shared=False)
_GENERATOR = _Kind("g", _encode_generator, _generator)
_RANDOM_STATE = _Kind("S", lambda encoder, value: [encoder.tree(value.get_state(legacy=False))], _random_state)
_TENSOR = _Kind("T", _encode_tensor, _load_tensor)
_ARRAY = _Kind("y", _encode_array, lambda decoder, rest: flower_array(decoder.arrays[rest[0]]))
_PARAMETERS = _Kind(
    "P",
    lambda encoder, value: [value.tensor_type, encoder.tree(arrays_of(value))],
    lambda decoder, rest: parameters_of(decoder.value(rest[1]), rest[0]),
)


def _record_kind(tag: str, kind: Any) -> _Kind:
    def fill(decoder: "_Decoder", value: Any, rest: list[Any]) -> None:
        for key, item in rest:
            value[key] = decoder.value(item)

    return _Kind(tag, _named, lambda decoder, rest: kind(), fill)


_RECORDS = (
    (compat.Parameters, _PARAMETERS),
    (compat.ArrayRecord, _record_kind("A", compat.ArrayRecord)),
    (compat.MetricRecord, _record_kind("m", compat.MetricRecord)),
    (compat.ConfigRecord, _record_kind("c", compat.ConfigRecord)),
)
_RECORD_DICT = _Kind(
    "r",
    lambda encoder, value: [[name, encoder.tree(record)] for name, record in compat.records_of(value)],
    lambda decoder, rest: compat.record_dict_of([(name, decoder.value(record)) for name, record in rest]),
)

_BY_TAG = {
    kind.tag: kind
    for kind in (
        *_PLAIN.values(),
        *(kind for _, kind in _RECORDS),
        *(_DEFAULTDICT, _PATH, _NDARRAY, _SCALAR, _GENERATOR, _RANDOM_STATE, _TENSOR, _ARRAY, _RECORD_DICT),
    )
}

#: The tags of what was met before, and of an int that msgpack does not carry.
_AGAIN, _LONG = "@", "i"


def _kind_of(value: Any) -> _Kind | None:
    found = _PLAIN.get(type(value))
    if found is not None:
        return found
    if type(value) is defaultdict:
        return _DEFAULTDICT if value.default_factory in (None, *_FACTORIES.values()) else None
    if isinstance(value, PurePath):
        return _PATH
    for kind, record in _RECORDS:
        if isinstance(value, kind):
            return record
    if isinstance(value, compat.RecordDict):
        return _RECORD_DICT
    if isinstance(value, compat.Array):
        return _ARRAY
    return _foreign_kind_of(value)


def _foreign_kind_of(value: Any) -> _Kind | None:
    numpy, torch = load_numpy(), sys.modules.get("torch")
    if type(value) is numpy.ndarray:
        return _NDARRAY
    if isinstance(value, numpy.generic):
        return _SCALAR
    if type(value) is numpy.random.Generator:
        return _GENERATOR
    if type(value) is numpy.random.RandomState:
        return _RANDOM_STATE
    return _TENSOR if torch is not None and type(value) is getattr(torch, "Tensor", None) else None


class _Encoder:
    """Makes one tree. The same list, dict or array met twice is one in the value that comes back, too."""

    def __init__(self) -> None:
        self.sources: list[Any] = []
        self.makes: list[Callable[[], Array]] = []
        self._numbers: dict[int, int] = {}
        self._held: list[Any] = []  # so that no id is used twice

    def add(self, source: Any, make: Callable[[], Array]) -> int:
        self.sources.append(source)
        self.makes.append(make)
        return len(self.sources) - 1

    def tree(self, value: Any) -> Any:
        if type(value) in _SCALARS:
            if type(value) is str and not is_utf8(value):
                raise RecordTypeError("text that is not UTF-8")
            return value
        if type(value) is int:
            return value if -(2**63) <= value < 2**64 else [_LONG, hex(value)]
        kind = _kind_of(value)
        if kind is None:
            raise RecordTypeError(f"a {type(value).__module__}.{type(value).__qualname__}")
        if kind.is_shared:
            if id(value) in self._numbers:
                return [_AGAIN, self._numbers[id(value)]]
            self._numbers[id(value)] = len(self._numbers)
            self._held.append(value)
        return [kind.tag, *kind.encode(self, value)]


class _Decoder:
    arrays: list[Array]

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays = arrays
        self._met: list[Any] = []

    def value(self, tree: Any) -> Any:
        if not isinstance(tree, list):
            return tree
        tag, *rest = tree
        if tag == _AGAIN:
            return self._met[rest[0]]
        if tag == _LONG:
            return int(rest[0], 16)
        kind = _BY_TAG.get(tag)
        if kind is None:
            raise ValueError(f"the record has a value of kind {tag!r}, which this version does not know")
        if not kind.is_shared:
            return kind.make(self, rest)
        place = len(self._met)
        self._met.append(None)
        made = self._met[place] = kind.make(self, rest)
        kind.fill(self, made, rest)
        return made
