"""The replies of a node, as fields. Owns their header and the limits of an Error. It must not know how they travel."""

from brokerfl.common import SUPERLINK_NODE_ID, Error, Message, Metadata
from brokerfl.wire.frame import Fields
from brokerfl.wire.message import encode_message
from brokerfl.wire.record import encode_content
from brokerfl.wire.told import sendable

#: Most characters of an Error reply's reason; the node's log has all of it.
_LONGEST_REASON = 2000


def encode_reply(node_id: int, run_id: int, message_id: str, asked: Metadata, reply: Message) -> tuple[Fields, Fields]:
    """Return the fields of what a ClientApp returned: its head, and its content, which is empty for an error.

    Args:
        node_id: the node.
        run_id: the run.
        message_id: the message that it answers.
        asked: the metadata of that message.
        reply: what was returned.

    Raises:
        TypeError, ValueError: it is not a Message, or holds a value that cannot be sent.
        MessageTooLarge: it exceeds a limit.
    """
    if not isinstance(reply, Message):
        raise TypeError(
            f"the function for {asked.message_type} messages returned {type(reply).__name__} instead of a "
            "Message: return message.create_reply(…)"
        )
    header = _header(node_id, run_id, message_id, asked.group_id, asked.message_type, reply.metadata.ttl)
    if reply.has_error():
        code, reason = reply.error.code, reply.error.reason
        if not isinstance(code, int) or not isinstance(reason, str | None):
            raise TypeError(f"an Error needs an int and a str, not {code!r} and {reason!r}")
        reason = None if reason is None else sendable(reason[:_LONGEST_REASON])
        return encode_message(message_id, header, error=Error(int(code), reason)), {}
    return encode_message(message_id, header), encode_content(reply.content)


def encode_refusal(node_id: int, run_id: int, message_id: str, code: int, reason: str) -> Fields:
    """Return the fields of an Error reply that comes from the node itself.

    Args:
        node_id: the node.
        run_id: the run.
        message_id: the message that it answers.
        code: an `ErrorCode`.
        reason: shortened if it is long.
    """
    error = Error(code, sendable(reason[:_LONGEST_REASON]))
    return encode_message(message_id, _header(node_id, run_id, message_id), error=error)


def _header(
    node_id: int, run_id: int, message_id: str, group_id: str = "", message_type: str = "", ttl: float = 0.0
) -> Metadata:
    return Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=node_id,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message=message_id,
        group_id=group_id,
        ttl=ttl,
        message_type=message_type,
    )
