"""`brokerfl-node`: serves all runs with one ClientApp. Owns the node's options and signals."""

import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from logging import INFO, WARNING
from pathlib import Path
from types import FrameType

import click

from brokerfl import __version__
from brokerfl.broker.arrival import await_redis
from brokerfl.broker.keys import LEASE
from brokerfl.broker.nodes import Registration, node_id_of
from brokerfl.broker.rules import Role
from brokerfl.cli.apps import find_project, load_client_app, load_function
from brokerfl.cli.configs import parse_config, parse_labels
from brokerfl.cli.exits import Command, Exit
from brokerfl.cli.logs import adopt_log_of, log_options
from brokerfl.cli.node_log import NodeLog
from brokerfl.cli.options import (
    FilePath,
    Name,
    RedisOptions,
    Seconds,
    Text,
    app_dir_option,
    max_message_option,
    node_config_option,
    redis_options,
    state_dir_option,
)
from brokerfl.cli.protection import Wish, protection_options
from brokerfl.cli.signals import end_at_once, handle, leave, on_second
from brokerfl.cli.systemd import Systemd
from brokerfl.client.audit import NAME as AUDIT
from brokerfl.client.audit import Audit
from brokerfl.client.executor import MAX_CRASHES
from brokerfl.client.folder import default_state_dir, node_folder
from brokerfl.client.gate import Gate
from brokerfl.client.gate_folder import FOLDER, GateFolder
from brokerfl.client.journal import Journal
from brokerfl.client.node import Node
from brokerfl.client.running import MOST_WORKERS
from brokerfl.client.site import Site
from brokerfl.common import ConfigError, log
from brokerfl.common.log_context import log_for


@click.command(cls=Command)
@click.argument("app")
@log_options
@redis_options
@click.option(
    "--name",
    type=Name(),
    envvar="BROKERFL_NODE_NAME",
    help="Name that keeps the node's id and state over restarts; unique among running nodes. "
    "An unnamed node does not come back.",
)
@node_config_option
@click.option(
    "--label", type=Text(), multiple=True, metavar="K=V", help="Label shown by `brokerfl nodes`; may be repeated."
)
@app_dir_option
@click.option(
    "--lease",
    default=LEASE,
    show_default=True,
    type=Seconds(0.3),
    envvar="BROKERFL_LEASE",
    help="Seconds of silence after which the node counts as offline.",
)
@click.option(
    "--grace",
    default=30.0,
    show_default=True,
    type=Seconds(0.0),
    help="Seconds to finish current messages after SIGTERM, SIGHUP or Ctrl-C.",
)
@state_dir_option
@click.option(
    "--max-crashes",
    default=MAX_CRASHES,
    show_default=True,
    type=click.IntRange(min=1),
    help="Times a message may kill the node before it is answered with Error 8 and set aside.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1, max=MOST_WORKERS),
    envvar="BROKERFL_WORKERS",
    help="Runs served at once, in threads of one process; the app must be thread-safe. "
    "Messages of one run are always executed one at a time, in order.",
)
@max_message_option
@click.option(
    "--any-app",
    is_flag=True,
    envvar="BROKERFL_ANY_APP",
    help="Serve the runs of other projects, too. Otherwise their messages are answered with Error 1.",
)
@click.option(
    "--share-errors",
    type=click.Choice(["class", "text"]),
    default="class",
    show_default=True,
    envvar="BROKERFL_SHARE_ERRORS",
    help="What the ServerApp is told of an exception of the ClientApp. A text may name data; this node's log has it.",
)
@protection_options
@click.option(
    "--gate",
    type=FilePath(exists=True, dir_okay=False, path_type=Path),
    envvar="BROKERFL_GATE",
    help="TOML file that says whose messages are executed; all others wait for `brokerfl gate approve`. Read again "
    "when it changes.",
)
@click.option(
    "--audit",
    type=FilePath(dir_okay=False, path_type=Path),
    envvar="BROKERFL_AUDIT",
    help="File that gets a line for each reply before it leaves. [default with --gate: audit.jsonl in the state "
    "directory]",
)
@click.option(
    "--review",
    metavar="MODULE:FUNCTION",
    envvar="BROKERFL_REVIEW",
    help="Function that is given each message and its reply before that leaves; False, or an exception, keeps it here.",
)
@click.option(
    "--share-log",
    is_flag=True,
    envvar="BROKERFL_SHARE_LOG",
    help="Send what this node logs about a run to that run's log in Redis, for `brokerfl log`. It may name data.",
)
@click.option(
    "--wait-for-redis",
    is_flag=True,
    envvar="BROKERFL_WAIT_FOR_REDIS",
    help="Wait for a Redis that does not answer when the node starts. Otherwise it ends with 10.",
)
@click.option(
    "--exit-when-stuck",
    type=Seconds(1.0),
    metavar="SECONDS",
    envvar="BROKERFL_EXIT_WHEN_STUCK",
    help="End with 22 when the node has executed for so long a message that nobody waits for any more, so that a "
    "service manager starts it again. [default: it only warns]",
)
@click.version_option(__version__)
def main(
    app: str,
    redis: RedisOptions,
    name: str | None,
    node_config: tuple[str, ...],
    label: tuple[str, ...],
    app_dir: str | None,
    lease: float,
    grace: float,
    state_dir: Path | None,
    max_crashes: int,
    workers: int,
    max_message: int,
    any_app: bool,
    share_errors: str,
    gate: Path | None,
    audit: Path | None,
    review: str | None,
    share_log: bool,
    wish: Wish,
    wait_for_redis: bool,
    exit_when_stuck: float | None,
) -> None:
    """Run a node, which serves all runs on this Redis with a ClientApp.

    APP is module:attribute, such as client:app, or a directory whose pyproject.toml names the app, such as the
    current one: brokerfl-node .
    """
    if gate is not None and not name:
        raise ConfigError("--gate needs --name: what the site decides is kept with the node's state")
    config = parse_config(node_config, "--node-config")
    labels = parse_labels(label)
    wish.check(redis.login)
    if redis.login is not None:
        redis.login.check_role(Role.NODE)
        name, labels = redis.login.check_node(name), {**redis.login.grant.labels, **labels}
    states = (state_dir or default_state_dir()) if name else None  # before the app changes the environment
    reference, project = find_project(app, app_dir)
    origin = project.origin  # before the import: code that is edited from now on is not what the node runs
    reference, client_app = load_client_app(reference, project)
    look_over = load_function(review, "--review") if review is not None else None
    adopt_log_of("flwr")
    systemd = Systemd()
    systemd.tell(STATUS="connecting to Redis")
    connect = partial(redis.connect, apart=True)
    connection = await_redis(connect) if wait_for_redis else connect()
    folder = node_folder(states, node_id_of(connection.keys.prefix, name)) if name and states else None
    journal = Journal(folder)
    if gate is not None and folder is not None:
        audit = audit or folder / AUDIT
    site = Site(
        Gate(gate, GateFolder(folder / FOLDER)) if gate is not None and folder is not None else None,
        Audit(audit) if audit is not None else None,
        look_over,
    )
    registration = Registration(connection, name or "", labels, lease, journal.home, replace(origin, app=reference))
    log_for(node=registration.node_id)
    title = f"Node {registration.node_id}" + (f" ({name})" if name else "")

    def ready() -> None:
        log(INFO, "%s serves %s on %s", title, reference, connection.url)
        systemd.tell(READY=1, STATUS=f"{title} serves {reference} on {connection.url}")
        systemd.watch(node.is_alive)

    node = Node(
        client_app,
        connection,
        registration,
        journal,
        ready,
        node_config=config,
        max_crashes=max_crashes,
        workers=workers,
        max_message=max_message,
        any_app=any_app,
        share_errors=share_errors,
        protection=wish.granted(redis.login, connection),
        site=site,
        wait_for_redis=wait_for_redis,
        stuck_limit=exit_when_stuck or math.inf,
        on_stuck=lambda: _give_up(node, registration, Exit.NODE_STUCK),
    )
    _stop_on_signals(node, registration, grace, lambda: systemd.tell(STOPPING=1, STATUS="leaving"))
    shared = NodeLog(connection) if share_log else None
    try:
        node.serve()
    finally:
        if shared is not None:
            shared.close()
    log(INFO, "%s has left", title)


def _give_up(node: Node, registration: Registration, code: int) -> None:
    """End the process in the middle of its messages, for which it is not to blame: the node keeps them."""
    node.abandon()
    try:
        registration.leave()
    finally:  # Redis may be unreachable
        end_at_once(code)


def _stop_on_signals(node: Node, registration: Registration, grace: float, tell: Callable[[], None]) -> None:
    """The first signal ends the node after its current messages or the grace period; a second one ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        handle(on_second(end))
        threading.Thread(target=give_up_after_grace, args=(number,), name="grace", daemon=True).start()
        node.stop()

    def end(number: int) -> None:
        node.abandon()
        leave(number)

    def give_up_after_grace(number: int) -> None:
        # Logged here because the signal may have interrupted a write of the main thread.
        tell()
        until, name = time.monotonic() + grace, signal.Signals(number).name
        log(INFO, "Got %s; leaving (the current message has %g s to finish; a second signal ends it)", name, grace)
        time.sleep(max(0.0, until - time.monotonic()))
        log(WARNING, "The current message did not finish in %g s; leaving without it", grace)
        _give_up(node, registration, 128 + number)

    handle(stop)
