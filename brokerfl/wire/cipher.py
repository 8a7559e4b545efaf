"""Ciphers: what a content looks like on its way, in clear or sealed.

Owns the layout of what is sealed. It must not know whose keys these are, or what a content means.

What a cipher seals is a nonce, what AES-256-GCM encrypted, and its tag. The nonce is made of the text itself
(HMAC-SHA256, of which 12 bytes are kept), so equal texts become equal bytes: a broadcast is stored once, and a chunk
that did not change keeps its name, which is the sha256 of what is stored. So a name says nothing of the text, except
that two of them are equal. Of 2**32 texts, two share a nonce less likely than 2**-32, as NIST SP 800-38D asks for.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Protocol

import msgpack

from brokerfl.common import FrameError
from brokerfl.wire.frame import HEAD, ID, MANIFEST, SEALED, SIGNATURE, Fields, join_fields
from brokerfl.wire.record import frozen

Data = bytes | memoryview

#: Most fields that a sealed content may have: a few more than are sealed, for another version may have another limit.
_MOST_FIELDS = 1024


class Cipher(Protocol):
    """How contents are sealed and opened. Safe to share between threads.

    Attributes:
        overhead: bytes by which what is sealed is longer.
    """

    overhead: int

    def seal(self, plain: memoryview) -> memoryview:
        """Return a chunk as it is stored."""

    def open(self, stored: Data) -> Data:
        """Return the chunk that `seal` sealed.

        Raises:
            FrameError: it was changed, or sealed with another key.
        """

    def inline(self, content: Fields) -> Fields:
        """Return the fields by which a message carries a small content, frozen as it is now."""

    def opened(self, fields: Mapping[bytes, Data]) -> Fields:
        """Return the fields of a message, with its small content as `record.decode_content` reads it.

        Raises:
            FrameError: it was changed, or sealed with another key, or is in clear although it must not be.
        """


class Clear:
    """No cipher at all."""

    overhead = 0

    def seal(self, plain: memoryview) -> memoryview:
        """Return it."""
        return plain

    def open(self, stored: Data) -> Data:
        """Return it."""
        return stored

    def inline(self, content: Fields) -> Fields:
        """Return it, frozen."""
        return frozen(content)

    def opened(self, fields: Mapping[bytes, Data]) -> Fields:
        """Return them.

        Raises:
            FrameError: they are sealed.
        """
        if SEALED in fields:
            raise FrameError("it is sealed, and this process has no key for it")
        return dict(fields)


CLEAR = Clear()


class Sealing:
    """Seals with keys that are derived from a secret.

    Args:
        secret: 32 bytes.
        purpose: what the keys are for; with another one, they are others.
    """

    def __init__(self, secret: bytes, purpose: bytes) -> None:
        from brokerfl.common import crypto

        self._crypto = crypto
        self._key = crypto.derive(secret, b"brokerfl/1 seal " + purpose)
        self._nonce_key = crypto.derive(secret, b"brokerfl/1 nonce " + purpose)
        self.overhead = crypto.NONCE + crypto.TAG

    def seal(self, plain: Data) -> memoryview:
        """Return what is stored.

        The text is copied first: if another thread changed it between the making of its nonce and its encryption, two
        texts would share a nonce.
        """
        text = bytes(plain)
        nonce = self._crypto.authenticate(self._nonce_key, sha256(text).digest())[: self._crypto.NONCE]
        return memoryview(nonce + self._crypto.encrypt(self._key, nonce, text))

    def open(self, stored: Data) -> Data:
        """Return the text.

        Raises:
            FrameError: it was changed, or sealed with another key.
        """
        view, size = memoryview(stored), self._crypto.NONCE
        try:
            return self._crypto.decrypt(self._key, view[:size], view[size:])
        except self._crypto.CannotOpen:
            raise FrameError("it cannot be opened: it was changed, or sealed with another key") from None

    def inline(self, content: Fields) -> Fields:
        """Return one field, with the whole content; none for that of an Error, which has none."""
        if not content:
            return {}
        return {SEALED: bytes(self.seal(join_fields(content)))}

    def opened(self, fields: Mapping[bytes, Data]) -> Fields:
        """Return the fields with the content in clear; a large one, of which they have the manifest, is not in them.

        Raises:
            FrameError: it was changed, or sealed with another key, or is in clear.
        """
        kept: Fields = {name: fields[name] for name in (ID, HEAD, SIGNATURE) if name in fields}
        if MANIFEST in fields:
            return kept | {MANIFEST: fields[MANIFEST]}
        if SEALED not in fields:
            raise FrameError("its content is in clear, but the run is sealed")
        return kept | _split(self.open(fields[SEALED]))


def _split(data: Data) -> Fields:
    """Return the fields of a content that was sealed."""
    try:
        fields = msgpack.unpackb(
            data,
            raw=True,
            strict_map_key=False,
            max_map_len=_MOST_FIELDS,
            max_array_len=0,
            max_str_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises ValueError and its own types
        raise FrameError(f"what was sealed is no content: {error}") from None
    if not isinstance(fields, dict) or not all(type(item) is bytes for pair in fields.items() for item in pair):
        raise FrameError("what was sealed is no content")
    return fields
