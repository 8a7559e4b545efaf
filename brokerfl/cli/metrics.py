"""`brokerfl metrics`: an endpoint for Prometheus. Owns its options; `collector` owns the metrics."""

from logging import WARNING

import click

from brokerfl.cli.exits import Command
from brokerfl.cli.extras import extra
from brokerfl.cli.options import RedisOptions, redis_options
from brokerfl.cli.serving import address_options, is_loopback, until_signal, url_of, wait
from brokerfl.common import log
from brokerfl.view.watch import Watch


@click.command(cls=Command)
@redis_options
@address_options(9464)
def metrics(redis: RedisOptions, port: int, host: str) -> None:
    """Serve metrics of runs, nodes and Redis to Prometheus until Ctrl-C.

    Each scrape looks at Redis. With a --host that other machines reach, everybody there can read the names of runs and
    nodes.
    """
    with extra("metrics", "prometheus_client"):
        from brokerfl.cli.collector import serving
    with until_signal(), serving(Watch(redis.connect()), host, port) as (taken, thread):
        if not is_loopback(host):
            log(WARNING, "Everybody who reaches port %d of %s can read the metrics: there is no password", taken, host)
        click.echo(f"Metrics are at {url_of(host, taken)}metrics. Ctrl-C stops this.")
        wait(thread)
