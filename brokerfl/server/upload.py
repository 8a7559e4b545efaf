"""The upload: brings large contents to Redis, before any message names them.

Owns that exactly what Redis lacks of a content is sent. It must not know messages, or who needs a content.
"""

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from brokerfl.broker.blobs import TRIAL, Blobs
from brokerfl.common import RedisOutOfMemory, RunError
from brokerfl.server.session import Session
from brokerfl.wire.digests import Digests
from brokerfl.wire.manifest import Manifest
from brokerfl.wire.payload import EncodedContent, Payload

#: How often the upload of a content is tried: again after each loss, and a Redis that evicts loses chunks every time.
_MOST_PASSES = 10


class Uploader:
    """Brings the chunks of one run's contents to Redis, from any thread.

    Attributes:
        digests: of what is sent again and again.
    """

    def __init__(self, session: Session, blobs: Blobs) -> None:
        self._session = session
        self._blobs = blobs
        self.digests = Digests()
        self._uploaded = False  # since the owner was looked at

    def upload(self, content: EncodedContent, *, patient: bool = True) -> None:
        """Upload the chunks of a large content that Redis lacks; if ``patient``, wait for room.

        Raises:
            MessageTooLarge: the run would exceed its limit in Redis.
            RedisOutOfMemory: Redis is full, or evicts what it is sent; some chunks may be there.
        """
        payload = content.payload
        if payload is None:
            return
        written: list[int] = []
        try:
            self._upload(payload, self._session.with_room if patient else _once, written)
        except RunError:  # nobody needs what was written since, and the next owner may not know of it
            self._session.transactions.withdraw(payload, written)
            raise

    def _upload(self, payload: Payload, persist: Callable[..., Any], written: list[int]) -> None:
        for _ in range(_MOST_PASSES):
            windows = persist(lambda: self._lacking(payload))
            if not windows:
                return
            until = time.monotonic() + TRIAL / 2
            for window in windows:
                written += window
                persist(partial(self._upload_window, payload, window), self._sizes(payload, window))
                if time.monotonic() > until:  # a slow link: those that are there are to stay
                    persist(lambda: self._lacking(payload))
                    until = time.monotonic() + TRIAL / 2
        raise RedisOutOfMemory(
            "Redis evicts chunks as soon as it stores them: give it more memory, and set maxmemory-policy to noeviction"
        )

    def _lacking(self, payload: Payload) -> list[list[int]]:
        def ask() -> list[list[int]]:
            self._session.reconcile()  # only then is it known what Redis lacks
            if self._uploaded:  # what this process wrote stays only if it still owns the run
                self._session.transactions.owner.fence.look()
                self._uploaded = False
            return self._blobs.enter(payload)

        with self._session.writing:
            return self._session.through_outage(ask)

    def _upload_window(self, payload: Payload, window: list[int]) -> None:
        with self._session.writing:
            if not self._blobs.is_noted(payload.manifest):
                self._session.transact(lambda: self._session.transactions.upload(payload.manifest))
                self._blobs.noted(payload.manifest)
            self._uploaded = True
            self._session.through_outage(lambda: self._blobs.bring(payload, window))
            self._blobs.uploaded(payload, window)
            if not self._session.is_stale:  # here, for heartbeat and sweep skip it while a long upload is writing
                self._blobs.release()

    def _sizes(self, payload: Payload, window: list[int]) -> dict[str, int]:
        """Return how many bytes the chunks of a window have, by their keys."""
        owner = self._session.transactions.owner
        names = payload.manifest.chunks
        return {owner.connection.keys.blob(owner.run.run_id, names[index]): payload.size(index) for index in window}

    def manifest(self, content: bytes) -> Manifest | None:
        """Return the manifest of a large content if, as far as this process knows, Redis has all of it."""
        with self._session.writing:
            return self._blobs.manifest(content)

    def has(self, content: EncodedContent) -> bool:
        """Return whether, as far as this process knows, Redis has all of a large content."""
        return self.manifest(content.key) is not None

    @property
    def contents(self) -> Collection[bytes]:
        """The large contents that Redis may have. Only for the thread that holds `Session.writing`."""
        return self._blobs.contents


def _once(action: Callable[[], Any], wanted: Mapping[str, int] | None = None) -> Any:
    return action()
