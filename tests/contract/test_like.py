"""Replies that have to be like something: one that is not is an Error, and never ends the app."""

from collections.abc import Callable

import numpy as np
import pytest

from brokerfl.client import ClientApp
from brokerfl.common import Array, Context, ErrorCode, Message, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.server import Driver
from tests.apps import driving, eventually, federation, number
from tests.conftest import Backend
from tests.stage import LAYER, kill, layer, model, push, reason_of, resumed, start, unsettled

#: TLS changes nothing here.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")

Collect = Callable[[Driver, list[str], ParametersRecord | RecordSet], list[Message]]


def by_replies(driver: Driver, ids: list[str], like: ParametersRecord | RecordSet) -> list[Message]:
    return list(driver.replies(ids, like=like))


def by_pull(driver: Driver, ids: list[str], like: ParametersRecord | RecordSet) -> list[Message]:
    found: list[Message] = []
    eventually(lambda: found.extend(driver.pull_messages(ids, like=like)) or len(found) == len(ids))
    return found


def odd_app() -> ClientApp:
    """Replies with what it is sent; to a number with a NaN, one more layer, or nothing."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = message.content
        if "m" in content.metrics_records:
            odd = [np.array([np.nan]), layer(1), None][int(content.metrics_records["m"]["n"])]  # type: ignore[arg-type]
            content = RecordSet() if odd is None else model(layer(0), odd)
        return message.create_reply(content)

    return app


@pytest.mark.parametrize("collect", [by_replies, by_pull])
@pytest.mark.parametrize("size", [10, LAYER])
def test_one_bad_node_is_an_error(backend: Backend, collect: Collect, size: int) -> None:
    """Small and large, each unfit reply is Error 4 of its node, with a reason; the others come as they are."""
    good, like = model(layer(0, size)), model(layer(9, size)).parameters_records["p"]
    with federation(backend, odd_app(), nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        contents = [good, number(0), number(1), number(2)]
        ids = driver.push_messages([driver.create_message(content, "train", node, "1") for content in contents])
        found = {reply.metadata.reply_to_message: reply for reply in collect(driver, ids, like)}
        assert found[ids[0]].content == good
        reasons = [reason_of(found[each], ErrorCode.REPLY_MESSAGE_UNAVAILABLE) for each in ids[1:]]
        assert all(text.startswith("the reply does not fit: ") for text in reasons)
        assert reasons[2] == "the reply does not fit: it has 0 parameters_records, not one"
        assert {found[each].metadata.src_node_id for each in ids} == {node}
        driver.checkpoint()
        assert unsettled(driver) == 0  # an unfit one is settled as any other


def test_a_bad_reply_stays_bad_after_a_resume(backend: Backend) -> None:
    """The app that is resumed gets the same Error from the reply that was not settled, and goes on."""
    with federation(backend, odd_app(), nodes=1) as nodes:
        former = start(backend)
        push(former, nodes.nodes[0].node_id, number(1))
        kill(former)
        with resumed(backend, former) as driver:
            like = model(layer(0)).parameters_records["p"]
            message = driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")
            [reply] = driver.send_and_receive([message], like=like)
            assert "it also has '1'" in reason_of(reply, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


def test_errors_stay_what_they_are(backend: Backend) -> None:
    """A ClientApp's own error, and an id that is unknown, are not looked at."""
    app = ClientApp()
    app.train()(lambda message, context: 1 / 0)  # type: ignore[arg-type, return-value]
    with federation(backend, app, nodes=1) as nodes, driving(backend) as driver:
        like = RecordSet({"metrics": MetricsRecord({"loss": 0.0})})
        ids = [push(driver, nodes.nodes[0].node_id, number(1)), "unknown"]
        assert sorted(reply.error.code for reply in driver.replies(ids, like=like)) == [2, 3]


def test_like_is_checked_at_once(backend: Backend) -> None:
    """What no content can be like is a TypeError before anything is pushed or waited for."""
    with driving(backend) as driver:
        wrong: list[Array] = []
        for call in (driver.replies, driver.pull_messages, driver.send_and_receive):
            with pytest.raises(TypeError, match="like= takes"):
                call([], like=wrong)  # type: ignore[operator]
