"""The clients of a legacy loop: what a configure hook sees of its ClientManager, and stand-ins for clients.

Owns that a hook which is called again sees the clients that it saw, in the same order: flwr samples from a list of
them. It must not know when hooks are called.
"""

import copy
from collections.abc import Callable
from typing import Any

from brokerfl.flower import compat

#: The methods of a ClientManager that look at its clients.
_LOOKS = ("num_available", "all", "sample")

#: The id of the node that stands for others; no node has it.
STAND_IN = 0

#: Asks for ids, or returns what was recorded instead.
Ids = Callable[[Callable[[], list[Any]]], list[Any]]


def seen(manager: Any, ids: Ids, grid: Any, *, is_again: bool) -> Any:
    """Return a ClientManager for one call of a hook.

    Args:
        manager: the app's.
        ids: is called at each look at the clients, for those that the hook then sees.
        grid: sends messages to clients that are offline now.
        is_again: the hook was called in a former life.
    """
    if not isinstance(getattr(manager, "clients", None), dict):
        return manager
    shown = copy.copy(manager)  # with the same clients, and the same condition to wait for more
    for name in _LOOKS:
        if hasattr(manager, name):
            vars(shown)[name] = _again(shown, name, ids, grid) if is_again else _first(manager, name, ids)
    return shown


def _first(manager: Any, name: str, ids: Ids) -> Callable[..., Any]:
    look = getattr(manager, name)

    def noting(*arguments: Any, **named: Any) -> Any:
        found = look(*arguments, **named)  # which may wait for clients
        ids(lambda: list(manager.clients))
        return found

    return noting


def _again(shown: Any, name: str, ids: Ids, grid: Any) -> Callable[..., Any]:
    now = shown.clients

    def looking(*arguments: Any, **named: Any) -> Any:
        shown.clients = {cid: now[cid] if cid in now else _offline(cid, grid) for cid in ids(lambda: list(now))}
        return getattr(type(shown), name)(shown, *arguments, **named)

    return looking


def _offline(cid: str, grid: Any) -> Any:
    return compat.client_proxy_of(int(cid), grid, grid.run.run_id)


class _StandIn(compat.ClientProxy):  # type: ignore[misc]  # of any flwr
    """Stands for the clients of a finished round: flwr's loop aggregates only what clients gave."""

    def __init__(self) -> None:
        super().__init__(str(STAND_IN))
        self.node_id = STAND_IN

    def fit(self, *arguments: Any, **named: Any) -> Any:
        return compat.FitRes(_OK, nothing(), 0, {})

    def evaluate(self, *arguments: Any, **named: Any) -> Any:
        return compat.EvaluateRes(_OK, 0.0, 0, {})

    def get_properties(self, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError("it stands for the clients of a finished round")

    get_parameters = reconnect = get_properties


_OK = compat.Status(compat.Code.OK, "")


def nothing() -> Any:
    """Return Parameters that stand for those that nobody needs any more."""
    return compat.Parameters(tensors=[], tensor_type="")


def stand_ins(hook: str) -> list[Any]:
    """Return what a configure hook gives whose messages are settled."""
    kind = compat.EvaluateIns if hook == "configure_evaluate" else compat.FitIns
    return [(_StandIn(), kind(nothing(), {}))]
