"""An HTTP proxy between everybody and Redis: a real one, which does nothing but CONNECT."""

import base64
import shutil
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import redis as redis_py

from brokerfl.broker.connection import TLS, connect
from brokerfl.common import ConfigError, RedisUnreachable
from tests.cli.conftest import Broker, Commands, error_of
from tests.conftest import PREFIX, Certificates

pytestmark = pytest.mark.timeout(120)


class _Proxy(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def __init__(self, login: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.login = login
        self.asked: list[str] = []


class _Handler(socketserver.StreamRequestHandler):
    server: _Proxy

    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split()
        headers = dict(iter(lambda: self.rfile.readline().decode().strip().partition(": ")[::2], ("", "")))
        self.server.asked.append(target)
        if self.server.login and headers.get("Proxy-Authorization") != self.server.login:
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        host, _, port = target.rpartition(":")
        if method != "CONNECT" or host == "forbidden":
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        with socket.create_connection((host, int(port))) as upstream:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            back = threading.Thread(target=_copy, args=(upstream.makefile("rb", 0), self.connection), daemon=True)
            back.start()
            _copy(self.rfile, upstream)
            back.join()


def _copy(source: object, target: socket.socket) -> None:
    with suppress(OSError):
        shutil.copyfileobj(source, target.makefile("wb", 0), 1)  # type: ignore[misc]
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def proxy(login: str = "") -> Iterator[_Proxy]:
    with _Proxy(f"Basic {base64.b64encode(login.encode()).decode()}" if login else "") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url_of(server: _Proxy, login: str = "") -> str:
    return f"http://{f'{login}@' if login else ''}127.0.0.1:{server.server_address[1]}"


def test_a_run_through_a_proxy(commands: Commands, broker: Broker) -> None:
    """A node and a ServerApp reach Redis through it, and nowhere else: it was asked for every connection."""
    with proxy("me:p@ss") as server:
        commands.env["BROKERFL_PROXY"] = url_of(server, "me:p%40ss")
        before = broker.admin.info("stats")["total_connections_received"]
        commands.node()
        commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1 rounds=2").wait_for("Round 2: 1 of 1")
        target = broker.url.removeprefix("redis://")
        assert set(server.asked) == {target}
        assert broker.admin.info("stats")["total_connections_received"] - before <= len(server.asked)
        commands.kill()


def test_tls_begins_behind_the_proxy(redis_tls_url: str, certificates: Certificates) -> None:
    """The name in the certificate is that of Redis, which the proxy looks up."""
    tls = TLS(certificates.ca, certificates.client_cert, certificates.client_key)
    with proxy() as server:
        url = redis_tls_url.replace("127.0.0.1", "localhost")
        connection = connect(url, prefix=PREFIX, tls=tls, proxy=url_of(server))
        assert connection.redis.ping()
        assert server.asked[0] == url.removeprefix("rediss://")
        connection.close()


def test_what_is_wrong_with_a_proxy(commands: Commands, broker: Broker) -> None:
    """It refuses, wants a password, is away, is none, or its URL is: each is one line without the password."""
    with proxy("me:secret") as server:
        port = server.server_address[1]
        for url, place, why in (
            (url_of(server), broker.url, f"the proxy 127.0.0.1:{port} refuses a connection to .*: 407 Proxy Auth"),
            (url_of(server, "me:secret"), "redis://forbidden", "refuses a connection to forbidden:6379: 403 Forbidden"),
            ("http://127.0.0.1:1", broker.url, "the proxy 127.0.0.1:1 does not answer"),
            (broker.url.replace("redis", "http"), broker.url, "hung up, or is no HTTP proxy|refuses a connection"),
        ):
            with pytest.raises(RedisUnreachable, match=why) as caught:
                connect(place, prefix=PREFIX, proxy=url, insecure=True)
            assert "secret" not in str(caught.value)
    for url in ("https://host:1", "http://", "http://u:secret@host:99999", "http://host/path", "host:3128"):
        with pytest.raises(ConfigError, match=r"the proxy \(--proxy, BROKERFL_PROXY\) must be http://") as wrong:
            connect(broker.url, prefix=PREFIX, proxy=url)
        assert "secret" not in str(wrong.value)
    assert "must be http://" in error_of(commands.run("brokerfl", "runs", "--proxy", "socks5://x", code=2))


def test_a_cluster_through_a_proxy(valkey_cluster_url: str) -> None:
    """Each server that the Cluster names is asked for."""
    with proxy() as server:
        connection = connect(valkey_cluster_url, prefix=PREFIX, proxy=url_of(server))
        for name in range(50):
            connection.at(f"{PREFIX}:{name}").redis.exists(f"{PREFIX}:{name}")
        places = {each.place for each in connection.primaries()}
        assert places <= set(server.asked)
        assert len(places) == 3
        connection.close()


def test_no_proxy_is_used_without_being_asked(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of browsers do not count: they are for another protocol."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    connection = connect(broker.url, prefix=PREFIX)
    assert isinstance(connection.redis, redis_py.Redis)
    assert connection.redis.ping()
    connection.close()
