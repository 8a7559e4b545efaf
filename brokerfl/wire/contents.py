"""The contents of one push.

Owns that each content is encoded and hashed once, no matter how many messages carry it. It must not know messages.
"""

from collections.abc import Hashable, Iterator
from itertools import islice

from brokerfl.common import RecordSet
from brokerfl.common.array import memory_of
from brokerfl.wire.cipher import CLEAR, Cipher
from brokerfl.wire.digests import Digests, are_equal
from brokerfl.wire.frame import CONTENT, Fields
from brokerfl.wire.payload import EncodedContent, is_large
from brokerfl.wire.record import encode_content

#: Bytes at both ends of an array that distinguish it before it is compared.
_END = 256


class Contents:
    """The contents of one push, each encoded and hashed once, even if many records share or repeat its arrays.

    Args:
        uploader: the number of the run's owner that uploads the large ones.
        cipher: seals them.
        digests: those that are known already.
    """

    def __init__(self, uploader: int = 0, cipher: Cipher = CLEAR, digests: Digests | None = None) -> None:
        self._uploader = uploader
        self._cipher = cipher
        self._digests = digests
        self._by_record: dict[int, EncodedContent] = {}
        self._by_memory: dict[Hashable, EncodedContent] = {}
        self._by_look: dict[Hashable, tuple[Fields, EncodedContent]] = {}
        self._by_name: dict[bytes, EncodedContent] = {}

    def encode(self, record: RecordSet) -> EncodedContent:
        """Return the encoded content, frozen as it is now."""
        if id(record) not in self._by_record:
            fields = encode_content(record)
            memory = (fields[CONTENT], *(memory_of(data) for data in islice(fields.values(), 1, None)))
            if memory not in self._by_memory:
                self._by_memory[memory] = self._equal(fields) if is_large(fields) else self._encoded(fields)
            self._by_record[id(record)] = self._by_memory[memory]
        return self._by_record[id(record)]

    def _equal(self, fields: Fields) -> EncodedContent:
        """Return a content with the same bytes elsewhere in memory, or a new one.

        It is compared with the first one that looks like it, as copies of one model do; otherwise it is hashed.
        """
        ends = (bytes(data[:_END]) + bytes(data[-_END:]) for data in islice(fields.values(), 1, None))
        look = (fields[CONTENT], *ends)
        if look in self._by_look:
            other, encoded = self._by_look[look]
            if all(map(are_equal, fields.values(), other.values())):
                return encoded
        hashed = self._encoded(fields)
        encoded = self._by_name.setdefault(hashed.name, hashed)
        self._by_look.setdefault(look, (fields, encoded))
        return encoded

    def _encoded(self, fields: Fields) -> EncodedContent:
        return EncodedContent(fields, self._uploader, self._cipher, self._digests)

    def __iter__(self) -> Iterator[EncodedContent]:
        return iter({id(content): content for content in self._by_memory.values()}.values())
