"""Settling: an app that folds replies lets each leave Redis as it goes, before the run moves on."""

from typing import Any

import pytest

from brokerfl.broker.nodes import Registration
from brokerfl.client import ClientApp
from brokerfl.common import Array, Context, ErrorCode, Message, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.server import Driver
from tests.apps import driving, federation, number, number_in, runs_seen
from tests.conftest import Backend
from tests.jobs import in_new_thread
from tests.stage import in_ledger, kill, resumed, start, unsettled

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")

#: More than a reply carries itself, in several chunks.
CHUNK, LARGE = 1024, 5000


class Trainer:
    """A ClientApp whose replies are large, and that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.app = ClientApp()

        @self.app.train()
        def train(message: Message, context: Context) -> Message:
            self.calls += 1
            arrays = ParametersRecord({"w": Array("uint8", [LARGE], "numpy.ndarray", bytes(LARGE))})
            return message.create_reply(RecordSet({"p": arrays}, {"m": MetricsRecord({"n": number_in(message)})}))

        @self.app.evaluate()
        def fail(message: Message, context: Context) -> Message:
            raise ValueError("on purpose")


def in_redis(backend: Backend, driver: Driver, node: int) -> tuple[int, int]:
    """How many entries a node's outbox and data stream have."""
    _, outbox, data = driver.connection.keys.of_node_and_run(node, driver.run.run_id)
    return backend.admin.xlen(outbox), backend.admin.xlen(data)


def counted(backend: Backend, driver: Driver) -> tuple[int, int]:
    """Messages and replies of the run, as `brokerfl runs` shows them."""
    [info] = [info for info in runs_seen(backend.connect()) if info.run_id == driver.run.run_id]
    return info.messages, info.replies


def broadcast(driver: Driver, nodes: list[int], group: str = "1", kind: str = "train") -> list[Message]:
    """Messages to all nodes, each with its place in the list."""
    return [driver.create_message(number(index), kind, node, group) for index, node in enumerate(nodes)]


def test_a_commit_settles_no_reply_that_is_on_its_way(backend: Backend) -> None:
    """What a thread takes from another's loop is not in the app's hands until the next call, whoever commits."""
    with federation(backend, Trainer().app, nodes=2), driving(backend) as driver:
        replies = driver.replies(driver.push_messages(broadcast(driver, driver.get_node_ids())))
        left = []

        def take() -> None:
            for _ in range(2):
                next(replies)
                driver.checkpoint()
                left.append(unsettled(driver))

        in_new_thread(take)
        assert left == [2, 1]


def test_a_reply_belongs_to_the_thread_that_loops(backend: Backend) -> None:
    """Wherever the iterator was made: its commits settle what the body of the loop has seen."""
    with federation(backend, Trainer().app, nodes=2), driving(backend) as driver:
        replies = driver.replies(driver.push_messages(broadcast(driver, driver.get_node_ids())))
        left = []

        def loop() -> None:
            for _ in replies:
                driver.checkpoint()
                left.append(unsettled(driver))

        in_new_thread(loop)
        assert left == [1, 0]


def test_a_settled_reply_leaves_redis_at_once(backend: Backend) -> None:
    """Its outbox entry, its chunks and its ledger entry go, those of the others stay, and all are counted once."""
    with federation(backend, Trainer().app, nodes=3) as nodes, driving(backend) as driver:
        ids = [node.node_id for node in nodes.nodes]
        replies = driver.send_and_receive(broadcast(driver, ids))
        assert {in_redis(backend, driver, node) for node in ids} == {(1, 6)}
        gone, *others = replies
        driver.settle(gone)
        assert in_redis(backend, driver, gone.metadata.src_node_id) == (0, 0)
        assert {in_redis(backend, driver, reply.metadata.src_node_id) for reply in others} == {(1, 6)}
        assert in_ledger(backend, driver) == {reply.metadata.reply_to_message for reply in others}
        assert counted(backend, driver) == (3, 1)
        driver.settle(*others)
        assert {in_redis(backend, driver, node) for node in ids} == {(0, 0)}
        assert in_ledger(backend, driver) == set()
        assert len(driver.send_and_receive(broadcast(driver, ids, "2"))) == 3
        driver.checkpoint()
        assert counted(backend, driver) == (6, 6)


def test_replies_are_settled_while_they_are_folded(backend: Backend) -> None:
    """In the loop over `replies` each can be settled where it is folded; every one comes once."""
    with federation(backend, Trainer().app, nodes=3) as nodes, driving(backend) as driver:
        ids = [node.node_id for node in nodes.nodes]
        for group in ("1", "2"):
            folded = []
            for reply in driver.replies(driver.push_messages(broadcast(driver, ids, group))):
                folded.append(number_in(reply))
                driver.settle(reply)
                assert in_redis(backend, driver, reply.metadata.src_node_id) == (0, 0)
            assert sorted(folded) == [0, 1, 2]
            assert in_ledger(backend, driver) == set()
        assert counted(backend, driver) == (6, 6)


def test_settling_saves_nothing(backend: Backend) -> None:
    """The state of the last commit stays what it was: only a commit saves, and an open message stays open."""
    with federation(backend, Trainer().app, nodes=1) as nodes:
        former = start(backend)
        former.context.state.metrics_records["m"] = MetricsRecord({"n": 1})
        [reply] = former.send_and_receive(broadcast(former, [nodes.nodes[0].node_id]))
        former.context.state.metrics_records["m"]["n"] = 2
        former.settle(reply)
        kill(former)
        with resumed(backend, former) as driver:
            assert driver.context.state.metrics_records["m"]["n"] == 1


def test_what_is_settled_twice_or_was_never_there_is_passed_over(backend: Backend) -> None:
    """Settling nothing, a reply twice, an Error reply, one of an unknown id or one of the app's own does no harm."""
    quiet = Registration(backend.connect(), lease=600.0)
    quiet.register()
    with federation(backend, Trainer().app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        [reply] = driver.send_and_receive(broadcast(driver, [node]))
        [error] = driver.send_and_receive(broadcast(driver, [node], kind="evaluate"))
        assert error.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        [cancelled] = driver.push_messages(broadcast(driver, [quiet.node_id]))
        driver.cancel_messages([cancelled])
        [verdict] = driver.replies([cancelled])
        assert verdict.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        [unknown] = driver.pull_messages(["no id"])
        own = driver.create_message(number(1), "train", node, "1")
        driver.settle()
        for _ in range(2):
            driver.settle(reply, error, error, verdict, unknown, own)
        assert in_ledger(backend, driver) == set()
        assert in_redis(backend, driver, node) == (0, 0)
        assert counted(backend, driver) == (3, 3)
        assert number_in(driver.send_and_receive(broadcast(driver, [node], "2"))[0]) == 0


def test_a_reply_that_the_app_has_not_got_stays(backend: Backend) -> None:
    """A message made to look like the reply to one that is open, or answered and not taken, settles nothing."""
    with federation(backend, Trainer().app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        [first] = driver.send_and_receive(broadcast(driver, [node]))
        [message_id] = driver.push_messages(broadcast(driver, [node]))
        first.metadata.reply_to_message = message_id
        driver.settle(first)
        assert message_id in in_ledger(backend, driver)
        assert [number_in(reply) for reply in driver.replies([message_id])] == [0]


@pytest.mark.parametrize(
    "nonsense", ["id", None, 7, ["list"], RecordSet()], ids=["id", "none", "int", "list", "content"]
)
def test_nonsense_is_a_type_error(backend: Backend, nonsense: Any) -> None:
    """What is no message raises TypeError that names its type, and settles nothing of the same call."""
    with federation(backend, Trainer().app, nodes=1) as nodes, driving(backend) as driver:
        [reply] = driver.send_and_receive(broadcast(driver, [nodes.nodes[0].node_id]))
        with pytest.raises(TypeError, match=rf"settle\(\) takes replies, not {type(nonsense).__name__}"):
            driver.settle(reply, nonsense)
        assert in_ledger(backend, driver) == {reply.metadata.reply_to_message}


def test_what_was_settled_before_a_crash_is_executed_again(backend: Backend) -> None:
    """A ServerApp dies after a settle and before the commit: that message is a new one for the resumed app.

    The others are adopted, and come without being executed again.
    """
    trainer = Trainer()
    with federation(backend, trainer.app, nodes=3) as nodes:
        ids = [node.node_id for node in nodes.nodes]
        former = start(backend)
        before = former.push_messages(broadcast(former, ids))
        replies = {reply.metadata.reply_to_message: reply for reply in former.replies(before)}
        former.settle(replies[before[0]])
        kill(former)
        with resumed(backend, former) as driver:
            again = driver.push_messages(broadcast(driver, ids))
            assert again[0] not in before
            assert again[1:] == before[1:]
            assert sorted(number_in(reply) for reply in driver.replies(again)) == [0, 1, 2]
            assert trainer.calls == 4
            driver.checkpoint()
            assert counted(backend, driver) == (4, 4)
            driver.pull_messages([])
            assert {in_redis(backend, driver, node) for node in ids} == {(0, 0)}


def test_a_broadcast_is_freed_by_the_last_settle(backend: Backend) -> None:
    """The chunks of a model stay while one of its messages is not settled, and go with the last."""
    large = RecordSet({"p": ParametersRecord({"w": Array("uint8", [LARGE], "numpy.ndarray", bytes(LARGE))})})
    large.metrics_records["m"] = MetricsRecord({"n": 1})
    with federation(backend, Trainer().app, nodes=2) as nodes, driving(backend) as driver:
        batch = [driver.create_message(large, "train", node.node_id, "1") for node in nodes.nodes]
        first, second = driver.send_and_receive(batch)
        driver.settle(first)
        assert list(backend.admin.scan_iter("*:blob:*"))
        driver.settle(second)
        assert not list(backend.admin.scan_iter("*:blob:*"))
