"""`brokerfl`: the group of commands. Owns which commands there are."""

import click

from brokerfl import __version__
from brokerfl.cli.dashboard import dashboard
from brokerfl.cli.dead import dead
from brokerfl.cli.demo import demo
from brokerfl.cli.metrics import metrics
from brokerfl.cli.operations import nodes, runs, stop
from brokerfl.cli.up import up


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Federated learning over Redis: start a server, list runs and nodes, stop runs, inspect dead messages."""


for command in (up, demo, runs, nodes, stop, dead, dashboard, metrics):
    main.add_command(command)
