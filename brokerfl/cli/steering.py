"""`brokerfl pause`, `resume`, `node-health`: what an operator, and a probe, wants of one node. Owns their output."""

import sys

import click

from brokerfl.broker.connection import Connection
from brokerfl.broker.node_info import NodeInfo
from brokerfl.broker.pausing import pause as pause_node
from brokerfl.broker.pausing import resume as resume_node
from brokerfl.cli.exits import Command, Exit
from brokerfl.cli.options import RedisOptions, Text, redis_options
from brokerfl.cli.references import find_node
from brokerfl.cli.tables import format_option, show_done
from brokerfl.common.text import shown_node
from brokerfl.view.judge import NodeJudged, judge_node
from brokerfl.view.reasons import NodeState
from brokerfl.view.words import lasting

_node = click.argument("node", type=Text())

#: The states in which nothing is to be done: a busy node is as healthy as an idle one.
_HEALTHY = frozenset(NodeState) - {NodeState.LOST, NodeState.STUCK}


@click.command(cls=Command)
@_node
@redis_options
@format_option
def pause(node: str, redis: RedisOptions, form: str) -> None:
    """Have the node NODE begin no more messages.

    NODE is its id, at least four digits with which only its id begins, or its name. It finishes the messages that it is
    executing; all others wait for `brokerfl resume`, also if the node is started again.
    """
    connection = redis.connect()
    found = find_node(connection, node)
    pause_node(connection, found.node_id)
    _show(found, form, "paused", "is paused: it begins no message until `brokerfl resume`.")


@click.command(cls=Command)
@_node
@redis_options
@format_option
def resume(node: str, redis: RedisOptions, form: str) -> None:
    """Let the node NODE begin messages again; see `brokerfl pause`."""
    connection = redis.connect()
    found = find_node(connection, node)
    resume_node(connection, found.node_id)
    _show(found, form, "resumed", "is resumed.")


def _show(node: NodeInfo, form: str, status: str, text: str) -> None:
    show_done({"node": str(node.node_id), "name": node.name, "state": status}, f"{_called(node)} {text}", form)


def _called(node: NodeInfo) -> str:
    called = shown_node(node.node_id, node.name)
    return called[0].upper() + called[1:] if not node.name else called


@click.command("node-health", cls=Command)
@click.argument("node", type=Text(), envvar="BROKERFL_NODE_NAME")
@redis_options
def node_health(node: str, redis: RedisOptions) -> None:
    """Say whether the node NODE is healthy: end with 0 if it is, and with 1 if it is lost or stuck.

    NODE is as for `brokerfl pause`; without it, the name in BROKERFL_NODE_NAME is taken. If Redis cannot be asked,
    nothing is known of the node: then this ends with 10 to 14.
    """
    connection = redis.connect()
    found = find_node(connection, node)
    judged = judge_node(found.online, found.status, _now(connection))
    click.echo(f"{_called(found)} is {judged.state}{_why(found, judged, _now(connection))}")
    sys.exit(Exit.OK if judged.state in _HEALTHY else Exit.FAILURE)


def _now(connection: Connection) -> float:
    return connection.clock.time() + connection.clock.skew


def _why(node: NodeInfo, judged: NodeJudged, now: float) -> str:
    status, doing = node.status, judged.doing
    if status is None:
        return "; it has not said anything"
    heard = f"its last heartbeat was {lasting(now - status.at)} ago"
    if judged.state is NodeState.LOST:
        return f": {heard}"
    if doing is not None:
        unwanted = f", and nobody has waited for it for {lasting(now - doing.over_since)}" if doing.over_since else ""
        return f": it has executed a message of run {doing.run} for {lasting(judged.busy)}{unwanted}; {heard}"
    if judged.state is NodeState.STUCK:
        return f": its loop took its last turn {lasting(now - status.turned)} ago; {heard}"
    return f"; {heard}"
