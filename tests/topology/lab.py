"""A lab whose servers are a fleet. Owns how processes are led to it; the rest is that of `tests.chaos.lab`."""

from pathlib import Path
from typing import Any

from brokerfl.broker.keys import Keys
from tests.chaos.lab import APPS, Lab, eventually
from tests.cli.conftest import Commands, Process
from tests.conftest import is_tombstone
from tests.topology.fleets import Fleet

#: Keys are spread over all slots.
PREFIX = "test"

KEYS = Keys(PREFIX)


class FleetLab(Lab):
    """Processes of one test, as a context manager; at its end they are gone, and the fleet is not.

    Args:
        folder: everything is kept there.
        fleet: the servers, without keys.
    """

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        self.folder = folder
        self.fleet = fleet
        (folder / "apps").mkdir()
        (folder / "output").mkdir()
        self.commands = Commands(folder / "apps", folder / "output")
        self.commands.env.update(BROKERFL_REDIS_URL=fleet.url, BROKERFL_PREFIX=PREFIX, BROKERFL_APP_DIR=str(APPS))

    def __exit__(self, *_: object) -> None:
        self.commands.kill()

    def file_size(self) -> int:
        """No server has a file."""
        return 0

    def keys_of(self, run: str) -> set[str]:
        """Every key that has the run in its name, and the fields of it in the hashes of nodes."""
        keys = self.fleet.scan()
        named = {key for key in keys if run in key and not is_tombstone(self._at(key), key)}
        hashes = {key for key in keys if key.endswith(":runs") and self._at(key).type(key) == b"hash"}
        return named | {key for key in hashes if self._at(key).hexists(key, run)}

    def _at(self, key: str) -> Any:
        """A client of the primary that has a key."""
        return self.fleet.client(self.fleet.primary_of(key))

    def go_on(self, *server_apps: Process, replies: int = 20) -> None:
        """Wait until each of these has put so many more replies into its books."""
        before = [server_app.text.count("replies are in the books") for server_app in server_apps]
        for server_app, had in zip(server_apps, before, strict=True):
            eventually(lambda p=server_app, n=had: self._count(p) >= n + replies, f"{replies} more replies")

    def _count(self, server_app: Process) -> int:
        assert server_app.is_running, server_app.text
        return server_app.text.count("replies are in the books")
