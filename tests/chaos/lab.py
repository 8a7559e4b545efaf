"""A lab: one server with an append-only file, a lossy proxy before it, and real nodes and ServerApps behind the proxy.

Owns what the scenarios and the soak share: how processes are started, how Redis dies, what may happen to it at random,
and the books that must be right in the end. The apps are those of ``apps/``.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

import redis as redis_py

from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.broker.keys import Keys
from brokerfl.broker.nodes import node_id_of
from tests.apps import append_only_file, written_size
from tests.chaos.apps.server import value
from tests.chaos.proxy import Proxy
from tests.cli.conftest import DEADLINE, Commands, Process
from tests.conftest import PREFIX, keys_of

APPS = Path(__file__).parent / "apps"

#: Seconds: short, so that nobody waits long for a lease to lapse; long enough for processes that share a busy core.
LEASE = 2.0

#: Seconds of writes that a crash of Redis at work takes: within the second that ``everysec`` may lose.
MOMENT = 0.1

KEYS = Keys(PREFIX)

#: Of a hundred requests and answers, so many are delayed, lost, cut or late in bad weather.
WEATHER = 0.01


@dataclass(frozen=True)
class Disturbance:
    """What may happen to the servers, or on the way to them.

    Attributes:
        what: as the soak counts it.
        weight: how often it comes, as compared with the others.
        happen: does it; returns what else is to be counted.
        forgets: whether it may cost Redis its last writes: then all processes must be well before and after it.
    """

    what: str
    weight: int
    happen: Callable[[], Mapping[str, int]]
    forgets: bool = False


class Lab:
    """Processes, server and proxy of one test, as a context manager; at its end they are gone.

    Args:
        folder: everything is kept there.
        binary: the server to start; None starts the bundled one.
        seed: of the proxy's weather.

    Attributes:
        admin: a client that bypasses the proxy.
    """

    def __init__(self, folder: Path, binary: Path | None = None, seed: int = 0) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.server = EmbeddedServer(data=self.data, binary=binary)
        self.server.start()
        self.admin: Any = redis_py.Redis.from_url(self.server.url, socket_timeout=10)
        assert self.admin.config_get("appendonly", "appendfsync") == {"appendonly": "yes", "appendfsync": "everysec"}
        self.proxy = Proxy(self.server.port, seed)
        (folder / "apps").mkdir()
        (folder / "output").mkdir()
        self.commands = Commands(folder / "apps", folder / "output")
        self.commands.env.update(BROKERFL_REDIS_URL=self.proxy.url, BROKERFL_PREFIX=PREFIX, BROKERFL_APP_DIR=str(APPS))

    def __enter__(self) -> "Lab":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.commands.kill()
        self.proxy.close()
        self.admin.close()
        self.server.stop()

    # Processes.

    def node(self, name: str, *options: str, state: str = "") -> Process:
        """Start the node ``name``; its state directory is called like it, or ``state``."""
        config = "--node-config", f"name={name!r}"
        folder = "--state-dir", str(self.folder / "state" / (state or name))
        return self.commands.start(
            "brokerfl-node", "client:app", "--name", name, *config, *folder, "--lease", str(LEASE), *options
        )

    def nodes(self, count: int, *options: str) -> dict[str, Process]:
        """Start nodes that are called ``n0``, ``n1``, …, and wait until they serve and Redis' file knows them.

        A Redis that was killed before would not know its own identity either: it would have lost everything.
        """
        started = {name: self.node(name, *options) for name in (f"n{number}" for number in range(count))}
        for node in started.values():
            node.wait_for("serves client:app")
        self.file_size()
        return started

    def run(self, *options: str, app: str = "app", **config: int | float | str) -> Process:
        """Start a ServerApp, with this run config, and wait until its run is there."""
        config["result"] = str(self.folder / str(config.get("result", "result")))
        texts = ("--run-config", " ".join(f"{key}={value!r}" for key, value in config.items()))
        process = self.commands.start("brokerfl-server", f"server:{app}", *texts, "--lease", str(LEASE), *options)
        process.wait_for("Run .* started")
        return process

    def resume(self, run: str, *options: str, app: str = "app") -> Process:
        """Start a ServerApp that takes a run up again."""
        return self.commands.start("brokerfl-server", f"server:{app}", "--resume", run, "--lease", str(LEASE), *options)

    def open_gates(self, *names: str, message: int = 1) -> None:
        """Let these nodes go on with their first message, or with another one."""
        for name in names:
            self.commands.write(f"{name}.gate.{message}", "")

    # Disturbances, for the soak.

    def disturbances(self, chance: Random) -> list[Disturbance]:
        """What may happen, as ``chance`` has it."""
        return [
            Disturbance("all connections cut", 4, self._cut),
            Disturbance("all connections stalled", 1, lambda: self._stall(chance.uniform(0.0, 9.0))),
            Disturbance("Redis killed", 2, lambda: self._crash(chance.choice((0.0, 4.0))), forgets=True),
        ]

    def _cut(self) -> Mapping[str, int]:
        self.proxy.cut()
        return {}

    def _stall(self, seconds: float) -> Mapping[str, int]:
        self.proxy.stall()
        time.sleep(seconds)
        self.proxy.release()
        return {}

    def _crash(self, patience: float) -> Mapping[str, int]:
        return {"Redis forgot": 1} if self.crash_redis_at_work(patience) else {}

    def set_weather(self, is_bad: bool) -> None:
        """From now on requests and answers suffer at random, or no more."""
        self.proxy.weather = WEATHER if is_bad else 0.0

    def faults(self) -> int:
        """How often they did."""
        return sum(self.proxy.faults.values())

    # Redis.

    def kill_redis(self) -> None:
        """kill -9. Nothing answers behind the proxy then."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def restart_redis(self) -> None:
        """Start it again on what its file holds."""
        self.server.stop()
        self.server.start()

    def calls(self, command: str) -> int:
        """How often the server was given a command."""
        return int(self.admin.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def file_size(self) -> int:
        """Bytes of the append-only file; all that was acknowledged before is within them."""
        return written_size(self.admin, self.data)

    def crash_redis(self, size: int) -> None:
        """kill -9, and its file keeps only so many bytes: a power cut may do that within the second of ``everysec``."""
        self.kill_redis()
        os.truncate(append_only_file(self.data), size)
        self.restart_redis()

    def crash_redis_at_work(self, patience: float = 10.0) -> list[str]:
        """As `crash_redis`, as soon as an inbox or outbox has an entry that the file is not to keep.

        Args:
            patience: seconds after which it dies all the same.

        Returns:
            The inboxes and outboxes that lost entries, or are gone: those of which a client had seen a later entry.
        """
        self.admin.config_set("auto-aof-rewrite-percentage", 0)  # until the restart the file stays the same
        until = time.monotonic() + patience
        while True:
            size = self.file_size()
            before = last_entries(self.admin)
            time.sleep(MOMENT)
            seen = last_entries(self.admin)
            if any(before.get(key, (0, 0)) < entry for key, entry in seen.items()) or time.monotonic() >= until:
                break
        self.kill_redis()
        self.proxy.down()
        os.truncate(append_only_file(self.data), size)
        self.restart_redis()
        kept = last_entries(self.admin)
        self.proxy.up()
        return [key for key, entry in seen.items() if kept.get(key, (0, 0)) < entry]

    # The books.

    def executions(self, name: str, run: str) -> list[str]:
        """Ids of the messages of a run that a node began to execute, in order."""
        file = self.folder / "apps" / f"{name}.executions"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split()[1] for line in lines if line.split()[0] == run]

    def results(self, file: str = "result") -> list[dict[str, Any]]:
        """What ServerApps wrote at their end."""
        path = self.folder / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ledger(self, run: str) -> list[str]:
        """Ids of the messages that are open or not settled."""
        return [field.decode() for field in self.admin.hkeys(KEYS.ledger(int(run)))]

    def keys_of(self, run: str) -> set[str]:
        """Every key that has the run in its name, and the fields of it in the hashes of nodes."""
        keys = {key.decode() for key in self.admin.scan_iter(count=1000)}
        hashes = {key for key in keys if key.endswith(":runs") and self.admin.type(key) == b"hash"}
        return set(keys_of(self.admin, run)) | {key for key in hashes if self.admin.hexists(key, run)}


def last_entries(client: Any) -> dict[str, tuple[int, ...]]:
    """The last entry's id of every inbox and outbox of a server."""
    keys = [key for key in client.scan_iter(count=1000) if b":in:" in key or b":out:" in key]
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.xinfo_stream(key)
    found = zip(keys, pipe.execute(raise_on_error=False), strict=True)
    return {
        key.decode(): tuple(map(int, info["last-generated-id"].split(b"-")))
        for key, info in found
        if isinstance(info, dict)
    }


def expected(*folded: int) -> dict[str, Any]:
    """The result of a run, computed centrally, in which node 0 was sent so many integers, node 1 so many, …"""
    total = 0
    for index, rounds in enumerate(folded):
        running = 0
        for number in range(1, rounds + 1):
            running += value(number, index)
            total += running
    return {"sum": total, "errors": 0, "folded": list(folded), "counts": list(folded)}


def node_key(name: str) -> int:
    """The id of the node ``name``."""
    return node_id_of(PREFIX, name)


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` is true, and fail after a while."""
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, f"never: {what}"
        time.sleep(0.02)


def exit_code(process: Process) -> int | None:
    """The code a process ended with; None while it runs."""
    return process._process.poll()
