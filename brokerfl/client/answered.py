"""Which replies a journal has, in memory: so that it is read only for what is there.

Owns how many are kept. It must not know where, or what they say.
"""

from collections.abc import Iterator

#: Replies that are kept for one run, and their bytes: on disk, and in memory, for which no other process can ask. Only
#: those from just before Redis was killed are ever asked for again.
MOST_REPLIES, MOST_BYTES, MOST_IN_MEMORY = 10_000, 64 * 1024**2, 4 * 1024**2

#: The number of new replies after which old ones are dropped; and the share of the most bytes.
_TIDY_AFTER, _SHARE = 1000, 8


class Answered:
    """The ids of the messages that were executed, by run, and the sizes of their replies in bytes.

    Args:
        in_memory: the replies are not on disk.
    """

    def __init__(self, in_memory: bool) -> None:
        self._in_memory = in_memory
        self.clear()

    def clear(self) -> None:
        """There is none."""
        self._sizes: dict[str, dict[str, int]] = {}  # in the order of the replies
        self._bytes: dict[str, int] = {}
        self._new = self._new_bytes = 0

    def __contains__(self, reply: tuple[str, str]) -> bool:
        run, message = reply
        return message in self._sizes.get(run, ())

    @property
    def runs(self) -> set[str]:
        """The runs that have some."""
        return set(self._sizes)

    def add(self, run: str, message: str, size: int) -> None:
        """There is a new one, or another in the place of one."""
        known = self._sizes.setdefault(run, {})
        self._bytes[run] = self._bytes.get(run, 0) + size - known.get(message, 0)
        known[message] = size
        self._new += 1
        self._new_bytes += size

    def forget(self, run: str) -> None:
        """Those of a run are gone."""
        self._sizes.pop(run, None)
        self._bytes.pop(run, None)

    def drop_old(self) -> list[tuple[str, str]]:
        """Now and then, drop what is too old; return it."""
        most = MOST_IN_MEMORY if self._in_memory else MOST_BYTES
        if self._new < _TIDY_AFTER and self._new_bytes < most // _SHARE:
            return []
        self._new = self._new_bytes = 0
        old = [(run, message) for run in self._sizes for message in self._old(run, most)]
        for run, message in old:
            self._bytes[run] -= self._sizes[run].pop(message)
        return old

    def _old(self, run: str, most: int) -> Iterator[str]:
        left, size = len(self._sizes[run]), self._bytes[run]
        for message, each in self._sizes[run].items():
            if left <= MOST_REPLIES and size <= most:
                return
            left, size = left - 1, size - each
            yield message
