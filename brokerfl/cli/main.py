"""`brokerfl`: the group of commands. Owns which commands there are."""

import click

from brokerfl import __version__
from brokerfl.cli.certs import certs
from brokerfl.cli.dashboard import dashboard
from brokerfl.cli.dead import dead
from brokerfl.cli.demo import demo
from brokerfl.cli.doctor import doctor
from brokerfl.cli.events import compare, events, export, log_
from brokerfl.cli.gate import gate
from brokerfl.cli.members import ROLES, group_of
from brokerfl.cli.metrics import metrics
from brokerfl.cli.nodes import nodes
from brokerfl.cli.recording import replay
from brokerfl.cli.requests import cancel, drain
from brokerfl.cli.runs import runs, stop
from brokerfl.cli.secure import secure_command
from brokerfl.cli.show import show
from brokerfl.cli.steering import node_health, pause, resume
from brokerfl.cli.top import top
from brokerfl.cli.up import up


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Federated learning over Redis: start a server, see what happens, steer runs and nodes."""


for command in (
    *(up, demo, top, runs, nodes, show, events, log_, compare, export, cancel, drain, stop, pause, resume, node_health),
    *(gate, replay, doctor, dead, dashboard, metrics, certs, secure_command),
    *(group_of(role, what) for role, what in ROLES),
):
    main.add_command(command)
