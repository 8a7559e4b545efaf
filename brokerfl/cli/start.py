"""The entry points of the commands. Owns what happens before the first slow import; must import nothing slow itself."""

import sys

from brokerfl.cli.imports import collector_at_rest, imported
from brokerfl.cli.signals import handle_early
from brokerfl.cli.streams import guard


def node() -> None:
    """Run `brokerfl-node`."""
    handle_early(children_finish=True)
    guard()
    with collector_at_rest():
        main = imported("node:main")
    main()


def server() -> None:
    """Run `brokerfl-server`."""
    handle_early()
    guard()
    with collector_at_rest():
        main = imported("server:main")
    main()


def brokerfl() -> None:
    """Run `brokerfl`."""
    handle_early()
    guard(patient=True)
    with collector_at_rest():
        main = imported("main:main")
        for name in sys.argv[1:2]:
            main.get_command(None, name)  # imports it
    main()


if __name__ == "__main__":  # python -m brokerfl.cli.start node client:app
    {"node": node, "server": server, "brokerfl": brokerfl}[sys.argv.pop(1)]()
