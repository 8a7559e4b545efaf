"""How a command is imported. Owns that the collector rests meanwhile; must import nothing slow itself."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def imported(place: str) -> Any:
    """Import what a place such as ``runs:stop`` names: a module of this package, and the name there."""
    module, name = place.split(":")
    return getattr(import_module(f"brokerfl.cli.{module}"), name)


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector out of imports, in a process that is ours.

    What they make stays, and the collector would look through it a hundred times; afterwards it looks at none of it
    any more.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
