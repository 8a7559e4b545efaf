"""How a command is imported. Owns that the collector rests meanwhile; must import nothing slow itself."""

import gc
from importlib import import_module
from typing import Any


def imported(place: str) -> Any:
    """Import what a place such as ``runs:stop`` names: a module of this package, and the name there.

    What an import makes stays, and the collector would look through it a hundred times. Without it, `brokerfl-node`
    starts with a fifth less of the processor's time; afterwards it looks at none of it any more.
    """
    module, name = place.split(":")
    gc.disable()
    try:
        return getattr(import_module(f"brokerfl.cli.{module}"), name)
    finally:
        gc.freeze()
        gc.enable()
