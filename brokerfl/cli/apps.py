"""Apps by name: finds ``module:attribute``, or the app of a project in a directory.

Owns the search, and how a failure of an app is shown.
"""

import importlib
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import brokerfl
from brokerfl.cli.exits import say
from brokerfl.cli.project import Project
from brokerfl.client import ClientApp
from brokerfl.client.app import ClientAppCallable
from brokerfl.common import AppLoadError, ConfigError, MissingExtra
from brokerfl.common.config import is_utf8
from brokerfl.flower import adapt_client_app, adapt_server_app, is_flower_app
from brokerfl.server import ServerApp
from brokerfl.server.app import ServerAppCallable

_OURS = Path(brokerfl.__file__).parent


def find_project(app: str, app_dir: str | None) -> tuple[str, Project]:
    """Return ``module:attribute``, or "" if the project is to name it, and the project.

    Args:
        app: ``module:attribute``, or a directory with a pyproject.toml.
        app_dir: where the module is looked up first; the current directory by default.

    Raises:
        ConfigError: two directories were given, or the name of the module cannot be sent.
    """
    if ":" in app or not Path(app).is_dir():
        if not is_utf8(app):
            raise ConfigError(f"the app {app!r} is not UTF-8")
        return app, Project(app_dir or ".")
    if app_dir is not None:
        raise ConfigError(
            f"the app {app!r} is a directory, and --app-dir (or BROKERFL_APP_DIR) names another: give only one"
        )
    return "", Project(app)


def load_client_app(reference: str, project: Project) -> tuple[str, ClientAppCallable]:
    """Return the ``module:attribute`` of a ClientApp, and the app itself.

    Args:
        reference: as `find_project` returned it.
        project: as `find_project` returned it.

    Raises:
        AppLoadError: the module or attribute does not exist, its import failed, or it is not a ClientApp.
        MissingExtra: it is a Flower app, and flwr is not installed.
        ConfigError: the project's pyproject.toml is needed and cannot be read.
    """
    reference = reference or project.component("clientapp")
    return reference, adapt_client_app(_load(reference, project.folder, ClientApp))


def load_server_app(reference: str, project: Project) -> tuple[str, ServerAppCallable]:
    """Return the ``module:attribute`` of a ServerApp, and the app itself; see `load_client_app`."""
    reference = reference or project.component("serverapp")
    return reference, adapt_server_app(_load(reference, project.folder, ServerApp))


def _is_app(value: object, kind: type) -> bool:
    return isinstance(value, kind) or is_flower_app(value, kind.__name__)


def _load(reference: str, folder: Path, kind: type) -> Any:
    name, colon, attribute = reference.partition(":")
    if not colon or not name or not attribute:
        raise AppLoadError(f"the app {reference!r} is neither module:attribute, such as client:app, nor a directory")
    if name.startswith(".") or "/" in name:
        raise AppLoadError(f"{name!r} is not a module name: write client:app, and give the directory with --app-dir")
    if not folder.is_dir():
        raise AppLoadError(f"the app directory {folder} does not exist")
    module = _import_from(folder, name)
    candidates = [f"{name}:{key}" for key, value in vars(module).items() if _is_app(value, kind)]
    hint = f"; it has {', '.join(candidates)}" if candidates else ""
    if not hasattr(module, attribute):
        raise AppLoadError(f"the module {name} has no attribute {attribute!r}{hint}")
    app = getattr(module, attribute)
    if not _is_app(app, kind):
        raise AppLoadError(f"{reference} is of type {type(app).__name__}, not {kind.__name__}{hint}")
    return app


def load_function(reference: str, option: str) -> Callable[..., Any]:
    """Return a function of the user's that an option names; its module is looked up first in the current directory.

    Raises:
        ConfigError: there is none.
    """
    name, _, attribute = reference.partition(":")
    if not name or not attribute or name.startswith(".") or "/" in name:
        raise ConfigError(f"{option} {reference!r} is not module:function")
    try:
        module = _import_from(Path.cwd(), name)
    except (AppLoadError, MissingExtra) as error:
        raise ConfigError(f"{option} {reference} cannot be loaded: {error}") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"{option} {reference} cannot be loaded: the module {name} has no function {attribute!r}")
    return function  # type: ignore[no-any-return]


def _import_from(folder: Path, name: str) -> object:
    sys.path.insert(0, str(folder))
    _check_hidden(name, folder)
    return _import(name, folder)


def _check_hidden(name: str, folder: Path) -> None:
    """Check that the app's module is not hidden by another one of its name that is imported already."""
    top = name.partition(".")[0]
    own = _file_of(top, folder)
    if own is not None and top in sys.modules and top != brokerfl.__name__ and not _is_from(top, folder):
        whose = "a module of Python's own" if top in sys.stdlib_module_names else "an installed module"
        raise AppLoadError(f"{own} cannot be imported, because {whose} is called {top!r}, too: rename the file")


def _file_of(module: str, folder: Path) -> Path | None:
    """Return the file of a module in a folder, if it has one."""
    return next((file for file in (folder / f"{module}.py", folder / module / "__init__.py") if file.is_file()), None)


def _is_from(module: str, folder: Path) -> bool:
    """Whether a module that is imported is a file of a folder."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(folder)


def _shadows(folder: Path) -> str:
    """Return lines that name the files in a folder that were imported in place of Python's own modules."""
    names = sorted({path.stem for path in folder.iterdir()}.intersection(sys.stdlib_module_names))
    files = [_file_of(name, folder) for name in names if _is_from(name, folder)]
    return "".join(f"\n{file} was imported in place of Python's own module of that name: rename it" for file in files)


def _import(name: str, folder: Path) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = f": write {name[:-3]}:app, without .py" if name.endswith(".py") else ""
            raise AppLoadError(f"there is no module {name!r} in {folder} or elsewhere on the path{hint}") from None
        if error.name == "flwr":
            raise MissingExtra(f"{name} is a Flower app and needs flwr: pip install 'brokerfl[flower]'") from None
        raise AppLoadError(_failure(name, error, folder) + _shadows(folder)) from None
    except (Exception, SystemExit) as error:
        raise AppLoadError(_failure(name, error, folder) + _shadows(folder)) from None


def _failure(name: str, error: BaseException, folder: Path) -> str:
    """Describe what the import raised, with the frames of the user's own files only."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(Path(frame.filename), folder)]
    lines = [f"importing {name} raised {type(error).__name__}: {error}"]
    lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}\n    {frame.line}" for frame in own]
    if isinstance(error, SyntaxError) and error.text:  # its file was never run, so it has no frame
        lines.append(f"  {error.filename}:{error.lineno}\n    {error.text.strip()}")
    return "\n".join(lines)


def print_traceback(error: BaseException) -> None:
    """Print what an app raised, starting at the user's first frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    with suppress(Exception):  # the app's exception may have no text
        say("".join(traceback.format_exception(error.with_traceback(trace))).rstrip())


def _is_ours(file: str) -> bool:
    """Whether a frame's file belongs to brokerfl."""
    return Path(file).is_relative_to(_OURS)


def _is_own(file: Path, folder: Path) -> bool:
    """Whether a file is the user's: the app's directory may contain a .venv, and in a checkout all of brokerfl."""
    if _is_ours(str(file)) and not folder.is_relative_to(_OURS):
        return False
    return file.is_relative_to(folder) and not {"site-packages", "dist-packages"}.intersection(file.parts)
