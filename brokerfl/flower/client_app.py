"""flwr's ClientApp, for a node to run. Owns how its reply is converted; must not know how messages travel."""

import time
from typing import Any

from brokerfl.common import Context, Error, Message
from brokerfl.flower import compat
from brokerfl.flower.context import FlowerState, flower_context_of
from brokerfl.flower.message import flower_message_of
from brokerfl.flower.records import record_set_of


class FlowerClientApp:
    """A callable, as brokerfl's ClientApp is.

    Args:
        app: flwr's ClientApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def __repr__(self) -> str:
        return f"<FlowerClientApp {self._app!r}>"

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the app on one message; ``context.state`` then holds what the app left in flwr's Context.

        Raises:
            Exception: raised by the app; the state is unchanged.
            TypeError: the app returned something other than flwr's Message.
        """
        flower_context = flower_context_of(context)
        reply = self._app(flower_message_of(message), flower_context)
        if not isinstance(reply, compat.Message):
            raise TypeError(
                f"the ClientApp answered a {message.metadata.message_type} message with {type(reply).__name__}, not "
                "with a Message: return Message(content, reply_to=message)"
            )
        context.state = FlowerState(flower_context.state)
        if reply.has_error():
            return message.create_error_reply(Error(int(reply.error.code), reply.error.reason), _ttl(reply))
        return message.create_reply(record_set_of(reply.content), _ttl(reply))


def _ttl(reply: Any) -> float:
    """Return what is left of a reply's ttl, which counts from when the app created the reply."""
    return max(0.0, float(reply.metadata.created_at + reply.metadata.ttl) - time.time())
