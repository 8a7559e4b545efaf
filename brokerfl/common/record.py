"""Records: named arrays, metrics and configs.

Owns which values a record takes. It must not know how records are encoded, except for the range of their integers.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from brokerfl.common.array import Array
from brokerfl.common.typeddict import TypedDict, V

if TYPE_CHECKING:
    from numpy.typing import NDArray

MetricsScalar = int | float
MetricsValue = MetricsScalar | list[int] | list[float]
ConfigsScalar = bool | int | float | str | bytes
ConfigsValue = ConfigsScalar | list[bool] | list[int] | list[float] | list[str] | list[bytes]

#: What msgpack can carry: the integers of int64 and uint64.
MIN_INT, MAX_INT = -(2**63), 2**64 - 1


class Record(TypedDict[V]):
    """Values by name, in the order of insertion. A kind of record is a subclass that says which it takes."""

    def count_bytes(self) -> int:
        """Return the bytes of all names and values: 8 a number, 1 a bool, the length of str and bytes."""
        return sum(len(name) + _count_bytes(value) for name, value in self.items())


class ParametersRecord(Record[Array]):
    """Named arrays, such as the parameters of a model, in the order of insertion.

    Args:
        array_dict: arrays by name; or a list of ndarrays, which get the names "0", "1", ….
        keep_input: as in Flower, a dict of arrays is emptied unless this is set. A list never is: it shares
            its memory with the record, so nothing would be freed.

    Raises:
        TypeError: a value is not an Array, or its dtype cannot be sent.
    """

    def __init__(
        self, array_dict: "dict[str, Array] | list[NDArray[Any]] | None" = None, keep_input: bool = False
    ) -> None:
        if isinstance(array_dict, list):
            super().__init__(self.from_numpy_ndarrays(array_dict))
        else:
            super().__init__(array_dict)
            _empty(array_dict, keep_input)

    @classmethod
    def from_numpy_ndarrays(cls, ndarrays: "Iterable[NDArray[Any]]") -> Self:
        """Return a record of ``ndarrays`` named "0", "1", …; their memory is shared, see `Array`.

        Raises:
            TypeError: a value is not an ndarray, or its dtype cannot be sent; the text names it.
        """
        named = ((str(number), ndarray) for number, ndarray in enumerate(ndarrays))
        return cls._converted(named, Array.from_numpy_ndarray)

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> "list[NDArray[Any]]":
        """Return read-only views on the arrays, in the order of the record.

        Args:
            keep_input: unless set, the record is emptied.

        Raises:
            TypeError, ValueError: as `Array.numpy`.
        """
        ndarrays = [array.numpy() for array in self.values()]
        if not keep_input:
            self.clear()
        return ndarrays

    @classmethod
    def from_torch_state_dict(cls, state_dict: Mapping[str, Any]) -> Self:
        """Return a record of a model's ``state_dict()``; memory on the CPU is shared, see `Array`.

        Raises:
            TypeError: a value is not a tensor, or its dtype cannot be sent; the text names it.
            RuntimeError: torch was not imported.
        """
        return cls._converted(state_dict.items(), Array.from_torch_tensor)

    def to_torch_state_dict(self) -> OrderedDict[str, Any]:
        """Return copies of the arrays as CPU tensors, for ``model.load_state_dict``.

        Raises:
            TypeError, ValueError: as `Array.to_torch_tensor`.
            RuntimeError: torch was not imported.
        """
        return OrderedDict((name, array.to_torch_tensor()) for name, array in self.items())

    def check_value(self, value: Any) -> None:
        """Check that ``value`` is an Array.

        Raises:
            TypeError: it is not.
        """
        if not isinstance(value, Array):
            raise TypeError(
                f"expected an Array, not {type(value).__name__}; make one with Array(…), from_numpy_ndarrays or "
                "from_torch_state_dict"
            )

    def count_bytes(self) -> int:
        """Return the bytes of all arrays and names."""
        return sum(len(name) + len(array.data) for name, array in self.items())

    @classmethod
    def _converted(cls, items: Iterable[tuple[str, Any]], convert: Callable[[Any], Array]) -> Self:
        record = cls()
        for name, value in items:
            try:
                array = convert(value)
            except TypeError as error:
                raise TypeError(f"array {name!r}: {error}") from None
            record[name] = array
        return record


class MetricsRecord(Record[MetricsValue]):
    """Numbers by name: int, float, or a list of one of them. A bool is not a metric.

    A list is checked when it is put in, and once more when the message is pushed. numpy's float64 is a float, also in
    a list with others; convert its other scalars with ``.item()``, and put long lists into a `ParametersRecord`.

    Args:
        metrics_dict: the first items.
        keep_input: unless set, the dict is emptied.

    Raises:
        TypeError: another type, or a list of several.
        ValueError: an int below -2**63 or above 2**64 - 1.
    """

    def __init__(self, metrics_dict: Mapping[str, MetricsValue] | None = None, keep_input: bool = True) -> None:
        super().__init__(metrics_dict)
        _empty(metrics_dict, keep_input)

    def check_value(self, value: Any) -> None:
        """Check that ``value`` may be put in.

        Raises:
            TypeError, ValueError: as the class says.
        """
        _check(value, (int, float), "an int, a float or a list of one of them")


class ConfigsRecord(Record[ConfigsValue]):
    """Settings by name: bool, int, float, str, bytes, or a list of one of them.

    A list is checked when it is put in, and once more when the message is pushed.

    Args:
        configs_dict: the first items.
        keep_input: unless set, the dict is emptied.

    Raises:
        TypeError: another type, or a list of several.
        ValueError: an int below -2**63 or above 2**64 - 1.
    """

    def __init__(self, configs_dict: Mapping[str, ConfigsValue] | None = None, keep_input: bool = True) -> None:
        super().__init__(configs_dict)
        _empty(configs_dict, keep_input)

    def check_value(self, value: Any) -> None:
        """Check that ``value`` may be put in.

        Raises:
            TypeError, ValueError: as the class says.
        """
        wanted = "a bool, int, float, str or bytes, or a list of one of them"
        _check(value, (bool, int, float, str, bytes), wanted)


def _empty(given: Any, keep_input: bool) -> None:
    if given and not keep_input:
        given.clear()


def _check(value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    if type(value) in kinds and (type(value) is not int or MIN_INT <= value <= MAX_INT):
        return
    values = value if isinstance(value, list) else [value]
    types = set(map(type, values))
    bases = set()
    for kind in types:
        base = bool if kind is bool else _first_of(kinds, kind)
        if base is None or base not in kinds:
            where = " in a list" if values is value else ""
            raise TypeError(f"expected {wanted}, not {kind.__name__}{where}{_hint(kind)}")
        bases.add(base)
    if len(bases) > 1:
        raise TypeError(f"a list must hold one type only, not {' and '.join(sorted(t.__name__ for t in types))}")
    if values and isinstance(values[0], int) and not MIN_INT <= min(values) <= max(values) <= MAX_INT:
        raise ValueError("an int below -2**63 or above 2**64 - 1 cannot be sent: make it a float, or a str in a config")


def _first_of(kinds: tuple[type, ...], kind: type) -> type | None:
    for each in kinds:
        if issubclass(kind, each):
            return each
    return None


def _hint(kind: type) -> str:
    """Return how a value of numpy's becomes one that a record takes; numpy need not be installed."""
    names = {each.__name__ for each in kind.__mro__ if each.__module__ == "numpy"}
    return ": convert it with .item()" if "generic" in names else ": use .tolist()" if "ndarray" in names else ""


def _count_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_count_bytes, value))
    if isinstance(value, str | bytes):
        return len(value)
    return 1 if isinstance(value, bool) else 8
