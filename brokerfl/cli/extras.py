"""Extras: what a command says whose packages are not installed. Owns that; must not know what they are for."""

from collections.abc import Iterator
from contextlib import contextmanager

from brokerfl.common import MissingExtra


@contextmanager
def extra(name: str, *packages: str) -> Iterator[None]:
    """Say what to install if an import inside the block fails.

    Args:
        name: of the extra, and of the command that needs it.
        packages: what it installs, as they are imported.

    Raises:
        MissingExtra: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in packages:
            raise
        raise MissingExtra(f"brokerfl {name} needs {package}: pip install 'brokerfl[{name}]'") from None
