"""RecordSet: the records of a message's content, or of a context's state; and the table of the kinds of records.

Owns the table. It must not know what a record takes, or how records are encoded.

How to add a kind of record: write its class, a `Record` whose ``check_value`` says what it takes. Enter it in the
table, which is the first lines of `RecordSet`, below the kinds that are there: a line holds its attribute, its name on
the wire and its class. Enter its codec in ``CODECS`` of `brokerfl.wire.codec`; until both are there, the wire layer
refuses to be imported. Everything else follows the table. Two things are about the class alone: `brokerfl.common`
exports it, and if flwr has such a record as well, `brokerfl.flower.records` converts it.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Generic, NoReturn, Self, TypeVar, overload

from brokerfl.common.record import ConfigsRecord, MetricsRecord, ParametersRecord, Record
from brokerfl.common.typeddict import TypedDict

R = TypeVar("R", bound=Record[Any])

_Order = dict[tuple[type[Record[Any]], str], None]


class _Records(TypedDict[R]):
    """Records of one kind by name. Notes in ``order`` what is put in, and when."""

    def __init__(self, kind: type[R], order: _Order) -> None:
        self._kind = kind
        self._order = order
        self._data = {}  # without a call of the base's method: each message makes a dozen of these

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
