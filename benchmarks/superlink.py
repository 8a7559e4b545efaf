"""The two sides of the comparison with Flower: a SuperLink with SuperNodes, and Valkey with brokerfl's nodes.

Owns the commands, as a user would type them, how long two runs take and how much memory they hold, and that all
processes end, no matter who started them. It must not know how the figures are used.
"""

import json
import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from benchmarks.federation import LIMIT
from brokerfl.broker.connection import connect
from brokerfl.broker.embedded import EmbeddedServer, die_with_parent, free_port
from brokerfl.broker.presence import online_nodes

APP = Path(__file__).parent / "flower_app"

NODES = 5
RUNS = 2
ROUNDS = 3

#: Seconds that two runs may take.
_RUNS_LIMIT = 180.0

#: Seconds between two looks at processes.
_INTERVAL = 0.1

#: The environment variable by which the processes of a side are found: Flower's start others, in sessions of their own.
_MARK = "BENCHMARK_SIDE"

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Outcome:
    """What two runs at once came to.

    Attributes:
        seconds: from their submission until main of both had returned.
        rounds: seconds of each round of both.
        memory: the most bytes that all processes of the side held at once.
    """

    seconds: float
    rounds: tuple[float, ...]
    memory: int


class Commands:
    """Commands installed next to this Python, and what they start: all of it ends with the ``with`` block.

    Args:
        folder: for what they write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = f"{_MARK}={folder}"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, program: str, *arguments: str) -> None:
        """Start one; its output goes to a file.

        Args:
            name: of that file, and of its FLWR_HOME.
            program: a command.
            arguments: its arguments.
        """
        with self._log(name).open("wb") as output:
            self._started[name] = subprocess.Popen(
                [find_command(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(name),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def home(self, name: str) -> Path:
        """Return the FLWR_HOME of a command: one each, as if each had its own machine."""
        return self._folder / name

    def _environment(self, name: str) -> dict[str, str]:
        """Return ours without settings of the user's, which would be measured with the rest."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "BROKERFL_"))}
        path = os.pathsep.join((_scripts(), os.environ.get("PATH", os.defpath)))  # Flower's start each other by name
        mine = {"PATH": path, "FLWR_HOME": str(self.home(name)), _MARK: str(self._folder)}
        no_network = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        no_proxy = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return {**kept, **mine, **no_network, **no_proxy}

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def has_said(self, name: str, *words: str) -> bool:
        """Return whether all of ``words`` are in the output of a command."""
        text = self._log(name).read_text(errors="replace")
        return all(each in text for each in words)

    def until(self, condition: Callable[[], bool], limit: float, what: str) -> None:
        """Wait for a condition.

        Raises:
            RuntimeError: a command failed, or the condition was not met in ``limit`` seconds.
        """
        deadline = time.monotonic() + limit
        while not condition():
            failed = {name: process.returncode for name, process in self._started.items() if process.poll()}
            if failed or time.monotonic() > deadline:
                codes = ", ".join(f"{name} ended with exit code {code}" for name, code in failed.items())
                why = codes or f"it takes longer than {limit:g} s"
                raise RuntimeError(f"{what}: {why}\n{self._last_words()}")
            time.sleep(_INTERVAL)

    def _last_words(self) -> str:
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(
            f"{log.stem}: {line}" for log in logs for line in log.read_text(errors="replace").splitlines()[-12:]
        )

    def pids(self) -> list[int]:
        """Return the processes that were started, by us or by one of them, and that live."""
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if self._is_ours(folder)]

    def _is_ours(self, folder: Path) -> bool:
        with suppress(OSError):  # it ended, or is another user's
            return self._mark.encode() in (folder / "environ").read_bytes().split(b"\0")
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_INTERVAL)
        for process in self._started.values():
            process.wait()


class Side(ABC):
    """Nodes that wait for runs, and what carries their messages, until the ``with`` block ends."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # what cannot be started ends what was
            prefix = f"brokerfl-{type(self).__name__.lower()}-"
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
            self._commands = stack.enter_context(Commands(self._folder))
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @abstractmethod
    def _open(self, stack: ExitStack) -> None:
        """Start everything, and wait until all nodes are ready."""

    @abstractmethod
    def _submit(self, name: str, config: str) -> None:
        """Start a run of the app with this run config."""

    def _pids(self) -> list[int]:
        return self._commands.pids()

    def run(self, name: str, size: int) -> Outcome:
        """Run the app twice at once.

        Args:
            name: of these runs.
            size: bytes of the model.

        Raises:
            RuntimeError: a command failed, or it took too long.
        """
        names = [f"{name}-{number}" for number in range(RUNS)]
        files = [self._folder / f"{each}.jsonl" for each in names]
        idle = len(self._pids())
        memory: list[int] = []

        def are_finished() -> bool:
            memory.append(sum(map(_own_memory, self._pids())))
            return all(map(_is_finished, files))

        submitted = time.time()
        for each, file in zip(names, files, strict=True):
            self._submit(each, f'timings="{file}" num-nodes={NODES} num-server-rounds={ROUNDS} model-bytes={size}')
        self._commands.until(are_finished, _RUNS_LIMIT, f"{self.name}: {name}")
        self._commands.until(lambda: len(self._pids()) <= idle, LIMIT, f"{self.name}: the end of {name}")
        notes = [note for file in files for note in _notes(file)]
        rounds = tuple(note["ended"] - note["started"] for note in notes if "round" in note)
        if len(rounds) != RUNS * ROUNDS:
            raise RuntimeError(f"{self.name}: {len(rounds)} rounds were made, not {RUNS * ROUNDS}")
        return Outcome(max(note.get("finished", 0.0) for note in notes) - submitted, rounds, max(memory))


class SuperLink(Side):
    """Flower's: a SuperLink that keeps its state in memory, and SuperNodes, all as they are by default."""

    name = "Flower"

    def _open(self, stack: ExitStack) -> None:
        port, *ports = (free_port() for _ in range(1 + NODES))
        self._address = f"127.0.0.1:{port}"
        serve = ("--insecure", "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation")
        self._commands.start("superlink", "flower-superlink", *serve)
        # A SuperNode that comes too early tries again later and later.
        self._commands.until(lambda: _listens(port), LIMIT, "the SuperLink does not answer")
        for node, own_port in enumerate(ports):
            self._commands.start(
                f"supernode-{node}", "flower-supernode", "--insecure", "--superlink", self._address,
                "--port", str(own_port), "--node-config", _node_config(node),
            )  # fmt: skip
        self._commands.until(self._is_ready, LIMIT, "the SuperNodes are not ready")

    def _is_ready(self) -> bool:
        has_said, executes = self._commands.has_said, "Starting Flower SuperExec"
        nodes = (has_said(f"supernode-{node}", "SuperNode ID", executes) for node in range(NODES))
        return has_said("superlink", executes) and all(nodes)

    def _submit(self, name: str, config: str) -> None:
        home = self._commands.home(name)
        home.mkdir()
        (home / "config.toml").write_text(f'[superlink.here]\naddress = "{self._address}"\ninsecure = true\n')
        self._commands.start(name, "flwr", "run", str(APP), "here", "--run-config", config)


class Brokerfl(Side):
    """Ours: an embedded Valkey that keeps nothing on disk, and nodes, all as they are by default."""

    name = "brokerfl"

    def _open(self, stack: ExitStack) -> None:
        self._server = stack.enter_context(EmbeddedServer())
        connection = connect(self._server.url)
        stack.callback(connection.close)
        for node in range(NODES):
            self._start(f"node-{node}", "brokerfl-node", "--node-config", _node_config(node))
        self._commands.until(lambda: len(online_nodes(connection)) == NODES, LIMIT, "the nodes are not ready")

    def _submit(self, name: str, config: str) -> None:
        self._start(name, "brokerfl-server", "--run-config", config)

    def _start(self, name: str, program: str, *options: str) -> None:
        self._commands.start(name, program, str(APP), "--redis", self._server.url, *options)

    def _pids(self) -> list[int]:
        return [*super()._pids(), self._server.pid]


def find_command(name: str) -> str:
    """Return the path of a command of this Python.

    Raises:
        RuntimeError: it is not there.
    """
    path = Path(_scripts(), name)
    if not path.exists():
        raise RuntimeError(f"{path} is missing: pip install 'brokerfl[flower,bench]' into this environment")
    return str(path)


def _scripts() -> str:
    return sysconfig.get_path("scripts")


def _node_config(node: int) -> str:
    return f"partition-id={node} num-partitions={NODES}"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _notes(file: Path) -> list[dict[str, Any]]:
    """Return what a ServerApp has noted so far."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _is_finished(file: Path) -> bool:
    return any("finished" in note for note in _notes(file))


def _own_memory(pid: int) -> int:
    """Return the bytes of a process that are its own: without files it has mapped, which all share that run them."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:  # it has ended
        return 0
    return (int(resident) - int(shared)) * _PAGE
