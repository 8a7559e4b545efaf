"""The legacy loops, of ``flwr.server``: how they are made to tell their steps.

Owns what is put around ``Server.fit`` and ``DefaultWorkflow``, and inside them around the methods of the one strategy
whose loop runs. It must not know what becomes of a step.

These loops skip the aggregation of a round without clients. So in a round that is over, a stand-in is all that a
configure hook gives; what its aggregation gives is in the record.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from brokerfl.flower import compat
from brokerfl.flower.classes import wrap_everywhere, wrap_once
from brokerfl.flower.clients import nothing, seen, stand_ins
from brokerfl.flower.loop import Loop, looping
from brokerfl.flower.models import Gone
from brokerfl.flower.records import arrays_of, parameters_of
from brokerfl.flower.steps import Steps

_FIRST, _CENTRAL = "initialize_parameters", "evaluate"
_CONFIGURE = ("configure_fit", "configure_evaluate")
_AGGREGATE_FIT, _AGGREGATE_EVALUATE = "aggregate_fit", "aggregate_evaluate"
_HOOKS = frozenset({_FIRST, _CENTRAL, *_CONFIGURE, _AGGREGATE_FIT, _AGGREGATE_EVALUATE})

#: The parts of a Server's loop.
_ROUND = ("fit", "fit_round", "evaluate_round")

#: The Grid of the app that runs in this thread: a Server knows none.
_GRID: ContextVar[Any] = ContextVar("grid", default=None)

Hook = Callable[..., Any]


def install() -> None:
    """Wrap the loops of flwr's Server and workflow, and of all their subclasses, also of those that are defined later.

    What a Server collects from many threads gets the order that a Grid gives replies.
    """
    for name in ("fit_clients", "evaluate_clients"):
        wrap_once(compat.legacy_server, name, _in_order)
    wrap_everywhere(compat.Server, "fit", _telling_fit)
    wrap_everywhere(compat.DefaultWorkflow, "__call__", _telling_workflow)


@contextmanager
def run_with(grid: Any) -> Iterator[None]:
    """The app that runs meanwhile in this thread has this Grid."""
    token = _GRID.set(grid)
    try:
        yield
    finally:
        _GRID.reset(token)


def _in_order(module: Any, collect: Hook) -> Hook:
    @functools.wraps(collect)
    def ordered(*arguments: Any, **named: Any) -> Any:
        results, failures = collect(*arguments, **named)
        return sorted(results, key=lambda result: int(getattr(result[0], "node_id", 0))), failures

    return ordered


def _telling_fit(kind: Any, fit: Hook) -> Hook:
    @functools.wraps(fit)
    def telling(server: Any, *arguments: Any, **named: Any) -> Any:
        is_flowers = all(getattr(type(server), name) is getattr(compat.Server, name) for name in _ROUND)
        return _run(server.strategy, lambda: fit(server, *arguments, **named), is_flowers)

    return telling


def _telling_workflow(kind: Any, call: Hook) -> Hook:
    @functools.wraps(call)
    def telling(workflow: Any, *arguments: Any, **named: Any) -> Any:
        grid, fit = _GRID.get(), workflow.fit_workflow
        strategy = next((each.strategy for each in (*arguments, *named.values()) if hasattr(each, "strategy")), None)
        if grid is None or strategy is None or not (_is_flwrs(fit) and _is_flwrs(workflow.evaluate_workflow)):
            return call(workflow, *arguments, **named)
        workflow.fit_workflow = _skipping(grid.brokerfl_steps, fit)
        try:
            is_flowers = type(workflow) is compat.DefaultWorkflow
            return _run(strategy, lambda: call(workflow, *arguments, **named), is_flowers)
        finally:
            workflow.fit_workflow = fit

    return telling


def _is_flwrs(workflow: Any) -> bool:
    """Whether its hooks are all that it gives: what else a workflow of the app does is not known."""
    return str(workflow.__module__).partition(".")[0] == "flwr"


def _skipping(steps: Steps, fit: Hook) -> Hook:
    """Put flwr's plain workflow in the place of one with messages of its own, in rounds that are over."""
    return lambda grid, context: (compat.default_fit_workflow if steps.is_over(_CONFIGURE[0]) else fit)(grid, context)


def _run(strategy: Any, start: Callable[[], Any], is_flowers: bool) -> Any:
    grid = _GRID.get()
    if grid is None or grid.brokerfl_steps.loop is not None:
        return start()
    steps: Steps = grid.brokerfl_steps
    loop = Loop(strategy, None, _HOOKS, is_flowers=is_flowers, is_legacy=True, stand_ins=stand_ins)
    with looping(strategy, _HOOKS, steps.end, steps.leave):
        steps.begin(loop, None)
        vars(strategy).update(_Telling(steps, grid, strategy).hooks())
        return start()


class _Call:
    """One call of a hook. How an app calls the arguments of its hooks is not known."""

    def __init__(self, method: Hook, arguments: list[Any], named: dict[str, Any]) -> None:
        self._method, self._arguments, self._named = method, arguments, named

    def __call__(self) -> Any:
        return self._method(*self._arguments, **self._named)

    @property
    def round(self) -> int:
        """With its name, or the first one without."""
        return int(self._named["server_round"] if "server_round" in self._named else self._arguments[0])

    @property
    def parameters(self) -> Any:
        """The model; None if it is given none."""
        given = [*self._arguments, *self._named.values()]
        return next((each for each in given if isinstance(each, compat.Parameters)), None)

    def show(self, seen: Callable[[Any], Any]) -> None:
        """Put what the hook is to see in the place of its ClientManager."""

        def shown(given: Any) -> Any:
            return seen(given) if isinstance(given, compat.ClientManager) else given

        self._arguments = [shown(given) for given in self._arguments]
        self._named = {name: shown(given) for name, given in self._named.items()}


class _Telling:
    """The hooks of one loop's strategy, which tell their steps."""

    def __init__(self, steps: Steps, grid: Any, strategy: Any) -> None:
        self._steps, self._grid = steps, grid
        self._methods = {name: getattr(strategy, name) for name in _HOOKS}
        self._is_asked = False  # a client has the first model

    def hooks(self) -> Mapping[str, Hook]:
        """Return them by name."""
        tell = {
            _FIRST: self._begin,
            _CENTRAL: self._measure,
            _AGGREGATE_FIT: self._aggregate,
            _AGGREGATE_EVALUATE: self._measure,
            **dict.fromkeys(_CONFIGURE, self._configure),
        }
        return {name: self._bound(name, hook) for name, hook in tell.items()}

    def _bound(self, name: str, tell: Hook) -> Hook:
        method = self._methods[name]

        @functools.wraps(method)
        def telling(*arguments: Any, **named: Any) -> Any:
            return tell(name, _Call(method, list(arguments), named))

        return telling

    def _begin(self, name: str, call: "_Call") -> Any:
        """The first model: if the strategy has none, a client is asked, and the next hook is given it."""
        found = call() if self._steps.is_live else None
        self._is_asked = self._steps.is_live and found is None
        return None if self._is_asked else self._model(name, 0, lambda: (found, None))[0]

    def _configure(self, name: str, call: "_Call") -> Any:
        def with_clients() -> Any:
            call.show(self._seen)
            return call()

        return self._steps.configure(name, self._number(call), None, with_clients)

    def _seen(self, manager: Any) -> Any:
        return seen(manager, self._steps.node_ids, self._grid, is_again=self._steps.is_called_again)

    def _measure(self, name: str, call: "_Call") -> Any:
        return self._steps.measure(name, self._number(call), call)

    def _aggregate(self, name: str, call: "_Call") -> Any:
        return self._model(name, self._number(call), call)

    def _number(self, call: "_Call") -> int:
        """Return the round of a call; a model that a client gave is in the first one."""
        if self._is_asked:
            given = call.parameters
            self._is_asked = given is None
            if given is not None:
                self._model(_FIRST, 0, lambda: (given, None))
        return call.round

    def _model(self, name: str, number: int, call: Callable[[], Any]) -> Any:
        """Return the Parameters that a hook gives, or gave, and the metrics."""
        given: list[Any] = []

        def as_record() -> Any:
            given.append(call())
            match given[0]:
                case (compat.Parameters() as parameters, metrics):
                    return arrays_of(parameters), metrics
            return given[0]

        found = self._steps.aggregate(name, number, as_record)
        if given:
            return given[0]
        arrays, metrics = found
        return _parameters_of(arrays, self._steps), metrics


def _parameters_of(arrays: Any, steps: Steps) -> Any:
    if not isinstance(arrays, Gone):
        return None if arrays is None else parameters_of(arrays)
    is_flowers = steps.loop is not None and steps.loop.is_flowers
    return nothing() if is_flowers else _GoneParameters(arrays)


class _GoneParameters(compat.Parameters):  # type: ignore[misc]  # of any flwr
    """Stands for a model that the record no longer has: whoever looks into it is told so."""

    def __init__(self, arrays: Gone) -> None:
        self._arrays = arrays
        self.tensor_type = ""

    @property
    def tensors(self) -> Any:
        return list(self._arrays.values())
