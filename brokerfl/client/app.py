"""ClientApp: the functions a node runs, by message type. Owns their registration; must not know how messages travel."""

from collections.abc import Callable, Sequence

from brokerfl.common import Context, Message, split_message_type

ClientAppCallable = Callable[[Message, Context], Message]

#: A mod wraps a call: it gets the message, the context and the next callable.
Mod = Callable[[Message, Context, ClientAppCallable], Message]


class ClientApp:
    """The client side of an app, run by ``brokerfl-node module:app``.

    Args:
        mods: wrap every function; the first is the outermost.

    Example:
        ::

            app = ClientApp()

            @app.train()
            def train(message: Message, context: Context) -> Message:
                return message.create_reply(message.content)
    """

    def __init__(self, mods: Sequence[Mod] | None = None) -> None:
        self._mods = list(mods or [])
        self._functions: dict[tuple[str, str], ClientAppCallable] = {}

    def train(
        self, action: str = "default", *, mods: Sequence[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Return a decorator that registers a function for ``train`` messages, or for ``train.<action>``.

        Args:
            action: a Python identifier.
            mods: wrap only this function, inside those of the app.

        Raises:
            ValueError: ``action`` is not an identifier; from the decorator, if the action already has a function.
        """
        return self._register("train", action, mods)

    def evaluate(
        self, action: str = "default", *, mods: Sequence[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """As `train`, for ``evaluate`` messages."""
        return self._register("evaluate", action, mods)

    def query(
        self, action: str = "default", *, mods: Sequence[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """As `train`, for ``query`` messages."""
        return self._register("query", action, mods)

    def _register(
        self, category: str, action: str, mods: Sequence[Mod] | None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        if callable(action):
            raise ValueError(f"write @app.{category}() with parentheses: {action!r} was passed as the action")
        key = split_message_type(category if action == "default" else f"{category}.{action}")

        def register(function: ClientAppCallable) -> ClientAppCallable:
            if key in self._functions:
                raise ValueError(
                    f"this ClientApp already has a function for {_name(key)}: {function.__qualname__} is a second"
                )
            self._functions[key] = _wrap(function, [*self._mods, *(mods or [])])
            return function

        return register

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the function registered for the message's type and return its reply.

        Raises:
            ValueError: the type is unknown, or no function is registered for it.
        """
        key = split_message_type(message.metadata.message_type)
        function = self._functions.get(key)
        if function is None:
            known = ", ".join(sorted(map(_name, self._functions))) or "none"
            raise ValueError(f"this ClientApp has no function for {_name(key)} messages; it has: {known}")
        return function(message, context)


def _name(key: tuple[str, str]) -> str:
    category, action = key
    return f"`{category}`" if action == "default" else f"`{category}.{action}`"


def _wrap(function: ClientAppCallable, mods: Sequence[Mod]) -> ClientAppCallable:
    for mod in reversed(mods):
        function = _with(mod, function)
    return function


def _with(mod: Mod, function: ClientAppCallable) -> ClientAppCallable:
    return lambda message, context: mod(message, context, function)
