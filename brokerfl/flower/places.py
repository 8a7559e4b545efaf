"""The places of an app's values: attributes of a strategy, and cells of the functions that it was given.

Owns which of them a record has, what each is called, and how a value is put back. It must not know how values are
encoded, or when.
"""

import functools
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from brokerfl.common.npy import load_numpy
from brokerfl.flower import compat, states
from brokerfl.flower.values import is_recordable

#: What main makes again, and what nobody misses in a record.
_CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, functools.partial, Enum)
#: A library whose objects are attributes and nothing else.
_OPEN = "sklearn"
_UNTOLD = frozenset({"logging", "threading", "_thread", "concurrent", "queue"})


class Place(NamedTuple):
    """Where a value is.

    Attributes:
        name: such as ``strategy.m_t``, ``strategy.strategy.weights``, ``evaluate_fn().best``.
        read: returns the value.
        write: puts another value there.
        is_cell: it is a cell of a function.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    is_cell: bool


class Places:
    """The places of one strategy and of its ``evaluate_fn``, as they are now.

    Args:
        strategy: the strategy, or any object.
        evaluate_fn: a function, or None.
        hidden: names of attributes of the strategy that are not the app's.
    """

    def __init__(self, strategy: Any, evaluate_fn: Any, hidden: Collection[str] = ()) -> None:
        self._hidden = hidden
        self._root = strategy
        self._roots = {"flwr", _OPEN, *(type(strategy).__module__.split(".")[:1])}
        if evaluate_fn is not None:
            self._roots.add(str(getattr(evaluate_fn, "__module__", None)).partition(".")[0])
        self._parts: dict[str, Any] = {}
        self._seen: set[int] = set()
        self._found: dict[str, Place] = {}
        self._walk("strategy", strategy)
        if evaluate_fn is not None:
            self._look("evaluate_fn", evaluate_fn)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._found.values())

    @property
    def parts(self) -> dict[str, type]:
        """The objects whose attributes are places, by name."""
        return {name: type(part) for name, part in self._parts.items()}

    def put_back(self, name: str, value: Any) -> bool:
        """Put a recorded value where it was, into the same list, dict or record if there is one; return whether."""
        place = self._found.get(name)
        if place is not None:
            place.write(in_place(place.read(), value))
            return True
        of, _, attribute = name.rpartition(".")
        if of not in self._parts:
            return False
        vars(self._parts[of])[attribute] = value
        return True

    def _walk(self, name: str, part: Any) -> None:
        """Find the places in an object."""
        if id(part) in self._seen:
            return
        self._seen.add(id(part))
        hidden = self._hidden if part is self._root else ()
        if states.has_state(part):
            hidden = {*hidden, *states.own_names(part)}
            self._enter_state(name, part, False)
        self._parts[name] = part
        for attribute, value in list(vars(part).items()):
            if attribute in hidden:
                continue
            read, write = functools.partial(_read, part, attribute), functools.partial(_write, part, attribute)
            self._enter(Place(f"{name}.{attribute}", read, write, False), value)

    def _enter(self, place: Place, value: Any) -> None:
        if is_recordable(value):
            self._found[place.name] = place
        elif isinstance(value, _CODE):
            self._look(place.name, value)
        elif states.has_state(value):
            self._enter_state(place.name, value, place.is_cell)
            if self._is_part(value):
                self._walk(place.name, value)
        elif states.is_loader(value):
            self._enter_generator(place.name, value)
        elif self._is_part(value):
            self._walk(place.name, value)
        elif not _is_untold(value):
            self._found[place.name] = place  # it cannot be recorded, and the app is told so

    def _enter_state(self, name: str, value: Any, is_cell: bool) -> None:
        name = f"{name}.state_dict()"
        read, write = functools.partial(states.state_of, value), functools.partial(states.load_state, value)
        self._found.setdefault(name, Place(name, read, write, is_cell))

    def _enter_generator(self, name: str, loader: Any) -> None:
        if loader.generator is not None:
            read, write = functools.partial(getattr, loader, "generator"), functools.partial(_keep, loader)
            self._found[f"{name}.generator"] = Place(f"{name}.generator", read, write, False)

    def _look(self, name: str, value: Any) -> None:
        """Find the places in a function, or in what is called like one."""
        while isinstance(value, functools.partial):
            value = value.func
        if isinstance(value, MethodType):
            if self._is_part(value.__self__):
                self._walk(f"{name}.self", value.__self__)
            value = value.__func__
        if not isinstance(value, FunctionType):
            if self._is_part(value):
                self._walk(name, value)
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if cell is None or _is_empty(cell) or isinstance(cell.cell_contents, _CODE):
                continue
            read, write = functools.partial(_read_cell, cell), functools.partial(_write_cell, cell)
            self._enter(Place(f"{name}().{variable}", read, write, True), cell.cell_contents)

    def _is_part(self, value: Any) -> bool:
        """Whether it is an object of the app, or of flwr, whose attributes are recorded one by one."""
        kind = type(value)
        is_object = hasattr(value, "__dict__") and not isinstance(value, dict | list | set | tuple | str)
        return is_object and not _is_untold(value) and kind.__module__.partition(".")[0] in self._roots


def _is_untold(value: Any) -> bool:
    is_known = isinstance(value, compat.Context | compat.Grid) or states.is_made_again(value)
    return is_known or type(value).__module__.partition(".")[0] in _UNTOLD


def _read(part: Any, attribute: str) -> Any:
    return vars(part)[attribute]


def _write(part: Any, attribute: str, value: Any) -> None:
    vars(part)[attribute] = value  # a frozen dataclass, too


def _keep(loader: Any, generator: Any) -> None:
    """The generator of a DataLoader has its state already: its samplers have the same one."""


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _read_cell(cell: CellType) -> Any:
    return cell.cell_contents


def _write_cell(cell: CellType, value: Any) -> None:
    cell.cell_contents = value


def _form_of(tensor: Any) -> tuple[Any, Any]:
    return tensor.shape, tensor.dtype


def in_place(live: Any, value: Any) -> Any:
    """Return ``live`` with the contents of ``value``, if both are of one type that can take them; else ``value``.

    Whoever else has ``live`` sees what is put into it: main may show its list of losses after the loop.
    """
    if type(live) is not type(value) or live is value:
        return value
    if isinstance(live, list | bytearray):
        live[:] = value
    elif isinstance(live, dict | set):
        live.clear()
        live.update(value)
    elif isinstance(live, deque) and live.maxlen == value.maxlen:
        live.clear()
        live.extend(value)
    elif isinstance(live, compat.MetricRecord | compat.ConfigRecord):
        live.clear()
        for key, item in compat.items_of(value):
            live[key] = item
    elif states.is_generator(live):
        live.set_state(value.get_state())
    elif states.is_tensor(live) and not live.requires_grad and _form_of(live) == _form_of(value):
        live.copy_(value)
    elif isinstance(live, random.Random):
        live.setstate(value.getstate())
    elif isinstance(live, load_numpy().random.RandomState):
        live.set_state(value.get_state(legacy=False))
    elif isinstance(live, load_numpy().random.Generator) and type(live.bit_generator) is type(value.bit_generator):
        live.bit_generator.state = value.bit_generator.state
    else:
        return value
    return live
