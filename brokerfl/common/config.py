"""Configs: the settings of a run or a node. Owns which values they may hold; must not know where they come from."""

from collections.abc import Mapping
from typing import Any

from brokerfl.common.context import ConfigScalar, UserConfig
from brokerfl.common.errors import ConfigError
from brokerfl.common.record import MAX_INT, MIN_INT

#: The types a config may hold.
SCALARS = (bool, int, float, str)


def flattened(table: Mapping[str, Any], where: str, prefix: str = "") -> UserConfig:
    """Return a config; nested tables become dotted names, as in Flower.

    Args:
        table: as read from a TOML file.
        where: where it comes from, for errors.
        prefix: of the names.

    Raises:
        ConfigError: a value is not a boolean, number or string, or cannot be sent.
    """
    config: UserConfig = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            config |= flattened(value, where, f"{name}.")
        elif isinstance(value, SCALARS):
            check_scalar(name, value, where)
            config[name] = value
        else:
            raise ConfigError(f"{where}: {name} is a {type(value).__name__}, not a boolean, number or string")
    return config


def check_scalar(name: str, value: ConfigScalar, where: str) -> None:
    """Check that a config can hold this value.

    Raises:
        ConfigError: the value or its name cannot be sent; the text names ``where`` it comes from.
    """
    if not is_utf8(name) or (isinstance(value, str) and not is_utf8(value)):
        raise ConfigError(f"{where}: {name!r}: {value!r} is not UTF-8")
    if isinstance(value, int) and not MIN_INT <= value <= MAX_INT:
        raise ConfigError(f"{where}: {name} is {value}, but only integers from -2**63 to 2**64 - 1 can be sent")


def is_utf8(text: str) -> bool:
    """Return whether a text can be sent: what comes from a shell may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
