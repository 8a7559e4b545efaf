"""`brokerfl nodes` and `nodes forget`. Owns what is told of each node in a row."""

from collections.abc import Sequence
from typing import Any

import click

from brokerfl.broker.forget import forget_node
from brokerfl.cli.cells import cut, doing, has_said, lasted, since, state_cell
from brokerfl.cli.exits import Command, Group
from brokerfl.cli.options import RedisOptions, Text, redis_options, typed_options
from brokerfl.cli.references import node_called
from brokerfl.cli.tables import format_option, show
from brokerfl.common import ConfigError
from brokerfl.view.overview import NodeView, RunView, read_overview
from brokerfl.view.shape import node_to_json
from brokerfl.view.words import short_among


@click.group(cls=Group, invoke_without_command=True)
@redis_options
@format_option
@click.pass_context
def nodes(ctx: click.Context, redis: RedisOptions, form: str) -> None:
    """List the nodes, and what each of them does."""
    if ctx.invoked_subcommand is not None:
        if typed := typed_options():
            raise ConfigError(f"{typed[0]} belongs behind {ctx.invoked_subcommand}: brokerfl nodes forget NODE …")
        return
    found = read_overview(redis.connect())
    if form == "json":
        show([node_to_json(node, found.at) for node in found.nodes], form, "")
        return
    ids = [node.info.node_id for node in found.nodes]
    rows = [node_row(node, found.at, ids, found.runs) for node in found.nodes]
    show(rows, form, "no nodes; brokerfl-node client:app starts one")


@nodes.command(cls=Command)
@click.argument("node", type=Text())
@redis_options
def forget(node: str, redis: RedisOptions) -> None:
    """Forget the node NODE, which is offline and will not come back.

    NODE is its name, its id, or at least four digits with which only its id begins. It is no longer listed, and a run
    that waits for it gets Error 5 at once. If it does come back, it registers as any other.
    """
    connection = redis.connect()
    found = node_called(connection, read_overview(connection), node)
    forget_node(connection, found.info.node_id)
    click.echo(f"{found.ref} is forgotten.")


def node_row(node: NodeView, now: float, ids: Sequence[int], runs: Sequence[RunView]) -> dict[str, Any]:
    """Return the cells of a node.

    Args:
        node: the node.
        now: the time, by Redis' clock.
        ids: those of all nodes.
        runs: all runs.
    """
    status, info, is_told = node.status, node.info, has_said(node)
    return {
        "node": short_among(info.node_id, ids).removesuffix("…"),
        "name": info.name,
        "state": state_cell(node.state),
        "seen": since(status.at, now),
        "doing": doing(node, runs),
        "since": lasted(node.judged.busy),
        "queue": status.queue if is_told else None,
        "last": lasted(status.last),
        "median": lasted(status.median),
        "errors": status.errors if is_told else None,
        "dead": status.dead if is_told else None,
        "last error": cut(status.error),
        "app": "" if info.origin is None else str(info.origin),
        "host": status.host,
        "labels": info.labels,
    }
