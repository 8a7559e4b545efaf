"""`brokerfl dead`: the messages that killed their node too often. Owns how they are shown, and the replay.

Without a state directory the list comes from Redis, where each node tells of its latest ones. Their contents are only
in the state directories of their nodes.
"""

import faulthandler
import reprlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from brokerfl.cli.apps import find_project, load_client_app, print_traceback
from brokerfl.cli.configs import parse_config
from brokerfl.cli.exits import Command, Exit, Group, say
from brokerfl.cli.options import (
    RedisOptions,
    app_dir_option,
    node_config_option,
    redis_options,
    run_config_option,
    state_dir_option,
)
from brokerfl.cli.tables import accept_any_text, format_option, local_time, show, show_text, to_json
from brokerfl.client.dead import DeadMessage, dead_messages
from brokerfl.client.folder import default_state_dir
from brokerfl.common import Array, BrokerflError, ConfigError, Context, FrameError, Message, RecordSet
from brokerfl.common.logger import configure_logging
from brokerfl.common.recordset import KINDS
from brokerfl.common.text import shown
from brokerfl.view.overview import NodeView, read_overview
from brokerfl.wire.message import decode_header, decode_message
from brokerfl.wire.record import decode_content
from brokerfl.wire.status import Dead


@click.group(cls=Group, invoke_without_command=True)
@state_dir_option
@redis_options
@format_option
@click.pass_context
def dead(ctx: click.Context, state_dir: Path | None, redis: RedisOptions, form: str) -> None:
    """List the messages that killed their node too often.

    Each was answered with Error 8. With --state-dir, they are read from that directory and need no Redis; without it,
    the latest ones of all nodes are listed.
    """
    ctx.obj = state_dir
    if ctx.invoked_subcommand is not None:
        return
    if state_dir is not None:
        show([_row(found) for found in dead_messages(state_dir)], form, f"no dead messages in {state_dir}")
        return
    nodes = read_overview(redis.connect()).nodes
    show([_told_row(node, told) for node in nodes for told in node.status.latest_dead], form, "no dead messages")
    for node in nodes:
        if node.status.dead > len(node.status.latest_dead):
            say(f"{node.ref} has {node.status.dead} dead messages; brokerfl dead --state-dir on its machine lists all")


@dead.command("show", cls=Command)
@click.argument("message")
@state_dir_option
@format_option
def show_one(message: str, state_dir: Path | None, form: str) -> None:
    """Show the dead message MESSAGE and its content."""
    found = _find(message, state_dir)
    row, content = _row(found), list(_records(_decode(found).content))
    if form == "json":
        show_text(to_json({**row, "content": content}))
        return
    accept_any_text()
    for name, value in row.items():
        click.echo(f"{name:<10}{shown(str(value))}")
    click.echo()
    show(content, form, "the content is empty")


@dead.command(cls=Command)
@click.argument("message")
@click.argument("app")
@state_dir_option
@app_dir_option
@node_config_option
@run_config_option
def replay(
    message: str,
    app: str,
    state_dir: Path | None,
    app_dir: str | None,
    node_config: tuple[str, ...],
    run_config: tuple[str, ...],
) -> None:
    """Run the ClientApp APP on the dead message MESSAGE.

    It runs in this process, to show why it crashes, with a copy of the run's state as the node has it now. Nothing is
    written and nothing is published: the run has already received Error 8 and would not count a second reply.
    """
    found = _find(message, state_dir)
    given = _decode(found)
    reference, project = find_project(app, app_dir)
    configs = parse_config(node_config, "--node-config"), project.run_config(parse_config(run_config, "--run-config"))
    _, client_app = load_client_app(reference, project)
    fields = found.read_state()
    state = RecordSet() if fields is None else decode_content(fields)
    context = Context(found.run_id, found.node_id, configs[0], state, configs[1])
    configure_logging()
    meta = given.metadata
    say(f"Replaying a {shown(meta.message_type)} message of run {found.run_id}, group {meta.group_id!r}")
    faulthandler.enable()  # for a crash in native code
    try:
        reply = client_app(given, context)
    except (Exception, SystemExit) as error:
        print_traceback(error)
        sys.exit(Exit.APP_RAISED)
    if not isinstance(reply, Message):
        raise BrokerflError(f"the function for {meta.message_type} messages returned {type(reply).__name__}")
    if reply.has_error():
        click.echo(f"The reply is Error {reply.error.code}: {shown(str(reply.error.reason))}")
    else:
        show(list(_records(reply.content)), "table", "the reply's content is empty")


@dead.command(cls=Command)
@click.argument("message")
@state_dir_option
def forget(message: str, state_dir: Path | None) -> None:
    """Delete the dead message MESSAGE. Its node may be running."""
    _find(message, state_dir).forget()
    click.echo(f"Message {message} is deleted.")


def _find(message_id: str, state_dir: Path | None) -> DeadMessage:
    """Find it in the directory given to the command itself, else in the one given to `brokerfl dead`."""
    ctx = click.get_current_context()
    typed = ctx.get_parameter_source("state_dir") is click.core.ParameterSource.COMMANDLINE
    folder = state_dir if typed else ctx.find_object(Path)
    for found in dead_messages(folder):
        if found.message_id == message_id:
            return found
    raise ConfigError(
        f"there is no dead message {message_id} in {folder or default_state_dir()}: `brokerfl dead` lists them, "
        "--state-dir names another directory"
    )


def _decode(found: DeadMessage) -> Message:
    try:
        return decode_message(found.read_fields())
    except FrameError as error:
        raise BrokerflError(f"message {found.message_id} cannot be read: {error}") from None


def _row(found: DeadMessage) -> dict[str, Any]:
    try:
        meta, _ = decode_header(found.head)
        message_type, group = meta.message_type, meta.group_id
    except FrameError:  # set aside by another version: it can still be seen and forgotten
        message_type, group = "?", "?"
    return {
        "message": found.message_id,
        "node": str(found.node_id),
        "run": str(found.run_id),
        "type": message_type,
        "group": group,
        "bytes": found.size,
        "crashes": found.crashes,
        "at": local_time(found.at),
    }


def _told_row(node: NodeView, told: Dead) -> dict[str, Any]:
    """As `_row`, for a message of which its node tells; what only its journal has is missing."""
    return {
        "message": told.message,
        "node": str(node.info.node_id),
        "run": str(told.run),
        "type": None,
        "group": None,
        "bytes": None,
        "crashes": told.crashes,
        "at": local_time(told.at),
    }


def _records(content: RecordSet) -> Iterator[dict[str, Any]]:
    """Yield a row for each value: dtype, shape and bytes of an array, the shortened value of anything else."""
    for kind, records in content.by_kind().items():
        for name, record in records.items():
            for key, value in record.items():
                is_array = isinstance(value, Array)
                described = f"{value.dtype} {tuple(value.shape)}" if is_array else reprlib.repr(value)
                size = len(value.data) if is_array else None
                yield {"kind": KINDS[kind].name, "record": name, "name": key, "value": described, "bytes": size}
