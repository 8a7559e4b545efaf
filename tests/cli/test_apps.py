"""Apps that cannot be loaded: each is one clear line, with the user's own frames where his code raised."""

import re
import signal

import pytest

from tests.cli.conftest import Commands, error_of

pytestmark = pytest.mark.timeout(180)

NODE = ("brokerfl-node", "client:app")

#: Nothing listens there: what is wrong must be found before.
CLOSED = ("--redis", "redis://127.0.0.1:1")

OTHERS = {
    "three.py": "app = 3\n",
    "others.py": "from brokerfl.client import ClientApp\nmine = ClientApp()\nyours = ClientApp()\n",
    "package/__init__.py": "",
    "broken.py": "import loading\nloading.load()\n",
    "loading.py": 'import json\n\n\ndef load():\n    return json.loads("{")\n',
    "syntax.py": "def train(:\n    pass\n",
    "missing.py": "import surely_not_installed\n",
    "leaves.py": "raise SystemExit('no GPU')\n",
    "twice.py": "from brokerfl.client import ClientApp\napp = ClientApp()\napp.train()(print)\napp.train()(print)\n",
}

APPS = {
    "no colon": (
        "client",
        "the app 'client' is neither module:attribute, such as client:app, nor a directory",
    ),
    "no attribute": ("client:", "the app 'client:' is neither module:attribute"),
    "no module": ("nowhere:app", r"there is no module 'nowhere' in \S+apps"),
    "no module in a package": ("package.nowhere:app", r"there is no module 'package.nowhere' in \S+apps"),
    "a file": ("client.py:app", r"there is no module 'client.py' in .*: write client:app, without .py"),
    "a path": (
        "./client:app",
        "'./client' is not a module name: write client:app, and give the directory with --app-dir",
    ),
    "wrong attribute": ("others:app", "the module others has no attribute 'app'; it has others:mine, others:yours"),
    "wrong attribute, none right": ("three:nothing", "the module three has no attribute 'nothing'$"),
    "not an app": ("three:app", "three:app is of type int, not ClientApp$"),
    "the other kind of app": ("server:app", "server:app is of type ServerApp, not ClientApp$"),
    "raises": ("broken:app", "importing broken raised JSONDecodeError: "),
    "syntax error": ("syntax:app", r"importing syntax raised SyntaxError: invalid syntax \(syntax.py, line 1\)"),
    "lacks a package": ("missing:app", "importing missing raised ModuleNotFoundError: No module named 'surely_not_in"),
    "exits": ("leaves:app", "importing leaves raised SystemExit: no GPU"),
    "wrong use of ours": ("twice:app", "importing twice raised ValueError: this ClientApp already has a function"),
}


def test_an_app_that_cannot_be_loaded(commands: Commands) -> None:
    """It ends with 3 and one line that says what was looked for, where, and what is there instead."""
    for name, text in OTHERS.items():
        commands.write(name, text)
    started = {what: commands.start("brokerfl-node", app, *CLOSED) for what, (app, _) in APPS.items()}
    for what, process in started.items():
        assert re.match(f"Error: {APPS[what][1]}", error_of(process.ends(3))), what


def test_an_exception_while_importing_shows_the_users_frames(commands: Commands) -> None:
    """After the line come the frames of the user's own files, and none of brokerfl, Python or an installed package."""
    for name, text in OTHERS.items():
        commands.write(name, text)
    first, *frames = commands.run("brokerfl-node", "broken:app", *CLOSED, code=3).err.splitlines()
    assert first.startswith("Error: importing broken raised JSONDecodeError: ")
    assert frames == [
        f"  {commands.folder}/broken.py:2 in <module>",
        "    loading.load()",
        f"  {commands.folder}/loading.py:5 in load",
        '    return json.loads("{")',
    ]
    wrong = commands.run("brokerfl-node", "syntax:app", *CLOSED, code=3).err.splitlines()
    assert wrong[1:] == [f"  {commands.folder}/syntax.py:1", "    def train(:"]


def test_an_installed_package_in_the_app_dir_is_not_the_users(commands: Commands) -> None:
    """Frames of a .venv that lies in the app's directory are left out."""
    commands.write(".venv/lib/site-packages/installed.py", "1 / 0\n")
    commands.write("uses.py", "import sys\nsys.path.append('.venv/lib/site-packages')\nimport installed\n")
    process = commands.run("brokerfl-node", "uses:app", *CLOSED, code=3)
    assert "uses.py:3" in process.err
    assert "site-packages" not in process.err


#: Files with the name of a module that is imported before the app, that the app imports, and that Python imports later.
SHADOWING = {
    "random.py": "",
    "click.py": "",
    "plain.py": "import colorsys\ncolorsys.rgb_to_hsv(0, 0, 0)\n",
    "colorsys.py": "",
}


def test_a_file_with_the_name_of_another_module(commands: Commands) -> None:
    """The error names the file, whether Python's own module hides it or it hides Python's own."""
    for name, text in SHADOWING.items():
        commands.write(name, text)
    for app, whose in (("random:app", "a module of Python's own"), ("click:app", "an installed module")):
        name = app.partition(":")[0]
        process = commands.run("brokerfl-node", app, *CLOSED, code=3)
        reason = f"because {whose} is called '{name}', too: rename the file"
        assert error_of(process) == f"Error: {commands.folder}/{name}.py cannot be imported, {reason}"
    process = commands.run("brokerfl-node", "plain:app", *CLOSED, code=3)
    assert (
        "Error: importing plain raised AttributeError: module 'colorsys' has no attribute 'rgb_to_hsv'" in process.err
    )
    assert process.err.endswith(
        f"\n{commands.folder}/colorsys.py was imported in place of Python's own module of that name: rename it\n"
    )
    assert "random.py" not in process.err


def test_a_server_is_not_loaded_by_a_node_nor_the_reverse(commands: Commands) -> None:
    """`brokerfl-server client:app` ends with 3 too, and names both kinds."""
    process = commands.run("brokerfl-server", "client:app", *CLOSED, code=3)
    assert error_of(process) == "Error: client:app is of type ClientApp, not ServerApp"


def test_an_app_dir_that_is_not_there(commands: Commands) -> None:
    """--app-dir with a wrong name ends with 3 and names it; with a right one the app is found."""
    process = commands.run(*NODE, *CLOSED, "--app-dir", "nowhere", code=3)
    assert error_of(process) == f"Error: the app directory {commands.folder}/nowhere does not exist"
    commands.run(
        "brokerfl-node",
        "others:mine",
        *CLOSED,
        "--app-dir",
        str(commands.write("o/others.py", OTHERS["others.py"]).parent),
        code=10,
    )


def test_ctrl_c_ends_a_command_that_imports(commands: Commands) -> None:
    """Ctrl-C while the app is imported ends with 130 and without a traceback of ours."""
    commands.write("slow.py", "import time\nprint('Importing', flush=True)\ntime.sleep(600)\n")
    process = commands.start("brokerfl-node", "slow:app", *CLOSED)
    process.wait_for("Importing")
    process.send(signal.SIGINT)
    assert "Traceback" not in process.ends(130).text
