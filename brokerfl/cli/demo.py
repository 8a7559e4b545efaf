"""`brokerfl demo`: two ServerApps train at once over five nodes, all real processes. Owns them and what is shown.

The apps are those of examples/digits; nothing here knows what they compute. Each ServerApp writes one JSON line per
round to its own file; progress and table are made from these.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from brokerfl.broker.connection import TLS, Connection
from brokerfl.broker.embedded import EmbeddedServer, die_with_parent
from brokerfl.broker.ending import stop_run
from brokerfl.broker.nodes import list_nodes
from brokerfl.broker.presence import online_nodes
from brokerfl.broker.runs import forget_registry, going_on
from brokerfl.cli.exits import Command
from brokerfl.cli.options import RedisOptions, redis_options
from brokerfl.cli.signals import handle, ignore
from brokerfl.common import BrokerflError, MissingExtra, RunNotFound

_NODES_LIMIT = 120.0
_OUTAGE_LIMIT = 10.0
_POLL = 0.1


@dataclass
class _Training:
    """One ServerApp of the demo and the rounds it has reported so far."""

    title: str
    config: str
    history: Path
    process: "subprocess.Popen[bytes] | None" = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0

    def update(self) -> None:
        """Read the lines added since the last call."""
        if not self.history.exists():
            return
        with self.history.open() as lines:
            lines.seek(self._read)
            while (line := lines.readline()).endswith("\n"):
                self.rounds.append(json.loads(line))
                self._read = lines.tell()


class _Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        self.number = number


@click.command(cls=Command)
@redis_options
@click.option("--rounds", default=25, show_default=True, type=click.IntRange(1, 1000), help="Rounds of each run.")
@click.option("--nodes", default=5, show_default=True, type=click.IntRange(1, 50), help="How many node processes.")
def demo(redis: RedisOptions, rounds: int, nodes: int) -> None:
    """Train two models at once over five nodes.

    Nodes and ServerApps are real processes, with only Redis between them: federated averaging on scikit-learn's
    handwritten digits, divided unevenly over the nodes. The demo starts an embedded server unless --redis or an
    environment variable says where Redis is. It cleans up when it ends or is interrupted.
    """
    for package in ("numpy", "sklearn"):
        if find_spec(package) is None:
            raise MissingExtra(f"the demo needs {package}: pip install 'brokerfl[demo]'")
    handle(_interrupt)
    source = click.get_current_context().get_parameter_source
    given = any(source(name) is not click.core.ParameterSource.DEFAULT for name in ("redis", "redis_file"))
    console = Console()
    try:
        with ExitStack() as stack:
            _Demo(console, stack, redis if given else None, redis.prefix, nodes, rounds).run()
    except _Interrupted as interrupted:
        console.print("Interrupted; everything that was started has been stopped.")
        sys.exit(128 + interrupted.number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    ignore()  # let the clean-up finish
    raise _Interrupted(number)


class _Demo:
    """The demo, step by step; ``stack`` cleans up everything that is started."""

    def __init__(
        self, console: Console, stack: ExitStack, redis: RedisOptions | None, prefix: str, nodes: int, rounds: int
    ) -> None:
        self._console = console
        self._stack = stack
        self._nodes = nodes
        self._rounds = rounds
        self._prefix = f"{prefix}-demo-{secrets.token_hex(4)}"
        self._folder = Path(tempfile.mkdtemp(prefix="brokerfl-demo-"))
        stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._arguments: list[str] = []
        self._partitions: dict[str, str] = {}
        self._connection = self._connect(redis)
        stack.callback(self._clean)

    def run(self) -> None:
        started = time.monotonic()
        self._start_nodes()
        trainings = [
            self._training("softmax", "lr=0.5 local-epochs=5"),
            self._training("mlp", "lr=0.1 local-epochs=5"),
        ]
        for training in trainings:
            training.process = self._stack.enter_context(
                self._process(
                    f"server-{training.title}",
                    [
                        "server",
                        "server:app",
                        "--run-config",
                        f"{training.config} history={json.dumps(str(training.history))}",
                    ],
                )
            )
        self._watch(trainings)
        self._report(trainings, time.monotonic() - started)

    # Redis and processes.

    def _connect(self, redis: RedisOptions | None) -> Connection:
        if redis is None:
            self._console.print("Starting an embedded Valkey server")
            server = self._stack.enter_context(EmbeddedServer())
            redis = RedisOptions(server.url, self._prefix, False, TLS())
        tls = redis.tls
        # The URL may hold a password: it goes through a file, which ps does not show.
        url_file = self._folder / "redis-url"
        url_file.touch(mode=0o600)
        url_file.write_text(redis.url)
        self._arguments = ["--redis-file", str(url_file), "--prefix", self._prefix]
        self._arguments += ["--insecure"] if redis.insecure else []
        for option, path in (("--ca-cert", tls.ca_cert), ("--cert", tls.cert), ("--key", tls.key)):
            self._arguments += [option, path] if path else []
        self._arguments += ["--redis-credentials", redis.credentials] if redis.credentials else []
        connection = replace(redis, prefix=self._prefix).connect()
        self._console.print(f"Redis at {connection.url}")
        return connection

    def _clean(self) -> None:
        """Leave nothing on a Redis that is not ours: not a run that was interrupted, not the registry."""
        self._connection.wait_until_up(time.monotonic() + _OUTAGE_LIMIT)  # another server may be the primary by now
        for run_id in going_on(self._connection):
            with suppress(RunNotFound):
                stop_run(self._connection, run_id)
        forget_registry(self._connection)

    @contextmanager
    def _process(self, name: str, arguments: Sequence[str]) -> "Iterator[subprocess.Popen[bytes]]":
        """Run one of our commands until the block ends; its output goes to a file."""
        command, app, *options = arguments
        program = [sys.executable, "-m", "brokerfl.cli.start", command, app, "--app-dir", str(_apps()), *options]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*program, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    name: value for name, value in os.environ.items() if name != "BROKERFL_LOG_FILE"
                },  # for one process
                preexec_fn=die_with_parent,
            )
        try:
            yield process
        finally:
            _end(process)

    def _start_nodes(self) -> None:
        processes = []
        for index in range(self._nodes):
            config = f"partition-id={index} num-partitions={self._nodes}"
            arguments = [
                "node",
                "client:app",
                "--label",
                f"partition={index}",
                "--node-config",
                config,
                "--grace",
                "1",
            ]
            processes.append(self._stack.enter_context(self._process(f"node-{index}", arguments)))
        until = time.monotonic() + _NODES_LIMIT
        what = f"Starting {self._nodes} node processes (most of the time is the import of scikit-learn)"
        with self._console.status(what) as status:
            while (ready := len(online_nodes(self._connection))) < self._nodes:
                status.update(f"{what}: {ready} of {self._nodes} ready")
                self._check(processes)
                if time.monotonic() > until:
                    raise BrokerflError(f"only {ready} of {self._nodes} nodes came online in {_NODES_LIMIT:g} s")
                time.sleep(_POLL)
        self._partitions = {str(node.node_id): node.labels["partition"] for node in list_nodes(self._connection)}
        self._console.print(f"{ready} of {self._nodes} nodes ready")

    def _check(self, processes: "Sequence[subprocess.Popen[bytes]]") -> None:
        for process in processes:
            if process.poll() not in (None, 0):
                raise BrokerflError(
                    f"a process of the demo ended with exit code {process.returncode}:\n{self._last_words()}"
                )

    def _last_words(self) -> str:
        logs = sorted(self._folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join(logs[-1].read_text(errors="replace").splitlines()[-15:]) if logs else ""

    def _training(self, model: str, config: str) -> _Training:
        text = f'model="{model}" num-rounds={self._rounds} min-nodes={self._nodes} {config}'
        return _Training(model, text, self._folder / f"{model}.jsonl")

    # What is shown.

    def _watch(self, trainings: Sequence[_Training]) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            tasks = [progress.add_task(training.title, total=self._rounds, news="") for training in trainings]
            running = True
            while running:
                running = any(training.process and training.process.poll() is None for training in trainings)
                for training, task in zip(trainings, tasks, strict=True):
                    training.update()
                    _show(progress, task, training)
                self._check([training.process for training in trainings if training.process])
                time.sleep(_POLL if running else 0)

    def _report(self, trainings: Sequence[_Training], seconds: float) -> None:
        marks = sorted({1, *range(5, self._rounds + 1, 5), self._rounds})
        table = Table(title="Accuracy on held-out data, by round")
        table.add_column("run")
        for mark in marks:
            table.add_column(str(mark), justify="right")
        for training in trainings:
            by_round = {row["round"]: row["accuracy"] for row in training.rounds}
            table.add_row(training.title, *(f"{by_round[mark]:.3f}" if mark in by_round else "" for mark in marks))
        self._console.print(table)
        totals = Table(title="What travelled")
        for name in ("run", "rounds", "nodes that took part", "messages", "errors", "bytes", "seconds"):
            totals.add_column(name, justify="left" if name == "run" else "right")
        for training in trainings:
            totals.add_row(training.title, *self._totals(training.rounds))
        self._console.print(totals)
        self._console.print(f"Both runs shared the same {self._nodes} nodes; {seconds:.1f} s in all.")

    def _totals(self, rounds: Sequence[dict[str, Any]]) -> tuple[str, ...]:
        def total(name: str) -> Any:
            return sum(row[name] for row in rounds)

        nodes = sorted({int(self._partitions.get(node, -1)) for row in rounds for node in row["nodes"]})
        return (
            str(len(rounds)), " ".join(map(str, nodes)), f"{total('messages'):,}", str(total("errors")),
            f"{total('bytes'):,}", f"{total('seconds'):.1f}",
        )  # fmt: skip


def _show(progress: Progress, task: TaskID, training: _Training) -> None:
    if training.rounds:
        last = training.rounds[-1]
        news = f"accuracy {last['accuracy']:.3f} from {len(last['nodes'])} nodes"
        progress.update(task, completed=last["round"], news=news)


def _apps() -> Path:
    """Return the directory of the digits apps, in a checkout or in an installed package."""
    folder = Path(__file__).parent.parent / "examples" / "digits"
    if not (folder / "client.py").exists():
        raise BrokerflError(f"the apps of the demo are not installed: {folder} is missing")
    return folder


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
