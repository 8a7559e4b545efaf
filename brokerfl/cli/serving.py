"""Serving over HTTP in the foreground: the port, and the end.

Owns which port is taken, what is said if it cannot be, and that a signal ends it with 0. It must not know what is
served.
"""

import errno
import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType
from typing import Any, TypeVar

import click

from brokerfl.cli.signals import handle, ignore
from brokerfl.common import BrokerflError, ConfigError, PortInUse

Function = TypeVar("Function", bound=Callable[..., Any])

#: Names of this machine that no other machine can reach.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class _Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP."""


def address_options(port: int) -> Callable[[Function], Function]:
    """Add ``--port`` and ``--host`` to a command."""

    def add(function: Function) -> Function:
        for option in (
            click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
            click.option(
                "--port",
                default=port,
                show_default=True,
                type=click.IntRange(0, 65535),
                help="TCP port; 0 takes any that is free.",
            ),
        ):
            function = option(function)
        return function

    return add


@contextmanager
def taking(host: str, port: int) -> Iterator[None]:
    """Say clearly why a port cannot be taken inside the block.

    Raises:
        PortInUse: another process has it, or only root may take it.
        ConfigError: the host is no address of this machine.
    """
    try:
        yield
    except (socket.gaierror, UnicodeError):
        raise ConfigError(f"--host {host} is not known: name an address of this machine, such as 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host} is not an address of this machine") from None
        raise PortInUse(
            f"port {port} cannot be used ({error.strerror}): is another server running? Choose another --port"
        ) from None


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; errors are those of `taking`."""
    with taking(host, port):
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return host in LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(host: str, port: int) -> str:
    """Return where a browser finds it."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@contextmanager
def until_signal() -> Iterator[None]:
    """End the process with 0 at a signal that comes inside the block."""
    try:
        handle(_on_signal)
        yield
    except _Signalled:
        click.echo("Stopped.")
        sys.exit(0)


def wait(thread: Thread) -> None:
    """Wait for a signal, while ``thread`` serves.

    Raises:
        BrokerflError: the thread ended.
    """
    thread.join()
    raise BrokerflError("the server ended unexpectedly")


def _on_signal(number: int, frame: FrameType | None) -> None:
    ignore()
    raise _Signalled
