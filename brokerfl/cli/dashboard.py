"""`brokerfl dashboard`: the page with all runs and nodes. Owns its options; `site` owns what is served."""

import ipaddress
from logging import WARNING

import click

from brokerfl.cli.exits import Command
from brokerfl.cli.extras import extra
from brokerfl.cli.options import RedisOptions, Text, redis_options
from brokerfl.cli.serving import LOOPBACK, address_options, is_loopback, listening, until_signal, url_of, wait
from brokerfl.common import log
from brokerfl.view.story import Stories
from brokerfl.view.watch import Watch


@click.command(cls=Command)
@redis_options
@address_options(8464)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    type=Text(),
    metavar="NAME",
    help="Name under which browsers may ask for the page, besides localhost and --host; may be repeated.",
)
def dashboard(redis: RedisOptions, port: int, host: str, names: tuple[str, ...]) -> None:
    """Serve a page with all runs and nodes until Ctrl-C.

    The page is read-only and has no password. With a --host that other machines reach, everybody there can read the
    names of runs and nodes, their configs and errors.
    """
    with extra("dashboard", "starlette", "uvicorn"):
        from brokerfl.cli.site import serving, site
    with until_signal():
        connection = redis.connect()
        look, tell = Watch(connection).look, Stories(connection).of
        app = site(look, tell, connection.url, {*LOOPBACK, host, *names}, any_address=_is_any(host))
        with serving(app, listening(host, port)) as (taken, thread):
            if not is_loopback(host):
                log(WARNING, "Everybody who reaches port %d of %s can read the page: there is no password", taken, host)
            click.echo(f"The dashboard is at {url_of(host, taken)}. Ctrl-C stops it.")
            wait(thread)


def _is_any(host: str) -> bool:
    """Whether it means all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
