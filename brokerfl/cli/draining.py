"""`brokerfl drain`: asks a run to come to its end. Owns what is printed."""

import json

import click

from brokerfl.broker.draining import drain_run
from brokerfl.cli.exits import Command
from brokerfl.cli.options import RedisOptions, RunId, redis_options
from brokerfl.cli.tables import format_option


@click.command(cls=Command)
@click.argument("run", type=RunId(min=2))
@redis_options
@format_option
def drain(run: int, redis: RedisOptions, form: str) -> None:
    """Let the run RUN push nothing any more, and finish what it has pushed.

    Its nodes finish their messages, its ServerApp gets the replies, and every later push is refused. It cannot be taken
    back. A detached run heeds it when it is resumed.
    """
    drain_run(redis.connect(), run)
    if form == "json":
        click.echo(json.dumps({"run": str(run), "status": "draining"}))
    else:
        click.echo(f"Run {run} is being drained: it pushes nothing any more.")
