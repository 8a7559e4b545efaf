"""The upload: large contents to Redis, before any message names them.

Owns that each content of a push is encoded, hashed and sent once. It must not know the ledger, or who needs a content.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.connection import Pipeline
from brokerfl.common import BrokerflError, RecordSet
from brokerfl.common.array import memory_of
from brokerfl.server.link import Link
from brokerfl.wire.frame import CONTENT
from brokerfl.wire.payload import EncodedContent, Payload
from brokerfl.wire.record import encode_content


class Contents:
    """The contents of one push, each encoded and hashed once, also when many records share their arrays."""

    def __init__(self) -> None:
        self._by_record: dict[int, EncodedContent] = {}
        self._by_memory: dict[Hashable, EncodedContent] = {}

    def encode(self, record: RecordSet) -> EncodedContent:
        """Return a content, frozen as it is now."""
        if id(record) not in self._by_record:
            fields = encode_content(record)
            memory = (fields[CONTENT], *(memory_of(data) for data in islice(fields.values(), 1, None)))
            if memory not in self._by_memory:
                self._by_memory[memory] = EncodedContent(fields)
            self._by_record[id(record)] = self._by_memory[memory]
        return self._by_record[id(record)]

    def __iter__(self) -> Iterator[EncodedContent]:
        return iter(self._by_memory.values())


class Uploader:
    """Brings the chunks of one run's contents to Redis. One thread at a time.

    Args:
        link: the transactions.
        blobs: what is there.
        when_there_is_room: repeats what a full Redis refused, for a while.
    """

    def __init__(self, link: Link, blobs: Blobs, when_there_is_room: Callable[[Callable[[], Any]], Any]) -> None:
        self._link = link
        self._blobs = blobs
        self._when_there_is_room = when_there_is_room

    def upload(self, content: EncodedContent) -> None:
        """Bring the chunks of a large content to Redis, those that it lacks: before any message names them.

        Raises:
            MessageTooLarge: the run would have more in Redis than it may.
            RunError, OutageLimit: the run is over.
            RedisOutOfMemory: Redis is full; some chunks may be there, see `free_idle`.
        """
        payload = content.payload
        if payload is None:
            return
        # What Redis lacks is known only after a comparison; one that comes in between may find that more is gone.
        self._when_there_is_room(lambda: self._link.through_outage(self._link.reconcile))
        while windows := self._lacking(payload):
            for window in windows:
                self._upload_window(payload, window)

    def _lacking(self, payload: Payload) -> list[list[int]]:
        with self._link.writing:
            return self._blobs.enter(payload)

    def _upload_window(self, payload: Payload, window: list[int]) -> None:
        def build(pipe: Pipeline) -> None:
            self._blobs.upload(pipe, payload, window)

        with self._link.writing:
            self._when_there_is_room(lambda: self._link.transact(build, lambda: False))
            self._blobs.uploaded(payload, window)
            if not self._link.is_stale:  # while this thread writes nobody else lets go of what Redis has had for long
                self._blobs.release()

    def free_idle(self) -> None:
        """Delete what was uploaded for a push that failed; what cannot be deleted now goes with the next commit."""
        with suppress(BrokerflError), self._link.writing:
            idle = self._blobs.idle()
            if idle:
                self._link.transact(lambda pipe: self._blobs.remove(pipe, idle), lambda: False, frees=True)
                self._blobs.removed(idle)
