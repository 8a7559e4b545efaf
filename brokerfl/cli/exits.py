"""Exit codes: how each error ends a command. Owns the table; docs/commands.md shows it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any

import click

from brokerfl.cli.logs import say_in_log
from brokerfl.common import (
    AppLoadError,
    BrokerflError,
    ConfigError,
    CredentialsError,
    InsecureURL,
    JournalError,
    MessageNotFound,
    MissingExtra,
    NodeNameTaken,
    NodeNotFound,
    NodeOnline,
    OutageLimit,
    PortInUse,
    RecordMissing,
    RedisAuthError,
    RedisOutOfMemory,
    RedisRefuses,
    RedisTLSError,
    RedisTooOld,
    RedisUnreachable,
    RunAttached,
    RunDiverged,
    RunFenced,
    RunLost,
    RunNotFound,
    RunStopped,
)
from brokerfl.common.text import shown


class Exit(IntEnum):
    """The exit codes of all commands. A signal ends a command with 128 plus its number, as in a shell."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    APP_LOAD = 3
    APP_RAISED = 4
    ALL_ERRORS = 5
    REDIS_UNREACHABLE = 10
    REDIS_AUTH = 11
    REDIS_TLS = 12
    REDIS_TOO_OLD = 13
    REDIS_FULL = 14
    INSECURE_URL = 15
    PORT_IN_USE = 16
    CREDENTIALS = 17
    NODE_NAME_TAKEN = 20
    JOURNAL = 21
    NODE_STUCK = 22
    NODE_NOT_FOUND = 23
    NODE_ONLINE = 24
    RUN_NOT_FOUND = 30
    RUN_STOPPED = 31
    RUN_LOST = 32
    RUN_FENCED = 33
    RUN_ATTACHED = 34
    MESSAGE_NOT_FOUND = 35
    RUN_DIVERGED = 36
    RECORD_MISSING = 37
    MISSING_EXTRA = 40
    UNHEALTHY = 50


_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (CredentialsError, Exit.CREDENTIALS),  # before the family that it belongs to
    (ConfigError, Exit.USAGE),
    (AppLoadError, Exit.APP_LOAD),
    (RedisUnreachable, Exit.REDIS_UNREACHABLE),
    (OutageLimit, Exit.REDIS_UNREACHABLE),
    (RedisAuthError, Exit.REDIS_AUTH),
    (RedisTLSError, Exit.REDIS_TLS),
    (RedisTooOld, Exit.REDIS_TOO_OLD),
    (RedisOutOfMemory, Exit.REDIS_FULL),
    (InsecureURL, Exit.INSECURE_URL),
    (PortInUse, Exit.PORT_IN_USE),
    (NodeNameTaken, Exit.NODE_NAME_TAKEN),
    (JournalError, Exit.JOURNAL),
    (NodeNotFound, Exit.NODE_NOT_FOUND),
    (NodeOnline, Exit.NODE_ONLINE),
    (RunNotFound, Exit.RUN_NOT_FOUND),
    (RunStopped, Exit.RUN_STOPPED),
    (RunLost, Exit.RUN_LOST),
    (RunFenced, Exit.RUN_FENCED),
    (RunAttached, Exit.RUN_ATTACHED),
    (MessageNotFound, Exit.MESSAGE_NOT_FOUND),
    (RunDiverged, Exit.RUN_DIVERGED),
    (RecordMissing, Exit.RECORD_MISSING),
    (MissingExtra, Exit.MISSING_EXTRA),
)

_START = "Is it running? `brokerfl up` starts one here; --redis URL names another (rediss:// if it speaks TLS)."
_TLS = "Is it running, does it speak TLS on this port, and does it require a certificate (--cert, --key)?"


def code_of(error: BaseException) -> Exit:
    """Return the exit code for ``error``."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILURE)


def say(text: str) -> None:
    """Print a text to standard error, whatever an app has done to that; a log file and JSON lines have it, too."""
    with suppress(Exception):
        if not say_in_log(text):
            click.echo(text, err=True)


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the process with one clear line and a named exit code for every error that a user can meet."""
    try:
        yield
    except BrokerflError as error:
        say(f"Error: {shown(str(error), keep=chr(10))}")
        if isinstance(error, RedisUnreachable) and not isinstance(error, RedisRefuses):
            say(_TLS if "rediss" in str(error) else _START)
        sys.exit(code_of(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


class _Clear(click.Command):
    """A command whose errors are one line, and whose help names the environment variables of its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options. Variables are shown only here: otherwise click's errors would name them too."""
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                parameter.show_envvar = True
        super().format_options(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside `clear_errors`."""
        with clear_errors():
            return super().invoke(ctx)


class Command(_Clear):
    """A command."""


class Group(_Clear, click.Group):
    """A group that is also a command."""
