"""Configurations as users type them: ``'key=value key2="two words"'``, or a TOML file. Owns that grammar only."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from brokerfl.cli.project import read_config
from brokerfl.common import ConfigError, ConfigScalar, UserConfig
from brokerfl.common.config import check_scalar, flattened

#: A key, of which parts may be quoted, then a quoted value or one without blanks; as in Flower's --run-config.
_PAIR = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[^\s="'])+)=("[^"]*"|'[^']*'|[^\s"']*)(?=\s|$)""")
_BARE_WORD = re.compile(r"[A-Za-z_][\w./:@+-]*")


def parse_config(texts: Iterable[str], option: str, defaults: UserConfig | None = None) -> UserConfig:
    """Return the pairs of all ``texts``; a later one wins.

    A value is a TOML boolean, integer, float or string. A single word needs no quotes: ``site=berlin``. The name of a
    TOML file stands for its content, in which tables become dotted names.

    Args:
        texts: what the user typed, one for each time the option was given.
        option: the option's name, for errors.
        defaults: the defaults that these pairs override: a word without quotes does not replace a number.

    Raises:
        ConfigError: the text names the option, the value and what is wrong with it.
    """
    config: UserConfig = {}
    for text in texts:
        if text.strip().endswith(".toml") and "=" not in text:
            config |= read_config(Path(text.strip()))
            continue
        position = 0
        while text[position:].strip():
            pair = _PAIR.match(text, position)
            if pair is None:
                raise ConfigError(
                    f"{option} {text!r} cannot be read at {text[position:].strip()!r}: write key=value pairs "
                    "separated by spaces, such as 'num-rounds=3 lr=0.1 name=\"two words\"'"
                )
            key, value = _key(pair[1], option), pair[2]
            config[key] = _value(key, value, option, (defaults or {}).get(key, ""))
            check_scalar(key, config[key], option)
            position = pair.end()
    return config


def _key(text: str, option: str) -> str:
    """Return a key as TOML reads it, its parts joined by dots; one that TOML does not allow is taken as it is."""
    try:
        read = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        if re.search("[\"']", text):
            raise ConfigError(f"{option}: {text} is not a key: quote all of it, or nothing") from None
        return text
    [key] = flattened(read, option)
    return key


def _value(key: str, text: str, option: str, default: ConfigScalar) -> ConfigScalar:
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        if text.lower() in ("true", "false"):
            raise ConfigError(f"{option}: write {key}={text.lower()}, or {key}='\"{text}\"' for a string") from None
        if _BARE_WORD.fullmatch(text) and isinstance(default, str):
            return text
        value = None
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(f"{option}: the value of {key} is {text!r}: it must be a {_kinds(default)}")
    return value


def _kinds(default: ConfigScalar) -> str:
    if isinstance(default, str):
        return "boolean, number or string; quote a string"
    if isinstance(default, bool):
        return f"boolean, like the default {str(default).lower()}"
    return f"number, like the default {default}"


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Return ``key=value`` labels; the value is plain text.

    Raises:
        ConfigError: a label without ``=`` or without a key.
    """
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--label {text!r}: write key=value, such as site=berlin")
        labels[key] = value
    return labels
