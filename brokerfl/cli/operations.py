"""`brokerfl runs`, `nodes`, `stop`: what an operator sees and does. Owns what is shown of each run and node."""

import json

import click

from brokerfl.broker.ending import stop_run
from brokerfl.broker.nodes import list_nodes
from brokerfl.broker.runs import list_runs
from brokerfl.cli.exits import Command
from brokerfl.cli.options import RedisOptions, RunId, redis_options
from brokerfl.cli.tables import format_option, local_time, show


@click.command(cls=Command)
@redis_options
@format_option
@click.option("--all", "ended_too", is_flag=True, help="Also list runs that have ended.")
def runs(redis: RedisOptions, form: str, ended_too: bool) -> None:
    """List the runs."""
    rows = [
        {
            "run": str(run.run_id),
            "status": run.status,
            "app": run.app,
            "started": local_time(run.created_at),
            "ended": local_time(run.ended_at),
            "holder": run.holder,
            "nodes": None if run.ended_at else run.nodes,
            "messages": None if run.ended_at else run.messages,
            "replies": None if run.ended_at else run.replies,
        }
        for run in list_runs(redis.connect())
        if ended_too or not run.ended_at
    ]
    show(rows, form, "no runs" if ended_too else "no runs; --all also lists those that have ended")


@click.command(cls=Command)
@redis_options
@format_option
def nodes(redis: RedisOptions, form: str) -> None:
    """List the nodes."""
    rows = [
        {
            "node": str(node.node_id),
            "status": "online" if node.online else "offline",
            "name": node.name,
            "app": "" if node.origin is None else str(node.origin),
            "labels": node.labels,
            "version": node.version,
            "since": local_time(node.since),
        }
        for node in list_nodes(redis.connect())
    ]
    show(rows, form, "no nodes; brokerfl-node client:app starts one")


@click.command(cls=Command)
@click.argument("run", type=RunId(min=2))
@redis_options
@format_option
def stop(run: int, redis: RedisOptions, form: str) -> None:
    """Stop the run RUN and delete its keys.

    It makes no difference whether its ServerApp is alive.
    """
    stop_run(redis.connect(), run)
    if form == "json":
        click.echo(json.dumps({"run": str(run), "status": "stopped"}))
    else:
        click.echo(f"Run {run} is stopped and its keys are deleted.")
