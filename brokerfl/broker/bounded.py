"""The class of all sockets: redis-py's, with bounded waits, and without answers of a server that is not the one to ask.

Owns that no wait of a socket outlasts the `patience` of its thread, and what ends it. It must not know the commands.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR, socket
from typing import Any

from redis.exceptions import InvalidResponse, RedisError, TimeoutError

from brokerfl.broker.failure import astray
from brokerfl.broker.patience import is_spent, spend, time_left

#: A timeout, and what redis-py raises if it makes nothing of an answer.
_FAILURES = (TimeoutError, ValueError, TypeError, LookupError, AttributeError)


def _check_patience() -> None:
    if is_spent():
        raise TimeoutError("it was silent until the time was up")


def bounded(kind: Any, went_astray: Callable[[], None] = lambda: None) -> Any:
    """Return a class of sockets like redis-py's, except in two ways.

    No wait of one outlasts the patience of the thread that uses it. Each wait counts for itself: an answer that comes
    in pieces may take longer.

    An answer of a server that is not the one to ask is raised as `AstrayError`, and closes the socket.

    Args:
        kind: redis-py's class.
        went_astray: called when a server was not the one to ask.
    """

    class Bounded(kind):  # type: ignore[misc]
        _was_limited = True  # the socket's own timeout may be another one than `socket_timeout`

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
            sock = self._sock
            if sock is not None:
                with suppress(OSError):
                    socket.shutdown(sock, SHUT_RDWR)  # that of an SSLSocket would change it for the reader

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
