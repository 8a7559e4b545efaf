"""The way through an HTTP proxy: connections to Redis from networks that let nothing else out.

Owns what is said to the proxy (CONNECT, RFC 9110, 9.3.6). It must not know Redis or TLS: both begin behind it, and the
proxy sees only host and port.
"""

import base64
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.connection import Connection as TCPConnection
from redis.exceptions import ConnectionError

from brokerfl.common import ConfigError

#: Most bytes of a proxy's answer.
_MOST = 16 * 1024


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        host, port: where it is.
        authorization: what the header of that name has; "" for none.
    """

    host: str
    port: int
    authorization: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """It, without a password."""
        return f"the proxy {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_proxy(url: str) -> Proxy:
    """Return the proxy that a URL names.

    Raises:
        ConfigError: it is not ``http://[user:password@]host[:port]``; the text has no password.
    """
    wrong = ConfigError(
        "the proxy (--proxy, BROKERFL_PROXY) must be http://host:port, or http://user:password@host:port"
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        raise wrong from None
    if parts.scheme != "http" or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise wrong
    login = ""
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        login = f"Basic {base64.b64encode(words.encode()).decode()}"
    return Proxy(host, port, login)


def through(proxy: Proxy, kind: Any) -> Any:
    """Return a class of connections like redis-py's ``kind`` that go through a proxy, which looks up host names."""

    class _Tunnel(TCPConnection):
        def _connect(self) -> Any:
            host, port = self.host, self.port
            self.host, self.port = proxy.host, proxy.port
            try:
                socket: Any = super()._connect()  # type: ignore[no-untyped-call]
            except OSError as error:
                raise ConnectionError(f"{proxy.shown} does not answer: {error}") from None
            finally:
                self.host, self.port = host, port
            try:
                _ask(socket, proxy, f"{f'[{host}]' if ':' in host else host}:{port}")
            except BaseException:
                socket.close()
                raise
            return socket

    if kind is TCPConnection:
        return _Tunnel

    class Tunnelled(kind, _Tunnel):  # type: ignore[misc]  # that of TLS wraps what the tunnel returns
        pass

    return Tunnelled


def _ask(socket: Any, proxy: Proxy, target: str) -> None:
    """Ask for the connection.

    Raises:
        ConnectionError: the proxy refuses it, or is none.
        OSError: it does not answer.
    """
    login = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    socket.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        byte = socket.recv(1)  # what follows belongs to Redis
        if not byte or len(answer) >= _MOST:
            raise ConnectionError(f"{proxy.shown} hung up, or is no HTTP proxy, when asked for {target}")
        answer += byte
    status = answer.split(b"\r\n", 1)[0].decode("latin-1")
    words = status.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].startswith("2"):
        raise ConnectionError(f"{proxy.shown} refuses a connection to {target}: {' '.join(words[1:]) or 'no HTTP'}")
