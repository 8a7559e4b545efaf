"""What an operator of Redis sees: every command as MONITOR shows it, and everything that is stored."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis


class Spy:
    """What was seen, as bytes."""

    def __init__(self, admin: Redis) -> None:
        self._admin = admin
        options = admin.connection_pool.connection_kwargs
        self._socket = socket.create_connection((options["host"], options["port"]))
        self._socket.sendall(b"MONITOR\r\n")
        assert self._socket.recv(5) == b"+OK\r\n"
        self._seen, self._stored = bytearray(), bytearray()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while data := self._socket.recv(65536):
            self._seen += data

    def look(self) -> None:
        """Note everything that is stored now."""
        for key in self._admin.scan_iter(count=1000):
            self._stored += b"\n".join([key, *_flat(_value(self._admin, key))])

    def end(self) -> None:
        """Stop watching: everything up to now was seen."""
        self._admin.echo("the end of this watch")
        until = threading.Event()
        for _ in range(1000):
            if b"the end of this watch" in self._seen:
                break
            until.wait(0.01)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def shown(self, *words: str) -> set[str]:
        """Which of these words, or bytes of arrays, were seen or stored."""
        everything = bytes(self._seen) + bytes(self._stored)
        return {word for word in words if word.encode() in everything}


def _value(admin: Redis, key: bytes) -> Any:
    match admin.type(key):
        case b"string":
            return admin.get(key)
        case b"hash":
            return admin.hgetall(key)
        case b"stream":
            return admin.xrange(key)
        case b"list":
            return admin.lrange(key, 0, -1)
        case b"set":
            return admin.smembers(key)
        case b"zset":
            return admin.zrange(key, 0, -1)
        case kind:
            raise AssertionError(f"{key!r} is a {kind!r}")


def _flat(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from _flat([*value, *value.values()])
    elif value is not None:
        for each in value:
            yield from _flat(each)


@contextmanager
def watching(admin: Redis) -> Iterator[Spy]:
    """Watch until the block ends."""
    spy = Spy(admin)
    try:
        yield spy
    finally:
        spy.end()
