"""`brokerfl-server`: creates a run or resumes one, and again after an outage. Owns its options."""

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from logging import WARNING
from pathlib import Path

import click

from brokerfl import __version__
from brokerfl.broker.arrival import await_redis
from brokerfl.broker.ending import read_run
from brokerfl.broker.keys import LEASE, MOST_RETENTION, OFFLINE_GRACE, RETENTION
from brokerfl.broker.rules import Role
from brokerfl.cli.apps import find_project, load_server_app
from brokerfl.cli.configs import parse_config
from brokerfl.cli.exits import Command, Exit
from brokerfl.cli.life import Signalled, Signals, live
from brokerfl.cli.logs import adopt_log_of, log_options, share_log
from brokerfl.cli.options import (
    Bytes,
    FilePath,
    RedisOptions,
    Seconds,
    Text,
    app_dir_option,
    max_message_option,
    redis_options,
    run_config_option,
)
from brokerfl.cli.protection import Wish, protection_options
from brokerfl.cli.recording import driver_of
from brokerfl.cli.references import find_run
from brokerfl.cli.runfile import RunFile
from brokerfl.cli.signals import SIGNALS
from brokerfl.common import (
    ConfigError,
    OutageLimit,
    RedisUnreachable,
    RunNotFound,
    log,
)
from brokerfl.common.log_context import log_for
from brokerfl.server import Driver
from brokerfl.server.hold import Options
from brokerfl.server.session import OUTAGE_LIMIT


@click.command(cls=Command)
@click.argument("app")
@log_options
@redis_options
@run_config_option
@click.option(
    "--resume",
    type=Text(),
    metavar="RUN",
    help="Resume this detached run, named by its id, the beginning of it, or its name: context.state is restored, and "
    "no node trains twice.",
)
@click.option("--takeover", is_flag=True, help="With --resume: take the run from a ServerApp that seems to be alive.")
@click.option("--from-start", is_flag=True, help="With --resume: begin anew, whatever the run has recorded or saved.")
@click.option("--keep", is_flag=True, help="When the app has ended, keep the run: --resume can go on with more rounds.")
@click.option("--another-app", is_flag=True, help="With --resume: the app had another name when the run was started.")
@click.option(
    "--run-file",
    type=FilePath(dir_okay=False, path_type=Path),
    envvar="BROKERFL_RUN_FILE",
    help="File that holds the run's id until the run is over. If it is there, that run is resumed, and otherwise a new "
    "one is started: for services that are started again.",
)
@click.option(
    "--run-name",
    type=Text(),
    envvar="BROKERFL_RUN_NAME",
    help="What this run is called, for whoever lists runs; with --resume, its new name. [default: no name]",
)
@app_dir_option
@click.option(
    "--lease",
    default=LEASE,
    show_default=True,
    type=Seconds(0.3),
    envvar="BROKERFL_LEASE",
    help="Seconds of silence after which the run counts as detached.",
)
@click.option(
    "--retention",
    default=RETENTION,
    show_default=True,
    type=Seconds(1.0, MOST_RETENTION),
    envvar="BROKERFL_RETENTION",
    help="Seconds that a detached run keeps its messages; at most 30 days.",
)
@click.option(
    "--offline-grace",
    default=OFFLINE_GRACE,
    show_default=True,
    type=Seconds(0.0),
    help="Seconds that a named node may be offline before its messages become Error 5.",
)
@click.option(
    "--wait-replicas",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="How many replicas are to have each transaction before the app goes on; it waits a second at most.",
)
@click.option(
    "--round-timeout",
    type=Seconds(0.0),
    envvar="BROKERFL_ROUND_TIMEOUT",
    help="Seconds to wait for the replies of a round, unless the app gives a timeout of its own. [default: until each "
    "message is answered, or its ttl ends]",
)
@click.option(
    "--outage-limit",
    default=OUTAGE_LIMIT,
    show_default=True,
    type=Seconds(0.0),
    help="Seconds to wait while Redis is unreachable before detaching.",
)
@max_message_option
@click.option(
    "--max-run",
    type=Bytes(),
    envvar="BROKERFL_MAX_RUN",
    help="Most bytes of broadcast contents that the run may hold in Redis. [default: no limit]",
)
@click.option(
    "--record",
    type=FilePath(file_okay=False, path_type=Path),
    envvar="BROKERFL_RECORD",
    metavar="DIR",
    help="Directory to which replies are recorded, for an app that keeps no progress: --resume RUN --record DIR goes "
    "through them again, and brokerfl replay gives them to another app.",
)
@click.option(
    "--record-limit",
    type=Bytes(),
    default="10GB",
    show_default=True,
    envvar="BROKERFL_RECORD_LIMIT",
    help="Most bytes of that; beyond, nothing is recorded, and the run would resume from the start.",
)
@click.option(
    "--no-events",
    is_flag=True,
    envvar="BROKERFL_NO_EVENTS",
    help="Note no events of the run in Redis, and no log: nothing for brokerfl events, export and log.",
)
@click.option(
    "--no-share-log",
    is_flag=True,
    envvar="BROKERFL_NO_SHARE_LOG",
    help="Keep this log out of Redis, where brokerfl log finds it.",
)
@click.option(
    "--restart-on-outage",
    is_flag=True,
    envvar="BROKERFL_RESTART_ON_OUTAGE",
    help="After an outage that is longer than --outage-limit, wait until Redis answers, and resume the run.",
)
@click.option("--quiet", is_flag=True, envvar="BROKERFL_QUIET", help="Show no progress line below the log.")
@protection_options
@click.version_option(__version__)
def main(
    app: str,
    redis: RedisOptions,
    run_config: tuple[str, ...],
    resume: str | None,
    takeover: bool,
    from_start: bool,
    keep: bool,
    another_app: bool,
    run_file: Path | None,
    run_name: str | None,
    app_dir: str | None,
    lease: float,
    retention: float,
    offline_grace: float,
    wait_replicas: int,
    round_timeout: float | None,
    outage_limit: float,
    max_message: int,
    max_run: int | None,
    record: Path | None,
    record_limit: int,
    no_events: bool,
    no_share_log: bool,
    restart_on_outage: bool,
    quiet: bool,
    wish: Wish,
) -> None:
    """Run a ServerApp as a new run on this Redis, or resume one.

    APP is module:attribute, such as server:app, or a directory whose pyproject.toml names the app, such as the
    current one: brokerfl-server .
    """
    if resume is not None and run_file is not None:
        raise ConfigError("--resume and --run-file both say which run to resume: give only one")
    wish.check(redis.login)
    if redis.login is not None:
        redis.login.check_role(Role.SERVER)
    file = None if run_file is None else RunFile(run_file)
    resume = resume if file is None else file.read()
    if resume is None and (takeover or another_app or from_start):
        option = "--takeover" if takeover else "--another-app" if another_app else "--from-start"
        raise ConfigError(f"{option} needs --resume RUN, the run to continue")
    # The environment is for new runs.
    source = click.get_current_context().get_parameter_source
    is_typed, is_named = (source(each) is click.core.ParameterSource.COMMANDLINE for each in ("run_config", "run_name"))
    reference, project = find_project(app, app_dir)
    given = parse_config(run_config, "--run-config", project.defaults) if is_typed or resume is None else None
    config = None if given is None else project.run_config(given)
    origin = project.origin
    reference, server_app = load_server_app(reference, project)
    adopt_log_of("flwr")
    if len(redis.realms) > 1:
        raise ConfigError("--realm of a ServerApp names one realm: that of its run")
    connection = redis.connect(apart=True)
    run_id = None if resume is None else find_run(connection, resume)
    log_for(run=run_id)
    if resume is None:  # a signal that comes while the run is created waits until there is something to detach
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signals = Signals()
    options = Options(
        lease=lease,
        retention=retention,
        offline_grace=offline_grace,
        wait_replicas=wait_replicas,
        round_timeout=round_timeout,
        outage_limit=outage_limit,
        max_message=max_message,
        max_run=max_run,
        events=not no_events,
        log=None if no_share_log else share_log(),
        origin=replace(origin, app=reference),
        protection=wish.granted(redis.login, connection),
    )
    drive = driver_of(record, record_limit, is_new=resume is None or from_start)
    first = options.copy()
    first["name"] = run_name if is_named or resume is None else None
    first["overrides"] = None if given is None or project.defaults is None else tuple(given)
    try:
        if run_id is not None and given is not None:  # what was not given now is as it was given first
            config = read_run(connection, run_id).run_config | given
        signals.driver = driver = drive(
            connection,
            "" if another_app else reference,
            config,
            resume=run_id,
            takeover=takeover,
            **first,
        )
        if file is not None:
            file.write(driver.run.run_id)
        how = "started" if resume is None else "started over" if from_start else "resumed"
        code = live(driver, server_app, signals, how, quiet=quiet, comes_back=restart_on_outage, keeps=keep)
        while restart_on_outage and code == Exit.REDIS_UNREACHABLE:
            signals.driver = driver = _resume_when_up(
                redis, driver.run.run_id, reference, options, driver_of(record, record_limit)
            )
            code = live(driver, server_app, signals, "resumed", quiet=quiet, comes_back=True, keeps=keep)
    except Signalled as signalled:  # while detaching; if that was not finished, the lease lapses
        code = 128 + signalled.number
    except RunNotFound:
        if file is not None:
            file.leave(Exit.RUN_NOT_FOUND)
        raise
    if file is not None:
        file.leave(code)
    sys.exit(code)


def _resume_when_up(
    redis: RedisOptions, run_id: int, app: str, options: Options, drive: Callable[..., Driver]
) -> Driver:
    """Return the Driver of a run that is resumed as soon as Redis answers."""
    while True:
        connection = await_redis(redis.connect)
        try:
            return drive(connection, app, resume=run_id, **options)
        except (RedisUnreachable, OutageLimit) as error:
            log(WARNING, "Run %s is still detached: %s", run_id, error)
