"""Events: what an operator reads of a run later, written with what is written anyway; and what remains of a run."""

import pytest

from brokerfl.broker.ending import stop_run
from brokerfl.broker.events import AT_ONCE, read_events
from brokerfl.broker.keys import MOST_RETENTION
from brokerfl.client import ClientApp
from brokerfl.common import Context, Message
from brokerfl.server import Driver, diary
from brokerfl.view.history import metrics_of
from brokerfl.view.overview import RunView, read_overview
from brokerfl.view.reasons import RunState
from brokerfl.wire.event import MOST_VALUES, Event, Kind
from tests.apps import driving, federation, number
from tests.conftest import Backend, keys_of
from tests.stage import beat, cancel_answered, push, push_numbers, silent, start, tell_late, to_all

WITHOUT = ("redis-tls",)


def failing_app() -> ClientApp:
    """A ClientApp that has no data."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError("no data")

    return app


def events(backend: Backend, driver: Driver) -> list[Event]:
    """What Redis has of a run."""
    return [event for _, event in read_events(backend.connect(), driver.run.run_id)]


def kinds(backend: Backend, driver: Driver) -> list[str]:
    """The kinds of events."""
    return [event.kind for event in events(backend, driver)]


def test_what_happens_in_a_run(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group when it begins and when it is answered, with the means of its numbers, and what the app tells."""
    monkeypatch.setattr(diary, "_PAUSE", 0.0)
    with federation(backend, nodes=2) as made, driving(backend) as driver:
        ids = push_numbers(driver, made.nodes[0], 1)
        assert kinds(backend, driver) == [Kind.STARTED, Kind.BEGUN]
        ids += push_numbers(driver, made.nodes[1], 4)
        assert len(list(driver.replies(ids))) == 2
        driver.log_metrics(1, accuracy=0.25)
        assert kinds(backend, driver) == [Kind.STARTED, Kind.BEGUN]  # the next commit has them
        push(driver, made.nodes[0].node_id, number(3), "2")
        _, begun, answered, told, begun_next = events(backend, driver)
        assert (begun.group, begun.type, begun.sent) == ("1", "train", 1)
        assert (answered.kind, answered.group, answered.type) == (Kind.ANSWERED, "1", "train")
        assert (answered.sent, answered.answered, answered.errors, answered.values) == (2, 2, 0, {"n": 2.5})
        assert answered.seconds > 0
        assert (told.kind, told.group, told.values) == (Kind.METRICS, "1", {"accuracy": 0.25})
        assert (begun_next.kind, begun_next.group) == (Kind.BEGUN, "2")
        assert abs(told.at - backend.connect().read_time()) < 60


def test_fast_rounds_share_entries(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their events come a whole entry at a time, in order, and none is left out; the heartbeat brings the last."""
    monkeypatch.setattr(diary, "_PAUSE", 3600.0)
    groups = [str(number) for number in range(1, 21)]
    with federation(backend, nodes=1) as made, driving(backend) as driver:
        for group in groups:
            to_all(driver, [made.nodes[0].node_id], number(1), group)
        beat(driver)
        found = [*read_events(backend.connect(), driver.run.run_id)]
        told = [(event.group, event.kind, event.sent) for _, event in found]
        assert told[1:] == [(group, kind, 1) for group in groups for kind in (Kind.BEGUN, Kind.ANSWERED)]
        assert len({entry_id for entry_id, _ in found}) == 1 + 1 + len(told[2:]) // AT_ONCE + 1


def test_a_heartbeat_writes_what_no_commit_did(backend: Backend) -> None:
    """Once; and a group of which the app goes on without all replies is noted when it does."""
    with federation(backend, nodes=1) as made, driving(backend) as driver:
        away = silent(backend)
        push(driver, away, number(1))
        list(driver.replies(push_numbers(driver, made.nodes[0], 5)))
        driver.log_metrics("1", loss=1)
        for _ in range(2):
            beat(driver)
            assert kinds(backend, driver) == [Kind.STARTED, Kind.BEGUN, Kind.METRICS]
        driver.checkpoint()
        beat(driver)
        *_, answered = events(backend, driver)
        assert (answered.sent, answered.answered, answered.values) == (2, 1, {"n": 5.0})


def test_the_first_error_of_a_node(backend: Backend) -> None:
    """Each node's once, with its text; all of them are counted."""
    with federation(backend, failing_app(), nodes=2) as made, driving(backend) as driver:
        nodes = [node.node_id for node in made.nodes]
        for group in ("1", "2"):
            to_all(driver, nodes, number(1), group)
        beat(driver)
        found = events(backend, driver)
        errors = [event for event in found if event.kind == Kind.ERROR]
        assert {event.node for event in errors} == {*nodes}
        assert {event.text for event in errors} == {"Error 2: ValueError: no data"}
        assert len(errors) == 2
        assert sum(event.errors for event in found) == 4


def test_a_resumed_run_goes_on_with_its_events(backend: Backend) -> None:
    """Who leaves it says so, and no message is counted before it is answered."""
    first = start(backend)
    first.log_metrics(1, loss=2.0)
    first.detach()
    second = start(backend, resume=first.run.run_id)
    second.log_metrics(2, loss=1.0)
    beat(second)
    assert kinds(backend, second) == [Kind.STARTED, Kind.METRICS, Kind.DETACHED, Kind.RESUMED, Kind.METRICS]
    assert metrics_of(backend.connect(), first.run.run_id) == {"loss": [(1, 2.0), (2, 1.0)]}
    second.end()


def test_a_redis_that_forgot_the_run_gets_its_events_again(backend: Backend) -> None:
    """From then on; they live as long as the run's other keys."""
    with driving(backend) as driver:
        keys, run_id = driver.connection.keys, driver.run.run_id
        backend.admin.delete(*keys.of_run(run_id))
        beat(driver)
        assert kinds(backend, driver) == [Kind.RESTORED]
        driver.log_metrics(1, loss=2.0)
        beat(driver)
        assert kinds(backend, driver) == [Kind.RESTORED, Kind.METRICS]
        assert backend.admin.pttl(keys.events(run_id)) > 3600_000


def test_nobody_wants_to_know(backend: Backend) -> None:
    """Then there is no stream, neither after a restore nor after a resume."""
    first = start(backend, events=False)
    push(first, silent(backend), number(1))
    first.log_metrics(1, loss=2.0)
    beat(first)
    first.detach()
    second = start(backend, resume=first.run.run_id, events=False)
    assert not backend.admin.exists(second.connection.keys.events(second.run.run_id))
    second.end()
    [view] = ended(backend)
    assert (view.messages, view.metrics) == (1, {})


def test_events_decide_nothing(backend: Backend) -> None:
    """A key of another type in their place costs the events, not the run; a commit that only deletes has none."""
    with federation(backend, nodes=1) as made, driving(backend) as driver:
        key = driver.connection.keys.events(driver.run.run_id)
        backend.admin.delete(key)
        backend.admin.sadd(key, "another type")
        backend.admin.pexpire(key, 60_000)
        ids = push_numbers(driver, made.nodes[0], 1)
        assert len(list(driver.replies(ids))) == 1
        beat(driver)
        driver.checkpoint()
        assert events(backend, driver) == []
        driver.cancel_messages(push_numbers(driver, made.nodes[0], 1))
        driver.log_metrics(1, loss=1.0)
        assert cancel_answered(driver) == []


def test_a_run_that_has_ended_gets_no_events(backend: Backend) -> None:
    """What is still on its way does not make the stream anew."""
    driver = start(backend)
    driver.end()
    tell_late(driver, {"loss": 1.0})
    assert keys_of(backend.admin, driver.run.run_id) == []


def test_numbers_that_are_none(backend: Backend) -> None:
    """They are refused where they are told; and a flood of others is cut off until it can be written."""
    with driving(backend) as driver:
        with pytest.raises(TypeError, match="accuracy is '1'"):
            driver.log_metrics(1, accuracy="1")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="is_done is True"):
            driver.log_metrics(1, is_done=True)
        with pytest.raises(ValueError, match="64 characters"):
            driver.log_metrics(1, **{"x" * 65: 1.0})
        with pytest.raises(ValueError, match="limit is 50"):
            driver.log_metrics(1, **{f"x{n}": 1.0 for n in range(MOST_VALUES + 1)})
        for number_ in range(1000):
            driver.log_metrics(number_, loss=1.0)
        beat(driver)
        driver.log_metrics("last", loss=1.0)
        beat(driver)
        found = events(backend, driver)
        assert len(found) == 258
        assert found[-1].group == "last"


# What remains.


def ended(backend: Backend) -> list[RunView]:
    """The runs that have ended, as a view shows them."""
    return [run for run in read_overview(backend.connect()).runs if run.is_over]


@pytest.mark.parametrize("how", [RunState.COMPLETED, RunState.STOPPED])
def test_what_remains_of_a_run(backend: Backend, how: RunState) -> None:
    """For 30 days: what it was, its counts, and its numbers; also of one that somebody stopped."""
    with federation(backend, failing_app(), nodes=1) as made:
        driver = start(backend, run_config={"lr": 0.1})
        to_all(driver, [made.nodes[0].node_id], number(1))
        for group in (1, 2):
            driver.log_metrics(group, loss=1 / group)
        keys, run = driver.connection.keys, driver.run
        if how is RunState.COMPLETED:
            driver.end()
        else:
            driver.detach()
            stop_run(backend.connect(), run.run_id)
        [view] = ended(backend)
        assert (view.state, view.run, view.config) == (how, run, {"lr": 0.1})
        # A run that is stopped has not settled its last replies.
        assert (view.nodes, view.messages, view.status.errors, view.metrics) == (1, 1, 1, {"loss": 0.5})
        assert metrics_of(backend.connect(), run.run_id) == {"loss": [(1, 1.0), (2, 0.5)]}
        for key in keys.of_past(run.run_id):
            assert (MOST_RETENTION - 3600) * 1000 < backend.admin.pttl(key) <= MOST_RETENTION * 1000
        assert keys_of(backend.admin, run.run_id) == []
        backend.admin.set(keys.past(run.run_id), b"rubbish", keepttl=True)
        assert [each.run for each in ended(backend)] == [None]
        backend.admin.set(keys.past(run.run_id), b"x" * 1_000_000, keepttl=True)
        assert [each.run for each in ended(backend)] == [None]
