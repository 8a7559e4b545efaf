"""Replies as the app sees them: made from a message's ledger entry and what its node sent.

Owns the shape of a reply's metadata, and the Error replies that no node sent. It must not know Redis or waiting.
"""

import time

from brokerfl.common import SUPERLINK_NODE_ID, Error, ErrorCode, Message, Metadata
from brokerfl.wire.run import LedgerEntry


def as_reply(run_id: int, message_id: str, entry: LedgerEntry, sent: Message) -> Message:
    """Return what a node sent as a reply. Its sender and what it answers come from the ledger, not from the frame."""
    metadata = _metadata(run_id, message_id, entry, sent.metadata.created_at, sent.metadata.ttl)
    return Message(metadata, error=sent.error) if sent.has_error() else Message(metadata, content=sent.content)


def error_reply(run_id: int, message_id: str, entry: LedgerEntry, error: Error) -> Message:
    """Return the Error reply to a message."""
    return Message(_metadata(run_id, message_id, entry, time.time(), 0.0), error=error)


def unknown_reply(run_id: int, message_id: str) -> Message:
    """Return the Error reply to an id that no push of the run returned."""
    reason = f"no push of run {run_id} returned the id {message_id!r}"
    return error_reply(run_id, message_id, LedgerEntry(0, "", "", 0), Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def refused_reply(run_id: int, message: Message, is_registered: bool) -> Message:
    """Return the Error reply to a message that the push refused."""
    meta = message.metadata
    if is_registered:
        error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message had expired before it was pushed")
    else:
        error = Error(ErrorCode.NODE_UNAVAILABLE, f"there is no node {meta.dst_node_id} in the registry")
    return error_reply(run_id, "", LedgerEntry(meta.dst_node_id, meta.group_id, meta.message_type, 0), error)


def _metadata(run_id: int, message_id: str, entry: LedgerEntry, created_at: float, ttl: float) -> Metadata:
    return Metadata(
        run_id=run_id,
        message_id=f"{message_id}-reply",
        src_node_id=entry.node_id,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message=message_id,
        group_id=entry.group_id,
        created_at=created_at,
        ttl=ttl,
        message_type=entry.message_type,
    )
