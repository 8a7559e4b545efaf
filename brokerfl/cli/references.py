"""References: how a user names a run or a node: by its id, by the beginning of it, or by its name.

Owns which run or node is meant. It must not know what is done with it.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from brokerfl.broker.connection import Connection
from brokerfl.broker.keys import parse_id
from brokerfl.broker.node_info import NodeInfo
from brokerfl.broker.nodes import node_id_of, read_node
from brokerfl.broker.runs import absent
from brokerfl.common import BrokerflError, NodeNotFound, RunNotFound
from brokerfl.common.text import shown, shown_node
from brokerfl.view.overview import NodeView, Overview, RunView, read_overview

#: Digits of an id that name it, if they are the beginning of no other: fewer may be a slip.
_LEAST = 4

#: Runs or nodes that an error lists.
_LISTED = 8

View = TypeVar("View", RunView, NodeView)


def find_run(connection: Connection, text: str) -> int:
    """Return the id of the run that is meant. An id that is written in full need not be known.

    Raises:
        RunNotFound: no run is called so, or several are.
    """
    found = _run_called(read_overview(connection), text)
    if found is not None:
        return found.run_id
    run_id = parse_id(text.encode())
    if run_id is None:
        raise _no_run(connection, text)
    return run_id


def run_called(connection: Connection, overview: Overview, text: str) -> RunView:
    """Return the run of an overview that is meant.

    Raises:
        RunNotFound: no run is called so, or several are.
    """
    found = _run_called(overview, text)
    if found is not None:
        return found
    run_id = parse_id(text.encode())
    raise RunNotFound(absent(connection, run_id)) if run_id is not None else _no_run(connection, text)


def node_called(connection: Connection, overview: Overview, text: str) -> NodeView:
    """Return the node of an overview that is meant.

    Raises:
        NodeNotFound: no node is called so, or several are.
    """
    found = _called(text, overview.nodes, lambda node: node.info.node_id, lambda node: node.info.name)
    if not found:
        raise NodeNotFound(
            f"there is no node {shown(text)!r} under the prefix {connection.keys.prefix!r}; see brokerfl nodes"
        )
    return _only(text, found, "nodes", lambda node: shown_node(node.info.node_id, node.info.name), NodeNotFound)


def find_node(connection: Connection, text: str) -> NodeInfo:
    """Return the node that is meant: for a name in full, which probes give, only that node is looked at.

    Raises:
        NodeNotFound: no node is called so, or several are.
    """
    named = read_node(connection, node_id_of(connection.keys.prefix, text)) if text else None
    if named is not None and named.name == text:
        return named
    return node_called(connection, read_overview(connection), text).info


def _run_called(overview: Overview, text: str) -> RunView | None:
    """Return the run that is meant: one that has not ended, if there is one."""

    def id_of(run: RunView) -> int:
        return run.run_id

    def name_of(run: RunView) -> str:
        return run.run.name if run.run else ""

    exact = [run for run in overview.runs if str(run.run_id) == text]
    going_on = [run for run in overview.runs if not run.is_over]
    found = exact or _called(text, going_on, id_of, name_of) or _called(text, overview.runs, id_of, name_of)
    if not found:
        return None
    return _only(text, found, "runs", lambda run: f"{run.run_id} {name_of(run)}".strip(), RunNotFound)


def _no_run(connection: Connection, text: str) -> RunNotFound:
    return RunNotFound(f"there is no run {text!r} under the prefix {connection.keys.prefix!r}; see brokerfl runs")


def _called(text: str, views: Sequence[View], id_of: Callable[[View], int], name: Callable[[View], str]) -> list[View]:
    """Return those with this id, else those of this name, else those whose id begins so."""
    beginning = text.removesuffix("…")
    return (
        [view for view in views if str(id_of(view)) == text]
        or [view for view in views if text and name(view) == text]
        or [view for view in views if len(beginning) >= _LEAST and str(id_of(view)).startswith(beginning)]
    )


def _only(text: str, found: Sequence[View], what: str, said: Callable[[View], str], error: type[BrokerflError]) -> View:
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(said, found[:_LISTED])) + (f" and {len(found) - _LISTED} more" if found[_LISTED:] else "")
    raise error(f"{text!r} may be one of {len(found)} {what}: {listed}; give more of the id")
