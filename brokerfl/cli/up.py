"""`brokerfl up`: the embedded server in the foreground. Owns its options and how it ends."""

import sys
from pathlib import Path
from types import FrameType

import click

from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.cli.exits import Command
from brokerfl.cli.options import FilePath
from brokerfl.cli.signals import handle, ignore
from brokerfl.common import BrokerflError


class _Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP."""


@click.command(cls=Command)
@click.option("--port", default=6379, show_default=True, type=click.IntRange(1, 65535), help="TCP port on 127.0.0.1.")
@click.option(
    "--data",
    type=FilePath(file_okay=False, path_type=Path),
    help="Directory for an append-only file; without it, the data are lost when the server stops.",
)
def up(port: int, data: Path | None) -> None:
    """Run the embedded Valkey server until Ctrl-C."""
    try:
        handle(_on_signal)
        with EmbeddedServer(port, data) as server:
            kept = f"append-only file in {data}" if data else "in memory only; --data DIR keeps the data"
            click.echo(f"Valkey is up at {server.url} ({kept}). Ctrl-C stops it.")
            code = server.wait()
            raise BrokerflError(f"the server ended unexpectedly with exit code {code}")
    except _Signalled:
        click.echo("Stopped.")
        sys.exit(0)


def _on_signal(number: int, frame: FrameType | None) -> None:
    ignore()  # let the server finish writing its file
    raise _Signalled
