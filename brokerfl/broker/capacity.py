"""The capacity: what a server's INFO says, and above all its section "memory".

Owns how it is read. It must not know how the server is asked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: The share of ``maxmemory`` from which on a server counts as full: what is refused is larger than what is left.
_FULL = 0.995


@dataclass(frozen=True)
class ServerMemory:
    """What a primary says of its memory.

    Attributes:
        place: host and port, or the path of a socket.
        used: bytes that count towards `most`.
        most: its ``maxmemory`` in bytes; 0 for no limit.
        policy: its ``maxmemory-policy``.
    """

    place: str
    used: int
    most: int
    policy: str

    @property
    def free(self) -> int | None:
        """Bytes that are left; None if there is no limit."""
        return max(0, self.most - self.used) if self.most else None

    @property
    def is_full(self) -> bool:
        """Whether hardly anything is left."""
        return self.most > 0 and self.used >= self.most * _FULL


def memory_in(place: str, info: Mapping[str, Any]) -> ServerMemory:
    """Return what the section "memory" of INFO says."""
    uncounted = int(info.get("mem_not_counted_for_evict", 0))
    return ServerMemory(
        place,
        max(0, int(info.get("used_memory", 0)) - uncounted),
        int(info.get("maxmemory", 0)),
        str(info.get("maxmemory_policy", "")),
    )


def info_in(answers: Iterable[Any]) -> dict[str, str | int]:
    """Return what sections of INFO say; nothing of those that were refused."""
    found: dict[str, str | int] = {}
    for answer in answers:
        if isinstance(answer, bytes | str):
            lines = (answer.decode(errors="replace") if isinstance(answer, bytes) else answer).splitlines()
            pairs = (line.partition(":") for line in lines)
            found |= {name: int(text) if text.isdecimal() else text for name, _, text in pairs if text}
    return found
