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
from brokerfl.broker.credentials import AskedCredentials, SeveralPasswords
from brokerfl.broker.keys import DEFAULT_PREFIX, Keys
from brokerfl.broker.members import read_realms
from brokerfl.broker.rules import Role
from brokerfl.broker.url import masked
from brokerfl.cli.login import Login, hide_passwords, read_login
from brokerfl.cli.place import DEFAULT_URL, place_of
from brokerfl.common.config import is_utf8
from brokerfl.common.log_context import name_realms
from brokerfl.common.logger import configure_logging
from brokerfl.wire.frame import MAX_MESSAGE_BYTES

#: The parameters that `redis_options` adds to a command, except --verbose.
CONNECTION = (
    *("redis", "redis_file", "credentials", "credential_provider", "prefix", "realm", "insecure"),
    *("ca_cert", "cert", "key", "proxy"),
)

#: The longest duration that an option takes, some 30 years.
MOST_SECONDS = 1e9

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class RedisOptions:
    """Where Redis is and how to reach it, as given by the user.

    Attributes:
        provider: names a function that returns user name and password.
        login: what a credentials file and its grant say.
        proxy: URL of an HTTP proxy.
        realms: whose runs this process has to do with; none for those of no realm.
    """

    url: str
    prefix: str
    insecure: bool
    tls: TLS
    provider: str | None = None
    login: Login | None = None
    proxy: str | None = None
    realms: tuple[str, ...] = ()

    def connect(self, *, warn: bool = True, apart: bool = False) -> Connection:
        """Connect, and check the server and, to ``warn``, its settings.

        Args:
            warn: log what endangers runs.
            apart: have nothing to do with runs of no realm, if realms are given; a login has rights to no others.
        """
        apart = apart or self.login is not None
        connection = connect(
            self.url,
            prefix=self.prefix,
            tls=self.tls,
            insecure=self.insecure,
            check=False,
            credentials=self._credentials(),
            proxy=self.proxy,
            role=None if self.login is None else Role(self.login.grant.role),
            name=":".join(click.get_current_context().command_path.split()),
            realms=self.realms if apart and self.realms else ("", *self.realms),
        )
        connection.check_server(warn=warn)
        if self.login is not None and self.login.sees_all:
            connection.keys = Keys(self.prefix, ("", *read_realms(connection)))
        name_realms(connection.keys.realms)
        return connection

    def _credentials(self) -> AskedCredentials | SeveralPasswords | None:
        if self.login is not None:
            return self.login.provider()
        if self.provider is None:
            return None
        from brokerfl.cli.apps import load_function  # it imports what most commands do not need

        option = "--credential-provider"
        return AskedCredentials(f"{option} {self.provider}", load_function(self.provider, option))


def redis_options(function: Function) -> Function:
    """Add the connection options to a command, which receives them as ``redis``, a `RedisOptions`."""

    @wraps(function)
    def wrapper(
        *args: Any,
        redis: str | None,
        redis_file: str | None,
        credentials: Path | None,
        credential_provider: str | None,
        prefix: str,
        realm: str | None,
        insecure: bool,
        ca_cert: str | None,
        cert: str | None,
        key: str | None,
        proxy: str | None,
        verbose: bool,
        **options: Any,
    ) -> Any:
        configure_logging(DEBUG if verbose else INFO)
        login = None if credentials is None else read_login(credentials)
        tls = TLS(ca_cert, cert, key, login.grant.ca or None if login is not None else None)
        url, prefix = place_of(redis, redis_file, prefix, login)
        realms = tuple(realm.split(",")) if realm else ()
        if login is not None:
            realms = login.realms(realms)
        where = RedisOptions(url, prefix, insecure, tls, credential_provider, login, proxy, realms)
        hide_passwords()
        return function(*args, redis=where, **options)

    path = FilePath(exists=True, dir_okay=False)
    for option in reversed(
        (
            click.option(
                "--redis",
                metavar="URL",
                envvar="BROKERFL_REDIS_URL",
                help="redis://, redis+sentinel:// or redis+cluster://, each with rediss for TLS, or unix:// "
                f"[default: {DEFAULT_URL}]",
            ),
            click.option(
                "--redis-file",
                type=click.Path(dir_okay=False),  # which is read at once
                envvar="BROKERFL_REDIS_URL_FILE",
                help="File that holds the URL, to keep it out of the process list.",
            ),
            click.option(
                "--credentials",
                type=FilePath(dir_okay=False, path_type=Path),
                envvar="BROKERFL_CREDENTIALS",
                help="Credentials file of a node, server, operator or observer, beside which its grant is. It says "
                "where Redis is, and who logs in.",
            ),
            click.option(
                "--credential-provider",
                metavar="MODULE:FUNCTION",
                envvar="BROKERFL_CREDENTIAL_PROVIDER",
                help="Function that returns user name and password, or a CredentialProvider of redis-py; called at "
                "each connect, for tokens that expire.",
            ),
            click.option(
                "--prefix",
                envvar="BROKERFL_PREFIX",
                default=DEFAULT_PREFIX,
                show_default=True,
                help="Prefix of every key in Redis.",
            ),
            click.option(
                "--realm",
                metavar="DIGITS,…",
                envvar="BROKERFL_REALM",
                help="Realm of a ServerApp's run, or realms that a node trusts: four digits each. [default: none]",
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
                help="Authority to trust for TLS (PEM). [default: those of the system]",
            ),
            click.option("--cert", type=path, envvar="BROKERFL_CERT", help="Client certificate for mutual TLS (PEM)."),
            click.option("--key", type=path, envvar="BROKERFL_KEY", help="Private key of --cert (PEM)."),
            click.option(
                "--proxy",
                metavar="URL",
                envvar="BROKERFL_PROXY",
                help="HTTP proxy through which every connection goes (CONNECT): http://[user:password@]host:port",
            ),
            click.option("--verbose", is_flag=True, help="Log more, and what happens to each message."),
        )
    ):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


class FilePath(click.Path):
    """A path that means the same after the app has changed the working directory; links in it are not followed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, made absolute."""
        path: Any = super().convert(value, param, ctx)
        try:
            return type(path)(Path(path).absolute())
        except FileNotFoundError:  # the working directory was deleted
            self.fail(f"{value!r} is relative to a working directory that does not exist", param, ctx)


def typed_options(*, only: Sequence[str] | None = None, but: Sequence[str] = ()) -> list[str]:
    """Return the options of this command as typed, for a command that continues its work; passwords are masked.

    Args:
        only: the parameters to include; all by default.
        but: the parameters to leave out.
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
                words.append(masked(value) if name in ("redis", "proxy") else str(value).removesuffix(".0"))
    return words


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
            self.fail(
                f"{value!r} is not a size: write bytes, or a number with a unit, such as 500MB or 4GiB", param, ctx
            )
        return size


class Seconds(click.FloatRange):
    """A duration in seconds that Redis and every wait can hold; not ``inf`` or ``nan``.

    Args:
        least: the least allowed.
        most: the most allowed.
    """

    name = "duration"

    def __init__(self, least: float, most: float = MOST_SECONDS) -> None:
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):  # which is in every range
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


class Text(click.types.StringParamType):
    """A text that can be sent to Redis: what comes from a shell may not be UTF-8."""

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
            self.fail("the name is empty: for an unnamed node, leave the option out", param, ctx)
        return text


class ConfigText(click.types.StringParamType):
    """A text that an environment variable holds whole: click would split it at spaces, even quoted ones."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the one value of a repeatable option."""
        return [rv]


app_dir_option = click.option(
    "--app-dir", envvar="BROKERFL_APP_DIR", help="Directory of the app's module. [default: the current one]"
)

node_config_option = click.option(
    "--node-config",
    type=ConfigText(),
    multiple=True,
    metavar="'K=V …'",
    envvar="BROKERFL_NODE_CONFIG",
    help="Config for this node's Contexts, e.g. 'partition-id=0 num-partitions=5'.",
)

run_config_option = click.option(
    "--run-config",
    type=ConfigText(),
    multiple=True,
    metavar="'K=V …'",
    envvar="BROKERFL_RUN_CONFIG",
    help="Config for the Contexts of the ServerApp and all nodes, e.g. 'num-rounds=3 lr=0.1'.",
)


max_message_option = click.option(
    "--max-message",
    type=Bytes(),
    default=MAX_MESSAGE_BYTES,
    envvar="BROKERFL_MAX_MESSAGE",
    help="Largest message or reply that this process accepts, e.g. 500MB. [default: 16GiB]",
)

state_dir_option = click.option(
    "--state-dir",
    type=FilePath(file_okay=False, path_type=Path),
    envvar="BROKERFL_STATE_DIR",
    help="Directory for the state of named nodes. [default: $XDG_STATE_HOME/brokerfl or ~/.local/state/brokerfl]",
)
