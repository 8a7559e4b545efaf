"""Which flwr brokerfl works with, what it says to another one, and that it does without any."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from brokerfl import client, server
from brokerfl.common import MissingExtra
from brokerfl.flower import is_flower_app
from tests.flower.names import VERSION, ClientApp, NumPyClient, ServerApp, compat


def loaded() -> ModuleType:
    """brokerfl.flower.compat, executed anew beside the one that is in use."""
    spec = importlib.util.spec_from_file_location("another_compat", compat.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretend(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Let flwr's metadata name this version."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)


def python(code: str, *path: Path) -> "subprocess.CompletedProcess[str]":
    """Run code in a new process, whose modules come from ``path`` first."""
    directories = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(directories)},
        capture_output=True,
        text=True,
        timeout=50,
    )


# Versions.


@pytest.mark.parametrize("version", ["1.12.0", "0.18.0", "1.43.0", "1.43.0.dev20260101", "2.0.0", "2"])
def test_an_untested_version_is_told_of(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A version below or above those that the tests run with is named in a warning, with the range."""
    pretend(monkeypatch, version)
    loaded()
    [record] = caplog.records
    text = f"brokerfl is tested with flwr 1.13 to 1.42, not with {version}, which is installed"
    assert (record.levelname, record.getMessage()) == ("WARNING", text)


@pytest.mark.parametrize("version", ["1.13.0", "1.25.0", "1.42.9", "1.42.0rc1", importlib.metadata.version("flwr")])
def test_a_tested_version_is_not(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those between say nothing, the installed one among them."""
    pretend(monkeypatch, version)
    loaded()
    assert not caplog.records
    assert compat.OLDEST <= VERSION <= compat.NEWEST


def test_it_is_told_once() -> None:
    """However many apps a process runs, it is warned once."""
    code = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: "1.99.0" if name == "flwr" else version(name)
from flwr.client import ClientApp
from flwr.server import ServerApp
from brokerfl.testing import run_simulation
server_app = ServerApp()
server_app.main()(lambda grid, context: print(len(list(grid.get_node_ids())), "node"))
for _ in range(2):
    run_simulation(server_app, ClientApp(), 1)
"""
    process = python(code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("1 node") == 2
    assert (process.stdout + process.stderr).count("not with 1.99.0, which is installed") == 1


# Names.


#: What a flwr has to have.
NEEDED = (
    "Array", "ArrayRecord", "MetricRecord", "ConfigRecord", "RecordDict", "Context", "Error", "Message", "Metadata",
    "DEFAULT_TTL",
)  # fmt: skip


@pytest.mark.parametrize("name", NEEDED)
def test_a_name_that_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flwr without a name that is needed is a MissingExtra that says which, where, and what to install."""
    poorer = ModuleType("flwr.app")
    poorer.__dict__.update({needed: getattr(compat, needed) for needed in NEEDED if needed != name})
    monkeypatch.setitem(sys.modules, "flwr.app", poorer)
    monkeypatch.setitem(sys.modules, "flwr.common", ModuleType("flwr.common"))
    pretend(monkeypatch, "1.30.0")
    text = rf"^flwr 1\.30\.0 has no {name}( or \w+)? in flwr\.app or flwr\.common: pip install 'brokerfl\[flower\]'"
    with pytest.raises(MissingExtra, match=text):
        loaded()


@pytest.mark.parametrize("command", ["node", "server"])
def test_a_flwr_that_is_too_old(command: str, tmp_path: Path) -> None:
    """The commands end with MISSING_EXTRA and the reason, before they look for Redis, when flwr is not a usable one."""
    package, metadata = tmp_path / "flwr", tmp_path / "flwr-1.0.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 1.0.0\n")
    (package / "__init__.py").write_text("class ClientApp: ...\nclass ServerApp: ...\n")
    (package / "common.py").write_text("")
    (tmp_path / "old.py").write_text("import flwr\nnode, server = flwr.ClientApp(), flwr.ServerApp()\n")
    code = f"""
import sys
from brokerfl.cli.{command} import main
sys.argv = ["brokerfl-{command}", "old:{command}", "--redis", "redis://127.0.0.1:1"]
main()
"""
    process = python(code, tmp_path)
    assert process.returncode == 40, process.stderr
    assert "Error: flwr 1.0.0 has no Array in flwr.app or flwr.common: pip install 'brokerfl[flower]'" in process.stderr


# Without flwr.

EVERYTHING = """
import brokerfl.flower, brokerfl.client, brokerfl.server, brokerfl.testing
import brokerfl.cli.node, brokerfl.cli.server
from brokerfl.cli.main import main as brokerfl_main
from brokerfl.common import RecordSet
assert len([brokerfl_main.get_command(None, name).name for name in brokerfl_main.commands]) > 20
app, server_app = brokerfl.client.ClientApp(), brokerfl.server.ServerApp()
app.query()(lambda message, context: message.create_reply(message.content))
@server_app.main()
def main(driver, context):
    [node] = driver.get_node_ids()
    [reply] = driver.send_and_receive([driver.create_message(RecordSet(), "query", node, "1")])
    assert reply.has_content()
assert not brokerfl.flower.is_flower_app(app, "ClientApp")
brokerfl.testing.run_simulation(server_app, app, 1)
"""


@pytest.mark.parametrize("before", ["", "import sys; sys.modules['flwr'] = None"], ids=["flwr is there", "no flwr"])
def test_no_flwr_is_needed(before: str) -> None:
    """Whoever has no app of flwr never imports it: neither the commands, nor a simulation, nor the bridge by itself."""
    after = "import sys; sys.exit('flwr was imported' if sys.modules.get('flwr') else 0)"
    process = python(f"{before}\n{EVERYTHING}\n{after}")
    assert process.returncode == 0, process.stderr


# Which apps are Flower's.


class OwnClientApp(ClientApp):  # type: ignore[misc,valid-type]
    """Derived by a user."""


class Impostor:
    """Has the right name and the wrong home."""


Impostor.__name__, Impostor.__module__ = "ClientApp", "flwrless.client"


class Odd:
    """Answers whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        return "flwr"


@pytest.mark.parametrize(
    ("app", "kinds"),
    [
        (ClientApp(), {"ClientApp"}),
        (OwnClientApp(), {"ClientApp"}),
        (ServerApp(), {"ServerApp"}),
        (ClientApp, set()),
        (NumPyClient(), set()),
        (client.ClientApp(), set()),
        (server.ServerApp(), set()),
        (Impostor(), set()),
        (Odd(), set()),
        (lambda message, context: None, set()),
        (None, set()),
        ("flwr.client.ClientApp", set()),
        (compat, set()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_apps_are_flowers(app: object, kinds: set[str]) -> None:
    """Instances of flwr's ClientApp and ServerApp, and of classes derived from them; nothing else."""
    assert {kind for kind in ("ClientApp", "ServerApp") if is_flower_app(app, kind)} == kinds
