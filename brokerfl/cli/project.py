"""The project that an app belongs to, as Flower's users describe it in pyproject.toml.

Owns what is read from there: ``[tool.flwr.app.components]`` and ``[tool.flwr.app.config]``. It must not know flwr, nor
how an app is imported.
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brokerfl.common import AppLoadError, ConfigError, UserConfig

_FILE = "pyproject.toml"
_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Project:
    """What a pyproject.toml says of its app.

    Attributes:
        folder: where it is.
        components: ``serverapp`` and ``clientapp``, each ``module:attribute``.
        config: the run config that a run has unless it is told otherwise, by names with dots; None where there is none.
    """

    folder: Path
    components: dict[str, str] = field(default_factory=dict)
    config: UserConfig | None = None

    def component(self, kind: str) -> str:
        """Return the ``module:attribute`` of a component.

        Raises:
            AppLoadError: there is none.
        """
        try:
            return self.components[kind]
        except KeyError:
            file = self.folder / _FILE
            missing = f"names no {kind}" if file.exists() else "does not exist"
            raise AppLoadError(
                f"{file} {missing}: write it under [tool.flwr.app.components], or name the app as module:attribute"
            ) from None

    def run_config(self, given: UserConfig) -> UserConfig:
        """Return the project's run config with what the user gave over it.

        Raises:
            ConfigError: the project has a config, and not a key that was given, as in Flower.
        """
        if self.config is None:
            return given
        unknown = [key for key in given if key not in self.config]
        if unknown:
            known = ", ".join(self.config) or "nothing"
            raise ConfigError(
                f"--run-config: {unknown[0]!r} is not in [tool.flwr.app.config] of {self.folder / _FILE}, which has: "
                f"{known}. Correct it, or add it there"
            )
        return {**self.config, **given}


def read_project(folder: str | Path) -> Project:
    """Return the project in ``folder``; one that says nothing where there is no pyproject.toml.

    Raises:
        ConfigError: it cannot be read, or says something impossible.
    """
    root = Path(folder).resolve()
    try:
        text = (root / _FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Project(root)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{root / _FILE} cannot be read: {error}") from None
    try:
        app = _table(tomllib.loads(text), "tool", "flwr", "app")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{root / _FILE} is no TOML: {error}") from None
    components = {key: value for key, value in _table(app, "components").items() if isinstance(value, str)}
    config = dict(_flattened(_table(app, "config"), root / _FILE)) if "config" in app else None
    return Project(root, components, config)


def _table(value: Any, *names: str) -> dict[str, Any]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _flattened(table: dict[str, Any], file: Path, prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            pairs += _flattened(value, file, f"{name}.")
        elif isinstance(value, _SCALARS):
            pairs.append((name, value))
        else:
            raise ConfigError(
                f"{file}: {name} in [tool.flwr.app.config] is a {type(value).__name__}, not a boolean, number or string"
            )
    return pairs
