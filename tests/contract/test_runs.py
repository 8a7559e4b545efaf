"""Runs: their ids, their life, their lifetimes, and the fence around every write."""

import threading

import pytest

from brokerfl.broker import ending
from brokerfl.broker import nodes as nodes_module
from brokerfl.broker import owner as owner_module
from brokerfl.broker import runs as runs_module
from brokerfl.broker.ending import stop_run
from brokerfl.broker.keys import MOST_RETENTION, RETENTION
from brokerfl.broker.nodes import Registration
from brokerfl.broker.runs import forget_registry
from brokerfl.common import ConfigError, Message, RedisUnreachable, RunFenced, RunLost, RunStopped
from brokerfl.server import Driver
from brokerfl.testing import fake_connection
from tests.apps import Clock, Gate, contents_of, driving, eventually, federation, number, number_in, runs_seen
from tests.conftest import PREFIX, Backend, check_keys, keys_of
from tests.stage import beat, cut, kill, push, renew_lifetimes, silent, start

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


def test_run_ids_are_never_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest random number still give an id from 2 to 2**64 - 1."""
    for drawn, expected in ((0, 2), (2**64 - 3, 2**64 - 1)):
        monkeypatch.setattr(nodes_module.secrets, "randbelow", lambda limit, drawn=drawn: drawn)
        assert nodes_module.new_id() == expected


def test_the_list_counts(backend: Backend) -> None:
    """An operator sees app, state, nodes and counters of a running run, and that it completed."""
    with federation(backend, nodes=2) as nodes:
        with driving(backend) as driver:
            for turn in range(2):
                driver.send_and_receive(
                    [driver.create_message(number(1), "train", node.node_id, str(turn)) for node in nodes.nodes]
                )
            [info] = runs_seen(backend.connect())
            assert (info.run_id, info.run, info.state) == (driver.run.run_id, driver.run, "running")
            assert (info.nodes, info.messages, info.replies) == (2, 4, 2)
            assert "process" in info.holder
        [info] = runs_seen(backend.connect())
        assert (info.run_id, info.state) == (driver.run.run_id, "completed")
        assert info.ended_at >= driver.run.created_at


def test_every_key_has_a_lifetime_in_the_middle_of_a_run(backend: Backend) -> None:
    """While messages are open, answered and settled, no key of run or node is without a ttl."""
    gate = Gate()
    with federation(backend, gate.app, nodes=2) as nodes, driving(backend) as driver:
        ids = driver.push_messages(
            [driver.create_message(number(1), "train", node.node_id, "1") for node in nodes.nodes]
        )
        check_keys(backend.admin)
        gate.go.set()
        list(driver.replies(ids))
        check_keys(backend.admin)
        driver.checkpoint()  # the ledger is empty, so its hash is gone
        driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "2")])
        check_keys(backend.admin)


def test_an_attached_run_never_loses_its_keys(backend: Backend) -> None:
    """A ServerApp that waits for longer than the retention time still finds all keys: it renews them."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend, retention=1.0) as driver:
        ids = driver.push_messages([driver.create_message(number(3), "train", nodes.nodes[0].node_id, "1")])
        before = keys_of(backend.admin, driver.run.run_id)
        assert list(driver.replies(ids, timeout=2.5)) == []
        assert sorted(keys_of(backend.admin, driver.run.run_id)) == sorted(before)
        gate.go.set()
        assert [number_in(reply) for reply in driver.replies(ids)] == [3]


def test_a_lease_that_lapsed_in_an_outage_is_taken_again(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """The next beat sets it and says so: without a lease, anybody might resume the run."""
    with driving(backend) as driver:
        lease = driver.connection.keys.run_lease(driver.run.run_id)
        beat(driver)
        assert "lapsed" not in caplog.text
        backend.admin.unlink(lease)
        beat(driver)
        assert backend.admin.pttl(lease) > 0
        beat(driver)
        assert caplog.text.count("The lease of this run lapsed: it was not renewed for more than 15 s") == 1


def test_a_server_app_that_was_cut_off_for_too_long_writes_nothing(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys may have expired, and even the mark of its end: it does not take that for a Redis that forgot."""
    clock = Clock()
    monkeypatch.setattr(owner_module, "time", clock)
    driver, node = start(backend), silent(backend)
    kill(driver)
    backend.admin.unlink(*keys_of(backend.admin, driver.run.run_id), driver.connection.keys.runs)
    clock.now += RETENTION + 1
    cut(driver)
    assert driver.push_messages([driver.create_message(number(1), "train", node, "1")]) == [""]
    with pytest.raises(RunLost, match="it expired"):
        driver.pull_messages([])
    assert keys_of(backend.admin, driver.run.run_id) == []
    driver.detach()


def test_a_run_that_the_registry_forgot_is_entered_again(backend: Backend) -> None:
    """Redis lost the write that entered it: whoever lists the runs sees it again."""
    with driving(backend) as driver:
        backend.admin.zrem(driver.connection.keys.runs, str(driver.run.run_id))
        cut(driver)
        push(driver, silent(backend), number(1))
        assert [info.run_id for info in runs_seen(backend.by_hand())] == [driver.run.run_id]


def test_a_run_does_not_shorten_what_a_node_keeps_of_another(backend: Backend) -> None:
    """The hash of a node's runs is shared: the longest retention counts."""
    with driving(backend, retention=3600.0) as long, driving(backend, retention=60.0) as short:
        node = silent(backend)
        for driver in (short, long, short):
            push(driver, node, number(1))
            renew_lifetimes(driver)
        assert backend.admin.pttl(long.connection.keys.node_runs(node)) > 60_000


def test_a_run_does_not_go_on_in_another_redis(backend: Backend) -> None:
    """The data were lost and somebody else was there first: it is not written into what is another data set."""
    driver, node = start(backend), silent(backend)
    kill(driver)
    backend.admin.flushall()
    Registration(backend.connect(), "somebody else").register()
    cut(driver)
    assert driver.push_messages([driver.create_message(number(1), "train", node, "1")]) == [""]
    with pytest.raises(RunLost, match="Redis lost its data"):
        driver.pull_messages([])
    assert keys_of(backend.admin, driver.run.run_id) == []
    driver.detach()


def test_everything_of_a_dead_run_expires(backend: Backend) -> None:
    """When everything has died, the keys of the run expire by themselves after the retention time."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app", retention=1.0, lease=0.5)
        driver.push_messages([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        kill(driver)  # as after a kill -9
        eventually(lambda: not keys_of(backend.admin, driver.run.run_id))
        gate.go.set()
    assert runs_seen(backend.connect()) == []


def test_detach_keeps_the_messages(backend: Backend) -> None:
    """A detached run shows as such, keeps its keys, and its Driver sends nothing any more."""
    with federation(backend, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app")
        message = driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")
        driver.push_messages([message])
        before = {key for key in keys_of(backend.admin, driver.run.run_id) if not key.endswith(":lease")}
        driver.detach()
        assert set(keys_of(backend.admin, driver.run.run_id)) == before
        assert [info.state for info in runs_seen(backend.connect())] == ["detached"]
        assert driver.push_messages([message]) == [""]


def test_a_former_owner_writes_nothing(backend: Backend) -> None:
    """Once another token owns the run, the old ServerApp pushes, settles and ends nothing; waits raise RunFenced."""
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        driver = Driver(backend.connect(), "server:app")
        keys, run = driver.connection.keys, driver.run.run_id
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        backend.admin.set(keys.owner(run), "2:somebody-else:0", keepttl=True)
        before = contents_of(backend.admin, keys_of(backend.admin, driver.run.run_id)) if backend.is_real else {}
        assert driver.push_messages([driver.create_message(number(2), "train", node, "2")]) == [""]
        with pytest.raises(RunFenced):
            driver.end()
        with pytest.raises(RunFenced):
            driver.pull_messages([])
        assert backend.admin.hlen(keys.ledger(run)) == 1
        assert backend.admin.xlen(keys.outbox(node, run)) == 1
        assert backend.admin.xlen(keys.inbox(node, run)) == 0
        assert contents_of(backend.admin, before) == before
        driver.detach()


def test_a_stopped_run_stays_over_whatever_others_keep(backend: Backend) -> None:
    """A ServerApp that was cut off when its run was stopped writes nothing, although shorter runs began since then."""
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        driver = Driver(backend.connect(), "server:app", retention=MOST_RETENTION)
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        kill(driver)
        backend.admin.unlink(driver.connection.keys.run_lease(driver.run.run_id))
        stop_run(backend.connect(), driver.run.run_id)
        later = backend.admin.time()[0] - 7 * 24 * 3600
        backend.admin.zadd(f"{PREFIX}:runs", {str(driver.run.run_id): -later * 1000 - 0.5})
        with driving(backend, retention=1.0):
            assert driver.run.run_id in {info.run_id for info in runs_seen(backend.connect()) if info.is_over}
        cut(driver)
        assert driver.push_messages([driver.create_message(number(1), "train", node, "2")]) == [""]
        with pytest.raises(RunStopped):
            driver.pull_messages([])
        assert keys_of(backend.admin, driver.run.run_id) == []
        driver.detach()


def test_marks_are_pruned_after_the_longest_retention(backend: Backend) -> None:
    """What `P:runs` knows of an ended run goes with the next run, when no ServerApp of it can come back."""
    now = backend.admin.time()[0]
    ages = {"11": MOST_RETENTION + 60, "12": MOST_RETENTION - 60, "13": 60}
    for ended, age in ages.items():
        backend.admin.zadd(f"{PREFIX}:runs", {ended: -(now - age) * 1000})
    assert [info.run_id for info in runs_seen(backend.connect())] == [13, 12]
    with driving(backend) as driver:
        assert {int(each) for each in backend.admin.zrange(f"{PREFIX}:runs", 0, -1)} == {12, 13, driver.run.run_id}


def test_a_run_that_ends_while_the_index_is_tidied_keeps_its_mark(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys of a run are gone when they are looked at: it may not have expired, but have ended just then."""
    mark, look = -backend.admin.time()[0] * 1000 - 0.5, runs_module._expired

    def ends(*arguments: object) -> object:
        backend.admin.zadd(f"{PREFIX}:runs", {"77": mark})
        return look(*arguments)  # type: ignore[arg-type]

    backend.admin.zadd(f"{PREFIX}:runs", {"77": 5})
    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "_expired", ends)
        with driving(backend):
            assert backend.admin.zscore(f"{PREFIX}:runs", "77") == mark
    backend.admin.zadd(f"{PREFIX}:runs", {"77": 5})
    with driving(backend):
        assert backend.admin.zscore(f"{PREFIX}:runs", "77") is None


@pytest.mark.parametrize("retention", [MOST_RETENTION + 1, float("inf"), float("nan")])
def test_a_retention_that_is_too_long_is_refused(retention: float) -> None:
    """A retention beyond what `P:runs` remembers is a ConfigError that names the limit, at a start and a resume."""
    connection = fake_connection()
    with pytest.raises(ConfigError, match=r"the limit is 2592000 s \(30 days\)"):
        Driver(connection, "server:app", retention=retention)
    assert runs_seen(connection) == []
    driver = Driver(connection, "server:app", retention=MOST_RETENTION)
    driver.detach()
    with pytest.raises(ConfigError, match="too long"):
        Driver(connection, resume=driver.run.run_id, retention=retention)
    Driver(connection, resume=driver.run.run_id).end()


def test_a_run_whose_keys_are_gone_is_written_again(backend: Backend) -> None:
    """A run that ended leaves a tombstone. So whoever finds none of its keys knows that Redis forgot it."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        driver = Driver(backend.connect(), "server:app")
        replies: list[Message] = []

        def wait() -> None:
            message = driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")
            replies.extend(driver.send_and_receive([message]))

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert gate.begun.acquire(timeout=10)
        backend.admin.unlink(*keys_of(backend.admin, driver.run.run_id))
        gate.go.set()
        waiter.join(20)
        assert [number_in(reply) for reply in replies] == [1]
        driver.end()
        assert keys_of(backend.admin, driver.run.run_id) == []


def test_a_resumed_run_has_its_whole_lifetime_again(backend: Backend) -> None:
    """What a run's nodes hold of it lives as long as the run itself, from the resume and from the detach on."""
    registration = Registration(backend.connect(), "later")
    registration.register()
    driver = Driver(backend.connect(), "server:app", retention=1000.0)
    keys, run, node = driver.connection.keys, driver.run.run_id, registration.node_id
    driver.push_messages([driver.create_message(number(1), "train", node, "1")])
    inbox = keys.inbox(node, run)
    backend.admin.pexpire(inbox, 5000)
    driver.detach()
    assert backend.admin.pttl(inbox) > 900_000
    backend.admin.pexpire(inbox, 5000)
    with_run = Driver(backend.connect(), "server:app", resume=run, retention=1000.0)
    assert backend.admin.pttl(inbox) > 900_000
    eventually(lambda: backend.admin.pttl(keys.node_runs(node)) > 900_000)
    with_run.end()


def test_a_node_that_only_the_ledger_names_keeps_nothing(backend: Backend) -> None:
    """Redis lost the set of a run's nodes: who stops the run finds them in its open messages."""
    driver, node = start(backend, lease=0.6), silent(backend)
    push(driver, node, number(1))
    kill(driver)
    backend.admin.unlink(driver.connection.keys.run_nodes(driver.run.run_id))
    stop_run(backend.connect(), driver.run.run_id)
    assert keys_of(backend.admin, driver.run.run_id) == []
    assert backend.admin.hkeys(driver.connection.keys.node_runs(node)) == []


def test_a_stop_that_dies_leaves_no_key_without_a_lifetime(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has taken the run and deleted nothing yet."""

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    driver = start(backend)
    monkeypatch.setattr(ending, "_await_release", dies)
    with pytest.raises(KeyboardInterrupt):
        stop_run(backend.connect(), driver.run.run_id)
    assert backend.admin.pttl(driver.connection.keys.owner(driver.run.run_id)) > 0
    driver.detach()


def test_a_beat_that_learns_of_a_stop_gives_up_the_lease(backend: Backend) -> None:
    """Whoever stopped the run waits for that before it deletes."""
    driver = start(backend)
    keys, run = driver.connection.keys, driver.run.run_id
    kill(driver)
    backend.admin.set(keys.owner(run), "2:stop/somebody:0", keepttl=True)
    with pytest.raises(RunStopped):
        beat(driver)
    assert not backend.admin.exists(keys.run_lease(run))
    driver.detach()


def test_a_registry_that_is_forgotten_leaves_nothing(backend: Backend) -> None:
    """Not even what says that its runs have ended, as after the demo."""
    with driving(backend) as driver, driving(backend):
        push(driver, silent(backend), number(1))
    backend.admin.unlink(*(key for key in backend.admin.scan_iter() if b"{" in key and b"run:" not in key))
    forget_registry(backend.connect())
    assert [*backend.admin.scan_iter()] == []


@pytest.mark.without_rights("it needs the server of a connection before a user logs in")
def test_a_run_that_is_over_keeps_no_socket(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many run on one connection, one after the other, ended or detached.

    On a Cluster all are on one primary: the first run on each connects to it.
    """
    if not backend.is_real:
        pytest.skip("fakeredis has no sockets")
    connection, open_sockets = backend.by_hand(), []
    home = connection.at(connection.keys.identity)

    def new_id() -> int:
        return next(run for run in iter(nodes_module.new_id, 0) if connection.at(connection.keys.owner(run)) is home)

    monkeypatch.setattr(owner_module, "new_run_id", lambda keys: new_id())
    for turn in range(12):
        driver = Driver(connection, "server:app")
        driver.checkpoint()
        if turn % 2:
            driver.end()
        else:
            driver.detach()
        open_sockets.append(len(backend.admin.client_list()))
    assert max(open_sockets[4:]) <= max(open_sockets[:4])


def test_a_heartbeat_always_gets_a_socket(backend: Backend) -> None:
    """However many workers wait with one each."""
    connection = backend.connect()
    for _ in range(150):
        connection.sockets.take()
    assert connection.read_time() > 0


def test_a_new_run_tidies_the_index(backend: Backend) -> None:
    """Runs that expired without an end leave it, and those that ended are marked; those that live, and new ones, stay.

    A run is entered before its keys are there, so a young one without keys is not touched.
    """
    with driving(backend) as alive:
        keys, now = alive.connection.keys, backend.admin.time()[0] * 1000
        ended_at = now - 5000
        backend.admin.set(keys.owner(13), f"1:ended:{ended_at}", px=60_000)
        long_ago = {"11": now - 7200_000, "13": now - 7200_000, str(alive.run.run_id): now - 7200_000, "abc": 5}
        backend.admin.zadd(keys.runs, {**long_ago, "12": now - 60_000})
        with driving(backend) as new:
            scores = dict(backend.admin.zrange(keys.runs, 0, -1, withscores=True))
            assert {int(member) for member in scores} == {12, 13, alive.run.run_id, new.run.run_id}
            assert scores[b"13"] == -ended_at


def test_a_run_begins_although_the_index_cannot_be_tidied(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks meanwhile is made again."""

    def fail(*_: object) -> None:
        raise RedisUnreachable("it broke")

    monkeypatch.setattr(owner_module, "tidy", fail)
    backend.admin.zadd(f"{PREFIX}:runs", {"77": 5})
    with driving(backend) as driver:
        assert driver.get_node_ids() == []
