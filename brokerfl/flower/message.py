"""Messages, converted to flwr's. Owns the conversion; must not know Grids, nodes or who sends a message."""

import dataclasses
from typing import Any

from brokerfl.common import Error, Message, Metadata
from brokerfl.flower import compat
from brokerfl.flower.records import record_dict_of

#: The type of a reply to an unknown id: flwr requires one.
_NO_TYPE = "query"


def flower_message_of(message: Message) -> Any:
    """Return a message, or a reply, as flwr's Message.

    Raises:
        TypeError, ValueError: see `records.record_dict_of`.
    """
    if message.has_error():
        return flower_error_of(message.metadata, message.error)
    return compat.message_of(record_dict_of(message.content), **_fields_of(message.metadata))


def flower_error_of(metadata: Metadata, error: Error) -> Any:
    """Return an Error reply as flwr's Message."""
    return compat.message_of(error=compat.Error(int(error.code), error.reason), **_fields_of(metadata))


def _fields_of(metadata: Metadata) -> dict[str, Any]:
    fields = dataclasses.asdict(metadata)
    fields["reply_to_message_id"] = fields.pop("reply_to_message")
    return {**fields, "message_type": metadata.message_type or _NO_TYPE}
