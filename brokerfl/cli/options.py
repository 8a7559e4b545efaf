"""Options that commands share: where Redis is, configs, directories. Owns their names, variables and defaults."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from logging import DEBUG, INFO
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from brokerfl.broker.connection import TLS, Connection, connect
from brokerfl.broker.keys import DEFAULT_PREFIX
from brokerfl.broker.url import masked
from brokerfl.common import ConfigError
from brokerfl.common.config import is_utf8
from brokerfl.common.logger import configure_logging
from brokerfl.wire.frame import MAX_MESSAGE_BYTES

DEFAULT_URL = "redis://127.0.0.1:6379"

#: The parameters that `redis_options` gives a command, but for --verbose.
CONNECTION = ("redis", "redis_file", "prefix", "insecure", "ca_cert", "cert", "key")

#: The longest duration that an option takes, some 30 years.
MOST_SECONDS = 1e9

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class RedisOptions:
    """Where Redis is and how to reach it, as the user gave it."""

    url: str
    prefix: str
    insecure: bool
    tls: TLS

    def connect(self) -> Connection:
        """Connect, and look at the server."""
        return connect(self.url, prefix=self.prefix, tls=self.tls, insecure=self.insecure)


def redis_options(function: Function) -> Function:
    """Give a command the options of the connection; it receives them as ``redis``, a `RedisOptions`."""

    @wraps(function)
    def wrapper(
        *args: Any,
        redis: str | None,
        redis_file: str | None,
        prefix: str,
        insecure: bool,
        ca_cert: str | None,
        cert: str | None,
        key: str | None,
        verbose: bool,
        **options: Any,
    ) -> Any:
        configure_logging(DEBUG if verbose else INFO)
        redis_url = _url(redis, redis_file)
        return function(*args, redis=RedisOptions(redis_url, prefix, insecure, TLS(ca_cert, cert, key)), **options)

    path = click.Path(exists=True, dir_okay=False)
    for option in reversed(
        (
            click.option(
                "--redis",
                metavar="URL",
                envvar="BROKERFL_REDIS_URL",
                help=f"redis://, rediss:// (TLS) or unix:// [default: {DEFAULT_URL}]",
            ),
            click.option(
                "--redis-file",
                type=click.Path(dir_okay=False),
                envvar="BROKERFL_REDIS_URL_FILE",
                help="Read the URL from this file: a command line shows in ps.",
            ),
            click.option(
                "--prefix",
                envvar="BROKERFL_PREFIX",
                default=DEFAULT_PREFIX,
                show_default=True,
                help="What every key starts with.",
            ),
            click.option(
                "--insecure",
                is_flag=True,
                envvar="BROKERFL_INSECURE",
                help="Allow plain text to a Redis on another machine.",
            ),
            click.option(
                "--ca-cert",
                type=path,
                envvar="BROKERFL_CA_CERT",
                help="Whom to trust for rediss:// (PEM); the system's authorities by default.",
            ),
            click.option("--cert", type=path, envvar="BROKERFL_CERT", help="Our certificate, for mutual TLS (PEM)."),
            click.option("--key", type=path, envvar="BROKERFL_KEY", help="Its private key (PEM)."),
            click.option("--verbose", is_flag=True, help="Log more."),
        )
    ):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


def _url(url: str | None, file: str | None) -> str:
    """What is typed wins over the environment, there the file over the URL."""
    source = click.get_current_context().get_parameter_source
    typed = [name for name in ("redis", "redis_file") if source(name) is click.core.ParameterSource.COMMANDLINE]
    if len(typed) == 2:
        raise ConfigError("--redis and --redis-file both say where Redis is: give one of them")
    if url is not None and (file is None or typed == ["redis"]):
        return url
    return DEFAULT_URL if file is None else _read_url(file)


def _read_url(file: str) -> str:
    try:
        words = Path(file).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the URL file {file} cannot be read: {getattr(error, 'strerror', 'not a text')}") from None
    if len(words) != 1:
        raise ConfigError(f"the URL file {file} must hold one URL and nothing else")
    return words[0]


def typed_options(*, only: Sequence[str] | None = None, but: Sequence[str] = ()) -> list[str]:
    """Return the options of the running command as they were typed, for a command that goes on; passwords are masked.

    Args:
        only: the parameters to look at; all by default.
        but: those to leave out.
    """
    ctx = click.get_current_context()
    words = []
    for option in ctx.command.params:
        name = option.name or ""
        is_typed = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if isinstance(option, click.Option) and is_typed and name not in but and (only is None or name in only):
            words.append(option.opts[0])
            if not option.is_flag:
                value = ctx.params[name]
                words.append(masked(value) if name == "redis" else str(value).removesuffix(".0"))
    return words


class RunId(click.IntRange):
    """The id of a run."""

    name = "run id"  # what click calls it in errors


class Bytes(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """A number of bytes: ``1000000``, ``500MB`` (powers of 1000) or ``4GiB`` (of 1024)."""

    name = "size"
    _UNITS: ClassVar[dict[str, int]] = {
        "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
        "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    }  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Z]*)", str(value).strip().upper())
        unit = self._UNITS.get(found[2]) if found else None
        size = round(float(found[1]) * unit) if found and unit else 0
        if size < 1:
            self.fail(f"{value!r} is no size: write bytes, or a number with a unit, such as 500MB or 4GiB", param, ctx)
        return size


class Seconds(click.FloatRange):
    """A duration in seconds that Redis, and every wait, can hold: ``inf`` and ``nan`` are none.

    Args:
        least: the least.
        most: the most.
    """

    name = "duration"

    def __init__(self, least: float, most: float = MOST_SECONDS) -> None:
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):  # which is in every range
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


class Text(click.types.StringParamType):
    """A text that can be sent to Redis: what the shell gave may be no UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        text = str(super().convert(value, param, ctx))
        if not is_utf8(text):
            self.fail(f"{text!r} is not UTF-8", param, ctx)
        return text


class Name(Text):
    """A `Text` that is not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        text = super().convert(value, param, ctx)
        if not text:
            self.fail("the name is empty: leave the option out for a node without one", param, ctx)
        return text


class ConfigText(click.types.StringParamType):
    """A text that comes whole from an environment variable: click would divide it at blanks, also quoted ones."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the one value of a repeatable option."""
        return [rv]


app_dir_option = click.option("--app-dir", envvar="BROKERFL_APP_DIR", help="Where the app's module is. [default: here]")

node_config_option = click.option(
    "--node-config",
    type=ConfigText(),
    multiple=True,
    metavar="'K=V …'",
    envvar="BROKERFL_NODE_CONFIG",
    help="Given to every Context, e.g. 'partition-id=0 num-partitions=5'.",
)

run_config_option = click.option(
    "--run-config",
    type=ConfigText(),
    multiple=True,
    metavar="'K=V …'",
    envvar="BROKERFL_RUN_CONFIG",
    help="Given to the ServerApp's and every node's Context, e.g. 'num-rounds=3 lr=0.1'.",
)

max_message_option = click.option(
    "--max-message",
    type=Bytes(),
    default=MAX_MESSAGE_BYTES,
    envvar="BROKERFL_MAX_MESSAGE",
    help="Most bytes of one message or reply that this process takes into memory, such as 500MB. [default: 16GiB]",
)

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="BROKERFL_STATE_DIR",
    help="Where a named node keeps its state. [default: $XDG_STATE_HOME/brokerfl or ~/.local/state/brokerfl]",
)
