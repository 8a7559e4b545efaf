"""What decides is in the run's slot; what follows may be lost, and comes again. A run that ends leaves a tombstone."""

from typing import Any

import pytest

from brokerfl.broker import echoes, fence
from brokerfl.broker.connection import Connection
from brokerfl.broker.ending import stop_run
from brokerfl.broker.ownership import ownership_in
from brokerfl.common import RedisUnreachable, RunNotFound
from brokerfl.server import Driver
from tests.apps import Counter, driving, number, runs_seen
from tests.conftest import Backend, keys_of
from tests.stage import (
    LAYER,
    beat,
    before_deletion,
    close_run,
    compare,
    cut,
    in_inbox,
    in_ledger,
    push,
    send,
    serving,
    silent,
    start,
)

#: TLS changes nothing here.
WITHOUT = ("redis-tls",)


def status_of(backend: Backend, driver: Driver) -> str:
    """The status that an operator sees."""
    [info] = [info for info in runs_seen(backend.connect()) if info.run_id == driver.run.run_id]
    return info.state


def owner_of(backend: Backend, driver: Driver) -> bytes:
    """What the owner key holds."""
    value: Any = backend.admin.get(driver.connection.keys.owner(driver.run.run_id))
    assert isinstance(value, bytes)
    return value


# The end.


def test_the_end_leaves_a_tombstone(backend: Backend) -> None:
    """A run that completed is told apart from one that Redis forgot, for as long as a ServerApp may be cut off."""
    driver = start(backend)
    driver.end()
    assert ownership_in(owner_of(backend, driver)).token == "ended"
    assert backend.admin.pttl(driver.connection.keys.owner(driver.run.run_id)) > 29 * 24 * 3600 * 1000
    assert keys_of(backend.admin, driver.run.run_id) == []


def test_who_resumes_a_run_that_is_ending_deletes_the_rest(backend: Backend) -> None:
    """Its ServerApp died in between: the run has ended, nothing is executed, and nothing of it remains."""
    driver, node = start(backend), silent(backend)
    push(driver, node, number(1))
    close_run(driver)
    assert status_of(backend, driver) == "stopping"
    with pytest.raises(RunNotFound, match="has already ended"):
        Driver(backend.connect(), resume=driver.run.run_id, takeover=True)
    assert keys_of(backend.admin, driver.run.run_id) == []
    assert status_of(backend, driver) == "completed"


def test_who_stops_a_run_that_is_ending_deletes_the_rest(backend: Backend) -> None:
    """It had completed before."""
    driver, node = start(backend), silent(backend)
    push(driver, node, number(1))
    close_run(driver)
    backend.admin.unlink(driver.connection.keys.run_lease(driver.run.run_id))
    stop_run(backend.connect(), driver.run.run_id)
    assert keys_of(backend.admin, driver.run.run_id) == []
    assert status_of(backend, driver) == "completed"


def test_a_run_that_others_delete_has_ended_all_the_same(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody takes it over, or stops it, between the two transactions of its end: the app has its result."""
    for takes_over in (True, False):
        driver = start(backend)
        run_id = driver.run.run_id

        def interfere(run_id: int = run_id, takes_over: bool = takes_over) -> None:
            if takes_over:
                with pytest.raises(RunNotFound):
                    Driver(backend.connect(), resume=run_id, takeover=True)
            else:
                backend.admin.unlink(backend.connect().keys.run_lease(run_id))
                stop_run(backend.connect(), run_id)

        before_deletion(driver, monkeypatch, interfere)
        driver.end()
        assert keys_of(backend.admin, run_id) == []
        assert status_of(backend, driver) == "completed"


def test_the_index_is_mended(backend: Backend) -> None:
    """It decides nothing: a run that has ended is shown as such although the index forgot that, once another begins."""
    driver = start(backend)
    driver.end()
    index = driver.connection.keys.runs
    backend.admin.zadd(index, {str(driver.run.run_id): (driver.run.created_at - 7200) * 1000})
    start(backend).end()
    assert status_of(backend, driver) == "completed"
    assert (backend.admin.zscore(index, str(driver.run.run_id)) or 0) < 0


# What Redis forgets.


def test_a_redis_that_forgot_behind_a_proxy_is_found_out(backend: Backend) -> None:
    """No connection broke: a sequence that is lower than known shows it, with the next beat of the heart."""
    driver, node = start(backend), silent(backend)
    keys, run = driver.connection.keys, driver.run.run_id
    first = push(driver, node, number(1))
    before = owner_of(backend, driver)
    second = push(driver, node, number(2))
    [_, (entry, _)] = backend.admin.xrange(keys.inbox(node, run))
    backend.admin.set(keys.owner(run), before, keepttl=True)
    backend.admin.hdel(keys.ledger(run), second)
    backend.admin.xdel(keys.inbox(node, run), entry)
    beat(driver)
    assert in_ledger(backend, driver) == {first, second}
    assert in_inbox(backend, driver, node) == [first, second]
    driver.end()


def test_a_node_whose_own_keys_were_forgotten_is_contacted_again(backend: Backend) -> None:
    """Its messages are still in the inbox, so nothing is sent again; but it has to hear of the run."""
    driver, node = start(backend), silent(backend)
    keys, run = driver.connection.keys, driver.run.run_id
    push(driver, node, number(1))
    backend.admin.unlink(keys.node_runs(node), keys.data(node, run))
    cut(driver)
    compare(driver)
    assert backend.admin.hexists(keys.node_runs(node), str(run))
    assert backend.admin.exists(keys.data(node, run))
    assert len(in_inbox(backend, driver, node)) == 1
    driver.end()


def test_an_echo_that_is_lost_is_repeated(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is accepted; that its node was not told is found out with the next look."""
    driver, node = start(backend), silent(backend)
    keys, run = driver.connection.keys, driver.run.run_id

    def lost(*_: Any) -> Any:
        raise RedisUnreachable("lost")

    with monkeypatch.context() as patch:
        patch.setattr(echoes, "commands_of", lost)
        message_id = push(driver, node, number(1))
    assert in_inbox(backend, driver, node) == [message_id]
    assert not backend.admin.hexists(keys.node_runs(node), str(run))
    driver.pull_messages([])
    assert backend.admin.hexists(keys.node_runs(node), str(run))
    driver.end()


def test_what_a_server_forgot_of_the_end_is_deleted_again(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of a node failed over, and the run is already deleted when that is noticed."""
    driver, node = start(backend), silent(backend)
    push(driver, node, number(1))
    data = driver.connection.keys.data(node, driver.run.run_id)

    def forget() -> None:
        backend.admin.xadd(data, {"d": "1"})
        driver.connection.losses += 1

    before_deletion(driver, monkeypatch, forget)
    driver.end()
    assert keys_of(backend.admin, driver.run.run_id) == []


def test_an_end_that_was_forgotten_comes_again(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the run failed over behind a proxy right after that: a look at the owner shows it."""
    driver, send, before = start(backend), fence.send_echoes, list[bytes]()
    keys, run = driver.connection.keys, driver.run.run_id

    def forget(*arguments: Any) -> None:
        if before:
            backend.admin.set(keys.owner(run), before.pop())
            backend.admin.hset(keys.meta(run), "status", "ending")
        send(*arguments)

    hooks = iter([lambda: before.append(owner_of(backend, driver))])
    before_deletion(driver, monkeypatch, lambda: next(hooks, lambda: None)())
    monkeypatch.setattr(fence, "send_echoes", forget)
    driver.end()
    assert ownership_in(owner_of(backend, driver)).token == "ended"
    assert keys_of(backend.admin, run) == []


def test_what_others_have_taken_over_is_not_deleted_again(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds at its end that its run is fenced, and that a server forgot, leaves everything alone."""
    driver, node = start(backend), silent(backend)
    push(driver, node, number(1))
    keys, run = driver.connection.keys, driver.run.run_id

    def take_over() -> None:
        backend.admin.set(keys.owner(run), "7:somebody:0")
        backend.admin.xadd(keys.data(node, run), {"d": "1"})
        driver.connection.losses += 1

    before_deletion(driver, monkeypatch, take_over)
    driver.end()
    assert backend.admin.exists(keys.data(node, run))
    backend.admin.unlink(*keys_of(backend.admin, run), keys.owner(run))


def test_an_echo_takes_effect_as_a_whole(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that fails over may forget it, but not a half of it, of which no node would take notice."""
    scatter, sent = Connection.scatter, []

    def watched(connection: Connection, asked: Any) -> Any:
        sent.extend(commands for _, commands in asked)
        return scatter(connection, asked)

    monkeypatch.setattr(Connection, "scatter", watched)
    driver, node = start(backend), silent(backend)
    push(driver, node, number(1))
    driver.end()
    several = [commands for commands in sent if len(commands) > 1]
    assert len(several) >= 2  # the contact, and the end
    assert all((commands[0], commands[-1]) == (("MULTI",), ("EXEC",)) for commands in several)


@pytest.mark.usefixtures("small_chunks")
def test_a_reply_whose_payload_found_no_stream_is_asked_for_again(backend: Backend) -> None:
    """Redis forgot the node's data stream, but not its outbox: the node executes nothing again."""
    counter = Counter()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        send(driver, node)
        backend.admin.unlink(driver.connection.keys.data(node.node_id, driver.run.run_id))
        reply = send(driver, node, LAYER)
        assert [len(array.data) for array in reply.content.parameters_records["p"].values()] == [LAYER]
        assert counter.calls == 2
