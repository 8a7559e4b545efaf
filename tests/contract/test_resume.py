"""A ServerApp dies and another takes its run up: the state is back, what is open is adopted, the first is fenced."""

import threading
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from redis.client import Pipeline

from brokerfl.broker.context import SavedContext
from brokerfl.broker.ending import stop_run
from brokerfl.broker.nodes import Registration
from brokerfl.broker.owner import resume_run
from brokerfl.broker.runs import has_ended
from brokerfl.common import (
    Array,
    ConfigError,
    ConfigsRecord,
    ErrorCode,
    FrameError,
    Message,
    MetricsRecord,
    ParametersRecord,
    RedisOutOfMemory,
    RedisUnreachable,
    RunAttached,
    RunFenced,
    RunLost,
    RunNotFound,
    RunStopped,
)
from brokerfl.server import Driver, session
from tests.apps import Gate, contents_of, driving, eventually, federation, number, number_in, runs_seen, text
from tests.conftest import Backend, keys_of
from tests.stage import (
    cut,
    cut_fence,
    fill,
    in_inbox,
    in_ledger,
    kill,
    push,
    resumed,
    silent,
    start,
    sweep_soon,
    transact,
    unaware,
)

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


# The state.


def test_the_state_comes_back(backend: Backend) -> None:
    """Arrays, metrics and configs of the last commit are back after a resume, with types, order and empty lists."""
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 2), dtype=np.int64)}
    metrics = {"round": 3, "losses": [0.5, 0.25], "none": [], "big": 2**64 - 1}
    configs = {"name": "ä", "raw": b"\x00\xff", "done": True, "ids": ["a", "b"]}
    former = start(backend)
    state = former.context.state
    state.parameters_records["p"] = ParametersRecord({key: Array(value) for key, value in arrays.items()})
    state.metrics_records["m"] = MetricsRecord(dict(metrics))
    state.configs_records["c"] = ConfigsRecord(dict(configs))
    former.checkpoint()
    state.metrics_records["m"]["round"] = 4  # and then the process is gone
    kill(former)
    with resumed(backend, former) as driver:
        back = driver.context.state
        assert list(back.parameters_records["p"]) == list(arrays)
        for key, value in arrays.items():
            received = back.parameters_records["p"][key].numpy()
            assert received.dtype == value.dtype
            np.testing.assert_array_equal(received, value)
        for record, sent in ((back.metrics_records["m"], metrics), (back.configs_records["c"], configs)):
            assert list(record.items()) == list(sent.items())
            assert [type(value) for value in record.values()] == [type(value) for value in sent.values()]
        assert driver.context.run_id == former.run.run_id


def test_a_run_without_a_name_is_anybodys(backend: Backend) -> None:
    """There is nothing to compare an app's name with."""
    former = Driver(backend.connect())
    kill(former)
    driver = Driver(backend.connect(), "server:app", resume=former.run.run_id, takeover=True)
    assert driver.run.app == ""
    driver.end()


def test_the_run_config_comes_back(backend: Backend) -> None:
    """A resumed run has the app and run config it was started with; another one is refused, and changes nothing."""
    former = start(backend, run_config={"lr": 0.1, "rounds": 3})
    kill(former)
    owner = former.connection.keys.owner(former.run.run_id)
    before = backend.admin.get(owner)
    with pytest.raises(ConfigError, match=r"was started with the run config .*, not \{'lr': 0.2\}"):
        Driver(backend.connect(), "", {"lr": 0.2}, resume=former.run.run_id, takeover=True)
    assert backend.admin.get(owner) == before
    with resumed(backend, former) as driver:
        assert driver.context.run_config == {"lr": 0.1, "rounds": 3}
        assert driver.run == former.run


def test_the_state_is_saved_by_a_push_of_a_new_group(backend: Backend) -> None:
    """What was in the state when a group was pushed for the first time is saved; what came later is not."""
    node = silent(backend)
    former = start(backend)
    for value, group in ((1, "1"), (2, "1"), (3, "2"), (4, "2")):
        former.context.state.metrics_records["m"] = MetricsRecord({"n": value})
        push(former, node, number(value), group)
    kill(former)
    with resumed(backend, former) as driver:
        assert driver.context.state.metrics_records["m"]["n"] == 3


def test_a_commit_writes_only_what_changed(backend: Backend) -> None:
    """A commit that finds the state as the last one left it does not write it; a small one that changed is whole."""
    with driving(backend) as driver:
        key = driver.connection.keys.context(driver.run.run_id)
        state = driver.context.state
        state.parameters_records["p"] = ParametersRecord({"a": Array(np.zeros(9)), "b": Array(np.ones(9))})
        driver.checkpoint()
        assert set(backend.admin.hkeys(key)) == {b"c", b"0", b"1"}
        backend.admin.hset(key, "0", "untouched")
        driver.checkpoint()
        state.parameters_records["p"]["a"] = Array(np.zeros(9))  # another object of the same value
        driver.checkpoint()
        assert backend.admin.hget(key, "0") == b"untouched", "nothing had changed"
        state.parameters_records["p"]["b"] = Array(np.full(9, 2.0))
        driver.checkpoint()
        assert backend.admin.hmget(key, "0", "1") == [bytes(72), np.full(9, 2.0).tobytes()]
        del state.parameters_records["p"]["b"]
        driver.checkpoint()
        assert set(backend.admin.hkeys(key)) == {b"c", b"0"}


def test_a_state_that_was_emptied_comes_back_empty(backend: Backend) -> None:
    """A state that had records and has none at the last commit has none after a resume."""
    former = start(backend)
    former.context.state.metrics_records["m"] = MetricsRecord({"n": 1})
    former.checkpoint()
    del former.context.state.metrics_records["m"]
    former.checkpoint()
    kill(former)
    with resumed(backend, former) as driver:
        assert not driver.context.state.metrics_records


# Adoption.


def test_equal_content_is_adopted_first_then_the_oldest(backend: Backend) -> None:
    """Of open messages of one group, node and type a push adopts the one with its content, else the oldest."""
    node = silent(backend)
    former = start(backend)
    oldest, middle, newest = (push(former, node, number(value)) for value in (1, 2, 3))
    kill(former)
    # A hash has no order: the oldest may come last.
    key = former.connection.keys.ledger(former.run.run_id)
    entry = backend.admin.hget(key, oldest)
    backend.admin.hdel(key, oldest)
    backend.admin.hset(key, oldest, entry)
    with resumed(backend, former) as driver:
        assert push(driver, node, number(3)) == newest
        assert push(driver, node, number(7)) == oldest
        assert push(driver, node, number(8)) == middle
        assert in_inbox(backend, driver, node) == [oldest, middle, newest]
        fresh = push(driver, node, number(9))
        assert fresh not in (oldest, middle, newest)
        assert in_inbox(backend, driver, node) == [oldest, middle, newest, fresh]


def test_a_batch_adopts_each_message_once(backend: Backend) -> None:
    """A batch pushed again in another order, equal contents among it, gets each old id once."""
    node = silent(backend)
    former = start(backend)
    values = (1, 1, 2)
    ids = [push(former, node, number(value)) for value in values]
    kill(former)
    with resumed(backend, former) as driver:
        batch = [driver.create_message(number(value), "train", node, "1") for value in (2, 1, 1)]
        again = driver.push_messages(batch)
        assert again[0] == ids[2]
        assert sorted(again[1:]) == sorted(ids[:2])


@pytest.mark.parametrize("differs", ["group", "node", "type"])
def test_another_message_does_not_adopt(backend: Backend, differs: str) -> None:
    """A message of another group, to another node or of another type is a new one, whatever its content."""
    node, other = silent(backend), silent(backend, "other")
    former = start(backend)
    open_id = push(former, node, number(1), "1", "train")
    kill(former)
    with resumed(backend, former) as driver:
        changed = {"group": (node, "2", "train"), "node": (other, "1", "train"), "type": (node, "1", "train.warmup")}
        target, group, kind = changed[differs]
        assert push(driver, target, number(1), group, kind) != open_id
        assert push(driver, node, number(1), "1", "train") == open_id


def test_what_expired_is_not_adopted(backend: Backend) -> None:
    """An open message whose ttl has passed is not what a push after the resume means; an answered one is."""
    gate = Gate()
    gate.go.set()
    with federation(backend, gate.app, nodes=1) as nodes:
        node, unread = nodes.nodes[0].node_id, silent(backend)
        former = start(backend)
        answered = push(former, node, number(1), ttl=1.0)
        outbox = former.connection.keys.outbox(node, former.run.run_id)
        eventually(lambda: backend.admin.xlen(outbox))
        expired = push(former, unread, number(1), ttl=0.1)
        pushed = former.connection.read_time()
        kill(former)
        eventually(lambda: former.connection.read_time() > pushed + 1.1)
        with resumed(backend, former) as driver:
            assert push(driver, unread, number(1)) != expired
            assert push(driver, node, number(1)) == answered
            assert [number_in(reply) for reply in driver.replies([answered])] == [1]
        assert gate.calls == 1


def test_what_nobody_adopts_is_cancelled_when_the_run_moves_on(backend: Backend) -> None:
    """An orphan outlasts checkpoints, and goes with the first push of a new group that also settles a reply."""
    with federation(backend, nodes=1) as nodes:
        node, unread = nodes.nodes[0].node_id, silent(backend)
        former = start(backend)
        push(former, node, number(1))
        orphan = push(former, unread, number(1))
        kill(former)
        with resumed(backend, former) as driver:
            receive = [driver.create_message(number(1), "train", node, "1")]
            assert [number_in(reply) for reply in driver.send_and_receive(receive)] == [1]
            driver.checkpoint()
            assert orphan in in_ledger(backend, driver)
            # A new group, but nothing to settle any more: the app may be about to push the orphan's group again.
            driver.send_and_receive([driver.create_message(number(2), "train", node, "2")])
            assert orphan in in_ledger(backend, driver)
            assert in_inbox(backend, driver, unread) == [orphan]
            driver.send_and_receive([driver.create_message(number(3), "train", node, "3")])
            assert orphan not in in_ledger(backend, driver)
            assert in_inbox(backend, driver, unread) == []


def test_a_cancelled_orphan_is_not_executed(backend: Backend) -> None:
    """A node that had the orphan queued behind a long message drops it when the resumed run moves on without it."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as busy, federation(backend, nodes=1) as quick:
        slow, fast = busy.nodes[0].node_id, quick.nodes[0].node_id
        former = start(backend)
        running = push(former, slow, number(1))
        assert gate.begun.acquire(timeout=10)
        orphan = push(former, slow, number(2))
        push(former, fast, number(1))
        kill(former)
        with resumed(backend, former) as driver:
            assert push(driver, slow, number(1)) == running
            for group in ("1", "2"):
                driver.send_and_receive([driver.create_message(number(1), "train", fast, group)])
            assert orphan not in in_ledger(backend, driver)
            gate.go.set()
            assert [number_in(reply) for reply in driver.replies([running])] == [1]
            assert number_in(driver.send_and_receive([driver.create_message(number(4), "train", slow, "3")])[0]) == 4
        assert gate.calls == 2


def test_a_run_that_starts_over_adopts_nothing(backend: Backend) -> None:
    """`start_over` takes back what a former life left open, executed or not: the same push makes new messages."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        [node] = [node.node_id for node in nodes.nodes]
        former = start(backend)
        left = {push(former, node, number(1)), push(former, node, number(2))}
        assert gate.begun.acquire(timeout=10)
        kill(former)
        with resumed(backend, former) as driver:
            driver.start_over()
            assert in_ledger(backend, driver) == set()
            new = push(driver, node, number(1))
            assert new not in left
            gate.go.set()
            [reply] = driver.replies([new], timeout=20)
            assert number_in(reply) == 1
            assert reply.metadata.reply_to_message == new
            driver.start_over()  # nothing is left to take back
            assert in_ledger(backend, driver) == {new}
        assert gate.calls == 2  # the one that had begun, and the new one


def test_a_push_with_checkpoint_moves_the_run_on(backend: Backend) -> None:
    """In one group too: the state is saved, and what was handed over leaves Redis. Without it, neither happens."""
    with federation(backend, nodes=1) as nodes:
        [node] = [node.node_id for node in nodes.nodes]
        former = start(backend)
        handed = push(former, node, number(1))
        assert len(list(former.replies([handed], timeout=20))) == 1
        former.context.state.metrics_records["m"] = MetricsRecord({"round": 1})
        kept = push(former, node, number(2))
        assert in_ledger(backend, former) == {handed, kept}
        message = former.create_message(number(3), "train", node, "1")
        [last] = former.push_messages([message], checkpoint=True)
        assert in_ledger(backend, former) == {kept, last}
        kill(former)
        with resumed(backend, former) as driver:
            assert driver.context.state.metrics_records["m"] == {"round": 1}


def test_a_push_with_checkpoint_adopts_equal_contents_only(backend: Backend) -> None:
    """Its group does not tell rounds apart: another content is another message, and an equal one is not."""
    node = silent(backend)
    former = start(backend)
    first, second = push(former, node, number(1)), push(former, node, number(2))
    kill(former)
    with resumed(backend, former) as driver:
        messages = [driver.create_message(number(value), "train", node, "1") for value in (3, 2)]
        new, adopted = driver.push_messages(messages, checkpoint=True)
        assert adopted == second
        assert new not in (first, second)


def test_a_push_with_checkpoint_that_pushes_nothing_is_one(backend: Backend) -> None:
    """An empty push, and one of which everything is refused, save the state and settle what was handed over."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        [node] = [node.node_id for node in nodes.nodes]
        for value, batch in ((1, []), (2, [driver.create_message(number(1), "train", 12345, "1")])):
            push(driver, node, number(1))
            assert len(list(driver.replies(list(in_ledger(backend, driver)), timeout=20))) == 1
            driver.context.state.metrics_records["m"] = MetricsRecord({"round": value})
            assert driver.push_messages(batch, checkpoint=True) == [""] * len(batch)
            assert in_ledger(backend, driver) == set()
            saved, _ = SavedContext(backend.connect(), driver.run.run_id, 60.0).load()
            assert saved.metrics_records["m"] == {"round": value}


def test_who_looks_for_nodes_learns_that_the_run_is_over(backend: Backend) -> None:
    """get_node_ids raises what any wait does: an app that looks until there are enough must end too."""
    driver = start(backend, lease=0.6)
    stop_run(backend.connect(), driver.run.run_id, patience=0.1)
    with pytest.raises(RunStopped):
        eventually(lambda: driver.get_node_ids() is None)  # as long as it returns
    driver.detach()


def test_a_message_that_was_lost_is_pushed_again(backend: Backend) -> None:
    """An open message that is in no inbox is adopted under its id, and the content of now is what the node gets."""
    with federation(backend, nodes=1) as nodes:
        former = start(backend)
        unread = silent(backend)
        lost = push(former, unread, number(1))
        keys, run = former.connection.keys, former.run.run_id
        backend.admin.unlink(keys.inbox(unread, run))
        kill(former)
        with resumed(backend, former) as driver:
            driver.send_and_receive([driver.create_message(number(0), "train", nodes.nodes[0].node_id, "1")])
            assert push(driver, unread, number(2)) == lost
            assert in_inbox(backend, driver, unread) == [lost]
            assert backend.admin.hget(keys.meta(run), "messages") == b"2", "it was counted twice"


# Replies.


def test_a_reply_that_was_there_is_delivered(backend: Backend) -> None:
    """What a node answered before the crash reaches the resumed app, although the node is dead by then."""
    gate = Gate()
    gate.go.set()
    with federation(backend, gate.app, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        message_id = push(former, node, number(5))
        outbox = former.connection.keys.outbox(node, former.run.run_id)
        eventually(lambda: backend.admin.xlen(outbox))
        kill(former)
        nodes.nodes[0].stop()
        eventually(lambda: not backend.admin.exists(former.connection.keys.node_lease(node)))
        with resumed(backend, former) as driver:
            # The node left the registry, so the push of the same message would be refused: its id is remembered.
            assert [number_in(reply) for reply in driver.replies([message_id])] == [5]
    assert gate.calls == 1


def test_a_reply_that_no_commit_settled_is_delivered_again(backend: Backend) -> None:
    """A reply that the former app had been given is given to the resumed one too, until a commit has settled it."""
    gate = Gate()
    gate.go.set()
    with federation(backend, gate.app, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        first = former.create_message(number(1), "train", node, "1")
        assert [number_in(reply) for reply in former.send_and_receive([first])] == [1]
        kill(former)
        second = Driver(backend.connect(), "", None, resume=former.run.run_id, takeover=True)
        again = second.create_message(number(1), "train", node, "1")
        assert [number_in(reply) for reply in second.send_and_receive([again])] == [1]
        assert gate.calls == 1
        second.checkpoint()
        kill(second)
        with resumed(backend, second) as third:
            anew = third.create_message(number(1), "train", node, "1")
            assert [number_in(reply) for reply in third.send_and_receive([anew])] == [1]
            assert gate.calls == 2, "a settled message is over: pushed again, it is a new one"


def test_ids_in_the_state_can_be_waited_for(backend: Backend) -> None:
    """Ids that the app kept in its state can be given to `replies` and `pull_messages` right after a resume."""
    gate = Gate()
    with federation(backend, gate.app, nodes=2) as nodes:
        former = start(backend)
        ids = [push(former, node.node_id, number(index)) for index, node in enumerate(nodes.nodes)]
        former.context.state.configs_records["waiting"] = ConfigsRecord({"ids": ids})
        former.checkpoint()
        kill(former)
        with resumed(backend, former) as driver:
            waiting: Any = driver.context.state.configs_records["waiting"]["ids"]
            assert driver.pull_messages(waiting) == []
            gate.go.set()
            replies: list[Message] = list(driver.replies(waiting))
            assert sorted(number_in(reply) for reply in replies) == [0, 1]
            assert driver.pull_messages(waiting) == []
    assert gate.calls == 2


def test_an_orphan_gets_no_verdict_until_somebody_waits(backend: Backend) -> None:
    """The message to a node that died meanwhile is Error 5 once it is adopted, and not before."""
    former = start(backend)
    registration = Registration(backend.connect(), lease=0.3)
    registration.register()
    message_id = push(former, registration.node_id, number(1))
    kill(former)
    eventually(lambda: not backend.admin.exists(former.connection.keys.node_lease(registration.node_id)))
    with federation(backend, nodes=1) as nodes, resumed(backend, former) as driver:
        sweep_soon(driver)  # a sweep is due
        driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        sweep_soon(driver)
        driver.pull_messages([])
        assert message_id in in_ledger(backend, driver)
        assert in_inbox(backend, driver, registration.node_id) == [message_id]
        [reply] = driver.replies([message_id])
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE


def test_counters_go_on(backend: Backend) -> None:
    """`brokerfl runs` counts messages and replies over a resume; what was adopted is not counted again."""
    with federation(backend, nodes=2) as nodes:
        ids = [node.node_id for node in nodes.nodes]
        former = start(backend)
        for group in ("1", "2"):
            former.send_and_receive([former.create_message(number(1), "train", node, group) for node in ids])
        kill(former)
        with resumed(backend, former) as driver:
            for group in ("2", "3"):
                driver.send_and_receive([driver.create_message(number(1), "train", node, group) for node in ids])
            [info] = runs_seen(backend.connect())
            assert (info.messages, info.replies, info.nodes) == (6, 4, 2)


# Who may.


def test_a_living_server_app_keeps_its_run(backend: Backend) -> None:
    """Without a takeover the run of a ServerApp that renews its lease is refused, and goes on undisturbed."""
    with federation(backend, nodes=1) as nodes, driving(backend, lease=0.9) as driver:
        with pytest.raises(RunAttached, match="--takeover takes the run from it"):
            Driver(backend.connect(), "", None, resume=driver.run.run_id)
        message = driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")
        assert [number_in(reply) for reply in driver.send_and_receive([message])] == [1]


def test_a_silent_server_app_loses_its_run(backend: Backend) -> None:
    """Without a takeover the run of one that does not renew its lease is taken up when that lapses."""
    former = start(backend, lease=0.6)
    kill(former)
    driver = Driver(backend.connect(), "", None, resume=former.run.run_id)
    with pytest.raises(RunFenced):
        former.end()
    driver.end()


def test_a_run_that_is_not_there_cannot_be_resumed(backend: Backend) -> None:
    """A run that has ended, and one that never was, raise RunNotFound that says which, and leave no key."""
    with driving(backend) as driver:
        run = driver.run.run_id
    for resume, reason in ((run, "has already ended"), (77, "there is no run 77")):
        with pytest.raises(RunNotFound, match=reason):
            Driver(backend.connect(), "", None, resume=resume, takeover=True)
        assert not keys_of(backend.admin, "{run:")


@pytest.mark.parametrize("step", ["its books cannot be read", "what Redis has is not looked up"])
def test_a_run_that_cannot_be_resumed_is_let_go(backend: Backend, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Its lease and its heartbeat end with the attempt, so that the next one need not wait."""
    driver = Driver(backend.connect(), "server:app")
    run_id, keys = driver.run.run_id, driver.connection.keys
    driver.context.state.metrics_records["m"] = MetricsRecord({"n": 1})
    driver.checkpoint()
    driver.detach()

    def fail(*_: object) -> None:
        raise FrameError("on purpose")

    with monkeypatch.context() as broken:
        if step.startswith("its books"):
            backend.admin.hset(keys.ledger(run_id), "m", b"\x09")
        else:
            broken.setattr(session.Session, "take_up", fail)
        with pytest.raises(FrameError):
            Driver(backend.connect(), "", None, resume=run_id)
    assert not backend.admin.exists(keys.run_lease(run_id))
    assert not [thread for thread in threading.enumerate() if thread.name == f"heartbeat of run {run_id}"]
    backend.admin.unlink(keys.ledger(run_id))
    again = Driver(backend.connect(), "", None, resume=run_id)
    assert again.context.state.metrics_records["m"]["n"] == 1
    again.end()


def test_a_former_server_app_does_nothing(backend: Backend) -> None:
    """After a takeover the first can neither push, cancel, save, drop nor end: RunFenced, and Redis stays as it was."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        former = start(backend)
        run, keys = former.run.run_id, former.connection.keys
        message_id = push(former, node, number(1))
        assert gate.begun.acquire(timeout=10)
        with resumed(backend, former) as driver:
            # A reply that fits nothing: whoever reads it deletes it with the next transaction.
            stray = backend.admin.xadd(keys.outbox(node, run), {"i": "0" * 32, "h": b"\x01"})
            all_keys = [key for key in backend.admin.scan_iter() if str(run).encode() in key]
            before = contents_of(backend.admin, all_keys) if backend.is_real else {}
            assert former.push_messages([former.create_message(number(2), "train", node, "2")]) == [""]
            former.context.state.metrics_records["m"] = MetricsRecord({"n": 1})
            for attempt in (
                former.checkpoint,
                lambda: former.cancel_messages([message_id]),
                lambda: list(former.replies([message_id])),
                lambda: transact(former),
                former.end,
            ):
                unaware(former)
                with pytest.raises(RunFenced, match="was taken over by another ServerApp"):
                    attempt()
            assert contents_of(backend.admin, before) == before
            assert backend.admin.xrange(keys.outbox(node, run))[0][0] == stray
            gate.go.set()
            assert [number_in(reply) for reply in driver.replies([message_id])] == [1]
    assert gate.calls == 1


def test_a_takeover_that_redis_forgot_holds(backend: Backend) -> None:
    """Redis was killed and knows only the first ServerApp again: the second restores its run, and the first is out."""
    former = start(backend)
    owner = former.connection.keys.owner(former.run.run_id)
    before, node = backend.admin.get(owner), silent(backend)
    kill(former)
    with resumed(backend, former) as driver:
        after = backend.admin.get(owner)
        backend.admin.set(owner, before, keepttl=True)
        cut(driver)
        message_id = push(driver, node, number(1))
        assert backend.admin.get(owner).rpartition(b":")[0] == after.rpartition(b":")[0]
        assert in_ledger(backend, driver) == {message_id}
        with pytest.raises(RunFenced):
            transact(former)


@pytest.mark.parametrize("when", ["its connection had broken", "Redis is full"])
def test_a_takeover_is_noticed_by_what_writes_next(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The first ServerApp watches the owner on a new connection, too, and looks for it where no MULTI is possible."""
    with federation(backend, nodes=1) as nodes:
        former = start(backend)
        [reply] = former.send_and_receive([former.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        kill(former)
        with resumed(backend, former) as driver:
            if when == "Redis is full":
                fill(former, monkeypatch)
            else:
                cut_fence(former)
            with pytest.raises(RunFenced):
                former.settle(reply)
            assert in_ledger(backend, driver) == {reply.metadata.reply_to_message}


def test_a_takeover_leaves_no_key_without_a_lifetime(backend: Backend) -> None:
    """Not even if the second ServerApp dies right after it: the fixture looks at all keys."""
    former = start(backend)
    kill(former)
    resume_run(backend.connect(), former.run.run_id, takeover=True)


def test_a_former_server_app_detaches_from_nothing(backend: Backend) -> None:
    """Its detaching leaves the second one's lease, so nobody takes the run from that one."""
    former = start(backend)
    with resumed(backend, former) as driver:
        former.detach()
        assert backend.admin.exists(driver.connection.keys.run_lease(driver.run.run_id))
        with pytest.raises(RunAttached):
            Driver(backend.connect(), "", None, resume=driver.run.run_id)


def test_a_takeover_whose_answer_was_lost_is_not_repeated(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection broke in its EXEC, which is no changed key: it raises, and one owner was counted."""
    former, execute, failed = start(backend), Pipeline._execute_transaction, []
    kill(former)

    def lossy(pipe: Pipeline, connection: object, commands: object, raise_on_error: bool) -> object:
        results = execute(pipe, connection, commands, raise_on_error)
        if failed:
            return results
        failed.append(True)
        pipe.watching = True  # as it still is when the answer to EXEC has not come
        raise redis_py.ConnectionError("cut after EXEC")

    monkeypatch.setattr(Pipeline, "_execute_transaction", lossy)
    with pytest.raises(RedisUnreachable):
        resume_run(backend.connect(), former.run.run_id, takeover=True)
    owner = backend.admin.get(former.connection.keys.owner(former.run.run_id))
    assert owner.startswith(b"2:")


def test_a_former_server_app_does_not_end_a_run_that_is_over(backend: Backend) -> None:
    """One that was taken over and wakes after the end raises RunLost, creates no key, and the end stays as it was."""
    former = start(backend)
    run, keys = former.run.run_id, former.connection.keys
    with resumed(backend, former):
        pass
    ended = backend.admin.zscore(keys.runs, str(run))
    former.context.state.metrics_records["m"] = MetricsRecord({"n": 1})
    for attempt in (former.checkpoint, former.end, lambda: former.pull_messages([])):
        unaware(former)
        with pytest.raises(RunLost, match=f"run {run} "):
            attempt()
    assert backend.admin.zscore(keys.runs, str(run)) == ended
    assert has_ended(backend.connect(), run)
    assert not keys_of(backend.admin, run)
    former.detach()


def test_a_detached_run_keeps_what_nodes_answer(backend: Backend) -> None:
    """Replies that come while no ServerApp is attached wait in Redis for the one that resumes."""
    gate = Gate()
    with federation(backend, gate.app, nodes=2) as nodes:
        former = start(backend)
        for node in nodes.nodes:
            push(former, node.node_id, text(a="b"))
        former.detach()
        assert [info.state for info in runs_seen(backend.connect())] == ["detached"]
        gate.go.set()
        keys, run = former.connection.keys, former.run.run_id
        eventually(lambda: all(backend.admin.xlen(keys.outbox(node.node_id, run)) for node in nodes.nodes))
        driver = Driver(backend.connect(), "", None, resume=run)  # nobody holds it: no takeover, and no wait
        replies = driver.send_and_receive(
            [driver.create_message(text(a="b"), "train", node.node_id, "1") for node in nodes.nodes]
        )
        assert [reply.has_content() for reply in replies] == [True, True]
        driver.end()
    assert gate.calls == 2


def test_what_redis_lost_and_nobody_pushes_again_is_error_3(backend: Backend) -> None:
    """The app waits for an id that it remembers; what was sent is not at hand to be sent again."""
    former, node = start(backend), silent(backend)
    message_id = push(former, node, number(1))
    backend.admin.unlink(former.connection.keys.inbox(node, former.run.run_id))
    kill(former)
    with resumed(backend, former) as driver:
        [reply] = driver.replies([message_id], timeout=20)
        assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        assert "did not push it again" in (reply.error.reason or "")


def test_a_push_that_failed_leaves_its_orphans_to_the_next(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is full when a resumed app pushes again: tried once more, the push adopts what is open."""
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.0)
    former, node = start(backend), silent(backend)
    message_id = push(former, node, number(1))
    kill(former)
    with resumed(backend, former) as driver:
        batch = [driver.create_message(number(value), "train", node, "1") for value in (1, 2)]
        with monkeypatch.context() as full:
            fill(driver, full)
            with pytest.raises(RedisOutOfMemory):
                driver.push_messages(batch)
        first, second = driver.push_messages(batch)
        assert first == message_id != second
        assert in_inbox(backend, driver, node) == [first, second]
