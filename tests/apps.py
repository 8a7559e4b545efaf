"""Apps and helpers that many tests use."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from brokerfl.broker.connection import Connection
from brokerfl.client import ClientApp
from brokerfl.common import Array, ConfigsRecord, Context, Message, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.server import Driver
from brokerfl.testing import Federation
from brokerfl.view.overview import RunView, read_overview
from tests.conftest import Backend


def echo_app() -> ClientApp:
    """A ClientApp whose three functions send the content back."""
    app = ClientApp()

    def echo(message: Message, context: Context) -> Message:
        return message.create_reply(message.content)

    app.train()(echo)
    app.evaluate()(echo)
    app.query()(echo)
    return app


def number(value: int) -> RecordSet:
    """A RecordSet that holds one number."""
    return RecordSet(metrics_records={"m": MetricsRecord({"n": value})})


def text(**values: str) -> RecordSet:
    """A RecordSet that holds some text."""
    return RecordSet(configs_records={"c": ConfigsRecord(dict(values))})


def number_in(message: Message) -> int:
    """What `number` put there."""
    value = message.content.metrics_records["m"]["n"]
    assert isinstance(value, int)
    return value


def eventually(condition: Callable[[], object], within: float = 10.0) -> None:
    """Wait until ``condition`` is true; fail when it is not ``within`` seconds."""
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, f"not within {within} s"
        threading.Event().wait(0.01)


@contextmanager
def waiting(action: object) -> Iterator[threading.Thread]:
    """Another thread of the app waits while the block runs, and until it has what it waits for."""
    thread = threading.Thread(target=action)  # type: ignore[arg-type]
    thread.start()
    yield thread
    thread.join(20)
    assert not thread.is_alive()


def runs_seen(connection: Connection) -> list[RunView]:
    """The runs as an operator sees them, the newest first."""
    return [*read_overview(connection).runs]


class Clock:
    """Takes the place of the module ``time`` in another module: it goes on when it is told to, or slept on.

    Attributes:
        now: what `monotonic` and `time` return, in seconds.
        slept: the pauses.
    """

    def __init__(self) -> None:
        self.now = time.time()
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """Now."""
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        """Go on by so many seconds."""
        self.slept.append(seconds)
        self.now += seconds


def append_only_file(data: Path) -> Path:
    """The file that a server with this data directory appends to."""
    return max(data.glob("appendonlydir/*.incr.aof"), key=lambda file: int(file.name.split(".")[2]))


def written_size(admin: Redis, data: Path) -> int:
    """Bytes of the append-only file; all that was acknowledged before is within them.

    While an fsync is under way, ``everysec`` acknowledges what it keeps in memory.
    """
    eventually(lambda: admin.info("persistence")["aof_buffer_length"] == 0, within=50)
    return append_only_file(data).stat().st_size


def contents_of(admin: Redis, keys: Iterable[bytes | str]) -> dict[bytes | str, object]:
    """What keys hold. Of a stream entries and groups: its dump also tells when consumers looked last (since 7.2)."""
    return {key: _entries_of(admin, key) if admin.type(key) == b"stream" else admin.dump(key) for key in keys}


def _entries_of(admin: Redis, key: bytes | str) -> object:
    groups = [(group["name"], group["pending"], group["last-delivered-id"]) for group in admin.xinfo_groups(key)]
    return admin.xrange(key), groups


@contextmanager
def federation(backend: Backend, app: ClientApp | None = None, nodes: int = 2) -> Iterator[Federation]:
    """Nodes in threads on a backend."""
    with Federation(app or echo_app(), nodes, connect=backend.connect) as made:
        yield made


@contextmanager
def driving(backend: Backend, **options: object) -> Iterator[Driver]:
    """A Driver whose run ends with the block."""
    driver = Driver(backend.connect(), "server:app", **options)  # type: ignore[arg-type]
    try:
        yield driver
    finally:
        driver.end()


class Gate:
    """A ClientApp that waits: tells that it has begun, and goes on when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.calls = 0
        self.app = ClientApp()

        @self.app.train()
        def train(message: Message, context: Context) -> Message:
            self.calls += 1
            self.begun.release()
            assert self.go.wait(20)
            return message.create_reply(message.content)


class Seen:
    """A ClientApp that keeps the contents it is given, and replies with their number."""

    def __init__(self) -> None:
        self.contents: list[RecordSet] = []
        self.app = ClientApp()

        def see(message: Message, context: Context) -> Message:
            self.contents.append(message.content)
            return message.create_reply(number(len(self.contents)))

        self.app.train()(see)
        self.app.evaluate()(see)


class Counter:
    """A ClientApp that replies with how many messages its state has counted.

    Attributes:
        calls: how often it was called, whatever became of it.
        begun: released by each call.
        go: each call waits for it; set from the start.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.app = ClientApp()

        @self.app.train()
        def train(message: Message, context: Context) -> Message:
            """Count; reply with the count, and a payload of as many bytes as the message says."""
            self.calls += 1
            self.begun.release()
            assert self.go.wait(20)
            count = self.count(context)
            size = number_in(message)
            payload = {"p": ParametersRecord({"a": Array("uint8", [size], "numpy.ndarray", bytes(size))})}
            return message.create_reply(RecordSet(payload if size else {}, {"m": MetricsRecord({"n": count})}))

        @self.app.train("raise")
        def fail(message: Message, context: Context) -> Message:
            """Count, and raise."""
            self.count(context)
            context.state.parameters_records["junk"] = ParametersRecord(
                {"a": Array("uint8", [1], "numpy.ndarray", b"x")}
            )
            raise ValueError("after it had counted")

    def count(self, context: Context) -> int:
        record = context.state.metrics_records.setdefault("m", MetricsRecord({"n": 0, "list": [0]}))
        record["n"] = int(record["n"]) + 1  # type: ignore[arg-type]
        record["list"].append(record["n"])  # type: ignore[union-attr,arg-type]
        assert record["list"] == list(range(record["n"] + 1))  # type: ignore[arg-type]
        return record["n"]


class Bench:
    """A ClientApp that counts its messages in its state, and waits in the middle of those that the test holds.

    Attributes:
        executed: the numbers of the messages, by run, in the order of their executions.
        begun: released whenever one begins.
        held: by run, what its messages wait for.
        most: the most messages of one run that were being executed at once.
    """

    def __init__(self) -> None:
        self.executed: dict[int, list[int]] = {}
        self.begun = threading.Semaphore(0)
        self.held: dict[int, threading.Event] = {}
        self.barrier: threading.Barrier | None = None
        self.most = 0
        self.cancelled: dict[int, list[bool]] = {}
        self._inside: dict[int, int] = {}
        self._lock = threading.Lock()
        self.app = ClientApp()
        self.app.train()(self.train)
        self.app.train("raise")(self.fail)

    def hold(self, driver: Driver) -> threading.Event:
        """Let the messages of a run wait for the event that is returned."""
        return self.held.setdefault(driver.run.run_id, threading.Event())

    def train(self, message: Message, context: Context) -> Message:
        """Count, and reply with the count."""
        run = context.run_id
        with self._lock:
            self._inside[run] = self._inside.get(run, 0) + 1
            self.most = max(self.most, self._inside[run])
            self.executed.setdefault(run, []).append(number_in(message))
        self.begun.release()
        if self.barrier is not None:
            self.barrier.wait(20)
        if run in self.held:
            assert self.held[run].wait(20)
        self.cancelled.setdefault(run, []).append(context.cancelled())
        count = context.state.metrics_records.setdefault("m", MetricsRecord({"n": 0}))
        count["n"] = int(count["n"]) + 1  # type: ignore[arg-type]
        with self._lock:
            self._inside[run] -= 1
        return message.create_reply(number(int(count["n"])))  # type: ignore[arg-type]

    def fail(self, message: Message, context: Context) -> Message:
        """Count, and raise."""
        self.train(message, context)
        raise ValueError("after it had counted")
