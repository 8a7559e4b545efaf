"""Message, its metadata, its types and its errors.

Owns what a reply inherits from its message. It must not know who assigns ids, nor how messages travel. The
local clock only stamps.
"""

import time
from dataclasses import dataclass, field
from enum import IntEnum
from logging import WARNING
from typing import TypeVar

from brokerfl.common.logger import log
from brokerfl.common.recordset import KINDS, RecordSet

T = TypeVar("T")

#: A message's default lifetime in seconds: 12 hours, as in Flower.
DEFAULT_TTL = 43200.0

#: Seconds by which a reply's ttl may exceed what is left of the ttl of its message, as in Flower.
MESSAGE_TTL_TOLERANCE = 0.1

#: The ``src_node_id`` of a ServerApp's messages, as in Flower.
SUPERLINK_NODE_ID = 1


class MessageType:
    """The categories of messages. An action may follow a dot: ``train.warmup``."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    QUERY = "query"


#: Other types that Flower's legacy strategies send; brokerfl's own ClientApp has no functions for them.
LEGACY_MESSAGE_TYPES = ("get_parameters", "get_properties", "reconnect")

_CATEGORIES = (MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY)


def split_message_type(text: str) -> tuple[str, str]:
    """Return the category and action of a message type; the action of ``train`` is "default".

    Raises:
        ValueError: the category is unknown, or the action is not an identifier.
    """
    category, dot, action = text.partition(".") if isinstance(text, str) else ("", "", "")
    if category not in _CATEGORIES:
        raise ValueError(f"the message type {text!r} does not begin with train, evaluate or query")
    if dot and not action.isidentifier():
        raise ValueError(f"the message type {text!r} has the action {action!r}, which is not an identifier")
    return category, action if dot else "default"


def is_message_type(text: str) -> bool:
    """Return whether ``text`` is a category, with or without an action, or one of `LEGACY_MESSAGE_TYPES`."""
    if text in LEGACY_MESSAGE_TYPES:
        return True
    try:
        split_message_type(text)
    except ValueError:
        return False
    return True


class ErrorCode(IntEnum):
    """Why a message has no reply. The numbers are Flower's."""

    UNKNOWN = 0
    """Anything that no other code describes."""
    LOAD_CLIENT_APP_EXCEPTION = 1
    """The node could not load the ClientApp of the run: it runs another project."""
    CLIENT_APP_RAISED_EXCEPTION = 2
    """The ClientApp raised an exception."""
    MESSAGE_UNAVAILABLE = 3
    """The message is unknown, expired or cancelled, or its content is gone or cannot be read."""
    REPLY_MESSAGE_UNAVAILABLE = 4
    """There was a reply, but it is gone or cannot be read."""
    NODE_UNAVAILABLE = 5
    """The node is not registered, or its lease has lapsed."""
    MOD_FAILED_PRECONDITION = 6
    """The node's site refused the message, or the reply to it."""
    INVALID_FAB = 7
    CLIENT_APP_CRASHED = 8
    """The message killed its node too often."""


@dataclass(frozen=True)
class Error:
    """Why a message has no content.

    Attributes:
        code: one of `ErrorCode`, or a number of your own.
        reason: a text for people.
    """

    code: int
    reason: str | None = None


@dataclass
class Metadata:
    """Everything about a message except its content.

    Attributes:
        run_id: the run it belongs to.
        message_id: set when it is pushed; "" before that, and in a reply that a node makes.
        src_node_id: the sender; `SUPERLINK_NODE_ID` for a ServerApp.
        dst_node_id: the receiver.
        reply_to_message: id of the message it answers, or "".
        group_id: usually the round.
        ttl: lifetime in seconds.
        message_type: see `split_message_type`.
        created_at: Unix time in seconds, by the sender's clock.
    """

    run_id: int
    message_id: str
    src_node_id: int
    dst_node_id: int
    reply_to_message: str
    group_id: str
    ttl: float
    message_type: str
    created_at: float = field(default_factory=time.time)

    @property
    def reply_to_message_id(self) -> str:
        """Flower's name for ``reply_to_message`` since 1.16."""
        return self.reply_to_message


class Message:
    """Metadata with either content or an error.

    Args:
        metadata: kept as given, not copied.
        content: the records it carries.
        error: what it carries instead of content.

    Raises:
        ValueError: both content and error were given, or neither.
        TypeError: content is not a RecordSet, or error is not an Error.
    """

    def __init__(self, metadata: Metadata, content: RecordSet | None = None, error: Error | None = None) -> None:
        if (content is None) == (error is None):
            raise ValueError("a Message has either content or error: give exactly one")
        self._metadata = metadata
        self._content = None if content is None else _checked(content, RecordSet)
        self._error = None if error is None else _checked(error, Error)

    @property
    def metadata(self) -> Metadata:
        """Sender, receiver, type, and lifetime."""
        return self._metadata

    @property
    def content(self) -> RecordSet:
        """The records. Can be set unless the message carries an error.

        Raises:
            ValueError: the message carries an error.
        """
        if self._content is None:
            raise ValueError(f"the message has no content, only {self._error}; check has_content() first")
        return self._content

    @content.setter
    def content(self, value: RecordSet) -> None:
        if self._error is not None:
            raise ValueError("a message with an error cannot have content")
        self._content = _checked(value, RecordSet)

    @property
    def error(self) -> Error:
        """The error. Can be set if the message carries one.

        Raises:
            ValueError: the message has content.
        """
        if self._error is None:
            raise ValueError("the message has content, not an error; check has_error() first")
        return self._error

    @error.setter
    def error(self, value: Error) -> None:
        if self._content is not None:
            raise ValueError("a message with content cannot have an error")
        self._error = _checked(value, Error)

    def has_content(self) -> bool:
        """Return whether the message has content."""
        return self._content is not None

    def has_error(self) -> bool:
        """Return whether the message carries an error."""
        return self._error is not None

    def create_reply(self, content: RecordSet, ttl: float | None = None) -> "Message":
        """Return a reply to this message.

        Args:
            content: the records it carries.
            ttl: seconds; by default what is left of this message's. A longer one is cut to that, with a warning.
        """
        return Message(self._reply_metadata(ttl), content=content)

    def create_error_reply(self, error: Error, ttl: float | None = None) -> "Message":
        """Return a reply that carries an error; ``ttl`` as in `create_reply`."""
        return Message(self._reply_metadata(ttl), error=error)

    def _reply_metadata(self, ttl: float | None) -> Metadata:
        ours = self._metadata
        now = time.time()
        left = max(0.0, ours.created_at + ours.ttl - now)
        if ttl is None:
            ttl = left
        elif ttl > left + MESSAGE_TTL_TOLERANCE:
            log(WARNING, "The reply's ttl of %.2f s is cut to the %.2f s left of its message's ttl", ttl, left)
            ttl = left
        return Metadata(
            run_id=ours.run_id,
            message_id="",
            src_node_id=ours.dst_node_id,
            dst_node_id=ours.src_node_id,
            reply_to_message=ours.message_id,
            group_id=ours.group_id,
            ttl=max(0.0, ttl),
            message_type=ours.message_type,
            created_at=now,
        )

    def __repr__(self) -> str:
        meta = self._metadata
        reply = bool(meta.reply_to_message)
        name = f"reply_to_message={meta.reply_to_message!r}" if reply else f"message_id={meta.message_id!r}"
        route = f"run {meta.run_id}, node {meta.src_node_id} to {meta.dst_node_id}"
        return f"Message({meta.message_type}, {name}, {route}, group_id={meta.group_id!r}, {self._describe()})"

    def _describe(self) -> str:
        if self._content is None:
            return repr(self._error)
        by_kind = self._content.by_kind()
        records = ", ".join(f"{len(records)} {KINDS[kind].name}" for kind, records in by_kind.items())
        return f"content: {records}, {self._content.count_bytes()} bytes"


def _checked(value: T, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, not {type(value).__name__}")
    return value
