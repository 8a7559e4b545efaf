"""`brokerfl drain` and `brokerfl cancel`: what an operator asks of a run's ServerApp. Owns what is printed."""

import click

from brokerfl.broker.requests import cancel_messages, drain_run
from brokerfl.cli.exits import Command
from brokerfl.cli.options import RedisOptions, Text, redis_options
from brokerfl.cli.references import find_node, find_run
from brokerfl.cli.tables import format_option, show_done
from brokerfl.common import ConfigError, MessageNotFound
from brokerfl.common.text import shown_node
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


@click.command(cls=Command)
@click.argument("run", type=Text())
@click.argument("messages", type=Text(), nargs=-1, metavar="[MESSAGE]...")
@click.option("--node", type=Text(), help="Cancel all open messages of the run at this node.")
@redis_options
@format_option
def cancel(run: str, messages: tuple[str, ...], node: str | None, redis: RedisOptions, form: str) -> None:
    """Cancel open messages of the run RUN: its app gets an Error for each, and the run goes on.

    RUN is its id, at least four digits with which only its id begins, or its name. MESSAGE is an id, or at least eight
    digits with which only one id of the run begins. A node that has not begun such a message does not execute it.
    Replies that are there already count. A detached run heeds it when it is resumed.
    """
    if bool(messages) == (node is not None):
        raise ConfigError("name the messages to cancel, or a node with --node, but not both")
    connection = redis.connect()
    run_id = find_run(connection, run)
    at = None if node is None else find_node(connection, node)
    asked = cancel_messages(connection, run_id, messages, None if at is None else at.node_id)
    if at is not None and not asked:
        raise MessageNotFound(f"run {run_id} has no open message at {shown_node(at.node_id, at.name)}")
    count = f"{len(asked)} message{'s' if len(asked) > 1 else ''}"
    text = f"Run {run_id} is asked to cancel {count}: its ServerApp does so at once, or when it is resumed."
    show_done({"run": str(run_id), "messages": asked}, text, form)
