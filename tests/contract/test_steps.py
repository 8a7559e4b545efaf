"""`driver.step`: what a step gave is recorded with the messages that follow it, and a resumed app is given it again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from brokerfl.client import ClientApp
from brokerfl.common import (
    Array,
    Context,
    FrameError,
    Message,
    MessageTooLarge,
    MetricsRecord,
    ParametersRecord,
    RecordMissing,
    RecordSet,
)
from brokerfl.server import Driver, results
from brokerfl.view.model import read_model
from brokerfl.wire.steps import encode_value
from tests.apps import federation, number, number_in
from tests.conftest import PREFIX, Backend
from tests.stage import in_ledger, kill, resumed, silent, start

#: TLS changes nothing here.
WITHOUT = ("redis-tls",)


class Calls:
    """A function that counts how often each of its values was asked for."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.made.append(value)
        return value


def asked(driver: Driver, value: int, group: str) -> int:
    """The sum of what all nodes send back."""
    messages = [driver.create_message(number(value), "train", node, group) for node in driver.get_node_ids()]
    return sum(map(number_in, driver.send_and_receive(messages)))


def noting_app() -> tuple[ClientApp, list[str]]:
    """A ClientApp that sends the content back, and the groups of the messages that it has executed."""
    app, executed = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        executed.append(message.metadata.group_id)
        return message.create_reply(message.content)

    return app, executed


def test_a_result_is_recorded_with_the_next_push(backend: Backend) -> None:
    """What was taken before a push of a new group is not called again after a resume; what came later is."""
    node, call = silent(backend), Calls()
    former = start(backend)
    assert [former.step(name, call, name) for name in ("a", "b")] == ["a", "b"]
    former.push_messages([former.create_message(RecordSet(), "train", node, "1")])
    former.step("c", call, "c")
    kill(former)
    with resumed(backend, former) as driver:
        assert [driver.step(name, call, "again") for name in ("a", "b", "c")] == ["a", "b", "again"]
    assert call.made == ["a", "b", "c", "again"]


def test_values_come_back(backend: Backend) -> None:
    """Small and large values come back equal, also if the app changes them before they are recorded."""
    weights = np.arange(300_000, dtype=np.float32)
    content = RecordSet({"model": ParametersRecord({"w": Array(weights)})}, {"m": MetricsRecord({"n": [1, 2]})})
    values = {"small": {"round": 3, "chosen": (1, 2)}, "large": [weights, "text"], "content": content}
    former = start(backend)
    for name, value in values.items():
        assert former.step(name, lambda value: value, value) is value
    weights += 1
    former.checkpoint()
    kill(former)
    with resumed(backend, former) as driver:
        found = {name: driver.step(name, lambda: None) for name in values}
        assert found["small"] == values["small"]
        np.testing.assert_array_equal(found["large"][0], np.arange(300_000))
        np.testing.assert_array_equal(found["content"]["model"]["w"].numpy(), np.arange(300_000))
        assert found["content"]["m"] == content["m"]
        assert driver.report.status().record > 2_400_000


def test_a_result_is_exported(backend: Backend) -> None:
    """The latest model that a step returned is read from the record, whether or not the run has a ServerApp."""
    driver = start(backend)
    connection, run = backend.connect(), driver.run.run_id
    with pytest.raises(RecordMissing, match="has no record"):
        read_model(connection, run)
    driver.step("seed", int)
    driver.checkpoint()
    with pytest.raises(RecordMissing, match="has no model"):
        read_model(connection, run)
    for step in range(3):
        driver.step(f"round {step}", lambda step: [np.full(20_000, step), np.zeros(3)], step)
    driver.step("accuracy", float)
    driver.checkpoint()
    kill(driver)
    model = read_model(connection, run)
    assert model.origin == "step 'round 2'"
    np.testing.assert_array_equal(model.arrays["0"].numpy(), np.full(20_000, 2))
    assert list(model.arrays) == ["0", "1"]
    backend.admin.hset(connection.keys.steps(run), "v:result:9:last", encode_value({b"e": b"sealed"}))
    with pytest.raises(FrameError, match=f"the record of run {run} cannot be read: it is sealed, or another version"):
        read_model(connection, run)


def test_rounds_that_are_steps(backend: Backend) -> None:
    """An app whose rounds are steps needs no state: killed anywhere, its nodes execute nothing twice."""

    def main(driver: Driver, dies_at: int) -> int:
        def count(number: int) -> int:
            found = asked(driver, number, f"train {number}")
            if number == dies_at:
                raise InterruptedError
            return found + asked(driver, number, f"evaluate {number}")

        return sum(driver.step(f"round {number}", count, number) for number in range(1, 5))

    app, executed = noting_app()
    with federation(backend, app):
        former = start(backend)
        with pytest.raises(InterruptedError):
            main(former, 3)
        # Replies of round 3 are held: what they taught is not recorded. Those of round 2 have left with its result.
        assert len(in_ledger(backend, former)) == 2
        kill(former)
        with resumed(backend, former) as driver:
            assert main(driver, 0) == 40
    assert sorted(executed) == sorted(
        [f"{kind} {number}" for kind in ("train", "evaluate") for number in range(1, 5)] * 2
    )


def test_a_step_holds_back_the_run(backend: Backend) -> None:
    """Until a step returns, no push or checkpoint settles a reply that it got, or saves a state that it changed."""
    app, executed = noting_app()
    with federation(backend, app):
        former = start(backend)

        def learn() -> int:
            former.context.state["seen"] = MetricsRecord({"n": asked(former, 1, "1")})
            asked(former, 1, "2")
            former.checkpoint()
            assert len(in_ledger(backend, former)) == 4
            raise InterruptedError

        with pytest.raises(InterruptedError):
            former.step("learn", learn)
        kill(former)
        with resumed(backend, former) as driver:
            assert not driver.context.state
            assert driver.step("learn", asked, driver, 1, "1") == 2
            driver.checkpoint()
    assert sorted(executed) == ["1", "1", "2", "2"]


def test_what_is_refused(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was used, what no record holds, and what has no room: the error says so, and the run goes on."""
    former = start(backend)
    former.step("a", int)
    bad: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, "the step 'a' was taken before", lambda: former.step("a", int)),
        (ValueError, "1 to 200 characters", lambda: former.step("", int)),
        (TypeError, "is text, not int", lambda: former.step(1, int)),  # type: ignore[arg-type]
        (TypeError, "a builtins.object", lambda: former.step("b", object)),
    ]
    for kind, why, call in bad:
        with pytest.raises(kind, match=why):
            call()
    monkeypatch.setattr(results, "MOST_SMALL", 100_000)
    former.step("half", bytes, 60_000)
    with pytest.raises(MessageTooLarge, match="small results of all steps have at most 0 MiB"):
        former.step("b", bytes, 60_000)
    assert former.step("b", int) == 0
    former.checkpoint()
    kill(former)
    with resumed(backend, former, max_run=1000) as driver:
        assert driver.step("b", str) == 0
        with pytest.raises(MessageTooLarge, match="exceed its limit of 1,000"):
            driver.step("large", bytes, 100_000)
        driver.start_over()
        assert driver.step("half", str) == ""


def test_results_are_freed(backend: Backend) -> None:
    """The chunks of a result live as long as the run, and no longer; those of one that was not recorded go."""
    former = start(backend)
    former.step("a", bytes, 200_000)
    former.checkpoint()
    asked_for = f"{PREFIX}:blob:{former.run.run_id}:*"
    assert len(backend.admin.keys(asked_for)) == 1
    former.checkpoint()
    kill(former)
    with resumed(backend, former) as driver:
        driver.checkpoint()
        assert driver.step("a", int) == bytes(200_000)
    assert not backend.admin.keys(asked_for)
