"""Apps and helpers that many tests use."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from brokerfl.broker.nodes import Registration
from brokerfl.client import ClientApp
from brokerfl.client.node import Node
from brokerfl.common import ConfigsRecord, Context, Message, MetricsRecord, RecordSet
from brokerfl.server import Driver
from brokerfl.testing import Federation
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
def serving(backend: Backend, name: str) -> Iterator[None]:
    """A named node that echoes, in a thread, until the block ends."""
    registration = Registration(backend.connect(), name)
    node = Node(echo_app(), registration._connection, registration)
    thread = threading.Thread(target=node.serve)
    thread.start()
    try:
        yield
    finally:
        node.stop()
        thread.join()


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
