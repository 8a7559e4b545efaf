"""Messages go to nodes and replies come back: the Driver's methods, one by one."""

import threading
from typing import Any

import numpy as np
import pytest

from brokerfl.client import ClientApp
from brokerfl.common import (
    Array,
    ConfigsRecord,
    Context,
    ErrorCode,
    Message,
    MessageType,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
)
from brokerfl.server import Driver
from brokerfl.server import replies as replies_module
from brokerfl.testing import fake_connection
from tests.apps import Gate, driving, echo_app, eventually, federation, number, number_in, text
from tests.conftest import Backend
from tests.stage import owing, read_outbox


def messages_to(driver: Driver, nodes: list[int], content: RecordSet, group: str = "1") -> list[Message]:
    return [driver.create_message(content, MessageType.TRAIN, node, group) for node in nodes]


def test_round_trip(backend: Backend) -> None:
    """A reply carries what the node returned, and says whom it answers."""
    with federation(backend) as nodes, driving(backend) as driver:
        ids = driver.get_node_ids()
        assert ids == sorted(node.node_id for node in nodes.nodes)
        sent = messages_to(driver, ids, number(7), "round-1")
        replies = driver.send_and_receive(sent)
        assert {reply.metadata.src_node_id for reply in replies} == set(ids)
        for reply in replies:
            assert number_in(reply) == 7
            assert reply.metadata.run_id == driver.run.run_id
            assert reply.metadata.group_id == "round-1"
            assert reply.metadata.message_type == "train"
            assert reply.metadata.dst_node_id == 1
            assert 0 < reply.metadata.ttl <= sent[0].metadata.ttl


def test_records_survive(backend: Backend) -> None:
    """Arrays, metrics and configs arrive as they were sent: types, order, empty lists, extremes."""
    arrays = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f16": np.array(1.5, dtype=np.float16),
        "empty": np.zeros((0, 3), dtype=np.int64),
        "bool": np.array([True, False]),
        "c64": np.array([1 + 2j], dtype=np.complex64),
    }
    metrics = MetricsRecord({"big": 2**64 - 1, "small": -(2**63), "inf": float("inf"), "list": [0.1, -0.0], "none": []})
    configs = ConfigsRecord({"b": b"\x00\xff", "s": "ä", "t": True, "i": 1, "bs": [b"", b"x"], "ts": [False], "e": []})
    content = RecordSet(
        {"p": ParametersRecord({key: Array(value) for key, value in arrays.items()}, keep_input=True)},
        {"m": metrics},
        {"c": configs},
    )
    with federation(backend, nodes=1), driving(backend) as driver:
        [reply] = driver.send_and_receive(messages_to(driver, driver.get_node_ids(), content))
    parameters = reply.content.parameters_records["p"]
    assert list(parameters) == list(arrays)
    for key, value in arrays.items():
        received = parameters[key].numpy()
        assert received.dtype == value.dtype
        assert received.shape == value.shape
        np.testing.assert_array_equal(received, value)
        assert not received.flags.writeable
    for received_record, sent in (
        (reply.content.metrics_records["m"], metrics),
        (reply.content.configs_records["c"], configs),
    ):
        assert list(received_record.items()) == list(sent.items())
        assert [type(value) for value in received_record.values()] == [type(value) for value in sent.values()]


def test_push_keeps_length_and_order(backend: Backend) -> None:
    """push_messages returns and sets an id for each message, in order; "" for an unknown node and an expired one."""
    with federation(backend, nodes=1), driving(backend) as driver:
        [node] = driver.get_node_ids()
        known, unknown, expired, other = messages_to(driver, [node, 12345, node, node], number(1))
        expired.metadata.ttl = 0.0
        ids = driver.push_messages([known, unknown, expired, other])
        assert [message.metadata.message_id for message in (known, unknown, expired, other)] == ids
        assert [bool(message_id) for message_id in ids] == [True, False, False, True]
        assert len({*ids}) == 3
        assert [reply.metadata.reply_to_message for reply in driver.replies([ids[0]])] == [ids[0]]
        assert [reply.metadata.reply_to_message for reply in driver.replies([ids[3]])] == [ids[3]]


def test_refused_messages_end_as_errors_in_send_and_receive(backend: Backend) -> None:
    """send_and_receive returns one reply for every message; a refused one is an Error that names the reason."""
    with federation(backend, nodes=1), driving(backend) as driver:
        replies = driver.send_and_receive(messages_to(driver, [*driver.get_node_ids(), 12345], number(1)))
        assert len(replies) == 2
        [error] = [reply for reply in replies if reply.has_error()]
        assert error.error.code == ErrorCode.NODE_UNAVAILABLE
        assert "12345" in (error.error.reason or "")
        assert error.metadata.src_node_id == 12345


def test_pull_is_partial_and_never_repeats(backend: Backend) -> None:
    """pull_messages returns what is here, never blocks, and yields nothing for an id that was pulled."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1), driving(backend) as driver:
        [message_id] = driver.push_messages(messages_to(driver, driver.get_node_ids(), number(1)))
        assert gate.begun.acquire(timeout=10)
        assert driver.pull_messages([message_id]) == []
        gate.go.set()
        [reply] = driver.replies([message_id])
        assert number_in(reply) == 1
        assert driver.pull_messages([message_id]) == []
        assert list(driver.replies([message_id])) == []
        driver.checkpoint()
        assert driver.pull_messages([message_id]) == []


def test_unknown_id_is_an_error(backend: Backend) -> None:
    """An id that no push returned yields one Error reply, in pull_messages and in replies; "" yields nothing."""
    with federation(backend, nodes=1), driving(backend) as driver:
        for found in (driver.pull_messages(["x" * 32, ""]), list(driver.replies(["deadbeef" * 4]))):
            [reply] = found
            assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE


def test_replies_come_as_they_arrive(backend: Backend) -> None:
    """replies() yields the fast node's reply while the slow node is still at work."""
    release = threading.Event()
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 0:
            assert release.wait(20)
        return message.create_reply(number(int(context.node_config["partition-id"])))

    with federation(backend, app, nodes=2), driving(backend) as driver:
        ids = driver.push_messages(messages_to(driver, driver.get_node_ids(), number(0)))
        iterator = driver.replies(ids)
        assert number_in(next(iterator)) == 1
        release.set()
        assert number_in(next(iterator)) == 0
        assert next(iterator, None) is None


def test_timeout_returns_what_came(backend: Backend) -> None:
    """send_and_receive returns at its timeout with what came; the rest can be pulled later."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1), driving(backend) as driver:
        ids = driver.get_node_ids()
        assert driver.send_and_receive(messages_to(driver, ids, number(1)), timeout=0.05) == []
        pushed = driver.push_messages(messages_to(driver, ids, number(2)))
        assert list(driver.replies(pushed, timeout=0.05)) == []
        gate.go.set()
        assert [number_in(reply) for reply in driver.replies(pushed)] == [2]


def test_content_is_frozen_at_push(backend: Backend) -> None:
    """What the caller changes after the push is not sent."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1), driving(backend) as driver:
        content = text(a="before")
        array = np.zeros(3)
        content.parameters_records["p"] = ParametersRecord({"x": Array(array)})
        ids = driver.push_messages(messages_to(driver, driver.get_node_ids(), content))
        content.configs_records["c"]["a"] = "after"
        array[:] = 1
        gate.go.set()
        [reply] = driver.replies(ids)
        assert reply.content.configs_records["c"]["a"] == "before"
        assert reply.content.parameters_records["p"]["x"].numpy().sum() == 0


def test_exception_in_the_app_is_error_2(backend: Backend) -> None:
    """What a ClientApp raises comes back as Error 2 with type and text, and the node goes on."""
    app = echo_app()

    @app.train("fails")
    def fails(message: Message, context: Context) -> Message:
        raise KeyError("no such column")

    @app.train("nothing")
    def nothing(message: Message, context: Context) -> Message:
        return None  # type: ignore[return-value]

    with federation(backend, app, nodes=1), driving(backend) as driver:
        [node] = driver.get_node_ids()
        for message_type, expected in (
            ("train.fails", "KeyError"),
            ("train.nothing", "NoneType"),
            ("query.unknown", "query.unknown"),
        ):
            [reply] = driver.send_and_receive([driver.create_message(number(1), message_type, node, "1")])
            assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            assert expected in (reply.error.reason or "")
        [reply] = driver.send_and_receive(messages_to(driver, [node], number(3)))
        assert number_in(reply) == 3


def test_bad_messages_are_refused_before_anything_is_pushed(backend: Backend) -> None:
    """What is no message of this run, or cannot be sent, is an exception, and nothing of the batch goes out."""
    with federation(backend, nodes=1), driving(backend) as driver, driving(backend) as other:
        [node] = driver.get_node_ids()
        good = driver.create_message(number(1), "train", node, "1")
        spoilt = driver.create_message(number(1), "train", node, "1")
        spoilt.content.metrics_records["m"]["list"] = [1]
        spoilt.content.metrics_records["m"]["list"].append("x")  # type: ignore[union-attr,arg-type]
        foreign = other.create_message(number(1), "train", node, "1")
        for bad, error in (("text", TypeError), (spoilt, (TypeError, ValueError)), (foreign, ValueError)):
            with pytest.raises(error):
                driver.push_messages([good, bad])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="teach"):
            driver.create_message(number(1), "teach", node, "1")
        assert backend.admin.exists(driver.connection.keys.inbox(node, driver.run.run_id)) == 0


def test_many_threads_share_one_driver(backend: Backend) -> None:
    """Many threads may send and receive at once on one Driver; each gets its own replies and none is lost."""
    threads, each = 8, 5
    results: dict[int, list[int]] = {}
    with federation(backend, nodes=3), driving(backend) as driver:
        ids = driver.get_node_ids()

        def work(thread: int) -> None:
            got = []
            for turn in range(each):
                value = thread * 100 + turn
                replies = driver.send_and_receive(messages_to(driver, ids, number(value), f"{thread}-{turn}"))
                got += [number_in(reply) for reply in replies]
            results[thread] = got

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for thread in range(threads):
        assert sorted(results[thread]) == sorted([thread * 100 + turn for turn in range(each)] * 3)


def test_the_pull_loop_of_the_how_to(backend: Backend) -> None:
    """The how-to's loop, which pulls the same ids again and again, ends with exactly one reply for each message."""
    with federation(backend, nodes=2), driving(backend) as driver:
        for round_number in range(3):
            ids = driver.push_messages(messages_to(driver, driver.get_node_ids(), number(1), str(round_number)))
            ids = [message_id for message_id in ids if message_id != ""]
            replies: list[Message] = []
            while len(replies) < len(ids):
                replies += driver.pull_messages(ids)
            assert sorted(reply.metadata.reply_to_message for reply in replies) == sorted(ids)


@pytest.mark.parametrize(
    ("what", "value"),
    [("ttl", float("nan")), ("ttl", float("inf")), ("ttl", -1), ("group_id", 1), ("dst_node_id", "5")],
)
def test_impossible_messages_are_named(what: str, value: object) -> None:
    """A ttl, group or node that no frame can carry is a ValueError that names it, when the message is made."""
    driver = Driver(fake_connection())
    arguments = {"dst_node_id": 5, "group_id": "1", "ttl": None, what: value}
    with pytest.raises(ValueError, match=what):
        driver.create_message(RecordSet(), "train", **arguments)  # type: ignore[arg-type]
    driver.end()


def test_replies_that_could_not_be_returned_can_be_pulled(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the second: the first, which is already there, is not lost with it."""
    decode, calls = replies_module.decode_reply, []

    def interrupted(*arguments: Any) -> Message:
        calls.append(True)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(replies_module, "decode_reply", interrupted)
    with federation(backend, nodes=2), driving(backend) as driver:
        ids = driver.push_messages(messages_to(driver, driver.get_node_ids(), number(1)))
        eventually(lambda: ([read_outbox(driver, node) for node in owing(driver)], not owing(driver))[1])
        with pytest.raises(KeyboardInterrupt):
            driver.pull_messages(ids)
        assert [number_in(reply) for reply in driver.pull_messages(ids)] == [1, 1]
