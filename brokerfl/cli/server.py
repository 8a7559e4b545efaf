"""`brokerfl-server`: creates a run, runs the ServerApp, ends the run. Owns its options, signals and detaching."""

import shlex
import signal
import sys
import threading
import time
from dataclasses import replace
from logging import INFO, WARNING
from pathlib import Path
from types import FrameType

import click

from brokerfl import __version__
from brokerfl.broker.ending import read_run
from brokerfl.broker.keys import LEASE, MOST_RETENTION, OFFLINE_GRACE, RETENTION
from brokerfl.cli.apps import find_project, load_server_app, print_traceback
from brokerfl.cli.configs import parse_config
from brokerfl.cli.exits import Command, Exit, code_of, say
from brokerfl.cli.logs import adopt_log_of, log_options, share_log
from brokerfl.cli.options import (
    CONNECTION,
    Bytes,
    FilePath,
    RedisOptions,
    Seconds,
    Text,
    app_dir_option,
    max_message_option,
    redis_options,
    run_config_option,
    typed_options,
)
from brokerfl.cli.progress_line import progress_line
from brokerfl.cli.references import find_run
from brokerfl.cli.runfile import RunFile
from brokerfl.cli.signals import SIGNALS, handle, leave, on_second
from brokerfl.common import (
    ConfigError,
    OutageLimit,
    RecordSet,
    RedisError,
    RunError,
    RunNotFound,
    log,
)
from brokerfl.common.log_context import log_for
from brokerfl.flower import keeps_something
from brokerfl.server import Driver
from brokerfl.server.app import ServerAppCallable
from brokerfl.server.outcome import Outcome
from brokerfl.server.session import OUTAGE_LIMIT

#: Options that the printed command for resuming a run leaves out.
_OF_ONE_START = ("run_config", "run_name", "resume", "takeover", "from_start", "run_file")


class _Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP; a BaseException, so that an app's own handlers let it pass."""

    def __init__(self, number: int) -> None:
        self.number = number


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
    no_events: bool,
    no_share_log: bool,
) -> None:
    """Run a ServerApp as a new run on this Redis, or resume one.

    APP is module:attribute, such as server:app, or a directory whose pyproject.toml names the app, such as the
    current one: brokerfl-server .
    """
    if resume is not None and run_file is not None:
        raise ConfigError("--resume and --run-file both say which run to resume: give only one")
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
    connection = redis.connect()
    run_id = None if resume is None else find_run(connection, resume)
    log_for(run=run_id)
    if resume is None:  # a signal that comes while the run is created waits until there is something to detach
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signals = _Signals()
    try:
        if run_id is not None and given is not None:  # what was not given now is as it was given first
            config = read_run(connection, run_id).run_config | given
        signals.driver = driver = Driver(
            connection,
            "" if another_app else reference,
            config,
            resume=run_id,
            takeover=takeover,
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
            name=run_name if is_named or resume is None else None,
            overrides=None if given is None or project.defaults is None else tuple(given),
        )
        if file is not None:
            file.write(driver.run.run_id)
        driver.record.is_kept = keep
        how = "started" if resume is None else "started over" if from_start else "resumed"
        code = _run(driver, server_app, signals, retention, how)
    except _Signalled as signalled:  # while detaching; if that was not finished, the lease lapses
        code = 128 + signalled.number
    except RunNotFound:
        if file is not None:
            file.leave(Exit.RUN_NOT_FOUND)
        raise
    if file is not None:
        file.leave(code)
    sys.exit(code)


def _run(driver: Driver, server_app: ServerAppCallable, signals: "_Signals", retention: float, how: str) -> int:
    run_id, started = driver.run.run_id, time.monotonic()
    log_for(run=run_id)
    log(INFO, "Run %s of %s %s", run_id, driver.run.app, how)
    if how == "resumed" and driver.record.head is None and not keeps_something(server_app, driver.context.state):
        log(
            WARNING,
            "Run %s has nothing in context.state: its app begins at its start, while its nodes keep theirs",
            run_id,
        )
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if how == "started over":
            driver.context.state = RecordSet()
            driver.start_over()
            driver.checkpoint()
        with progress_line(driver.report):
            server_app(driver, driver.context)
        if signals.number:
            raise _Signalled(signals.number)
        if driver.record.is_kept:
            driver.checkpoint()
            _detach(driver, retention, "its app has ended, and --keep keeps it")
            return Exit.OK
        driver.end()
    except BaseException as error:  # SystemExit, asyncio's CancelledError: only a main that returns ends its run
        if signals.number:  # what follows a signal is not the app's, which may have caught it, or lost its children
            if not isinstance(error, _Signalled | RunError):
                print_traceback(error)
            _detach(driver, retention, f"got {signal.Signals(signals.number).name}")
            return 128 + signals.number
        if isinstance(error, RunError):
            driver.detach()
            say(f"Error: {error}")
            return code_of(error)
        if isinstance(error, OutageLimit | RedisError):
            _detach(driver, retention, str(error))
            return code_of(error)
        print_traceback(error)
        _detach(driver, retention, f"main raised {type(error).__name__}: {error}")
        return Exit.APP_RAISED
    return _complete(run_id, time.monotonic() - started, driver.report.outcome)


def _complete(run_id: int, seconds: float, outcome: Outcome) -> Exit:
    """Say that a run has completed; return the exit code."""
    replies, errors = outcome.replies, outcome.errors
    told = "1 reply" if replies == 1 else f"{replies} replies"
    text = f": {errors} of {replies} replies were errors" if errors else f": {told}" if replies else ""
    log(WARNING if errors else INFO, "Run %s completed after %.1f s%s", run_id, seconds, text)
    return Exit.ALL_ERRORS if errors and errors == replies else Exit.OK


def _detach(driver: Driver, retention: float, reason: str) -> None:
    driver.detach()
    run_id, app = str(driver.run.run_id), click.get_current_context().params["app"]
    resume = shlex.join(["brokerfl-server", app, "--resume", run_id, *typed_options(but=_OF_ONE_START)])
    stop = shlex.join(["brokerfl", "stop", run_id, *typed_options(only=CONNECTION)])
    say(
        f"Run {run_id} is detached: {reason}\n"
        f"Its messages stay in Redis for {_in_words(retention)}. To resume it:\n"
        f"    {resume}\n"
        f"To delete it: {stop}"
    )


def _in_words(seconds: float) -> str:
    unit, name = next((unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= unit)
    return f"{seconds / unit:.3g} {name}"


class _Signals:
    """Handles the signals: the first one detaches the run, a second one ends the process at once.

    Attributes:
        driver: the run's, once there is one.
        number: of the first signal; 0 until then.
    """

    def __init__(self) -> None:
        self.driver: Driver | None = None
        self.number = 0
        handle(self._on_first)

    def _on_first(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        handle(on_second(leave))
        if self.driver is not None:
            # While main unwinds, it may join threads that wait for replies, as a ThreadPoolExecutor does. Not in this
            # thread, which may hold any lock.
            threading.Thread(target=self.driver.abandon, name="abandon", daemon=True).start()
        raise _Signalled(number)
