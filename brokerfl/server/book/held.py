"""The ids that the app holds: of which messages it can still ask for the reply.

Owns that it is noticed when the app has let go of an id, and what is kept for the app of messages that have left the
book unasked. It must not know what becomes of a reply in Redis.

A push returns each id as a `HeldId`. Once no variable, list, Message or open iterator of the app refers to it, nobody
can ask for the reply, unless the id was copied as text, as a log or a saved state does.
"""

from collections import deque
from collections.abc import Callable, Iterator

from brokerfl.common import Error, ErrorCode
from brokerfl.server.book.message import OpenMessage

#: Of how many messages whose ids the app has let go of the book can still say what became of them.
MOST_LEFT = 10_000

#: The reply to a message whose own reply has left Redis.
_LEFT_BEHIND = Error(
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    "the run moved on after the app had let go of the id that the push returned, so the reply was deleted",
)


class _AnyStr(type):
    """Every str is an instance: flwr's records want each value of a list to be one of the first value's type."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, str)


class HeldId(str, metaclass=_AnyStr):
    """The id of a message: a str that says when the app has let go of it."""

    __slots__ = ("_tell",)
    _tell: Callable[[str], object]

    def __new__(cls, message_id: str, tell: Callable[[str], object]) -> "HeldId":
        """Return ``message_id``. ``tell`` is called with it in any thread, in the middle of anything."""
        held = super().__new__(cls, message_id)
        held._tell = tell
        return held

    def __del__(self) -> None:
        self._tell(str.__str__(self))

    def __str__(self) -> str:
        return self

    def __copy__(self) -> "HeldId":
        return self

    def __deepcopy__(self, memo: object) -> "HeldId":
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str.__str__(self),)


class Held:
    """The ids of one run that the app holds. Guarded by the book's lock."""

    def __init__(self) -> None:
        self._let_go: deque[str] = deque()
        self._left: dict[str, OpenMessage] = {}
        self._nobodys: deque[str] = deque()

    def hand_out(self, message_id: str) -> str:
        """Return an id for the app."""
        return HeldId(message_id, self._let_go.append)

    def let_go(self) -> Iterator[str]:
        """Yield each id that the app has let go of since the last call, once."""
        for _ in range(len(self._let_go)):
            message_id = self._let_go.popleft()
            if message_id in self._left:
                self._forget_in_time(message_id)
            yield message_id

    def leave(self, message: OpenMessage) -> None:
        """This message has left the book, and the app has not had its reply: from now on an Error."""
        message.leave_behind(_LEFT_BEHIND)
        self._left[message.message_id] = message
        if message.is_let_go:
            self._forget_in_time(message.message_id)

    def _forget_in_time(self, message_id: str) -> None:
        self._nobodys.append(message_id)
        if len(self._nobodys) > MOST_LEFT:
            self._left.pop(self._nobodys.popleft(), None)

    def of(self, message_id: str) -> OpenMessage | None:
        """Return a message that has left; None if it has not, or was popped."""
        return self._left.get(message_id)

    def pop(self, message_id: str) -> None:
        """The app has the Error of a message that has left."""
        self._left.pop(message_id, None)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._left
