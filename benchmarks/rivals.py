"""The rival: bare redis-py doing the same work as well as it can be done. No ledger, no fence, no records.

Small messages: a stream for each node, pushed to in one pipeline; nodes read up to `BATCH` at once and publish their
answers in one pipeline with XACK and XDEL; one stream of replies, read as it grows.

Models: chunks of 1 MiB, SET once by their sha256 and named in the message; nodes GET one after the other, check each
hash, and put their answer as entries of a data stream, hashed again and named in the reply; the collector reads, checks
and deletes them. redis-py's Python packer with memoryviews copies nothing on the way out. Models of at most `INLINE`
bytes travel in the message.

Owns those commands. It must not know brokerfl.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from types import TracebackType
from typing import Any, Self

import numpy as np
import redis
from redis.connection import PythonRespSerializer

from benchmarks.measure import Round
from benchmarks.models import Floats, check_answer, new_model
from benchmarks.processes import Processes

CHUNK = 1024 * 1024
WINDOW = 16
INLINE = 64 * 1024
BATCH = 100

_DIGEST = 32
_LIMIT = 120.0
_OUT = "bare:out"

Fields = dict[bytes, bytes]


def connect(url: str, *, large: bool = False) -> Any:
    """Return a client; a ``large`` one sends memoryviews without copying them."""
    client: Any = redis.Redis.from_url(url, socket_timeout=10)
    if large:
        packer = PythonRespSerializer(6000, client.get_encoder().encode)
        client.connection_pool.connection_kwargs["command_packer"] = packer
    return client


def _windows(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[at : at + WINDOW] for at in range(0, len(items), WINDOW))


def _chunks(array: Floats) -> list[memoryview]:
    data = memoryview(array.data).cast("B")
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]


def _send(client: Any, array: Floats, command: Callable[[Any, bytes, memoryview], None]) -> tuple[bytes, list[bytes]]:
    """Hash and send an array in windows; return its digests in one piece, and what Redis answered."""
    digests, answers = [], []
    for window in _windows(_chunks(array)):
        with client.pipeline(transaction=False) as pipe:
            for chunk in window:
                digests.append(sha256(chunk).digest())
                command(pipe, digests[-1], chunk)
            answers += pipe.execute()
    return b"".join(digests), answers


def _receive(chunks: Iterable[bytes], digests: bytes, size: int) -> Floats:
    """Check chunks and put them together."""
    array = np.empty(size // 4, np.float32)
    place = memoryview(array.data).cast("B")
    for number, chunk in enumerate(chunks):
        if sha256(chunk).digest() != digests[number * _DIGEST : (number + 1) * _DIGEST]:
            raise RuntimeError("a chunk does not have its hash")
        place[number * CHUNK : number * CHUNK + len(chunk)] = chunk
    return array


def _blob(digest: bytes) -> str:
    return f"bare:blob:{digest.hex()}"


# The node.


def _serve(url: str, name: str, shift: int) -> None:
    client, large = connect(url), connect(url, large=True)
    inbox = f"bare:in:{name}"
    client.xgroup_create(inbox, "g", id="0", mkstream=True)
    while True:
        for _, entries in client.xreadgroup("g", name, {inbox: ">"}, count=BATCH, block=2000) or ():
            answers = [_answer(large, name, shift, fields) for _, fields in entries]
            ids = [entry_id for entry_id, _ in entries]
            with client.pipeline(transaction=False) as pipe:
                for answer in answers:
                    pipe.xadd(_OUT, answer)
                pipe.xack(inbox, "g", *ids)
                pipe.xdel(inbox, *ids)
                pipe.execute()


def _answer(client: Any, name: str, shift: int, fields: Fields) -> Any:
    if b"echo" in fields:
        return fields
    if b"model" in fields:
        return {b"model": (np.frombuffer(fields[b"model"], np.float32) + np.float32(shift)).tobytes()}
    digests = fields[b"digests"]
    model = _receive(_get(client, digests), digests, int(fields[b"size"]))
    digests, entries = _send(
        client, model + np.float32(shift), lambda pipe, _, chunk: pipe.xadd(f"bare:data:{name}", {"c": chunk})
    )
    return {b"name": name, b"size": fields[b"size"], b"digests": digests, b"entries": b" ".join(entries)}


def _get(client: Any, digests: bytes) -> Iterator[bytes]:
    # One after the other: a pipeline of 16 takes twice as long, for its answers are in memory together.
    for at in range(0, len(digests), _DIGEST):
        yield client.get(_blob(digests[at : at + _DIGEST]))


# The collector.


class Bare:
    """Node processes that need nothing but redis-py; they end with the ``with`` block.

    Args:
        url: of the server.
        size: how many nodes.
    """

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._names = [str(number) for number in range(1, size + 1)]
        self._processes = Processes()
        self._client, self._large = connect(url), connect(url, large=True)
        self._cursor = b"0"

    def __enter__(self) -> Self:
        for name in self._names:
            self._processes.start(_serve, self._url, name, int(name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.__exit__(kind, error, trace)

    @property
    def pids(self) -> list[int]:
        """The process ids of the nodes."""
        return self._processes.pids

    def wait(self) -> None:
        """Wait until all nodes are there.

        Raises:
            RuntimeError: one died.
            TimeoutError: they were not in time.
        """
        until = time.monotonic() + _LIMIT
        while self._client.exists(*(f"bare:in:{name}" for name in self._names)) < len(self._names):
            self._processes.check()
            if time.monotonic() > until:
                raise TimeoutError("the bare nodes did not start in time")
            time.sleep(0.02)

    def _push(self, messages: Iterable[tuple[str, Any]]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for name, fields in messages:
                pipe.xadd(f"bare:in:{name}", fields)
            pipe.execute()

    @contextmanager
    def _replies(self, count: int) -> Iterator[Iterator[Fields]]:
        """Give replies as they come; delete them in the end."""
        seen: list[bytes] = []
        yield self._read(count, seen)
        self._client.xdel(_OUT, *seen)

    def _read(self, count: int, seen: list[bytes]) -> Iterator[Fields]:
        while len(seen) < count:
            for _, entries in self._client.xread({_OUT: self._cursor}, block=2000) or ():
                for self._cursor, fields in entries:
                    seen.append(self._cursor)
                    yield fields

    def empty_round(self, nodes: int) -> Round:
        """An empty message to each node, and back."""
        return self._echo_round([(name, {b"echo": b""}) for name in self._names[:nodes]])

    def small_round(self, nodes: int, messages: int) -> Round:
        """Small messages of different content, evenly to all nodes, and back."""
        arrays = [new_model(400) for _ in range(messages)]
        return self._echo_round(
            [(self._names[index % nodes], {b"echo": array.tobytes()}) for index, array in enumerate(arrays)]
        )

    def _echo_round(self, messages: list[tuple[str, Any]]) -> Round:
        def round_() -> float:
            started = time.perf_counter()
            self._push(messages)
            with self._replies(len(messages)) as replies:
                answers = [np.frombuffer(fields[b"echo"], np.float32) for fields in replies]
            assert len(answers) == len(messages)
            return time.perf_counter() - started

        return round_

    def model_round(self, nodes: int, size: int) -> Round:
        """A new model to all nodes, and another one back from each."""
        names = self._names[:nodes]

        def round_() -> float:
            model, shifts = new_model(size), set()
            started = time.perf_counter()
            digests = self._broadcast(model, names)
            with self._replies(len(names)) as replies:
                for fields in replies:
                    shifts.add(check_answer(model, self._array(fields)))
            if digests:
                self._client.unlink(*(_blob(digests[at : at + _DIGEST]) for at in range(0, len(digests), _DIGEST)))
            assert shifts == set(map(int, names))
            return time.perf_counter() - started

        return round_

    def _broadcast(self, model: Floats, names: Sequence[str]) -> bytes:
        """Send a model to nodes; return the digests of its chunks, none where it travels in the messages."""
        if model.nbytes <= INLINE:
            fields: Any = {b"model": model.tobytes()}
            self._push((name, fields) for name in names)
            return b""
        digests, _ = _send(self._large, model, lambda pipe, digest, chunk: pipe.set(_blob(digest), chunk))
        fields = {b"size": model.nbytes, b"digests": digests}
        self._push((name, fields) for name in names)
        return digests

    def _array(self, fields: Fields) -> Floats:
        if b"model" in fields:
            return np.frombuffer(fields[b"model"], np.float32)
        stream, entries = f"bare:data:{fields[b'name'].decode()}", fields[b"entries"].split()
        array = _receive(self._entries(stream, entries), fields[b"digests"], int(fields[b"size"]))
        self._client.xdel(stream, *entries)
        return array

    def _entries(self, stream: str, entries: Sequence[bytes]) -> Iterator[bytes]:
        for entry in entries:
            [(_, fields)] = self._large.xrange(stream, entry, entry)
            yield fields[b"c"]
