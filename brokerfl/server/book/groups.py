"""The groups that a run has pushed: a push of a new one moves the run on.

Owns which groups are new. It must not know who pushes them.
"""

from collections.abc import Collection, Iterable
from functools import lru_cache
from hashlib import blake2s
from itertools import islice

from brokerfl.broker.change import MOST_GROUPS, Groups


class KnownGroups:
    """The last groups of one run, by digest, in the order in which they were new. Guarded by the book's lock.

    Args:
        saved: those that Redis has.
    """

    def __init__(self, saved: Iterable[bytes]) -> None:
        self._known = dict.fromkeys(saved)
        self._is_saved = False

    def add(self, group_id: str) -> None:
        """A message of it is in the ledger."""
        self._known[_digest(group_id)] = None

    def new(self, group_ids: Iterable[str]) -> Groups:
        """Return what Redis has to note when these groups are pushed; it is false if none of them is new."""
        new = tuple(digest for digest in map(_digest, group_ids) if digest not in self._known)
        is_full = len(self._known) + len(new) > MOST_GROUPS
        if new and not self._is_saved:
            return Groups((*self._known, *new), True, is_full)
        return Groups(new, False, is_full)

    def noted(self, groups: Groups) -> None:
        """Redis has noted these."""
        if groups:
            self._is_saved = True
            self._known.update(dict.fromkeys(groups.digests))
            for digest in [*islice(self._known, max(0, len(self._known) - MOST_GROUPS))]:
                del self._known[digest]

    def forget(self) -> None:
        """The run begins anew."""
        self._known, self._is_saved = {}, False

    def all(self) -> Collection[bytes]:
        """Return what Redis is to have."""
        return list(self._known)


@lru_cache(MOST_GROUPS)
def _digest(group_id: str) -> bytes:
    return blake2s(group_id.encode(errors="surrogatepass"), digest_size=8).digest()
