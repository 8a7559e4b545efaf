"""Signing: what a signature says, and of what.

Owns the statement that is signed, and what makes one of a message and of a reply. It must not know whose keys are
trusted, or what happens to what nobody signed.

A statement has all that tells one message from another: who sent it to whom, in which run and which data set, when, and
the sha256 of what it carries. So none can be taken for another.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from brokerfl.common import Error, FrameError, Metadata
from brokerfl.wire.frame import HEAD, ID, SIGNATURE, Fields, pack

#: What begins every statement: nothing else is ever signed with these keys.
_PROTOCOL = "brokerfl/1"

Data = bytes | memoryview


class DistrustError(FrameError):
    """Nobody who is trusted signed it as it is."""


def statement(role: str, data_set: bytes, run_id: int, *more: Any) -> bytes:
    """Return what is signed: of a message, a reply, a run (its frame) or a state."""
    return pack([_PROTOCOL, role, data_set, run_id, *more])


def statement_of(
    role: str, data_set: bytes, message_id: str, metadata: Metadata, error: Error | None, fields: Mapping[bytes, Data]
) -> bytes:
    """Return what is signed of a message or a reply.

    Args:
        role: ``message`` or ``reply``.
        data_set: the identity of the Redis data set.
        message_id: of the message, or of the one that is answered.
        metadata: what its header says.
        error: of an Error reply.
        fields: all of its fields.
    """
    return statement(
        role,
        data_set,
        metadata.run_id,
        message_id,
        metadata.src_node_id,
        metadata.dst_node_id,
        metadata.group_id,
        metadata.message_type,
        float(metadata.created_at),
        float(metadata.ttl),
        digest_of(fields, error),
    )


def digest_of(fields: Mapping[bytes, Data], error: Error | None = None) -> bytes:
    """Return the sha256 of all that a message carries besides its id and its header; of an Error, code and reason.

    The length of a name comes before it: else two fields could be moved into one, whose name has what the first held.
    """
    digest = sha256(b"" if error is None else pack([int(error.code), error.reason]))
    for name in sorted(fields.keys() - {ID, HEAD, SIGNATURE}):
        digest.update(b"%d %d " % (len(name), len(fields[name])))
        digest.update(name)
        digest.update(fields[name])
    return digest.digest()


def signed(private: bytes, said: bytes, fields: Fields) -> Fields:
    """Return fields with the signature of what they say."""
    from brokerfl.common import crypto

    return {**fields, SIGNATURE: crypto.sign(private, said)}


def check_signature(public: bytes, said: bytes, fields: Mapping[bytes, Data], who: str) -> None:
    """Check that fields are as they were signed.

    Args:
        public: the key of who is to have signed them.
        said: what they say.
        fields: the fields.
        who: whose key that is, in words.

    Raises:
        DistrustError: they are not.
    """
    from brokerfl.common import crypto

    signature = fields.get(SIGNATURE)
    if signature is None:
        raise DistrustError("it is not signed")
    if not crypto.is_signed(public, said, signature):
        raise DistrustError(f"its signature is not that of {who}: it was changed, or is somebody else's")
