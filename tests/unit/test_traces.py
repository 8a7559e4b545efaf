"""What the log says of each message, in one process."""

import logging
import threading

import pytest

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, RecordSet, log
from brokerfl.server import Driver
from brokerfl.testing import Federation


def test_each_step_is_told_with_its_ids(caplog: pytest.LogCaptureFixture) -> None:
    """Of a message that is executed, one that is cancelled before, and one that expires; and what the app logs."""
    app, started, gate = ClientApp(), threading.Event(), threading.Event()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        log(logging.INFO, "the app")
        started.set()
        gate.wait(30)
        return message.create_reply(message.content)

    ids: list[str] = []

    def main(driver: Driver, context: Context) -> None:
        [node] = driver.wait_for_nodes(1)
        first, second = (driver.create_message(RecordSet(), "train", node, "1") for _ in range(2))
        third = driver.create_message(RecordSet(), "train", node, "1", ttl=0.2)
        ids.extend(driver.push_messages([first]))
        assert started.wait(30)
        ids.extend(driver.push_messages([second, third]))
        driver.cancel_messages([ids[1]])
        assert next(driver.replies([ids[2]])).has_error()
        gate.set()
        assert len(list(driver.replies(ids[:2]))) == 2
        driver.checkpoint()

    with caplog.at_level(logging.DEBUG, "brokerfl.messages"), Federation(app, 1) as federation:
        run = federation.run(main).run_id
        [node] = [each.node_id for each in federation.nodes]

    told = [record for record in caplog.records if record.__dict__["event"]]
    by_message = {each: [r.__dict__["event"] for r in told if r.__dict__["message_id"] == each] for each in ids}
    executed, cancelled, expired = (by_message[each] for each in ids)
    of_node = {"received", "waiting", "executing", "executed", "published"}
    assert [each for each in executed if each in of_node] == ["received", "executing", "executed", "published"]
    assert [each for each in executed if each not in of_node] == ["accepted", "answered", "handed over", "settled"]
    for each in cancelled, expired:
        assert [event for event in each if event not in of_node][:3] == ["accepted", "given up", "answered"]
        assert "executing" not in each
    assert {(record.__dict__["run"], record.__dict__["node"]) for record in told} == {(str(run), str(node))}
    [of_app] = [record for record in caplog.records if record.getMessage() == "the app"]
    assert (of_app.__dict__["run"], of_app.__dict__["node"]) == (str(run), str(node))
    assert of_app.__dict__["message_id"] == ids[0]
