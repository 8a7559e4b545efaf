"""Where an app comes from: what a ServerApp and a node tell each other of theirs.

Owns when two of them belong together, and how much of a name is told. It must not know where the names are read.
"""

import re
from dataclasses import dataclass
from typing import Any

#: Most characters of a name or version that are told.
_LONGEST = 100

_DIGEST = re.compile(r"[0-9a-f]{0,64}")


@dataclass(frozen=True)
class Origin:
    """Where an app comes from.

    Names are cut to 100 characters.

    Attributes:
        app: the app, as ``module:attribute``.
        project: the name of its project; "" if it stands alone.
        version: that of the project.
        digest: of the project's code, in hex; "" if that is not known.
    """

    app: str
    project: str = ""
    version: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        for name in ("app", "project", "version"):
            object.__setattr__(self, name, getattr(self, name)[:_LONGEST])

    def __str__(self) -> str:
        """Return its name for people: that of the project, or of an app that stands alone."""
        code = f"({self.digest[:8]})" if self.digest else ""
        return " ".join(filter(None, (self.project, self.version, code))) if self.project else self.app

    def is_foreign_to(self, other: "Origin | None") -> bool:
        """Whether they belong to different projects. What a script starts comes from nowhere, and is never foreign."""
        return other is not None and self.project != other.project

    def is_other_code_than(self, other: "Origin | None") -> bool:
        """Whether they are different versions of one project. Apps that stand alone are not compared."""
        if other is None or not self.project or self.project != other.project:
            return False
        return self.version != other.version or bool(self.digest and other.digest and self.digest != other.digest)


def listed(origin: Origin) -> list[str]:
    """Return what is told of an origin besides the name of its app."""
    return [origin.project, origin.version, origin.digest]


def origin_of(app: str, told: Any) -> Origin | None:
    """Return what `listed` listed; None if somebody else wrote something else."""
    match told:
        case [str(project), str(version), str(digest)]:
            if len(project) <= _LONGEST and len(version) <= _LONGEST and _DIGEST.fullmatch(digest):
                return Origin(app, project, version, digest)
    return None
