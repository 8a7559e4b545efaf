"""The upload: large contents to Redis, before any message names them.

Owns that each content of a push is encoded, hashed and sent once. It must not know the ledger, or who needs a content.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.connection import Pipeline
from brokerfl.common import BrokerflError, RecordSet, RedisOutOfMemory
from brokerfl.common.array import memory_of
from brokerfl.server.link import Link
from brokerfl.wire.frame import CONTENT, Fields
from brokerfl.wire.payload import EncodedContent, Payload, is_large
from brokerfl.wire.record import encode_content

#: How often a content is sent before it is given up: once more after each loss, and a Redis that evicts loses always.
_MOST_PASSES = 10

#: Bytes at both ends of an array by which contents are told apart before they are compared, and bytes compared at once.
_END, _STRETCH = 256, 1024 * 1024


class Contents:
    """The contents of one push, each encoded and hashed once, also when many records share or repeat its arrays."""

    def __init__(self) -> None:
        self._by_record: dict[int, EncodedContent] = {}
        self._by_memory: dict[Hashable, EncodedContent] = {}
        self._by_look: dict[Hashable, list[tuple[Fields, EncodedContent]]] = {}

    def encode(self, record: RecordSet) -> EncodedContent:
        """Return a content, frozen as it is now."""
        if id(record) not in self._by_record:
            fields = encode_content(record)
            memory = (fields[CONTENT], *(memory_of(data) for data in islice(fields.values(), 1, None)))
            if memory not in self._by_memory:
                self._by_memory[memory] = self._equal(fields) if is_large(fields) else EncodedContent(fields)
            self._by_record[id(record)] = self._by_memory[memory]
        return self._by_record[id(record)]

    def _equal(self, fields: Fields) -> EncodedContent:
        """Return a content that has the same bytes elsewhere in memory, if there is one: only what is new is hashed."""
        ends = (bytes(data[:_END]) + bytes(data[-_END:]) for data in islice(fields.values(), 1, None))
        found = self._by_look.setdefault((fields[CONTENT], *ends), [])
        for other, encoded in found:
            if all(map(_are_equal, fields.values(), other.values())):
                return encoded
        found.append((fields, EncodedContent(fields)))
        return found[-1][1]

    def __iter__(self) -> Iterator[EncodedContent]:
        return iter({id(content): content for content in self._by_memory.values()}.values())


class Uploader:
    """Brings the chunks of one run's contents to Redis, from any thread; `Link.writing` guards what is noted.

    Args:
        link: the transactions.
        blobs: what is there.
        when_there_is_room: repeats what a full Redis refused, for a while.
    """

    def __init__(self, link: Link, blobs: Blobs, when_there_is_room: Callable[[Callable[[], Any]], Any]) -> None:
        self._link = link
        self._blobs = blobs
        self._when_there_is_room = when_there_is_room

    def upload(self, content: EncodedContent, *, patient: bool = True) -> None:
        """Bring the chunks of a large content to Redis, those that it lacks: before any message names them.

        Args:
            content: the content.
            patient: wait for room in a full Redis.

        Raises:
            MessageTooLarge: the run would have more in Redis than it may.
            RunError, OutageLimit: the run is over.
            RedisOutOfMemory: Redis is full, or deletes what it is sent; some chunks may be there, see `free_idle`.
        """
        payload = content.payload
        if payload is None:
            return
        persist = self._when_there_is_room if patient else _once
        for _ in range(_MOST_PASSES):
            windows = persist(lambda: self._lacking(payload))
            if not windows:
                return
            for window in windows:
                persist(partial(self._upload_window, payload, window))
        raise RedisOutOfMemory(
            "Redis deletes chunks as soon as it has them: give it more memory, and set maxmemory-policy to noeviction"
        )

    def _lacking(self, payload: Payload) -> list[list[int]]:
        def ask() -> list[list[int]]:
            self._link.reconcile()  # what Redis lacks is known only after a comparison
            return self._blobs.enter(payload)

        with self._link.writing:
            return self._link.through_outage(ask)

    def _upload_window(self, payload: Payload, window: list[int]) -> None:
        def build(pipe: Pipeline) -> None:
            self._blobs.upload(pipe, payload, window)

        with self._link.writing:
            self._link.transact(build, lambda: False)
            self._blobs.uploaded(payload, window)
            if not self._link.is_stale:  # while this thread writes nobody else lets go of what Redis has had for long
                self._blobs.release()

    def has(self, content: EncodedContent) -> bool:
        """Return whether a large content is in Redis, as far as this process knows."""
        return self._blobs.manifest(content.name) is not None

    def free_idle(self) -> None:
        """Delete what was uploaded for a push that failed; what cannot be deleted now goes with the next commit."""
        with suppress(BrokerflError), self._link.writing:
            idle = self._blobs.idle()
            if idle:
                self._link.transact(lambda pipe: self._blobs.remove(pipe, idle), lambda: False, frees=True)
                self._blobs.removed(idle)


def _once(action: Callable[[], Any]) -> Any:
    return action()


def _are_equal(one: bytes | memoryview, other: bytes | memoryview) -> bool:
    """Compare as bytes, which is memcmp: memoryviews compare element by element."""
    return len(one) == len(other) and all(
        bytes(one[at : at + _STRETCH]) == bytes(other[at : at + _STRETCH]) for at in range(0, len(one), _STRETCH)
    )
