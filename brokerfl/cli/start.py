"""The entry points of the commands. Owns what happens before the first slow import; must import nothing slow itself."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from brokerfl.cli.signals import handle_early
from brokerfl.cli.streams import guard


def node() -> None:
    """Run `brokerfl-node`."""
    handle_early(children_finish=True)
    guard()
    with _collector_at_rest():
        from brokerfl.cli.node import main
    main()


def server() -> None:
    """Run `brokerfl-server`."""
    handle_early()
    guard()
    with _collector_at_rest():
        from brokerfl.cli.server import main
    main()


def brokerfl() -> None:
    """Run `brokerfl`."""
    handle_early()
    guard(patient=True)
    with _collector_at_rest():
        from click import Context

        from brokerfl.cli.main import main

        for name in sys.argv[1:2]:
            main.get_command(Context(main), name)  # imports it
    main()


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector out of imports.

    What they make stays, and the collector would look through it a hundred times; afterwards it looks at none of it
    any more.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":  # python -m brokerfl.cli.start node client:app
    {"node": node, "server": server, "brokerfl": brokerfl}[sys.argv.pop(1)]()
