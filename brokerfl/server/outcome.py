"""The outcome of a run's messages, as its app got it.

Owns what is counted, and that the log names each node whose replies are Errors. It must not know Redis, or how replies
travel.
"""

import threading
from collections.abc import Callable
from logging import DEBUG, WARNING

from brokerfl.common import ErrorCode, Message, log
from brokerfl.wire.reply import DRAINED

#: The reason of an Error that the app asked for.
CANCELLED = "the message was cancelled"

#: The reason of an Error that an operator asked for.
CALLED_OFF = "an operator cancelled the message"

#: The reasons of Errors that somebody asked for: nothing went wrong.
_ASKED_FOR = {(ErrorCode.MESSAGE_UNAVAILABLE, reason) for reason in (CANCELLED, CALLED_OFF, DRAINED)}


class Outcome:
    """Counts the replies that an app got. Safe to share between threads.

    What was cancelled, or a drained run refused, counts as no reply.

    Args:
        name_of: returns a node in words.

    Attributes:
        replies: how many there were.
        errors: how many of them were Errors.
        bytes_in: what they had.
    """

    def __init__(self, name_of: Callable[[int], str]) -> None:
        self._name_of = name_of
        self._lock = threading.Lock()
        self._warned: set[int] = set()
        self.replies = self.errors = self.bytes_in = 0

    def weigh(self, size: int) -> None:
        """A reply of so many bytes was read."""
        with self._lock:
            self.bytes_in += size

    def note(self, reply: Message) -> bool:
        """The app gets a reply; return whether it is an Error that nobody asked for."""
        if not reply.has_error():
            with self._lock:
                self.replies += 1
            return False
        if (reply.error.code, reply.error.reason) in _ASKED_FOR:
            return False
        with self._lock:
            self.replies += 1
            self.errors += 1
        self._complain(reply)
        return True

    def _complain(self, reply: Message) -> None:
        node_id, error = reply.metadata.src_node_id, reply.error
        with self._lock:
            level = DEBUG if node_id in self._warned else WARNING
            self._warned.add(node_id)
        first = (error.reason or "").strip().partition("\n")[0]
        log(level, "Error %s from %s: %s", int(error.code), self._name_of(node_id), first)
