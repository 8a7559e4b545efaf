"""`brokerfl drain`: asks a run to come to its end. Owns what is printed."""

import click

from brokerfl.broker.draining import drain_run
from brokerfl.cli.exits import Command
from brokerfl.cli.options import RedisOptions, Text, redis_options
from brokerfl.cli.references import find_run
from brokerfl.cli.tables import format_option, show_done
from brokerfl.view.reasons import RunState


@click.command(cls=Command)
@click.argument("run", type=Text())
@redis_options
@format_option
def drain(run: str, redis: RedisOptions, form: str) -> None:
    """Let the run RUN push nothing any more, and finish what it has pushed.

    RUN is its id, at least four digits with which only its id begins, or its name. Its nodes finish their messages, its
    ServerApp gets the replies, and every later push is refused. It cannot be taken back. A detached run heeds it when
    it is resumed.
    """
    connection = redis.connect()
    run_id = find_run(connection, run)
    drain_run(connection, run_id)
    text = f"Run {run_id} is being drained: it pushes nothing any more."
    show_done({"run": str(run_id), "state": RunState.DRAINING}, text, form)
