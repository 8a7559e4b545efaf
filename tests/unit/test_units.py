"""The units of systemd in docs/systemd: what they say fits the commands and their exit codes.

Read by hand: configparser takes no key twice.
"""

import shlex
from pathlib import Path

import click
import pytest

from brokerfl.cli.exits import Exit
from brokerfl.cli.node import main as node
from brokerfl.cli.server import main as server

UNITS = Path(__file__).parent.parent.parent / "docs" / "systemd"

COMMANDS: dict[str, click.Command] = {"brokerfl-node": node, "brokerfl-server": server}


def unit_of(name: str) -> dict[str, list[str]]:
    """The values of each key."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / f"{name}@.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def one(name: str, key: str) -> str:
    [value] = unit_of(name)[key]
    return value


def parsed(name: str) -> dict[str, object]:
    """What the command makes of its arguments."""
    command, *arguments = shlex.split(one(name, "ExecStart").replace("%i", "site-7"))
    assert command.rpartition("/")[2] == name
    return COMMANDS[name].make_context(name, arguments).params


@pytest.mark.parametrize("name", COMMANDS)
def test_a_unit_fits_its_command(name: str) -> None:
    """Options and variables are the command's, and its state is where it may write."""
    known = {str(option.envvar) for option in COMMANDS[name].params}
    variables = dict(value.split("=", 1) for value in unit_of(name)["Environment"])
    assert variables.keys() <= known
    state = f"/var/lib/{one(name, 'StateDirectory')}"
    assert state in (variables.get("BROKERFL_STATE_DIR"), str(Path(str(parsed(name).get("run_file"))).parent))
    assert one(name, "ProtectSystem") == "strict"
    assert one(name, "KillMode") == "mixed"


def test_what_is_started_again() -> None:
    """After an outage and when it is stuck, but not after what nobody has mended, or what is over."""

    def codes(name: str, which: str) -> set[int]:
        return {*map(int, one(name, f"Restart{which}ExitStatus").split())}

    for name in COMMANDS:
        assert codes(name, "Force") >= {Exit.REDIS_UNREACHABLE, Exit.REDIS_FULL}
        assert codes(name, "Prevent") >= {Exit.USAGE, Exit.APP_LOAD, Exit.MISSING_EXTRA}
        assert codes(name, "Force") | codes(name, "Prevent") <= {*Exit}
    assert Exit.NODE_STUCK in codes("brokerfl-node", "Force")
    assert {Exit.RUN_NOT_FOUND, Exit.RUN_STOPPED, Exit.RUN_FENCED} <= codes("brokerfl-server", "Prevent")
    assert Exit.APP_RAISED not in codes("brokerfl-server", "Prevent"), "its run is resumed"


def test_a_node_may_take_its_time() -> None:
    """To wait for Redis at the start, and to finish its message at the end."""
    options = parsed("brokerfl-node")
    assert options["wait_for_redis"]
    assert one("brokerfl-node", "TimeoutStartSec") == "infinity"
    assert int(one("brokerfl-node", "TimeoutStopSec")) > float(str(options["grace"]))
    assert one("brokerfl-node", "Type") == "notify"
