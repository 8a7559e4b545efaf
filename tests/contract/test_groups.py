"""Groups: the run moves on when one is new, and a resumed run knows which ones are not."""

from typing import Any

import pytest

from brokerfl.broker import books
from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, MetricsRecord
from brokerfl.server import Driver
from brokerfl.server.book import groups
from tests.apps import driving, federation, number, number_in
from tests.conftest import Backend
from tests.stage import compare, cut, in_ledger, kill, push, resumed, send, silent, start, unsettled

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


class Trainer:
    """A ClientApp that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.app = ClientApp()

        def count(message: Message, context: Context) -> Message:
            self.calls += 1
            return message.create_reply(number(self.calls))

        self.app.train()(count)


def keep(driver: Driver, **values: Any) -> None:
    driver.context.state.metrics_records["m"] = MetricsRecord(values)


def groups_in(backend: Backend, driver: Driver) -> list[bytes]:
    """What Redis has of the groups of a run."""
    return list(backend.admin.lrange(driver.connection.keys.groups(driver.run.run_id), 0, -1))


def test_a_resumed_run_knows_its_groups(backend: Backend) -> None:
    """Two fixed groups whose replies are folded together: a reply that is not folded yet is not settled."""
    trainer = Trainer()
    with federation(backend, trainer.app, nodes=1) as nodes:
        [node] = nodes.nodes
        former = start(backend)
        assert [number_in(send(former, node, group=group)) for group in ("a", "b")] == [1, 2]
        keep(former, sum=3)
        former.checkpoint()
        assert in_ledger(backend, former) == set()
        kill(former)
        second = Driver(backend.connect(), "", None, resume=former.run.run_id, takeover=True)
        assert [number_in(send(second, node, group=group)) for group in ("a", "b")] == [3, 4]
        assert unsettled(second) == 2, "neither group is new"
        kill(second)
        with resumed(backend, second) as third:
            assert [number_in(send(third, node, group=group)) for group in ("a", "b")] == [3, 4]
            assert number_in(send(third, node, group="c")) == 5
            assert unsettled(third) == 1, "this one is new"
    assert trainer.calls == 5


@pytest.mark.parametrize("way", ["the app keeps nothing", "start_over"])
def test_an_app_that_begins_at_its_start_moves_on_as_before(backend: Backend, way: str) -> None:
    """Groups that its former life pushed are new again, also for the life after."""
    with federation(backend, Trainer().app, nodes=1) as nodes:
        [node] = nodes.nodes
        former = start(backend)
        if way == "start_over":
            keep(former, round=1)
        for group in ("1", "2", "3"):
            send(former, node, group=group)
        former.checkpoint()
        kill(former)
        second = Driver(backend.connect(), "", None, resume=former.run.run_id, takeover=True)
        if way == "start_over":
            second.start_over()
        for group in ("1", "2"):
            send(second, node, group=group)
            assert unsettled(second) == 1, "the run moved on"
        assert len(groups_in(backend, second)) == 2, "Redis has forgotten the others"
        second.start_over()
        send(second, node, group="2")
        assert unsettled(second) == 1
        assert len(groups_in(backend, second)) == 1
        second.end()


def test_what_redis_forgot_of_the_groups_is_written_again(backend: Backend) -> None:
    """A comparison restores them in their order, with a lifetime, like the rest of the books."""
    node = silent(backend)
    with driving(backend) as driver:
        for group in ("1", "2", "1", "3"):
            push(driver, node, number(0), group)
        key, before = driver.connection.keys.groups(driver.run.run_id), groups_in(backend, driver)
        assert len(before) == 3
        assert backend.admin.pttl(key) > 0
        backend.admin.unlink(key)
        cut(driver)
        compare(driver)
        assert groups_in(backend, driver) == before
        assert backend.admin.pttl(key) > 0


def test_the_last_groups_are_kept(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many a run pushes: the run and Redis know the same ones, and those before are new again."""
    for module in (books, groups):
        monkeypatch.setattr(module, "MOST_GROUPS", 5)
    with federation(backend, Trainer().app, nodes=1) as nodes:
        driver = start(backend)
        [node] = nodes.nodes
        for turn in range(20):
            send(driver, node, group=str(turn))
        assert len(groups_in(backend, driver)) == 5
        send(driver, node, group="15")
        assert unsettled(driver) == 2, "the oldest that is known"
        send(driver, node, group="14")
        assert unsettled(driver) == 1, "the last one that is not"
        keep(driver, round=20)
        driver.checkpoint()
        kill(driver)
        with resumed(backend, driver) as second:
            for group in ("16", "14"):
                send(second, node, group=group)
            assert unsettled(second) == 2
            send(second, node, group="15")
            assert unsettled(second) == 1
