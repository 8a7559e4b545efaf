"""Configs: what a run or a node is told by whoever starts it. Owns which values they hold; must not know where from."""

from collections.abc import Mapping
from typing import Any

from brokerfl.common.context import ConfigScalar, UserConfig
from brokerfl.common.errors import ConfigError
from brokerfl.common.record import MAX_INT, MIN_INT

#: What a config holds.
SCALARS = (bool, int, float, str)


def flattened(table: Mapping[str, Any], where: str, prefix: str = "") -> UserConfig:
    """Return a config; tables in it become names with dots, as in Flower.

    Args:
        table: such as the one that stands in a TOML file.
        where: it stands, for errors.
        prefix: of the names.

    Raises:
        ConfigError: it holds something that is no boolean, number or string, or that cannot be sent.
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
    """Check that a run can have this value in its config.

    Raises:
        ConfigError: it, or its name, cannot be sent; the text names ``where`` it stands.
    """
    if not is_utf8(name) or (isinstance(value, str) and not is_utf8(value)):
        raise ConfigError(f"{where}: {name!r}: {value!r} is not UTF-8")
    if isinstance(value, int) and not MIN_INT <= value <= MAX_INT:
        raise ConfigError(f"{where}: {name} is {value}, and only integers from -2**63 to 2**64 - 1 can be sent")


def is_utf8(text: str) -> bool:
    """Return whether a text can be sent: what a shell hands over may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
