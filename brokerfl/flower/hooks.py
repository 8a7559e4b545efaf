"""The hooks: how a strategy's loop is made to tell its steps.

Owns what is put around flwr's classes and the strategies of an app: their ``start``, and inside it, on the one instance
whose loop runs, the methods that it calls. It must not know what becomes of a step. Loops of ``flwr.server`` are those
of `legacy`.

All names are flwr's public ones. A loop whose Grid is not brokerfl's is left alone.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from brokerfl.flower import compat, legacy
from brokerfl.flower.classes import wrap_everywhere
from brokerfl.flower.loop import Loop, looping
from brokerfl.flower.steps import Steps

_HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
_EVALUATE, _INITIAL = "evaluate_fn", "initial_arrays"
_CONFIGS = ("train_config", "evaluate_config")


def install() -> None:
    """Wrap ``start`` of flwr's Strategy and of all its subclasses, also of those that are defined later."""
    if compat.Strategy is not None:
        wrap_everywhere(compat.Strategy, "start", _telling_start)
    legacy.install()


def _telling_start(kind: Any, start: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(start)

    @functools.wraps(start)
    def telling(self: Any, *arguments: Any, **named: Any) -> Any:
        bound = signature.bind(self, *arguments, **named)
        steps = next((found for each in bound.arguments.values() if (found := _steps_of(each)) is not None), None)
        if steps is None:
            return start(self, *arguments, **named)
        return _run(steps, start, bound, is_flowers=kind is compat.Strategy)

    return telling


def _steps_of(value: Any) -> Steps | None:
    found = getattr(value, "brokerfl_steps", None) if isinstance(value, compat.Grid) else None
    return found if isinstance(found, Steps) else None


def _run(steps: Steps, start: Callable[..., Any], bound: inspect.BoundArguments, *, is_flowers: bool) -> Any:
    """Run a loop, or the loop within the one of a subclass."""
    strategy, given = next(iter(bound.arguments.values())), bound.arguments
    loop = steps.loop
    if loop is not None:
        if loop.strategy is strategy:
            loop.is_flowers = loop.is_flowers or is_flowers
            _tell_of_evaluate(steps, given)
        return start(*bound.args, **bound.kwargs)
    evaluate = given.get(_EVALUATE)
    loop = Loop(strategy, evaluate if callable(evaluate) else None, frozenset(_HOOKS), is_flowers=is_flowers)
    loop.configs = {name: given[name] for name in _CONFIGS if isinstance(given.get(name), compat.ConfigRecord)}
    with looping(strategy, _HOOKS, steps.end, steps.leave):
        initial = steps.begin(loop, given.get(_INITIAL))
        if _INITIAL in given:
            given[_INITIAL] = initial
        _tell_of_evaluate(steps, given)
        _tell_of_hooks(steps, strategy)
        return start(*bound.args, **bound.kwargs)


def _tell_of_evaluate(steps: Steps, given: dict[str, Any]) -> None:
    evaluate = given.get(_EVALUATE)
    if not callable(evaluate) or hasattr(evaluate, "_brokerfl_tells"):
        return

    @functools.wraps(evaluate)
    def telling(server_round: Any, *arguments: Any, **named: Any) -> Any:
        return steps.measure(_EVALUATE, int(server_round), lambda: evaluate(server_round, *arguments, **named))

    telling._brokerfl_tells = True  # type: ignore[attr-defined]
    given[_EVALUATE] = telling


def _tell_of_hooks(steps: Steps, strategy: Any) -> None:
    for name in _HOOKS:
        vars(strategy)[name] = _telling(steps, name, getattr(strategy, name))


def _telling(steps: Steps, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def telling(*arguments: Any, **named: Any) -> Any:
        def call() -> Any:
            return method(*arguments, **named)

        bound = signature.bind(*arguments, **named)
        values = [*bound.args, *bound.kwargs.values()]  # of an app's hook that takes *arguments, too
        number = int(values[0])
        if name.startswith("configure"):
            config = next((each for each in values if isinstance(each, compat.ConfigRecord)), None)
            return steps.configure(name, number, config, call)
        if name == "aggregate_train":
            return steps.aggregate(name, number, call)
        return steps.measure(name, number, call)

    return telling
