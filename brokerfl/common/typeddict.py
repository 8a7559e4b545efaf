"""TypedDict: a mapping that checks what is put in. Owns when; must not know what its subclasses allow."""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any, Generic, Self, TypeVar

V = TypeVar("V")


class TypedDict(MutableMapping[str, V], Generic[V]):
    """A mapping of str keys to checked values, in order of insertion; equal to any with the same items."""

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._data: dict[str, V] = {}
        for key, value in items.items() if items else ():
            self[key] = value

    def check_value(self, value: Any) -> None:
        """Check that ``value`` may be put in.

        Raises:
            TypeError: it has the wrong type.
            ValueError: it cannot be carried.
        """
        raise NotImplementedError

    def check_items(self) -> None:
        """Check every value once more: a list may have grown since it was put in.

        Raises:
            TypeError, ValueError: as `check_value`; the text names the key.
        """
        for key, value in self.items():
            self._check(key, value)

    def copy(self) -> Self:
        """Return a shallow copy."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, _data=dict(self._data))
        return new

    __copy__ = copy

    def _name(self) -> str:
        return type(self).__name__

    def _check(self, key: Any, value: Any) -> None:
        name = self._name()
        if not isinstance(key, str):
            raise TypeError(f"a key of {name} must be a str, not {type(key).__name__}: {key!r}")
        try:
            self.check_value(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}[{key!r}]: {error}") from None

    def __setitem__(self, key: str, value: V) -> None:
        self._check(key, value)
        self._data[key] = value

    def __getitem__(self, key: str) -> V:
        return self._data[key]

    def __delitem__(self, key: str) -> None:
        del self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    # The views of the dict, for those that MutableMapping makes of the methods above are several times slower.

    def keys(self) -> KeysView[str]:
        """Return the keys, in order of insertion."""
        return self._data.keys()

    def values(self) -> ValuesView[V]:
        """Return the values, in order of insertion."""
        return self._data.values()

    def items(self) -> ItemsView[str, V]:
        """Return the items, in order of insertion."""
        return self._data.items()

    def __ior__(self, other: Mapping[str, V] | Iterable[tuple[str, V]]) -> Self:
        self.update(other)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._data!r})"
