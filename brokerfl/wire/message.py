"""Messages to and from the fields of a stream entry.

Owns the message header, the ids of messages, and what a ServerApp may send. It must not know streams, runs' states or
Redis.
"""

import os
import re
import reprlib
from collections.abc import Mapping
from hashlib import blake2s
from itertools import product
from typing import Any

from brokerfl.common import Error, FrameError, Message, MessageTooLarge, Metadata, is_message_type
from brokerfl.wire.frame import HEAD, ID, MAX_HEADER_BYTES, Fields, pack, unpack
from brokerfl.wire.record import decode_content

_RANDOM_BYTES, _TAG_BYTES = 12, 4

_ID = re.compile("[0-9a-f]{32}")

#: Bytes that the header of a message leaves free: its reply and its ledger entry repeat group and type, and an Error
#: reply also has a reason.
_ROOM_FOR_REPLY = 16 * 1024

#: Seconds, about 30 years: a deadline in milliseconds stays far below 64 bits.
_LONGEST_TTL = 1e9


def new_message_id(run_id: int) -> str:
    """Return a random id of 32 hex digits that `is_message_id` recognises as one of this run.

    The last 8 digits are a digest of the run and the rest. They distinguish an id that was pulled before from one that
    was never accepted, without remembering every id.
    """
    unique = os.urandom(_RANDOM_BYTES)
    return (unique + _tag(run_id, unique)).hex()


def is_message_id(run_id: int, message_id: str) -> bool:
    """Return whether ``message_id`` was made by `new_message_id` for this run."""
    try:
        raw = bytes.fromhex(message_id)
    except (ValueError, TypeError):
        return False
    unique, tag = raw[:_RANDOM_BYTES], raw[_RANDOM_BYTES:]
    return len(unique) == _RANDOM_BYTES and tag == _tag(run_id, unique)


def _tag(run_id: int, unique: bytes) -> bytes:
    return blake2s(unique, digest_size=_TAG_BYTES, key=run_id.to_bytes(8, "big")).digest()


def check_message(message: Message, run_id: int) -> Message:
    """Return the message if this run can push it.

    Raises:
        TypeError, ValueError: it is not a Message, has no content, or belongs to another run; or as `check_metadata`.
    """
    if not isinstance(message, Message):
        raise TypeError(f"push_messages() takes Messages, not {type(message).__name__}")
    if not message.has_content():
        raise ValueError(f"{message!r} has no content: only nodes send errors")
    if message.metadata.run_id != run_id:
        raise ValueError(
            f"a message of run {message.metadata.run_id} cannot be pushed by run {run_id}: "
            "use create_message of this Driver"
        )
    check_metadata(message.metadata)
    return message


def check_metadata(metadata: Metadata) -> None:
    """Refuse what a frame cannot carry, or what no node would understand.

    Raises:
        ValueError: which field, and why.
    """
    if not isinstance(metadata.message_type, str) or not is_message_type(metadata.message_type):
        raise ValueError(
            f"the message type {metadata.message_type!r} is not train, evaluate or query, or one of them with an "
            "action such as train.warmup"
        )
    if type(metadata.dst_node_id) is not int or not 0 <= metadata.dst_node_id < 2**64:
        raise ValueError(f"dst_node_id is {metadata.dst_node_id!r}: it must be an int, as get_node_ids() returns them")
    if not isinstance(metadata.group_id, str):
        raise ValueError(f"group_id is {metadata.group_id!r}: it must be a str, such as str(server_round)")
    if not isinstance(metadata.ttl, int | float) or not 0 <= metadata.ttl < _LONGEST_TTL:
        raise ValueError(f"ttl is {metadata.ttl!r}: it must be seconds, from 0 to {_LONGEST_TTL:g}")


def encode_message(
    message_id: str, metadata: Metadata, content: Fields | None = None, error: Error | None = None
) -> Fields:
    """Return the stream fields of one message.

    Args:
        message_id: for field ``i``: a message's own id, or for a reply the id of the message it answers.
        metadata: the rest of the header.
        content: the fields of a `payload.EncodedContent`; shared by the messages of a broadcast, not copied.
        error: the error of an Error reply, instead of content.

    Raises:
        ValueError: a text is not Unicode, or a number exceeds 64 bits.
        MessageTooLarge: the header exceeds its limit; the text names the longest part.
    """
    header = [
        metadata.run_id,
        metadata.src_node_id,
        metadata.dst_node_id,
        metadata.group_id,
        metadata.message_type,
        metadata.reply_to_message,
        float(metadata.created_at),
        float(metadata.ttl),
        None if error is None else [error.code, error.reason],
    ]
    limit = MAX_HEADER_BYTES if metadata.reply_to_message else MAX_HEADER_BYTES - _ROOM_FOR_REPLY
    try:
        head = pack(header, limit)
    except MessageTooLarge as problem:
        texts = {"group_id": metadata.group_id, "message_type": metadata.message_type}
        if error is not None:
            texts["error's reason"] = error.reason or ""
        name = max(texts, key=lambda name: len(texts[name]))
        raise MessageTooLarge(
            f"{problem}: the {name} has {len(texts[name]):,} characters; put long texts into the content"
        ) from None
    return {ID: message_id.encode(), HEAD: head, **(content or {})}


def message_id_of(fields: Mapping[bytes, bytes | memoryview]) -> str:
    """Return field ``i``, which every version can read; "" if there is none."""
    return bytes(fields.get(ID, b"")).decode("ascii", "replace")


def received_id_of(fields: Mapping[bytes, bytes | memoryview]) -> str:
    """Return the id of a message as `new_message_id` writes it; "" for anything else.

    A node keeps it in records of a fixed length, and answers with it.
    """
    message_id = message_id_of(fields)
    return message_id if _ID.fullmatch(message_id) else ""


def decode_message(fields: Mapping[bytes, bytes | memoryview]) -> Message:
    """Return the message that `encode_message` made.

    Its `message_id` is field ``i`` for a message, "" for a reply. Arrays are read-only views of ``fields``.

    Raises:
        FrameVersionError: made by another version.
        FrameError: malformed.
    """
    metadata, error = decode_header(fields)
    if error is not None:
        return Message(metadata, error=error)
    return Message(metadata, content=decode_content(fields))


def decode_header(fields: Mapping[bytes, bytes | memoryview]) -> tuple[Metadata, Error | None]:
    """Return the metadata of a message, and the error of an Error reply.

    Raises:
        FrameVersionError: made by another version.
        FrameError: malformed.
    """
    header = unpack(fields.get(HEAD))
    if not isinstance(header, list) or len(header) != len(_HEADER):
        raise FrameError("the header is not a list as this version writes it")
    if tuple(map(type, header)) not in _TYPES:
        for (name, kinds), value in zip(_HEADER, header, strict=True):
            if type(value) not in kinds:
                raise FrameError(f"the header's {name} is {reprlib.repr(value)}")
    run_id, src, dst, group_id, message_type, reply_to, created_at, ttl, error = header
    metadata = Metadata(
        run_id=run_id,
        message_id="" if reply_to else message_id_of(fields),
        src_node_id=src,
        dst_node_id=dst,
        reply_to_message=reply_to,
        group_id=group_id,
        created_at=created_at,
        ttl=ttl,
        message_type=message_type,
    )
    return metadata, None if error is None else _error(error)


_HEADER: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("run_id", (int,)),
    ("src_node_id", (int,)),
    ("dst_node_id", (int,)),
    ("group_id", (str,)),
    ("message_type", (str,)),
    ("reply_to_message", (str,)),
    ("created_at", (float,)),
    ("ttl", (float,)),
    ("error", (list, type(None))),
)

#: The same, as it is asked of a whole header.
_TYPES = frozenset(product(*(kinds for _, kinds in _HEADER)))


def _error(item: list[Any]) -> Error:
    if len(item) != 2 or type(item[0]) is not int or not isinstance(item[1], str | None):
        raise FrameError(f"the error is {reprlib.repr(item)}, not a code and a reason")
    return Error(item[0], item[1])
