"""Paths as they are typed: relative ones belong to the directory in which a command was started."""

import os
import signal
from pathlib import Path

import pytest
import redis as redis_py

from tests.cli.conftest import Broker, Commands, node_id
from tests.conftest import PREFIX, Certificates, check_keys

pytestmark = pytest.mark.timeout(180)

#: At the end of an app: from then on the process is elsewhere.
CHANGES = """
import os

os.makedirs("elsewhere", exist_ok=True)
os.chdir("elsewhere")
"""


@pytest.fixture
def moving(commands: Commands) -> Commands:
    """Commands whose apps change the working directory when they are imported."""
    for name in ("client.py", "server.py"):
        commands.write(name, (commands.folder / name).read_text() + CHANGES)
    return commands


@pytest.mark.parametrize("how", ["option", "variable", "home"])
def test_a_relative_state_directory(moving: Commands, broker: Broker, how: str) -> None:
    """A node keeps its state where it was told to, although its app goes elsewhere."""
    del moving.env["BROKERFL_STATE_DIR"]
    options = ("--state-dir", "state") if how == "option" else ()
    if how == "variable":
        moving.env["BROKERFL_STATE_DIR"] = "state"
    elif how == "home":
        moving.env.update(HOME=".", XDG_STATE_HOME="")
    node = moving.node("--name", "hospital-1", *options)
    node.send(signal.SIGTERM)
    node.ends(0)
    states = moving.folder / (".local/state/brokerfl" if how == "home" else "state")
    assert [path.name for path in states.iterdir()] == [node_id(node)]
    assert list((moving.folder / "elsewhere").iterdir()) == []


def test_relative_certificates(moving: Commands, redis_tls_url: str, certificates: Certificates) -> None:
    """TLS connections are made with the files that were named, also after the app went elsewhere."""
    files = {"ca-cert": certificates.ca, "cert": certificates.client_cert, "key": certificates.client_key}
    near = {name: os.path.relpath(path, moving.folder) for name, path in files.items()}
    typed = [part for name, path in near.items() for part in (f"--{name}", path)]
    options = {"ssl_ca_certs": files["ca-cert"], "ssl_certfile": files["cert"], "ssl_keyfile": files["key"]}
    with redis_py.Redis.from_url(redis_tls_url, **options) as admin:
        admin.flushall()  # a node of another test may still hold its lease
    moving.env["BROKERFL_PREFIX"] = PREFIX
    moving.node("--redis", redis_tls_url, *typed)
    moving.env.update({f"BROKERFL_{name.upper().replace('-', '_')}": path for name, path in near.items()})
    moving.env["BROKERFL_REDIS_URL"] = redis_tls_url
    assert "1 of 1" in moving.run("brokerfl-server", "server:app", "--run-config", "nodes=1").text
    moving.kill()
    with redis_py.Redis.from_url(redis_tls_url, **options) as admin:
        check_keys(admin)
        admin.flushall()


def test_a_link_stays_a_link(commands: Commands, broker: Broker, tmp_path: Path) -> None:
    """A path is made absolute as it is: a link to it may point elsewhere later, as mounted secrets do."""
    commands.write("first", broker.url)
    (commands.folder / "url").symlink_to("first")
    (commands.folder / "state").symlink_to(tmp_path / "there")
    (tmp_path / "there").mkdir()
    dead = commands.run("brokerfl", "dead", "--state-dir", "state")
    assert dead.out == f"no dead messages in {commands.folder / 'state'}\n"
    commands.run("brokerfl", "nodes", "--redis-file", "url")
