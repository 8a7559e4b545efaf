"""Replies as the app sees them: made from a message's ledger entry and what its node sent.

Owns the shape of a reply's metadata, and the Error replies that no node sent. It must not know Redis or waiting.
"""

import time
from collections.abc import Mapping

from brokerfl.common import SUPERLINK_NODE_ID, Error, ErrorCode, FrameError, Message, Metadata
from brokerfl.wire.message import decode_header
from brokerfl.wire.record import decode_content
from brokerfl.wire.run import LedgerEntry


def decode_reply(
    run_id: int, message_id: str, entry: LedgerEntry, fields: Mapping[bytes, bytes | memoryview]
) -> Message:
    """Return what a node sent as a reply: who sent it and what it answers is the ledger's word, not the frame's.

    Args:
        run_id: the run.
        message_id: of the message that it answers.
        entry: what the ledger holds of that.
        fields: the reply's, with its content.

    Raises:
        FrameError: malformed, of another version, or another run's.
    """
    metadata, error = decode_header(fields)
    if metadata.run_id != run_id:
        raise FrameError("it names another run")
    metadata.message_id, metadata.reply_to_message = f"{message_id}-reply", message_id
    metadata.src_node_id, metadata.dst_node_id = entry.node_id, SUPERLINK_NODE_ID
    metadata.group_id, metadata.message_type = entry.group_id, entry.message_type
    return Message(metadata, content=decode_content(fields)) if error is None else Message(metadata, error=error)


def error_reply(run_id: int, message_id: str, entry: LedgerEntry, error: Error) -> Message:
    """Return the Error reply to a message."""
    metadata = Metadata(
        run_id=run_id,
        message_id=f"{message_id}-reply",
        src_node_id=entry.node_id,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message=message_id,
        group_id=entry.group_id,
        created_at=time.time(),
        ttl=0.0,
        message_type=entry.message_type,
    )
    return Message(metadata, error=error)


def unknown_reply(run_id: int, message_id: str) -> Message:
    """Return the Error reply to an id that no push of the run returned."""
    reason = f"no push of run {run_id} returned the id {message_id!r}"
    return error_reply(run_id, message_id, LedgerEntry(0, "", "", 0), Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


#: The reason of the Error that a message becomes whose run pushes nothing any more.
DRAINED = "the run is being drained: it pushes nothing any more"


def drained_reply(run_id: int, message: Message) -> Message:
    """Return the Error reply to a message that the push refused because the run is being drained."""
    meta = message.metadata
    entry = LedgerEntry(meta.dst_node_id, meta.group_id, meta.message_type, 0)
    return error_reply(run_id, "", entry, Error(ErrorCode.MESSAGE_UNAVAILABLE, DRAINED))


def refused_reply(run_id: int, message: Message, is_registered: bool) -> Message:
    """Return the Error reply to a message that the push refused."""
    meta = message.metadata
    if is_registered:
        error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message had expired before it was pushed")
    else:
        error = Error(ErrorCode.NODE_UNAVAILABLE, f"there is no node {meta.dst_node_id} in the registry")
    return error_reply(run_id, "", LedgerEntry(meta.dst_node_id, meta.group_id, meta.message_type, 0), error)
