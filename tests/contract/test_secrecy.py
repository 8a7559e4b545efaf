"""What the operator of Redis learns of a sealed run: no array, no text, no number; of others, all of it."""

import threading

import numpy as np
import pytest

from brokerfl.broker.contact import ring_doorbell
from brokerfl.broker.remains import read_past
from brokerfl.client import ClientApp
from brokerfl.common import Array, ConfigsRecord, Context, Error, Message, MetricsRecord, ParametersRecord, RecordSet
from tests.apps import eventually
from tests.conftest import Backend
from tests.monitor import watching
from tests.parties import Parties
from tests.stage import beat, kill, known_runs, push, resumed, served_runs, start, to_all

#: fakeredis has no MONITOR, TLS changes nothing here, and one server is watched.
WITHOUT = ("fakeredis", "redis-tls", "sentinel", "cluster", "valkey-cluster")

#: Everything that an app can tell, by where it tells it.
WORDS = [
    f"secret-{what}"
    for what in (
        *("config-key", "config-value", "record", "text", "array", "large-array", "reply", "large-reply"),
        *("exception", "error", "state", "large-state", "metric", "told", "node-state"),
    )
]


def array(word: str, size: int = 0) -> ParametersRecord:
    """An array that has a word again and again, with at least so many bytes."""
    text = word * (size // len(word) + 1)
    return ParametersRecord({word: Array(np.frombuffer(text.encode(), np.uint8))})


def text(word: str) -> ConfigsRecord:
    return ConfigsRecord({"text": word})


def talkative() -> ClientApp:
    """Tells all that it can."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        assert context.run_config["secret-config-key"] == "secret-config-value"
        context.state["s"] = text("secret-node-state")
        reply = RecordSet({"secret-reply": text("secret-reply"), "l": array("secret-large-reply", 100_000)})
        reply["m"] = _metrics()
        return message.create_reply(reply)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        if "small" in message.content:
            return message.create_reply(RecordSet({"secret-reply": text("secret-reply"), "m": _metrics()}))
        raise ValueError("secret-exception")

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return message.create_error_reply(Error(77, "secret-error"))

    return app


def _metrics() -> MetricsRecord:
    return MetricsRecord({"secret-metric": 0.5})


@pytest.mark.parametrize("how", ["its frame is changed", "it ends"])
@pytest.mark.parametrize("raises", [False, True], ids=["reply", "exception"])
def test_what_is_replied_to_a_run_that_is_gone_is_sealed(backend: Backend, how: str, raises: bool) -> None:
    """Whoever operates Redis can let a node lose sight of a run while it executes a message."""
    parties, app = Parties("a", seals=True), ClientApp()
    begun, go = threading.Event(), threading.Event()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        begun.set()
        assert go.wait(20)
        if raises:
            raise ValueError("secret-exception")
        content = {"secret-reply": text("secret-reply"), "l": array("secret-large-reply", 100_000)}
        return message.create_reply(RecordSet(content))

    with watching(backend.admin) as spy, parties.serving(backend, lambda: app, workers=2) as nodes:
        driver = start(backend, protection=parties.of_owner)
        keys, run, node = driver.connection.keys, driver.run.run_id, nodes["a"]
        push(driver, node.node_id, RecordSet())
        assert begun.wait(20)
        if how == "it ends":
            driver.end()
        else:
            frame = backend.admin.hget(keys.node_runs(node.node_id), str(run))
            backend.admin.hset(keys.node_runs(node.node_id), str(run), frame[:-1] + bytes([frame[-1] ^ 1]))
            ring_doorbell(driver.connection, node.node_id, str(run))
        eventually(lambda: known_runs(node) == set())
        go.set()
        if how == "it ends":
            eventually(lambda: served_runs(node) == set())
        else:
            eventually(lambda: backend.admin.xlen(keys.outbox(node.node_id, run)))
            spy.look()
            driver.end()
    assert spy.shown(*WORDS) == set()


@pytest.mark.parametrize("seals", [True, False], ids=["sealed", "signed"])
def test_an_operator_sees_nothing_of_a_sealed_run(backend: Backend, seals: bool) -> None:
    """Neither in MONITOR nor in any value, while it goes on, when it is resumed, nor after its end.

    The same words are found where a run is only signed: so they would be found.
    """
    parties = Parties("a", "b", seals=seals)
    with watching(backend.admin) as spy, parties.serving(backend, talkative) as nodes:
        ids = [node.node_id for node in nodes.values()]
        driver = start(backend, protection=parties.of_owner, run_config={"secret-config-key": "secret-config-value"})
        large = RecordSet({"secret-record": text("secret-text"), "l": array("secret-large-array", 100_000)})
        small = RecordSet({"small": text("secret-text"), "p": array("secret-array")})
        assert not any(reply.has_error() for reply in to_all(driver, ids, large, "1"))
        assert not any(reply.has_error() for reply in to_all(driver, ids, small, "1", "evaluate"))
        assert [reply.error.reason for reply in to_all(driver, ids, large, "1", "evaluate")] == [
            "ValueError: secret-exception"
        ] * 2
        assert [reply.error.reason for reply in to_all(driver, ids, small, "1", "query")] == ["secret-error"] * 2
        driver.context.state["small"] = text("secret-state")
        driver.log_metrics(1, **{"secret-told": 0.5})
        driver.checkpoint()
        spy.look()
        driver.context.state["large"] = array("secret-large-state", 100_000)
        driver.checkpoint()
        spy.look()
        beat(driver)  # the last events are written
        spy.look()
        kill(driver)
        with resumed(backend, driver, protection=parties.of_owner) as after:
            assert after.context.state == driver.context.state
            to_all(after, ids, large, "2")
            spy.look()
        spy.look()
        past = read_past(driver.connection, driver.run.run_id)
        assert past is not None
        assert past.run.proof is not None
        assert (past.run.is_sealed, past.run.proof.config, past.run.proof.wrapped) == (seals, b"", b"")
    assert spy.shown(*WORDS) == (set() if seals else {*WORDS} - {"secret-node-state"})
