"""Replies as the app sees them: made from what the ledger says of a message and what its node sent.

Owns the shape of a reply's metadata and the Error replies that no node wrote. It must not know Redis or waiting.
"""

import time
from collections.abc import Mapping

from brokerfl.broker.ledger import OpenMessage
from brokerfl.common import SUPERLINK_NODE_ID, Error, ErrorCode, FrameError, Message, Metadata
from brokerfl.wire.message import decode_message
from brokerfl.wire.run import LedgerEntry


def decode_reply(
    run_id: int, message: OpenMessage, content: Mapping[bytes, bytes | memoryview] | None = None
) -> Message:
    """Return the reply to ``message``. Who sent it and what it answers is the ledger's word, not the frame's.

    A frame that cannot be read, or that names another run, becomes Error 4 with the reason.

    Args:
        run_id: the run.
        message: what was answered.
        content: the payload of a large reply, which travels beside its frame.
    """
    if isinstance(message.reply, Error):
        return _error(run_id, message, message.reply)
    assert message.reply is not None, "the reply was handed over already"
    try:
        reply = decode_message({**message.reply, **(content or {})})
    except FrameError as error:
        return unreadable_reply(run_id, message, str(error))
    if reply.metadata.run_id != run_id:
        return unreadable_reply(run_id, message, "it names another run")
    metadata = _metadata(run_id, message, reply.metadata.created_at, reply.metadata.ttl)
    if reply.has_error():
        return Message(metadata, error=reply.error)
    return Message(metadata, content=reply.content)


def unreadable_reply(run_id: int, message: OpenMessage, reason: str) -> Message:
    """Return the Error reply that takes the place of one that cannot be read, or whose payload is gone."""
    error = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"the reply cannot be read: {reason}")
    return _error(run_id, message, error)


def unknown_reply(run_id: int, message_id: str) -> Message:
    """Return the Error reply to an id that no push of the run returned."""
    reason = f"no push of run {run_id} returned the id {message_id!r}"
    unknown = OpenMessage(message_id, LedgerEntry(0, "", "", 0))
    return _error(run_id, unknown, Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def refused_reply(run_id: int, message: Message, is_registered: bool) -> Message:
    """Return the Error reply to a message that the push refused."""
    meta = message.metadata
    refused = OpenMessage("", LedgerEntry(meta.dst_node_id, meta.group_id, meta.message_type, 0))
    if is_registered:
        error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message had expired before it was pushed")
    else:
        error = Error(ErrorCode.NODE_UNAVAILABLE, f"there is no node {meta.dst_node_id} in the registry")
    return _error(run_id, refused, error)


def _error(run_id: int, message: OpenMessage, error: Error) -> Message:
    return Message(_metadata(run_id, message, time.time(), 0.0), error=error)


def _metadata(run_id: int, message: OpenMessage, created_at: float, ttl: float) -> Metadata:
    return Metadata(
        run_id=run_id,
        message_id=f"{message.message_id}-reply",
        src_node_id=message.node_id,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message=message.message_id,
        group_id=message.entry.group_id,
        created_at=created_at,
        ttl=ttl,
        message_type=message.entry.message_type,
    )
