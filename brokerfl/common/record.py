"""Records: named arrays, metrics and configs, and the RecordSet that holds them as a message's content.

Owns which values a record takes. It must not know how records are encoded, but for the range of their
integers.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

from brokerfl.common.array import Array
from brokerfl.common.typeddict import TypedDict

if TYPE_CHECKING:
    from numpy.typing import NDArray

MetricsScalar = int | float
MetricsValue = MetricsScalar | list[int] | list[float]
ConfigsScalar = bool | int | float | str | bytes
ConfigsValue = ConfigsScalar | list[bool] | list[int] | list[float] | list[str] | list[bytes]

#: What msgpack can carry: the integers of int64 and uint64.
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1


class ParametersRecord(TypedDict[Array]):
    """Named arrays, such as the parameters of a model, in the order of insertion.

    Args:
        array_dict: arrays by name; or a list of ndarrays, which get the names "0", "1", ….
        keep_input: as in Flower, a dict of arrays is emptied unless this is set. A list never is: it shares
            its memory with the record, so nothing would be freed.

    Raises:
        TypeError: something is no array, or of a dtype that cannot be sent.
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
        """Return a record of ``ndarrays`` named "0", "1", …; their memory is shared as `Array` says.

        Raises:
            TypeError: one is no ndarray, or of a dtype that cannot be sent; the text names it.
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
        """Return a record of a model's ``state_dict()``; memory on the CPU is shared as `Array` says.

        Raises:
            TypeError: a value is no tensor, or of a dtype that cannot be sent; the text names it.
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
                f"an Array is needed, not {type(value).__name__}; for ndarrays and tensors there are "
                "Array(…), from_numpy_ndarrays and from_torch_state_dict"
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


class MetricsRecord(TypedDict[MetricsValue]):
    """Numbers by name: int, float, or a list of one of them. A bool is not a metric.

    A list is checked when it is put in, and once more when the message is pushed. numpy's float64 is a float;
    convert its other scalars with ``.item()``, and put long lists into a `ParametersRecord`.

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

    def count_bytes(self) -> int:
        """Return the bytes of all numbers, 8 each, and names."""
        return sum(len(name) + _count_bytes(value) for name, value in self.items())


class ConfigsRecord(TypedDict[ConfigsValue]):
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

    def count_bytes(self) -> int:
        """Return the bytes of all names and values: 8 a number, 1 a bool, the length of str and bytes."""
        return sum(len(name) + _count_bytes(value) for name, value in self.items())


R = TypeVar("R", bound=ParametersRecord | MetricsRecord | ConfigsRecord)


class _Records(TypedDict[R]):
    """Records of one kind by name."""

    def __init__(self, kind: type[R], records: Mapping[str, R] | None) -> None:
        self._kind = kind
        super().__init__(records)

    def _name(self) -> str:
        return "RecordSet"

    def check_value(self, value: Any) -> None:
        if not isinstance(value, self._kind):
            raise TypeError(f"a {self._kind.__name__} is needed, not {type(value).__name__}")

    def __repr__(self) -> str:
        return repr(self._data)


class RecordSet:
    """The content of a message, or the state of a context: records of three kinds, each by name.

    Args:
        parameters_records: the first records of arrays.
        metrics_records: the first records of numbers.
        configs_records: the first records of settings.

    Raises:
        TypeError: a record of the wrong kind; also when one is put in later.
    """

    def __init__(
        self,
        parameters_records: Mapping[str, ParametersRecord] | None = None,
        metrics_records: Mapping[str, MetricsRecord] | None = None,
        configs_records: Mapping[str, ConfigsRecord] | None = None,
    ) -> None:
        self._parameters = _Records(ParametersRecord, parameters_records)
        self._metrics = _Records(MetricsRecord, metrics_records)
        self._configs = _Records(ConfigsRecord, configs_records)

    @property
    def parameters_records(self) -> TypedDict[ParametersRecord]:
        """Records of arrays by name."""
        return self._parameters

    @property
    def metrics_records(self) -> TypedDict[MetricsRecord]:
        """Records of numbers by name."""
        return self._metrics

    @property
    def configs_records(self) -> TypedDict[ConfigsRecord]:
        """Records of settings by name."""
        return self._configs

    def count_bytes(self) -> int:
        """Return the bytes of all records and their names."""
        named = [item for kind in self._kinds() for item in kind.items()]
        return sum(len(name) + record.count_bytes() for name, record in named)

    def _kinds(self) -> "tuple[_Records[Any], ...]":
        return self._parameters, self._metrics, self._configs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordSet):
            return NotImplemented
        return self._kinds() == other._kinds()

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return (
            f"RecordSet(parameters_records={self._parameters!r}, metrics_records={self._metrics!r}, "
            f"configs_records={self._configs!r})"
        )


def _empty(given: Any, keep_input: bool) -> None:
    if given and not keep_input:
        given.clear()


def _check(value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    values = value if isinstance(value, list) else [value]
    types = set(map(type, values))
    for kind in types:
        if not issubclass(kind, kinds) or (kind is bool and bool not in kinds):
            where = " in a list" if values is value else ""
            raise TypeError(f"{wanted} is needed, not {kind.__name__}{where}")
    if len(types) > 1:
        raise TypeError(f"a list holds one type only, not {' and '.join(sorted(t.__name__ for t in types))}")
    if values and isinstance(values[0], int) and not _MIN_INT <= min(values) <= max(values) <= _MAX_INT:
        raise ValueError("an int below -2**63 or above 2**64 - 1 cannot be sent: make it a float, or a str in a config")


def _count_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_count_bytes, value))
    if isinstance(value, str | bytes):
        return len(value)
    return 1 if isinstance(value, bool) else 8
