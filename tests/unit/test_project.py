"""The project of an app: what is taken from pyproject.toml, and what is refused."""

import os
from pathlib import Path

import pytest

from brokerfl.cli import code
from brokerfl.cli.apps import find_project
from brokerfl.cli.code import digest_of_code
from brokerfl.cli.project import Project
from brokerfl.common import AppLoadError, ConfigError
from brokerfl.wire.origin import Origin

PROJECT = """
[project]
name = "digits"

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "digits.server_app:app"
clientapp = "digits.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 3
train = { lr = 0.1, optimizer = { name = "sgd", nesterov = true } }
"""


def project(folder: Path, text: str = PROJECT) -> Path:
    """A folder with a pyproject.toml."""
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_components_and_config(tmp_path: Path) -> None:
    """Both apps are named, and the config is flattened with dots, values of their types."""
    found = Project(project(tmp_path))
    assert found.component("serverapp") == "digits.server_app:app"
    assert found.component("clientapp") == "digits.client_app:app"
    assert found.run_config({}) == {
        "num-server-rounds": 3,
        "train.lr": 0.1,
        "train.optimizer.name": "sgd",
        "train.optimizer.nesterov": True,
    }


def test_what_was_given_wins_and_must_be_known(tmp_path: Path) -> None:
    """As in Flower: a key that the project's config does not have is an error that lists those it has."""
    found = Project(project(tmp_path))
    assert found.run_config({"train.lr": 0.5})["train.lr"] == 0.5
    with pytest.raises(ConfigError, match=r"'num-rounds' is not in \[tool.flwr.app.config\] of .* num-server-rounds, "):
        found.run_config({"num-rounds": 5})


@pytest.mark.parametrize("text", [None, "", "[tool.other]\nx = 1", "tool = 1", "[tool.flwr]\napp = []"])
def test_without_a_config_anything_may_be_given(tmp_path: Path, text: str | None) -> None:
    """A folder without a pyproject.toml, or with one that says nothing of Flower, has no say."""
    if text is not None:
        project(tmp_path, text)
    assert Project(tmp_path).run_config({"anything": 1}) == {"anything": 1}
    with pytest.raises(AppLoadError, match=r"pyproject.toml .* under \[tool.flwr.app.components\]"):
        Project(tmp_path).component("serverapp")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tool.flwr.app.config]\nwhen = 2026-01-01", r"pyproject.toml: \[.*\]: when is a date, not a boolean"),
        ("[tool.flwr.app.config.a]\nb = [1]", r"config\]: a.b is a list"),
        (
            "[tool.flwr.app.config.a]\nb = 99999999999999999999",
            r"config\]: a.b is 9+, but only integers from -2\*\*63 to",
        ),
        ("[tool.flwr.app]\nconfig = 3", r"\[tool.flwr.app\]: `config` is a int, not a table"),
        ("[tool.flwr.app]\nconfig = 'x=1'", "`config` is a str, not a table"),
        ("[tool.flwr.app]\nconfig = [1]", "`config` is a list, not a table"),
        ("[[tool.flwr.app.config]]\nx = 1", "`config` is a list, not a table"),
        ("[tool", "is not valid TOML"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, problem: str) -> None:
    """A value that no run config has, and a file that is no TOML, are ConfigErrors that name them."""
    with pytest.raises(ConfigError, match=problem):
        Project(project(tmp_path, text)).run_config({})


def test_a_component_is_of_a_module(tmp_path: Path) -> None:
    """One without a colon is named, with the file and the section that it stands in."""
    project(tmp_path, '[tool.flwr.app.components]\nserverapp = "app"')
    with pytest.raises(AppLoadError, match=r"pyproject.toml: the serverapp in \[.*\] is 'app', not module:attribute"):
        Project(tmp_path).component("serverapp")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    """So is a file that is no UTF-8."""
    (tmp_path / "pyproject.toml").write_bytes(b"\xef\xbb\xbf" + PROJECT.encode())
    assert Project(tmp_path).component("serverapp") == "digits.server_app:app"
    (tmp_path / "pyproject.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"pyproject.toml cannot be read: "):
        Project(tmp_path).component("serverapp")


def test_an_app_is_a_module_or_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is a project of its own; with --app-dir beside it, nobody knows which is meant."""
    project(tmp_path, "no TOML at all")  # nor is it read before it is asked
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    for app, app_dir, reference, folder in (
        (".", None, "", tmp_path),
        ("inner", None, "", tmp_path / "inner"),
        ("a.b:c", None, "a.b:c", tmp_path),
        ("a:b", "inner", "a:b", tmp_path / "inner"),
    ):
        found, where = find_project(app, app_dir)
        assert (found, where.folder) == (reference, folder)
    with pytest.raises(
        ConfigError, match=r"the app '\.' is a directory, and --app-dir .* names another: give only one"
    ):
        find_project(".", "inner")


def test_components_are_a_table(tmp_path: Path) -> None:
    """Something else of that name is not passed over."""
    project(tmp_path, "[[tool.flwr.app.components]]\nserverapp = 'a:app'")
    with pytest.raises(ConfigError, match="`components` is a list, not a table"):
        Project(tmp_path).component("serverapp")


def test_where_an_app_comes_from(tmp_path: Path) -> None:
    """Name and version are those of the project, with a digest; without a name the app stands alone."""
    found = Project(project(tmp_path)).origin
    assert (found.project, found.version, len(found.digest)) == ("digits", "", 16)
    for text in ("[project]\nversion = '1.0'\n", "[project]\nname = ''\n", "[project]\nname = 3\n", "project = 1\n"):
        assert Project(project(tmp_path, text)).origin == Origin("")
    assert Project(tmp_path / "nowhere").origin == Origin("")
    with pytest.raises(ConfigError, match="not valid TOML"):
        _ = Project(project(tmp_path, "[project")).origin


def test_the_digest_is_that_of_the_code(tmp_path: Path) -> None:
    """Each Python file counts, by name and content; nothing else does, and no other machine's path."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "package").mkdir(parents=True)
        (folder / "client.py").write_text("a = 1\n")
        (folder / "package" / "layers.py").write_text("b = 1\n")
    before = digest_of_code(first)
    assert before == digest_of_code(second)
    for ignored in (
        "data.csv",
        ".venv/a.py",
        "env/pyvenv.cfg",
        "env/a.py",
        "lib/site-packages/a.py",
        "__pycache__/a.py",
    ):
        (second / ignored).parent.mkdir(parents=True, exist_ok=True)
        (second / ignored).write_text("c = 1\n")
    os.mkfifo(second / "pipe.py")
    assert digest_of_code(second) == before
    (second / "package" / "layers.py").write_text("b = 2\n")
    assert digest_of_code(second) != before
    (first / "package" / "layers.py").rename(first / "package" / "other.py")
    assert digest_of_code(first) != before


def test_what_is_no_project_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with too many files, or too large ones, is not read to its end."""
    for name in "abc":
        (tmp_path / f"{name}.py").write_text("x" * 100)
    for limit in ("_MOST_ENTRIES", "_MOST_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(code, limit, 2)
            assert digest_of_code(tmp_path) == ""
    assert digest_of_code(tmp_path)
