"""`brokerfl up`: the embedded server in the foreground. Owns its options and how it ends."""

import sys
from pathlib import Path
from types import FrameType

import click

from brokerfl.broker.embedded import EmbeddedServer, version_of
from brokerfl.broker.keys import DEFAULT_PREFIX
from brokerfl.cli.exits import Command
from brokerfl.cli.options import FilePath, Text
from brokerfl.cli.secure import Secured, enter, secure
from brokerfl.cli.signals import handle, ignore
from brokerfl.common import BrokerflError, ConfigError

#: The version of Redis that knows CLIENT SETINFO first; all of Valkey do.
_NAMES = (7, 2)

_file = FilePath(exists=True, dir_okay=False, path_type=Path)


class _Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP."""


@click.command(cls=Command)
@click.option("--port", default=6379, show_default=True, type=click.IntRange(1, 65535), help="TCP port.")
@click.option(
    "--data",
    type=FilePath(file_okay=False, path_type=Path),
    help="Directory for an append-only file; without it, the data are lost when the server stops.",
)
@click.option(
    "--server",
    type=_file,
    help="The redis-server or valkey-server to start. [default: the bundled one, which has no TLS]",
)
@click.option(
    "--secure",
    "is_secure",
    is_flag=True,
    help="Every party needs a login of its own; --data has that of the first operator. With --server also TLS.",
)
@click.option(
    "--host",
    "hosts",
    type=Text(),
    multiple=True,
    metavar="NAME",
    help="With --secure and --server: listen on all interfaces, under this name or address; may be repeated.",
)
@click.option("--cert", type=_file, help="With --secure: certificate of your own (PEM). [default: one is made]")
@click.option("--key", type=_file, help="With --secure: private key of --cert (PEM).")
@click.option("--ca-cert", type=_file, help="With --secure: authority of --cert (PEM). [default: those of the system]")
@click.option(
    "--prefix",
    envvar="BROKERFL_PREFIX",
    default=DEFAULT_PREFIX,
    show_default=True,
    help="With --secure: prefix of every key, to which logins have rights.",
)
def up(
    port: int,
    data: Path | None,
    server: Path | None,
    is_secure: bool,
    hosts: tuple[str, ...],
    cert: Path | None,
    key: Path | None,
    ca_cert: Path | None,
    prefix: str,
) -> None:
    """Run the embedded Valkey server until Ctrl-C.

    It listens on 127.0.0.1 and has no password, unless --secure is given.
    """
    if not is_secure and (hosts or cert or key or ca_cert):
        raise ConfigError("--host, --cert, --key and --ca-cert need --secure: without it, there is no password")
    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key belong together: give both")
    if is_secure and data is None:
        raise ConfigError("--secure needs --data DIR, where the users and the first operator's credentials are kept")
    if server is None and (hosts or cert):
        raise ConfigError(
            "the bundled server has no TLS, which others than this machine need: name another one with --server, such "
            "as --server /usr/bin/redis-server"
        )
    secured = None
    if is_secure and data is not None:
        own = None if cert is None or key is None else (cert, key)
        secured = secure(
            data, prefix, port, hosts, own, ca_cert, tls=server is not None, names=version_of(server) >= _NAMES
        )
    try:
        handle(_on_signal)
        _serve(port, data, server, secured, everywhere=bool(hosts))
    except _Signalled:
        click.echo("Stopped.")
        sys.exit(0)


def _serve(port: int, data: Path | None, server: Path | None, secured: Secured | None, *, everywhere: bool) -> None:
    options, tls = (secured.options, secured.tls) if secured is not None else ((), None)
    with EmbeddedServer(port, data, server, options, tls, everywhere=everywhere) as running:
        url = running.url if secured is None else secured.url
        kept = f"append-only file in {data}" if data else "in memory only; --data DIR keeps the data"
        if secured is not None and enter(secured):
            kept += f"; --credentials {secured.credentials} is its first operator"
        click.echo(f"{'Valkey' if server is None else server.name} is up at {url} ({kept}). Ctrl-C stops it.")
        code = running.wait()
        raise BrokerflError(f"the server ended unexpectedly with exit code {code}")


def _on_signal(number: int, frame: FrameType | None) -> None:
    ignore()  # let the server finish writing its file
    raise _Signalled
