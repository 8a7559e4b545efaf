"""`brokerfl certs`: what a server and a client make of the certificates, and that nothing is overwritten."""

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from brokerfl.broker.connection import TLS, connect
from brokerfl.broker.embedded import Certificate, EmbeddedServer
from brokerfl.cli.certs import make_certificates
from brokerfl.cli.main import main
from brokerfl.common import ConfigError, RedisTLSError
from tests.cli.conftest import Commands, error_of
from tests.conftest import PREFIX


def made(folder: Path, *hosts: str) -> str:
    result = CliRunner().invoke(main, ["certs", str(folder), *hosts])
    assert result.exit_code == 0, result.output
    return result.stdout


def reach(folder: Path, binary: Path, host: str, ca: Path | None = None) -> None:
    """Start a server with the certificate, and connect to it under this name."""
    with EmbeddedServer(binary=binary, tls=Certificate(folder / "server.crt", folder / "server.key")) as server:
        assert server.url.startswith("rediss://")
        url, tls = server.url.replace("127.0.0.1", host), TLS(str(ca or folder / "ca.crt"))
        connection = connect(url, prefix=PREFIX, tls=tls)
        connection.close()


def test_a_server_shows_the_certificate(tmp_path: Path, redis_binary: Path) -> None:
    """It is good for the names that were given and for no other; only whoever trusts its authority connects."""
    folder, other = tmp_path / "tls", tmp_path / "other"
    assert "tls-auth-clients no" in made(folder, "localhost", "10.1.2.3", "fd00::1")
    reach(folder, redis_binary, "localhost")
    with pytest.raises(RedisTLSError):
        reach(folder, redis_binary, "127.0.0.1")
    made(other, "localhost")
    with pytest.raises(RedisTLSError, match="check --ca-cert"):
        reach(folder, redis_binary, "localhost", other / "ca.crt")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"tls": 0o700, "ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600}


def test_a_new_certificate_needs_no_new_authority(tmp_path: Path, redis_binary: Path) -> None:
    """Whoever trusts the authority need not hear of it."""
    made(tmp_path, "localhost")
    authority = (tmp_path / "ca.crt").read_bytes()
    for name in ("server.crt", "server.key"):
        (tmp_path / name).unlink()
    assert made(tmp_path, "127.0.0.1").startswith("server.key, server.crt made")
    assert (tmp_path / "ca.crt").read_bytes() == authority
    reach(tmp_path, redis_binary, "127.0.0.1")


def test_nothing_is_overwritten(tmp_path: Path, commands: Commands) -> None:
    """A second time, and with half of an authority, it ends with 2 and leaves everything as it is."""
    made(tmp_path, "localhost")
    before = (tmp_path / "ca.crt").read_bytes()
    error = error_of(commands.run("brokerfl", "certs", str(tmp_path), "localhost", code=2))
    assert f"{tmp_path / 'server.crt'} is there already: nothing was changed" in error
    for name in ("server.crt", "server.key", "ca.key"):
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=r"has only one of ca.crt and ca.key"):
        make_certificates(tmp_path, ("localhost",))
    assert (tmp_path / "ca.crt").read_bytes() == before
    with pytest.raises(ConfigError, match=r"'a\.\.b' is neither a name nor an IP address"):
        make_certificates(tmp_path / "new", ("a..b",))
    assert not list((tmp_path / "new").glob("*"))
