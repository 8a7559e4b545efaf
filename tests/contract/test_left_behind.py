"""Replies that nobody takes: they leave Redis when the run moves on and nobody can ask for them any more."""

import copy
import json
import pickle
import threading
from collections.abc import Callable

import pytest

from brokerfl.client import ClientApp
from brokerfl.common import Array, ConfigsRecord, Context, ErrorCode, Message, ParametersRecord, RecordSet
from brokerfl.server import Driver
from tests.apps import driving, eventually, federation, number, number_in
from tests.conftest import Backend
from tests.stage import Late, in_ledger, numbers, owing, push, silent, sweep_soon

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


class Large:
    """A ClientApp whose replies take five chunks."""

    def __init__(self) -> None:
        self.app = ClientApp()

        @self.app.train()
        def train(message: Message, context: Context) -> Message:
            return message.create_reply(
                RecordSet({"p": ParametersRecord({"w": Array("uint8", [5000], "numpy.ndarray", bytes(5000))})})
            )


def in_redis(backend: Backend, driver: Driver, nodes: list[int]) -> int:
    """How many ledger entries, stream entries and contents Redis has of the run."""
    keys, run_id, admin = driver.connection.keys, driver.run.run_id, backend.admin
    streams = [key for node in nodes for key in keys.of_node_and_run(node, run_id)]
    return int(admin.hlen(keys.ledger(run_id)) + admin.hlen(keys.blobs(run_id)) + sum(map(admin.xlen, streams)))


def broadcast(driver: Driver, nodes: list[int], group: str) -> list[Message]:
    """One message for each node."""
    return [driver.create_message(number(index), "train", node, group) for index, node in enumerate(nodes)]


def answered(driver: Driver) -> None:
    """Wait until no node owes a reply."""

    def is_nothing_owed() -> bool:
        driver.pull_messages([])
        return not owing(driver)

    eventually(is_nothing_owed)


def first(driver: Driver, messages: list[Message]) -> None:
    for _ in driver.replies(driver.push_messages(messages)):
        break


def timed_out(driver: Driver, messages: list[Message]) -> None:
    list(driver.replies(driver.push_messages(messages), timeout=0))


def received(driver: Driver, messages: list[Message]) -> None:
    driver.send_and_receive(messages, timeout=0)


def pulled(driver: Driver, messages: list[Message]) -> None:
    driver.pull_messages(driver.push_messages(messages))


def not_asked(driver: Driver, messages: list[Message]) -> None:
    driver.push_messages(messages)


@pytest.mark.parametrize("leave", [first, timed_out, received, pulled, not_asked])
def test_what_the_app_leaves_behind_leaves_redis(
    backend: Backend, leave: Callable[[Driver, list[Message]], None]
) -> None:
    """The first K of a round, a timeout, a round that nobody asks for: nothing of it stays after the next round."""
    with federation(backend, Large().app, nodes=3) as federated, driving(backend) as driver:
        nodes = [node.node_id for node in federated.nodes]
        for turn in range(8):
            leave(driver, broadcast(driver, nodes, str(turn)))
            answered(driver)
        driver.checkpoint()
        driver.pull_messages([])
        driver.checkpoint()
        driver.settle()
        assert in_redis(backend, driver, nodes) == 0


def test_redis_is_flat_over_a_thousand_rounds_with_a_straggler_each(backend: Backend) -> None:
    """Two nodes answer, the app takes the first reply and goes on: 1,000 rounds take no more than 10."""
    if backend.name == "fakeredis":
        pytest.skip("the servers show it, and are faster")
    with federation(backend, Large().app, nodes=2) as federated, driving(backend) as driver:
        nodes = [node.node_id for node in federated.nodes]
        sizes = []
        for turn in range(1000):
            first(driver, broadcast(driver, nodes, str(turn)))
            if turn % 100 == 9:
                answered(driver)
                sizes.append(in_redis(backend, driver, nodes))
        assert max(sizes) <= 3 * sizes[0], sizes


def test_a_message_that_is_left_behind_is_executed_all_the_same(backend: Backend) -> None:
    """Nobody asks for its reply, but what a node does may be all that was wanted."""
    node = Late(backend)
    with driving(backend) as driver:
        for group in ("1", "2", "3"):
            push(driver, node.node_id, number(7), group)
        with node.serving():
            answered(driver)
        assert len(node.seen.contents) == 3
        driver.checkpoint()
        driver.settle()
        assert in_redis(backend, driver, [node.node_id]) == 0


@pytest.mark.parametrize("kept", ["variable", "message", "iterator", "copy that was asked"])
def test_what_the_app_can_ask_for_stays(backend: Backend, kept: str) -> None:
    """However often the run moves on: an id in a variable, in a Message, in an open iterator, or asked as a copy."""
    with federation(backend, nodes=2) as federated, driving(backend) as driver:
        nodes = [node.node_id for node in federated.nodes]
        messages = broadcast(driver, nodes, "1")
        ids = driver.push_messages(messages)
        answered(driver)
        ask: Callable[[], list[Message]]
        if kept == "variable":
            messages, ask = [], lambda: driver.pull_messages(ids)
        elif kept == "message":
            del ids
            ask = lambda: driver.pull_messages([message.metadata.message_id for message in messages])  # noqa: E731
        elif kept == "iterator":
            replies = driver.replies(ids)
            messages, ids = [], []
            ask = lambda: list(replies)  # noqa: E731
        else:
            copies = json.loads(json.dumps(ids))
            messages, ids = [], []
            driver.replies(copies)  # asks, and is left before it begins
            ask = lambda: driver.pull_messages(copies)  # noqa: E731
        for group in ("2", "3", "4"):
            driver.send_and_receive(broadcast(driver, nodes, group))
        assert sorted(map(number_in, ask())) == [0, 1]


@pytest.mark.parametrize("is_waiting", [True, False])
def test_who_asks_for_what_was_left_behind_is_told(backend: Backend, is_waiting: bool) -> None:
    """A copy of an id that the app let go of, and asks with only after the run moved on, is Error 4, once."""
    with federation(backend, nodes=1) as federated, driving(backend) as driver:
        node = federated.nodes[0].node_id
        copied = json.loads(json.dumps(push(driver, node, number(1), "1")))
        answered(driver)
        driver.send_and_receive([driver.create_message(number(2), "train", node, "2")])
        ask = driver.replies if is_waiting else driver.pull_messages
        [reply] = ask([copied])
        assert (reply.error.code, reply.metadata.reply_to_message) == (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, copied)
        assert "let go of the id" in (reply.error.reason or "")
        assert list(ask([copied])) == []
        assert (reply.metadata.src_node_id, reply.metadata.group_id) == (node, "1")


@pytest.mark.parametrize("way", ["cancel", "ttl"])
def test_what_was_cancelled_or_expired_leaves_when_the_run_moves_on(backend: Backend, way: str) -> None:
    """Also what the app can still ask for: its reply is Error 3, in an open iterator too, and Redis has nothing."""
    node = silent(backend)
    with driving(backend) as driver:
        options = {"ttl": 0.2} if way == "ttl" else {}
        ids = [push(driver, node, number(n), "1", **options) for n in range(3)]
        replies = driver.replies(ids[:1])
        if way == "cancel":
            driver.cancel_messages(ids)
        eventually(lambda: (sweep_soon(driver), driver.pull_messages([]), not owing(driver))[-1])
        assert in_ledger(backend, driver) == set(ids)
        driver.checkpoint()
        assert in_redis(backend, driver, [node]) == 0
        answers = [*replies, *driver.pull_messages(ids), *driver.replies(ids)]
        assert {reply.metadata.reply_to_message for reply in answers} == set(ids)
        assert [reply.error.code for reply in answers] == [ErrorCode.MESSAGE_UNAVAILABLE] * 3
        driver.checkpoint()


def test_an_iterator_learns_what_left_while_its_loop_worked(backend: Backend) -> None:
    """The loop's body cancels the rest and moves the run on; the iterator still yields each Error once."""
    node = silent(backend)
    with driving(backend) as driver:
        ids = [push(driver, node, number(n), "1") for n in range(4)]
        driver.cancel_messages(ids[:1])
        seen = []
        for reply in driver.replies(ids):
            seen.append(reply.metadata.reply_to_message)
            if len(seen) == 1:
                driver.cancel_messages(ids)
            driver.checkpoint()
        assert sorted(seen) == sorted(ids)


def test_another_thread_that_waits_holds_what_it_waits_for(backend: Backend) -> None:
    """`replies` got the only reference to an id; another thread moves the run on."""
    node = Late(backend)
    with driving(backend) as driver:
        replies = driver.replies([push(driver, node.node_id, number(0), "1")])
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.extend(map(number_in, replies)))
        thread.start()
        with node.serving():
            thread.join(20)
        driver.checkpoint()
        assert found == [1]


def test_an_id_is_a_str(backend: Backend) -> None:
    """Whatever an app does with ids: records, JSON, pickles, copies, lists together with copies."""
    with federation(backend, nodes=1) as federated, driving(backend) as driver:
        held = push(driver, federated.nodes[0].node_id, number(1))
        text = json.loads(json.dumps(held))
        assert isinstance(held, str)
        assert (held, hash(held), len(held), repr(held)) == (text, hash(text), 32, repr(text))
        assert type(pickle.loads(pickle.dumps(held))) is str
        assert pickle.loads(pickle.dumps(held)) == text
        assert copy.deepcopy([held]) == copy.copy([held]) == [str(held)] == [text]
        for values in ([held, text], [text, held]):
            driver.context.state.configs_records["ids"] = ConfigsRecord({"ids": values})
            driver.checkpoint()
        assert numbers(driver, [held]) == [1]
