"""Apps by name: finds ``module:attribute``. Owns the search, and what is said when an app fails."""

import importlib
import sys
import traceback
from pathlib import Path
from typing import TypeVar

import brokerfl
from brokerfl.common import AppLoadError

App = TypeVar("App")

_OURS = Path(brokerfl.__file__).parent


def load_app(reference: str, app_dir: str, kind: type[App]) -> App:
    """Return the app that ``reference`` names.

    Args:
        reference: ``module:attribute``, such as ``client:app``.
        app_dir: where the module is looked for first.
        kind: ClientApp or ServerApp.

    Raises:
        AppLoadError: there is no such module or attribute, importing it failed, or it is something else.
    """
    name, colon, attribute = reference.partition(":")
    if not colon or not name or not attribute:
        raise AppLoadError(f"the app {reference!r} is not of the form module:attribute, such as client:app")
    if name.startswith(".") or "/" in name:
        raise AppLoadError(f"{name!r} is no name of a module: write client:app, and --app-dir for where client.py is")
    folder = Path(app_dir).resolve()
    if not folder.is_dir():
        raise AppLoadError(f"the app directory {app_dir} does not exist")
    sys.path.insert(0, str(folder))
    module = _import(name, folder)
    candidates = [f"{name}:{key}" for key, value in vars(module).items() if isinstance(value, kind)]
    hint = f"; it has {', '.join(candidates)}" if candidates else ""
    if not hasattr(module, attribute):
        raise AppLoadError(f"the module {name} has no attribute {attribute!r}{hint}")
    app = getattr(module, attribute)
    if not isinstance(app, kind):
        raise AppLoadError(f"{reference} is of type {type(app).__name__}, not {kind.__name__}{hint}")
    return app


def _import(name: str, folder: Path) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = f": write {name[:-3]}:app, without .py" if name.endswith(".py") else ""
            raise AppLoadError(f"there is no module {name!r} in {folder} (or elsewhere on the path){hint}") from None
        raise AppLoadError(_failure(name, error, folder)) from None
    except (Exception, SystemExit) as error:
        raise AppLoadError(_failure(name, error, folder)) from None


def _failure(name: str, error: BaseException, folder: Path) -> str:
    """Tell what the import raised, with the frames of the user's own files only."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(Path(frame.filename), folder)]
    lines = [f"importing {name} raised {type(error).__name__}: {error}"]
    lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}\n    {frame.line}" for frame in own]
    if isinstance(error, SyntaxError) and error.text:  # the file that has it was never run, so it has no frame
        lines.append(f"  {error.filename}:{error.lineno}\n    {error.text.strip()}")
    return "\n".join(lines)


def print_traceback(error: BaseException) -> None:
    """Print what an app raised, from the first frame of the user's on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    traceback.print_exception(error.with_traceback(trace))


def _is_ours(file: str) -> bool:
    """Whether a frame's file is one of brokerfl's own."""
    return Path(file).is_relative_to(_OURS)


def _is_own(file: Path, folder: Path) -> bool:
    """Whether it is the user's: the app's directory may hold a .venv, and in a checkout all of brokerfl."""
    if _is_ours(str(file)) and not folder.is_relative_to(_OURS):
        return False
    return file.is_relative_to(folder) and not {"site-packages", "dist-packages"}.intersection(file.parts)
