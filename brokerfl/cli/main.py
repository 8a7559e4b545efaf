"""`brokerfl`: the group of commands. Owns which commands there are; each is imported when it is asked for."""

from importlib import import_module
from typing import Any

import click

from brokerfl import __version__

#: Where each command is: its module here, and its name there.
_PLACES: dict[str, Any] = {
    "cancel": "requests:cancel",
    "certs": "certs:certs",
    "compare": "events:compare",
    "dashboard": "dashboard:dashboard",
    "dead": "dead:dead",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
    "drain": "requests:drain",
    "events": "events:events",
    "export": "events:export",
    "gate": "gate:gate",
    "log": "events:log_",
    "metrics": "metrics:metrics",
    "node": "members:node",
    "node-health": "steering:node_health",
    "nodes": "nodes:nodes",
    "observer": "members:observer",
    "operator": "members:operator",
    "pause": "steering:pause",
    "replay": "recording:replay",
    "resume": "steering:resume",
    "runs": "runs:runs",
    "secure": "secure:secure_command",
    "server": "members:server",
    "show": "show:show",
    "stop": "runs:stop",
    "top": "top:top",
    "up": "up:up",
}


class _Imported(click.Group):
    """Has places in place of commands.

    Most of what a short command takes is its import, and that of all commands takes half as much again.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found: Any = super().get_command(ctx, cmd_name)
        if isinstance(found, str):
            module, name = found.split(":")
            found = getattr(import_module(f"brokerfl.cli.{module}"), name)
        assert found is None or isinstance(found, click.Command)
        return found


@click.group(cls=_Imported, commands=_PLACES)
@click.version_option(__version__)
def main() -> None:
    """Federated learning over Redis: start a server, see what happens, steer runs and nodes."""
