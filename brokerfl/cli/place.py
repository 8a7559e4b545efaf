"""Where Redis is: which of a typed URL, a grant, a file and the environment says it.

Owns that order. It must not know how a connection is made.
"""

import stat
from logging import WARNING
from pathlib import Path

import click

from brokerfl.broker.url import masked
from brokerfl.cli.login import Login
from brokerfl.common import ConfigError, log

DEFAULT_URL = "redis://127.0.0.1:6379"


def place_of(url: str | None, file: str | None, prefix: str, login: Login | None) -> tuple[str, str]:
    """Return URL and prefix: what is typed wins over a grant, and a grant over the environment."""
    source, typed = click.get_current_context().get_parameter_source, click.core.ParameterSource.COMMANDLINE
    if login is None:
        return _url(url, file), prefix
    is_typed = typed in (source("redis"), source("redis_file"))
    return (
        _url(url, file) if is_typed else login.grant.url,
        prefix if source("prefix") is typed else login.grant.prefix,
    )


def _url(url: str | None, file: str | None) -> str:
    """The command line wins over the environment, and in the environment the file wins over the URL."""
    source = click.get_current_context().get_parameter_source
    typed = [name for name in ("redis", "redis_file") if source(name) is click.core.ParameterSource.COMMANDLINE]
    if len(typed) == 2:
        raise ConfigError("--redis and --redis-file both say where Redis is: give only one")
    if url is not None and (file is None or typed == ["redis"]):
        if typed and masked(url) != url:
            log(
                WARNING,
                "Every user of this machine can read the password in --redis: use --redis-file or --credentials",
            )
        return url
    return DEFAULT_URL if file is None else _read_url(file)


def _read_url(file: str) -> str:
    try:
        words = Path(file).read_text(encoding="utf-8-sig").split()
        is_open = bool(Path(file).stat().st_mode & stat.S_IROTH)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the URL file {file} cannot be read: {getattr(error, 'strerror', 'not text')}") from None
    if len(words) != 1:
        raise ConfigError(f"the URL file {file} must hold one URL and nothing else")
    if is_open:
        log(WARNING, "Every user of this machine can read the URL file %s; chmod 600 closes it to them", file)
    return words[0]
