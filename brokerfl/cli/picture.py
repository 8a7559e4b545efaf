"""The picture of `brokerfl top`: what was seen, what is selected, and in which order it is listed.

Owns what keys change of it. It must not know sizes, terminals or Redis.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from brokerfl.view.overview import NodeView, Overview, RunView
from brokerfl.view.reasons import NodeState, RunState

#: States, those that need somebody first.
_RUNS_FIRST = (RunState.STUCK, RunState.DETACHED, RunState.WAITING, RunState.STOPPING, RunState.DRAINING)
_NODES_FIRST = (NodeState.STUCK, NodeState.LOST, NodeState.LATE, NodeState.PAUSED, NodeState.TRAINING)

#: Those that are no failures.
_WELL = (RunState.RUNNING, NodeState.READY, NodeState.TRAINING)


class Order(StrEnum):
    """What comes first."""

    STATE = "state"  # what needs somebody
    AGE = "age"  # what has been there, or at its work, for the longest time
    ERRORS = "errors"


class Chosen(NamedTuple):
    """The run or the node that is selected."""

    kind: str  # "run" or "node"
    id: int


class Page(StrEnum):
    """What the screen shows."""

    LIST = "list"
    DETAILS = "details"
    HELP = "help"


@dataclass(frozen=True)
class Picture:
    """All that the screen shows.

    Attributes:
        url: where Redis is, without its password.
        overview: what was seen last; None before the first look.
        away: why Redis does not answer; "" if it does.
        order: how rows are sorted.
        failures_only: leave out what is well.
        chosen: what is selected; None for nothing.
        is_moved: somebody selected it; else it is the first row, whatever stands there.
        page: what is shown.
        skipped: lines of a page that are above the screen.
        notice: a question, or what became of an order.
    """

    url: str
    overview: Overview | None = None
    away: str = ""
    order: Order = Order.STATE
    failures_only: bool = False
    chosen: Chosen | None = None
    is_moved: bool = False
    page: Page = Page.LIST
    skipped: int = 0
    notice: str = ""


def runs_of(picture: Picture) -> list[RunView]:
    """Return the runs that the list has, in its order. Those that are over are not there."""
    listed = [run for run in picture.overview.runs if not run.is_over] if picture.overview else []
    listed = [run for run in listed if not (picture.failures_only and run.state in _WELL)]
    by_state = {state: at for at, state in enumerate(_RUNS_FIRST)}
    orders: dict[Order, Callable[[RunView], float]] = {
        Order.STATE: lambda run: by_state.get(run.state, len(by_state)),
        Order.AGE: lambda run: run.run.created_at if run.run else 0.0,
        Order.ERRORS: lambda run: -run.status.errors,
    }
    return sorted(listed, key=orders[picture.order])


def nodes_of(picture: Picture) -> list[NodeView]:
    """Return the nodes that the list has, in its order."""
    listed = picture.overview.nodes if picture.overview else ()
    listed = tuple(node for node in listed if not (picture.failures_only and node.state in _WELL))
    by_state = {state: at for at, state in enumerate(_NODES_FIRST)}
    orders: dict[Order, Callable[[NodeView], float]] = {
        Order.STATE: lambda node: by_state.get(node.state, len(by_state)),
        Order.AGE: lambda node: -node.judged.busy,
        Order.ERRORS: lambda node: -node.status.errors,
    }
    return sorted(listed, key=orders[picture.order])


def chosen_of(view: RunView | NodeView) -> Chosen:
    """Return what selects a run or a node."""
    return Chosen("run", view.run_id) if isinstance(view, RunView) else Chosen("node", view.info.node_id)


def all_of(picture: Picture) -> list[Chosen]:
    """Return what can be selected, from top to bottom."""
    return [*map(chosen_of, runs_of(picture)), *map(chosen_of, nodes_of(picture))]


def seen(picture: Picture, overview: Overview | None, away: str) -> Picture:
    """Return the picture after a look. If what somebody selected is no longer listed, the first row is selected."""
    now = replace(picture, overview=overview, away=away)
    there = all_of(now)
    if now.page is not Page.LIST or (now.is_moved and now.chosen in there):
        return now
    return replace(now, chosen=there[0] if there else None, is_moved=False)


def moved(picture: Picture, step: int) -> Picture:
    """Return the picture after an arrow key: another row is selected, or the page scrolled."""
    if picture.page is not Page.LIST:
        return replace(picture, skipped=max(0, picture.skipped + step))
    there = all_of(picture)
    if picture.chosen not in there:
        return replace(picture, chosen=there[0] if there else None)
    at = there.index(picture.chosen) + step
    return replace(picture, chosen=there[min(len(there) - 1, max(0, at))], is_moved=True)
