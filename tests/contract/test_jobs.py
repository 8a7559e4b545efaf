"""Jobs: an app that takes replies and commits in tasks of an executor loses none and folds none twice."""

from collections.abc import Callable
from typing import Any

import pytest

from brokerfl.common import Message, MetricsRecord
from brokerfl.server import Driver
from tests.apps import Seen, driving, federation, number, number_in
from tests.conftest import Backend
from tests.jobs import WAYS, doing
from tests.stage import in_ledger, kill, resumed, start, unsettled

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.parametrize("way", WAYS)


def push(driver: Driver, *values: int) -> list[str]:
    """Push these numbers, each to a node of its own, in one group."""
    nodes = driver.get_node_ids()
    batch = [
        driver.create_message(number(value), "train", node, "1") for node, value in zip(nodes, values, strict=True)
    ]
    return driver.push_messages(batch)


def fold(driver: Driver, reply: Message) -> None:
    """Count a reply in the state, under the id of its message."""
    counts = driver.context.state.metrics_records.setdefault("counts", MetricsRecord())
    counts[reply.metadata.reply_to_message] = int(counts.get(reply.metadata.reply_to_message, 0)) + 1  # type: ignore


def folded(driver: Driver) -> dict[str, Any]:
    """How often the state has each reply."""
    return dict(driver.context.state.metrics_records.get("counts", {}))


def test_a_commit_in_a_task_settles_nothing_that_another_was_given(backend: Backend, way: str) -> None:
    """Until the iterator is asked for the next one, wherever it was made, and whether the reply is folded or not."""
    with federation(backend, nodes=2), driving(backend) as driver, doing(way) as do:
        replies = do(driver.replies, do(push, driver, 0, 1))
        left = []
        for _ in range(3):
            do(next, replies, None)
            do(driver.checkpoint)
            left.append(unsettled(driver))
        assert left == [2, 1, 0]


def test_a_reply_on_its_way_out_of_a_task_survives(backend: Backend, way: str) -> None:
    """A commit, and then a kill, come before the app has folded it: the resumed app gets it; no node trains again."""
    app = Seen()
    with federation(backend, app.app, nodes=1), doing(way) as do:
        former = start(backend)
        [message_id] = do(push, former, 7)
        replies = do(former.replies, [message_id])
        do(next, replies)
        do(former.checkpoint)
        kill(former)
        with resumed(backend, former) as driver:
            assert push(driver, 7) == [message_id]
            assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
            assert len(app.contents) == 1


class KilledError(Exception):
    """Ends a task where its process is killed."""


def one_ahead(driver: Driver, do: Callable[..., Any], ids: list[str], commits: int) -> None:
    """Fold each reply, ask for the next one, commit; die after so many commits."""
    replies = do(driver.replies, ids)
    reply = do(next, replies, None)
    for _ in range(commits):
        fold(driver, reply)
        reply = do(next, replies, None)
        do(driver.checkpoint)


def all_in_one(driver: Driver, do: Callable[..., Any], ids: list[str], commits: int) -> None:
    """Loop and commit in one task; die after so many commits."""

    def loop() -> None:
        for count, reply in enumerate(driver.replies(ids), 1):
            fold(driver, reply)
            driver.checkpoint()
            if count == commits:
                raise KilledError

    with pytest.raises(KilledError):
        do(loop)


@pytest.mark.parametrize("commits", [1, 2, 3])
@pytest.mark.parametrize("app", [one_ahead, all_in_one])
def test_the_state_and_what_is_settled_agree(
    backend: Backend, way: str, app: Callable[..., None], commits: int
) -> None:
    """An app that is one reply ahead when it commits, or does all in one task, counts each reply once after a kill."""
    with federation(backend, nodes=3), doing(way) as do:
        former = start(backend)
        ids = push(former, 0, 1, 2)
        app(former, do, ids, commits)
        kill(former)
        with resumed(backend, former) as driver:
            assert in_ledger(backend, driver) == {*ids} - {*folded(driver)}
            left = [each for each in ids if each not in folded(driver)]
            for reply in driver.replies(left):
                fold(driver, reply)
            assert folded(driver) == dict.fromkeys(ids, 1)
