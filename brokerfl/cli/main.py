"""`brokerfl`: the group of commands. Owns which commands there are."""

import click

from brokerfl import __version__
from brokerfl.cli.dead import dead
from brokerfl.cli.demo import demo
from brokerfl.cli.doctor import doctor
from brokerfl.cli.events import compare, events, export, log_
from brokerfl.cli.operations import nodes, runs, stop
from brokerfl.cli.up import up


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Federated learning over Redis: start a server and check it, see runs and nodes, stop runs, see dead messages."""


for command in (up, demo, runs, nodes, events, log_, compare, export, stop, doctor, dead):
    main.add_command(command)
