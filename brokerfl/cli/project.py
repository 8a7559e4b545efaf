"""The project that an app belongs to, as Flower's users describe it in pyproject.toml.

Owns what is read from it: its name and version, ``[tool.flwr.app.components]`` and ``[tool.flwr.app.config]``. It must
not know flwr, nor how an app is imported.
"""

import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any

from brokerfl.cli.code import digest_of_code
from brokerfl.common import AppLoadError, ConfigError, UserConfig
from brokerfl.common.config import flattened
from brokerfl.wire.origin import Origin


class Project:
    """What the pyproject.toml of a folder says about its app. It is read when first needed.

    Args:
        folder: the directory of the pyproject.toml.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self._file = self.folder / "pyproject.toml"

    def component(self, kind: str) -> str:
        """Return the ``module:attribute`` of a component, ``serverapp`` or ``clientapp``.

        Raises:
            AppLoadError: there is none.
            ConfigError: the file cannot be read, or ``components`` is not a table.
        """
        component = self._own_table("components").get(kind)
        if isinstance(component, str) and ":" in component:
            return component
        if component is not None:
            raise AppLoadError(
                f"{self._file}: the {kind} in [tool.flwr.app.components] is {component!r}, not module:attribute"
            )
        if not self._file.exists():
            raise AppLoadError(
                f"{self._file} does not exist: create one that names the {kind} under [tool.flwr.app.components], or "
                "name the app as module:attribute, such as client:app"
            )
        raise AppLoadError(
            f"{self._file} names no {kind}: add it under [tool.flwr.app.components], or name the app as "
            "module:attribute"
        )

    @cached_property
    def origin(self) -> Origin:
        """What others are told of the project, and of its code as it is now; without the name of an app.

        Raises:
            ConfigError: the file cannot be read.
        """
        own = _table(self._content, "project")
        name, version = (value if isinstance(value := own.get(key), str) else "" for key in ("name", "version"))
        return Origin("", name, version, digest_of_code(self.folder)) if name else Origin("")

    @cached_property
    def defaults(self) -> UserConfig | None:
        """The project's default run config; None if it has none.

        Raises:
            ConfigError: the file cannot be read, its config is not a table, or a value is not allowed in a run config.
        """
        if "config" not in self._app:
            return None
        return flattened(self._own_table("config"), f"{self._file}: [tool.flwr.app.config]")

    def run_config(self, given: UserConfig) -> UserConfig:
        """Return the defaults, overridden by what the user gave.

        Raises:
            ConfigError: as `defaults`; or a key was given that the defaults do not have, as in Flower.
        """
        config = self.defaults
        if config is None:
            return given
        unknown = [key for key in given if key not in config]
        if unknown:
            known = ", ".join(config) or "nothing"
            raise ConfigError(
                f"--run-config: {unknown[0]!r} is not in [tool.flwr.app.config] of {self._file}, which has: "
                f"{known}. Correct it, or add it there"
            )
        return {**config, **given}

    def _own_table(self, name: str) -> dict[str, Any]:
        value = self._app.get(name, {})
        if isinstance(value, dict):
            return value
        raise ConfigError(f"{self._file}: [tool.flwr.app]: `{name}` is a {type(value).__name__}, not a table")

    @cached_property
    def _app(self) -> dict[str, Any]:
        """The table [tool.flwr.app], empty if there is none."""
        return _table(self._content, "tool", "flwr", "app")

    @cached_property
    def _content(self) -> dict[str, Any]:
        return _read_toml(self._file) if self._file.is_file() else {}


def read_config(file: Path) -> UserConfig:
    """Return the content of a TOML file as a config; tables become dotted names.

    Raises:
        ConfigError: it cannot be read, or a value is not a boolean, number or string, or cannot be sent.
    """
    return flattened(_read_toml(file), str(file))


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # without the mark that some editors begin with
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} cannot be read: it is not UTF-8, as TOML has to be: save it as UTF-8 ({error})"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None


def _table(value: Any, *names: str) -> dict[str, Any]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}
