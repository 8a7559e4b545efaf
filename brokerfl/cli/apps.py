"""Apps by name: finds ``module:attribute``. Owns the search and what is said when it fails."""

import importlib
import sys
import traceback
from pathlib import Path
from typing import TypeVar

from brokerfl.common import AppLoadError

App = TypeVar("App")


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
    folder = Path(app_dir).resolve()
    if not folder.is_dir():
        raise AppLoadError(f"the app directory {app_dir} does not exist")
    sys.path.insert(0, str(folder))
    module = _import(name, folder)
    if not hasattr(module, attribute):
        candidates = [key for key, value in vars(module).items() if isinstance(value, kind)]
        hint = f"; it has {', '.join(f'{name}:{key}' for key in candidates)}" if candidates else ""
        raise AppLoadError(f"the module {name} has no attribute {attribute!r}{hint}")
    app = getattr(module, attribute)
    if not isinstance(app, kind):
        raise AppLoadError(f"{reference} is a {type(app).__name__}, not a {kind.__name__}")
    return app


def _import(name: str, folder: Path) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise AppLoadError(f"there is no module {name!r} in {folder} (or elsewhere on the path)") from None
        raise AppLoadError(_failure(name, error, folder)) from None
    except (Exception, SystemExit) as error:
        raise AppLoadError(_failure(name, error, folder)) from None


def _failure(name: str, error: BaseException, folder: Path) -> str:
    """Tell what the import raised, with the frames of the user's own files only."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    lines = [f"importing {name} raised {type(error).__name__}: {error}"]
    lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}\n    {frame.line}" for frame in own]
    return "\n".join(lines)
