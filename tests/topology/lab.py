"""A lab whose servers are a fleet. Owns how processes are led to it, and what may happen to the servers at random.

The rest is that of `tests.chaos.lab`.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from brokerfl.broker.keys import Keys
from tests.chaos.lab import APPS, Disturbance, Lab, eventually, last_entries
from tests.cli.conftest import Commands, Process
from tests.conftest import is_tombstone
from tests.topology.fleets import ClusterFleet, Fleet

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

    # Disturbances, for the soak. Whatever they are, the fleet is whole behind them.

    def disturbances(self, chance: Random) -> list[Disturbance]:
        """What may happen, as ``chance`` has it: to the primary of a key, or to the slot of one."""
        killed = Disturbance("primary killed", 4, lambda: self._kill_primary(chance), forgets=True)
        if not isinstance(self.fleet, ClusterFleet):
            return [killed, Disturbance("fail-over", 2, lambda: self._fail_over(chance), forgets=True)]
        return [
            killed,
            Disturbance("fail-over", 4, lambda: self._fail_over(chance)),
            Disturbance("slot moved", 6, lambda: self._move_slot(chance)),
        ]

    def _kill_primary(self, chance: Random) -> Mapping[str, int]:
        """Of a run, most of the time, and most of the time with entries of inboxes or outboxes that no replica has."""
        key = self._any_key(chance, chance.choice(("*:ledger", "*:ledger", "*")))
        port = self.fleet.primary_of(key)
        forgets = chance.random() < 0.7 and self._cut_off(port)
        self.fleet.kill_primary(key)
        self.fleet.restart(port)
        return {"messages or replies forgotten": 1} if forgets else {}

    def _cut_off(self, port: int, patience: float = 1.0) -> bool:
        """Cut a primary off from its replicas until it has such an entry; return whether it has."""
        client, until = self.fleet.client(port), time.monotonic() + patience
        self.fleet.cut_off(port)
        before = last_entries(client)
        while not (is_new := last_entries(client) != before) and time.monotonic() < until:
            time.sleep(0.02)
        return is_new

    def _fail_over(self, chance: Random) -> Mapping[str, int]:
        self.fleet.fail_over(self._any_key(chance, "*"))
        self.fleet.await_whole()
        return {}

    def _move_slot(self, chance: Random) -> Mapping[str, int]:
        assert isinstance(self.fleet, ClusterFleet)
        whose = chance.choice(("run", "node", "chunk"))
        key = self._any_key(chance, {"run": "*:ledger", "node": "*:info", "chunk": "*:blob:*"}[whose])
        source = self.fleet.primary_of(key)
        self.fleet.move_slot(key, chance.choice([port for port in self.fleet.primaries() if port != source]))
        return {f"slot of a {whose} moved": 1}

    def _any_key(self, chance: Random, pattern: str) -> str:
        return chance.choice(sorted(self.fleet.scan(pattern)) or [KEYS.identity])

    def set_weather(self, is_bad: bool) -> None:
        """There is no proxy."""

    def faults(self) -> int:
        """There are none."""
        return 0

    # The books.

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
