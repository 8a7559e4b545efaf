"""One life of a ServerApp in its process: from its Driver until `main` has returned, or the run is detached.

Owns what each end of `main` leads to, what is said of it, and the signals. It must not know how a run begins.
"""

import shlex
import signal
import threading
import time
from logging import INFO, WARNING
from types import FrameType

import click

from brokerfl.cli.apps import print_traceback
from brokerfl.cli.exits import Exit, code_of, say
from brokerfl.cli.options import CONNECTION, typed_options
from brokerfl.cli.progress_line import progress_line
from brokerfl.cli.signals import SIGNALS, handle, leave, on_second
from brokerfl.common import OutageLimit, RecordSet, RedisError, RunError, log
from brokerfl.common.log_context import log_for
from brokerfl.flower import keeps_something
from brokerfl.server import Driver
from brokerfl.server.app import ServerAppCallable
from brokerfl.server.outcome import Outcome

#: Options that the printed command for resuming a run leaves out.
_OF_ONE_START = ("run_config", "run_name", "resume", "takeover", "from_start", "run_file")


class Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP; a BaseException, so that an app's own handlers let it pass."""

    def __init__(self, number: int) -> None:
        self.number = number


def live(
    driver: Driver,
    server_app: ServerAppCallable,
    signals: "Signals",
    how: str,
    *,
    quiet: bool,
    comes_back: bool,
    keeps: bool,
) -> int:
    """Run the app's main, and end or detach its run; return the exit code.

    Args:
        driver: the run's.
        server_app: the app.
        signals: those of the process.
        how: how the run began: ``started``, ``resumed``, or ``started over``: a resumed run that forgets what it had.
        quiet: show no progress line.
        comes_back: the run is resumed when Redis, which was away for too long, answers again.
        keeps: the run stays when main has returned.
    """
    driver.record.is_kept = keeps
    run_id, started = driver.run.run_id, time.monotonic()
    log_for(run=run_id)
    log(INFO, "Run %s of %s %s", run_id, driver.run.app, how)
    if how == "resumed" and not _goes_on(driver, server_app):
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
        with progress_line(driver.report, quiet=quiet):
            server_app(driver, driver.context)
        if signals.number:
            raise Signalled(signals.number)
        if keeps:
            driver.checkpoint()
            _detach(driver, "its app has ended, and --keep keeps it")
            return Exit.OK
        driver.end()
    except BaseException as error:  # SystemExit, asyncio's CancelledError: only a main that returns ends its run
        if signals.number:  # what follows a signal is not the app's, which may have caught it, or lost its children
            if not isinstance(error, Signalled | RunError):
                print_traceback(error)
            _detach(driver, f"got {signal.Signals(signals.number).name}")
            return 128 + signals.number
        if isinstance(error, RunError):
            driver.detach()
            say(f"Error: {error}")
            return code_of(error)
        if isinstance(error, OutageLimit | RedisError):
            code = code_of(error)
            if comes_back and code == Exit.REDIS_UNREACHABLE:
                driver.detach()
                log(WARNING, "Run %s is detached until Redis answers: %s", run_id, error)
            else:
                _detach(driver, str(error))
            return code
        print_traceback(error)
        _detach(driver, f"main raised {type(error).__name__}: {error}")
        return Exit.APP_RAISED
    return _complete(run_id, time.monotonic() - started, driver.report.outcome)


def _goes_on(driver: Driver, server_app: ServerAppCallable) -> bool:
    """Return whether the app of a resumed run has anything that says where it was."""
    record = driver.record
    return bool(record.fields) or record.is_replayed or keeps_something(server_app, driver.context.state)


def _complete(run_id: int, seconds: float, outcome: Outcome) -> Exit:
    """Say that a run has completed; return the exit code."""
    replies, errors = outcome.replies, outcome.errors
    told = "1 reply" if replies == 1 else f"{replies} replies"
    text = f": {errors} of {replies} replies were errors" if errors else f": {told}" if replies else ""
    log(WARNING if errors else INFO, "Run %s completed after %.1f s%s", run_id, seconds, text)
    return Exit.ALL_ERRORS if errors and errors == replies else Exit.OK


def _detach(driver: Driver, reason: str) -> None:
    driver.detach()
    params, run_id = click.get_current_context().params, str(driver.run.run_id)
    retention: float = params["retention"]
    resume = shlex.join(["brokerfl-server", params["app"], "--resume", run_id, *typed_options(but=_OF_ONE_START)])
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


class Signals:
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
        raise Signalled(number)
