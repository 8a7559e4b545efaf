"""What a process tells of itself: single values on their way into a map that anybody may have written.

Owns which text can be sent, and which values their writer may have meant. It must not know what they say.
"""

from typing import Any


def sendable(text: str) -> str:
    """Return a text as it can be sent and logged: the class of an exception, a node or a file may have any name."""
    return text.encode(errors="replace").decode()  # of a StrEnum, the plain text


def scalar_in(kind: type, value: Any) -> Any:
    """Return a value if it is of this type, a time, duration or count not below 0; None if it is something else."""
    if kind is float and type(value) in (int, float):
        return float(value) if 0 <= value < 1e18 else None  # neither nan nor inf
    if kind is int and type(value) is int:
        return value if 0 <= value < 2**64 else None
    return value if kind in (str, bool) and type(value) is kind else None
