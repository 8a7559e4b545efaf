"""`scripts/cluster`: a Cluster on this machine, until Ctrl-C, or as long as a command runs.

Owns what is printed, and who gets which signal. The servers are those of `tests.topology.fleets`.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from brokerfl.broker.embedded import die_with_parent, find_server
from brokerfl.cli.signals import handle, ignore
from brokerfl.common import BrokerflError
from tests.topology.fleets import ClusterFleet

#: As a shell says that there is no such command.
_NOT_FOUND = 127

_EXAMPLES = """\
  scripts/cluster                          until Ctrl-C; prints the URL
  scripts/cluster -- scripts/demo          while the demo runs on it
  scripts/cluster --server redis -- COMMAND …
"""


class _Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        self.number = number


def main() -> int:
    """Start three primaries and their replicas; return the exit code of the command, or 0."""
    parser = argparse.ArgumentParser(
        prog="scripts/cluster",
        description="Start a Cluster of three primaries with a replica each on 127.0.0.1. It keeps nothing on disk.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey", help="(default: the bundled Valkey)")
    parser.add_argument("--port", type=int, help="of the first server; the others have the next five (default: free)")
    parser.add_argument("--directory", type=Path, help="where COMMAND runs (default: the current one)")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="gets BROKERFL_REDIS_URL; its exit code is ours")
    options = parser.parse_args()
    handle(_stop)
    try:
        binary = shutil.which("redis-server") if options.server == "redis" else find_server()
        if binary is None:
            parser.error("there is no redis-server")
        with ClusterFleet(Path(binary), replicas=1, first_port=options.port) as fleet:
            if options.command:
                return _run(options.command, options.directory, fleet.url)
            _show(fleet)
            while True:
                signal.pause()
    except _Signalled as signalled:
        print("Stopped.", flush=True)
        return 128 + signalled.number if options.command else 0
    except BrokerflError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _stop(number: int, frame: FrameType | None) -> None:
    ignore()  # let the servers end
    raise _Signalled(number)


def _show(fleet: ClusterFleet) -> None:
    print("Three primaries:", *(f"port {port} (pid {fleet.servers[port].pid})" for port in list(fleet.servers)[:3]))
    print("Their replicas: ", *(f"port {port} (pid {fleet.servers[port].pid})" for port in list(fleet.servers)[3:]))
    print(f"The Cluster is up at {fleet.url}. Ctrl-C stops it.", flush=True)


def _run(command: Sequence[str], directory: Path | None, url: str) -> int:
    """Run a command to its end. What a terminal sends reaches it, too; the other signals are passed on."""
    env = {name: value for name, value in os.environ.items() if name != "BROKERFL_REDIS_URL_FILE"}  # it would win
    try:
        process = subprocess.Popen(
            command, cwd=directory, env={**env, "BROKERFL_REDIS_URL": url}, preexec_fn=die_with_parent
        )
    except OSError as error:
        print(f"Error: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND
    handle(lambda number, frame: process.send_signal(number) if number != signal.SIGINT else None)
    code = process.wait()
    ignore()  # let the servers end
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
