"""ClientApp and ServerApp: registration, mods, and the errors of both."""

import pytest

from brokerfl.client import ClientApp, ClientAppCallable
from brokerfl.common import Context, Message, Metadata, RecordSet
from brokerfl.server import ServerApp

CONTEXT = Context(2, 3, {}, RecordSet(), {})


def message(message_type: str) -> Message:
    metadata = Metadata(
        run_id=2, message_id="x", src_node_id=1, dst_node_id=3, reply_to_message="", group_id="", ttl=60.0,
        message_type=message_type,
    )  # fmt: skip
    return Message(metadata, content=RecordSet())


def test_messages_go_to_their_function() -> None:
    """train, evaluate and query, with and without an action, each reach the function registered for them."""
    app, seen = ClientApp(), []

    def function(name: str) -> ClientAppCallable:
        def run(message: Message, context: Context) -> Message:
            seen.append(name)
            return message.create_reply(message.content)

        return run

    for decorator, name in (
        (app.train(), "train"), (app.evaluate(), "evaluate"), (app.query(), "query"),
        (app.train("warmup"), "train.warmup"), (app.query("size"), "query.size"),
    ):  # fmt: skip
        decorator(function(name))
    for name in ("train", "train.warmup", "evaluate", "query.size", "query", "train.default"):
        app(message(name), CONTEXT)
    assert seen == ["train", "train.warmup", "evaluate", "query.size", "query", "train"]


def test_mods_wrap_the_first_outermost() -> None:
    """Mods see message and reply from the outside in, the app's before the function's own."""
    order: list[str] = []

    def mod(name: str):  # type: ignore[no-untyped-def]
        def wrap(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            order.append(f"{name} in")
            reply = call_next(message, context)
            order.append(f"{name} out")
            return reply

        return wrap

    app = ClientApp(mods=[mod("a"), mod("b")])

    @app.train(mods=[mod("c")])
    def train(message: Message, context: Context) -> Message:
        order.append("train")
        return message.create_reply(message.content)

    app(message("train"), CONTEXT)
    assert order == ["a in", "b in", "c in", "train", "c out", "b out", "a out"]


def test_the_function_is_returned_unchanged() -> None:
    """A decorator returns the function it was given, so that it can be called and tested as it is."""
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        return message

    assert app.train()(train) is train
    server_app = ServerApp()

    def main(driver: object, context: Context) -> None: ...

    assert server_app.main()(main) is main  # type: ignore[arg-type,comparison-overlap]


def test_mistakes_are_named() -> None:
    """Two functions for one type, a bad action, a decorator without parentheses, no function, an unknown type."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message

    with pytest.raises(ValueError, match="already has a function for `train`"):
        app.train()(train)
    with pytest.raises(ValueError, match="not a name"):
        app.train("not a name")
    with pytest.raises(ValueError, match="with parentheses"):
        app.evaluate(train)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no function for `query` messages; it has: `train`"):
        app(message("query"), CONTEXT)
    with pytest.raises(ValueError, match="teach"):
        app(message("teach"), CONTEXT)


def test_a_server_app_has_one_main() -> None:
    """A ServerApp without main, or with two, says so."""
    app = ServerApp()
    with pytest.raises(ValueError, match="no main function"):
        app(None, CONTEXT)  # type: ignore[arg-type]
    calls = []

    @app.main()
    def main(driver: object, context: Context) -> None:
        calls.append((driver, context))

    with pytest.raises(ValueError, match="already has a main function"):
        app.main()(main)
    app("driver", CONTEXT)  # type: ignore[arg-type]
    assert calls == [("driver", CONTEXT)]
