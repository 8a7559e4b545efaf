"""The drain of a run, as its ServerApp heeds it: it pushes nothing any more, and finishes what is out.

Owns when Redis is asked whether somebody wants that. It must not know what a push is.
"""

from logging import INFO

from brokerfl.broker.owner import Owner
from brokerfl.common import RedisError, log
from brokerfl.server.progress import Progress


class Drain:
    """Looks whether a run is to be drained, which cannot be taken back."""

    def __init__(self, owner: Owner, progress: Progress) -> None:
        self._owner = owner
        self._progress = progress

    def look(self) -> None:
        """Ask Redis, unless it is known; if Redis does not answer now, the next look does."""
        if self._progress.is_draining:
            return
        try:
            is_drained = self._owner.books.is_drained()
        except RedisError:
            return
        if is_drained:
            self._progress.is_draining = True
            log(INFO, "Run %s is being drained: its app can push nothing any more", self._owner.run.run_id)
