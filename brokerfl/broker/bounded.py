"""The class of all sockets: redis-py's, with bounded waits and answers, and none of a server that is not to be asked.

Owns that no wait outlasts the `patience` of its thread, that an answer is cut off where it exceeds what its reader
allows, and what ends a socket. It must not know commands.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR, socket
from ssl import SSLSocket
from typing import Any

from redis.exceptions import InvalidResponse, RedisError, TimeoutError

from brokerfl.broker.failure import astray
from brokerfl.broker.patience import is_spent, spend, time_left


class OversizeError(Exception):
    """An answer was cut off, because it has more bytes than its reader allows.

    Attributes:
        head: how it began, as the server sent it, if no answer was awaited before it.
    """

    def __init__(self, head: bytes = b"") -> None:
        super().__init__("the answer has more bytes than are read")
        self.head = head


#: A timeout, and what redis-py raises if it makes nothing of an answer.
_FAILURES = (TimeoutError, ValueError, TypeError, LookupError, AttributeError)


def _check_patience() -> None:
    if is_spent():
        raise TimeoutError("it was silent until the time was up")


#: Bytes that redis-py receives at once: so much of what follows an answer may come with it.
_AT_ONCE = 64 * 1024

#: Bytes of an answer that was cut off that are remembered: the key and the id of an entry have fewer.
_HEAD = 4096


#: Bytes that are passed to the system at once. 1 MiB takes 0.25 ms in pieces of 512 KiB, 0.37 ms in those of 128 KiB.
#: With TLS a timeout applies to the whole piece, so that one must not be large for a slow link.
_PIECE, _TLS_PIECE = 512 * 1024, 128 * 1024


class _Metered:
    """A socket of the system that receives no more than its `limit`, and remembers how that began."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self._piece = _TLS_PIECE if isinstance(wrapped, SSLSocket) else _PIECE
        self._left: int | None = None
        self._head = b""
        self.settimeout = wrapped.settimeout

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def limit(self, most: int | None) -> None:
        """Raise `OversizeError` when an answer of more than ``most`` bytes is received from now on; None: never."""
        self._left, self._head = None if most is None else most + _AT_ONCE, b""

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all of it; the timeout applies to each part that the system takes, not to the whole."""
        if len(data) <= _TLS_PIECE:
            self.wrapped.sendall(data)
            return
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self.wrapped.send(rest[: self._piece]) :]

    def recv(self, *args: Any) -> Any:
        data = self.wrapped.recv(*args)
        if self._left is not None:
            self._count(data)
        return data

    def recv_into(self, buffer: Any, *args: Any) -> Any:
        size = self.wrapped.recv_into(buffer, *args)
        if self._left is not None:
            self._count(memoryview(buffer)[:size])
        return size

    def _count(self, data: bytes | memoryview) -> None:
        self._head += data[: _HEAD - len(self._head)]
        self._left = (self._left or 0) - len(data)
        if self._left < 0:
            raise OversizeError(self._head)


def bounded(kind: Any, went_astray: Callable[[], None] = lambda: None) -> Any:
    """Return a class of sockets like redis-py's, except in three ways.

    No wait of one outlasts the patience of the thread that uses it. Each wait counts for itself: an answer that comes
    in pieces may take longer.

    Answers can be limited.

    An answer of a server that is not the one to ask is raised as `AstrayError`, and closes the socket.

    Args:
        kind: redis-py's class.
        went_astray: called when a server was not the one to ask.
    """

    class Bounded(kind):  # type: ignore[misc]
        _called: Any
        _was_limited = True  # the socket's own timeout may be another one than `socket_timeout`

        #: Whether an answer was cut off here: that it is connected again is no sign of an outage.
        was_cut = False

        def limit(self, most: int | None) -> None:
            """Limit what is received from now on: see `_Metered.limit`."""
            if self._sock is not None:
                self._sock.limit(most)

        def _connect(self) -> Any:
            return _Metered(super()._connect())

        @property
        def socket_timeout(self) -> Any:
            return time_left(self._socket_timeout)

        @socket_timeout.setter
        def socket_timeout(self, value: Any) -> None:
            self._socket_timeout = value

        @property
        def socket_connect_timeout(self) -> Any:
            return time_left(self._socket_connect_timeout)

        @socket_connect_timeout.setter
        def socket_connect_timeout(self, value: Any) -> None:
            self._socket_connect_timeout = value

        def connect(self) -> Any:
            self._was_limited = time_left() is not None  # the timeout that it gets
            return self._wait(super().connect)

        def _host_error(self) -> Any:
            try:
                return self._called
            except AttributeError:  # redis-py asks for it before each answer
                self._called = super()._host_error()
                return self._called

        def pack_commands(self, commands: Any) -> Any:
            return self._command_packer.pack_all(commands)

        def send_packed_command(self, *args: Any, **options: Any) -> Any:
            self._handled = sys.exc_info()[1]
            is_limited = time_left() is not None
            if is_limited:
                _check_patience()
            if (is_limited or self._was_limited) and self._sock is not None:
                self._sock.settimeout(self.socket_timeout)
                self._was_limited = is_limited
            try:
                return super().send_packed_command(*args, **options)
            except _FAILURES as error:
                self._fail(error)
                raise

        def read_response(self, *args: Any, **options: Any) -> Any:
            if time_left() is not None:  # less is left than when the command was sent
                _check_patience()
                options.setdefault("timeout", self.socket_timeout)
            return self.read_patiently(*args, **options)

        def read_patiently(self, *args: Any, **options: Any) -> Any:
            try:
                return super().read_response(*args, **options)
            except _FAILURES as error:
                self._fail(error)
                raise
            except RedisError as error:
                lost = astray(error)
                if lost is None:
                    raise
                self.disconnect()
                went_astray()
                raise lost from error

        def cut(self) -> None:
            """End the connection, whichever thread reads from it: to that it is lost."""
            metered = self._sock
            if metered is not None:
                with suppress(OSError):
                    socket.shutdown(metered.wrapped, SHUT_RDWR)  # that of an SSLSocket would change it for the reader

        def should_reconnect(self) -> Any:
            # Asked when it goes back to the pool. An exception of a signal handler may have left an answer to be read.
            error = sys.exc_info()[1]
            is_interrupted = error is not getattr(self, "_handled", None) and not isinstance(error, RedisError)
            return is_interrupted or super().should_reconnect()

        def _wait(self, action: Callable[[], Any]) -> Any:
            _check_patience()
            try:
                return action()
            except _FAILURES as error:
                self._fail(error)
                raise

        def _fail(self, error: Exception) -> None:
            if isinstance(error, TimeoutError):
                spend()
            else:
                self.disconnect()
                raise InvalidResponse(str(error)) from error

    return Bounded
