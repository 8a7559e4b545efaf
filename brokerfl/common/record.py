"""Records: named arrays, metrics and configs, and the RecordSet that holds them as a message's content.

Owns which values a record takes, and the table of kinds. It must not know how records are encoded, except for the
range of their integers.

How to add a kind of record: write its class, a `Record` whose ``check_value`` says what it takes. Enter it in the
table, which is the first lines of `RecordSet`, below the kinds that are there: a line holds its attribute, its name on
the wire and its class. Enter its codec in ``CODECS`` of `brokerfl.wire.codec`; until both are there, the wire layer
refuses to be imported. Everything else follows the table. Two things are about the class alone: `brokerfl.common`
exports it, and if flwr has such a record as well, `brokerfl.flower.records` converts it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, overload

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


R = TypeVar("R", bound=Record[Any])

_Order = dict[tuple[type[Record[Any]], str], None]


class _Records(TypedDict[R]):
    """Records of one kind by name. Notes in ``order`` what is put in, and when."""

    def __init__(self, kind: type[R], order: _Order) -> None:
        self._kind = kind
        self._order = order
        super().__init__()

    def __setitem__(self, key: str, value: R) -> None:
        super().__setitem__(key, value)
        self._order[self._kind, key] = None

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        del self._order[self._kind, key]

    def copy(self) -> Self:
        new = super().copy()
        new._order = dict(self._order)
        return new

    __copy__ = copy

    def _name(self) -> str:
        return "RecordSet"

    def check_value(self, value: Any) -> None:
        if not isinstance(value, self._kind):
            raise TypeError(f"expected a {self._kind.__name__}, not {type(value).__name__}")

    def __repr__(self) -> str:
        return repr(self._data)


class Kind(Generic[R]):
    """One kind of record: a line of the table in `RecordSet`, and the property that holds the records of that kind.

    Attributes:
        name: of the kind on the wire, and wherever kinds are listed. The property is called by it, and ``_records``.
        record: the class.
    """

    def __init__(self, name: str, record: type[R]) -> None:
        self.name = name
        self.record = record
        self.__doc__ = f"{record.__name__}s by name."

    @property
    def attribute(self) -> str:
        """Its name in a RecordSet."""
        return f"{self.name}_records"

    @overload
    def __get__(self, content: None, owner: type) -> Self: ...

    @overload
    def __get__(self, content: "RecordSet", owner: type) -> TypedDict[R]: ...

    def __get__(self, content: "RecordSet | None", owner: type) -> "Self | TypedDict[R]":
        return self if content is None else content._by_kind[self.record]

    def __set__(self, content: "RecordSet", value: NoReturn) -> None:
        raise AttributeError(f"{self.attribute} of a RecordSet cannot be assigned to: put records into it")


class RecordSet(MutableMapping[str, Record[Any]]):
    """The content of a message, or the state of a context: records of all kinds by name, in order of insertion.

    As a mapping it holds one record of a name, like Flower's RecordDict. Its properties hold those of one kind, like
    Flower's RecordSet up to 1.17; through them, records of several kinds may have the same name, and `records` tells
    them apart.

    Args:
        records: the first records, of any kind.
        metrics_records: more, of numbers.
        configs_records: more, of settings.
        parameters_records: more, of arrays.

    Raises:
        TypeError: a record of the wrong kind; also when one is put in later.
    """

    # The table of kinds. The second names are those that Flower has for the properties since 1.18.
    parameters_records = array_records = Kind("parameters", ParametersRecord)
    metrics_records = metric_records = Kind("metrics", MetricsRecord)
    configs_records = config_records = Kind("configs", ConfigsRecord)

    def __init__(
        self,
        records: Mapping[str, Record[Any]] | None = None,
        metrics_records: Mapping[str, MetricsRecord] | None = None,
        configs_records: Mapping[str, ConfigsRecord] | None = None,
        *,
        parameters_records: Mapping[str, ParametersRecord] | None = None,
    ) -> None:
        self._order: _Order = {}
        self._by_kind: dict[type[Record[Any]], _Records[Any]] = {kind: _Records(kind, self._order) for kind in KINDS}
        if records:
            self.add(records.items())
        if parameters_records:
            self.parameters_records.update(parameters_records)
        if metrics_records:
            self.metrics_records.update(metrics_records)
        if configs_records:
            self.configs_records.update(configs_records)

    def by_kind(self) -> Mapping[type[Record[Any]], TypedDict[Any]]:
        """Return what the properties do, by the class of the records, in the order of `KINDS`."""
        return self._by_kind

    def of_kind(self, record: Record[Any]) -> TypedDict[Any]:
        """Return the records of the kind that ``record`` is of.

        Raises:
            TypeError: it is not a record.
        """
        chosen = self._by_kind.get(type(record))
        if chosen is not None:
            return chosen
        for kind, records in self._by_kind.items():
            if isinstance(record, kind):  # a subclass
                return records
        names = ", ".join(kind.__name__ for kind in self._by_kind)
        raise TypeError(f"a RecordSet holds {names}, not {type(record).__name__}")

    def add(self, records: Iterable[tuple[str, Record[Any]]]) -> None:
        """Add records by name, as `records` returns them, even if a record of another kind has the same name.

        Raises:
            TypeError: a value is not a record.
        """
        for name, record in records:
            self.of_kind(record)[name] = record

    def kinds(self) -> list[type[Record[Any]]]:
        """Return the kind of each record, of `KINDS`, in order of insertion."""
        return [kind for kind, _ in self._order]

    def records(self) -> list[tuple[str, Record[Any]]]:
        """Return name and record of each, of all kinds, in order of insertion."""
        return [(name, self._by_kind[kind][name]) for kind, name in self._order]

    def count_bytes(self) -> int:
        """Return the bytes of all records and their names."""
        return sum(len(name) + record.count_bytes() for name, record in self.records())

    def copy(self) -> "RecordSet":
        """Return a shallow copy."""
        new = RecordSet()
        new.add(self.records())
        return new

    __copy__ = copy

    def __getitem__(self, name: str) -> Record[Any]:
        for records in self._by_kind.values():
            if name in records:
                found: Record[Any] = records[name]
                return found
        raise KeyError(name)

    def __setitem__(self, name: str, record: Record[Any]) -> None:
        chosen = self.of_kind(record)
        for records in self._by_kind.values():
            if records is not chosen:
                records.pop(name, None)
        chosen[name] = record

    def __delitem__(self, name: str) -> None:
        if not [records.pop(name) for records in self._by_kind.values() if name in records]:
            raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for _, name in self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordSet):
            return NotImplemented
        return self._by_kind == other._by_kind

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        views = ", ".join(f"{KINDS[kind].attribute}={records!r}" for kind, records in self._by_kind.items())
        return f"RecordSet({views})"


#: The kinds of records by their class, in the order of the table.
KINDS: dict[type[Record[Any]], Kind[Any]] = {
    kind.record: kind for kind in vars(RecordSet).values() if isinstance(kind, Kind)
}


def _empty(given: Any, keep_input: bool) -> None:
    if given and not keep_input:
        given.clear()


def _check(value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    values = value if isinstance(value, list) else [value]
    types = set(map(type, values))
    for kind in types:
        if not issubclass(kind, kinds) or (kind is bool and bool not in kinds):
            where = " in a list" if values is value else ""
            raise TypeError(f"expected {wanted}, not {kind.__name__}{where}")
    if len(types) > 1:
        raise TypeError(f"a list must hold one type only, not {' and '.join(sorted(t.__name__ for t in types))}")
    if values and isinstance(values[0], int) and not MIN_INT <= min(values) <= max(values) <= MAX_INT:
        raise ValueError("an int below -2**63 or above 2**64 - 1 cannot be sent: make it a float, or a str in a config")


def _count_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_count_bytes, value))
    if isinstance(value, str | bytes):
        return len(value)
    return 1 if isinstance(value, bool) else 8
