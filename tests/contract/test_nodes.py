"""Nodes: who may hold an id, what the registry tells, and what a leaving node takes with it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis.client import Pipeline

from brokerfl.broker.gather import Gather
from brokerfl.broker.nodes import Registration, list_nodes, node_id_of
from brokerfl.broker.presence import Absence, absent_nodes, count_online, online_nodes, registered
from brokerfl.broker.process import is_dead, new_token
from brokerfl.common import ConfigError, NodeNameTaken
from brokerfl.server import online
from tests.apps import Bench, Clock, driving, eventually, federation, number
from tests.conftest import PREFIX, Backend
from tests.stage import by_hand, claim_as, push, thaw


def test_a_name_keeps_its_id(backend: Backend) -> None:
    """A named node has the same id after a restart; unnamed nodes have random ones; other prefixes have others."""
    first = Registration(backend.connect(), "berlin")
    assert first.node_id == Registration(backend.connect(), "berlin").node_id == node_id_of(PREFIX, "berlin")
    assert first.node_id != node_id_of("other", "berlin")
    unnamed = {Registration(backend.connect()).node_id for _ in range(10)}
    assert len(unnamed) == 10
    assert all(1 < node < 2**64 for node in unnamed)


def test_the_registry_tells_name_labels_and_whether_online(backend: Backend) -> None:
    """list_nodes shows what a node said of itself, and whether it holds its lease."""
    named = Registration(backend.connect(), "berlin", {"site": "charité"})
    unnamed = Registration(backend.connect())
    named.register()
    unnamed.register()
    found = {info.node_id: info for info in list_nodes(backend.connect())}
    assert found[named.node_id].name == "berlin"
    assert found[named.node_id].labels == {"site": "charité"}
    assert found[named.node_id].online
    assert found[named.node_id].since > 1.7e9
    assert found[unnamed.node_id].name == ""
    assert online_nodes(backend.connect()) == sorted([named.node_id, unnamed.node_id])
    named.leave()
    unnamed.leave()
    [left] = list_nodes(backend.connect())
    assert (left.node_id, left.online) == (named.node_id, False)
    assert registered(backend.connect(), [named.node_id, unnamed.node_id, 5]) == {named.node_id}


def test_a_living_holder_keeps_its_name(backend: Backend) -> None:
    """A second process with the same name is refused once the first renews; the first goes on."""
    first = Registration(backend.connect(), "berlin", lease=5.0)
    first.register()
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.3):
            assert first.renew()

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(NodeNameTaken, match="'berlin' is in use by process"):
            Registration(backend.connect(), "berlin").register()
    finally:
        stop.set()
        renewing.join()
    assert first.renew()


def test_a_lapsed_lease_is_taken_and_its_holder_notices(backend: Backend) -> None:
    """A holder that does not renew loses its id when the lease lapses; when it wakes, renew tells it so."""
    first = Registration(backend.connect(), "berlin", lease=0.4)
    first.register()
    second = Registration(backend.connect(), "berlin")
    second.register()
    assert not first.renew()
    first.leave()
    assert online_nodes(backend.connect()) == [second.node_id], "it is not its own lease that it gives up"
    assert second.renew()
    assert online_nodes(backend.connect()) == [second.node_id]


def test_a_node_that_stood_still_says_so(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Its lease lapsed, and nobody else has its id: it goes on, and its log tells why ServerApps missed it."""
    node = Registration(backend.connect(), "berlin")
    node.register()
    assert node.renew()
    assert caplog.text == ""
    backend.admin.unlink(node_lease := backend.connect().keys.node_lease(node.node_id))
    assert node.renew()
    assert caplog.text.count("The lease of this node lapsed: it was not renewed for more than 15 s") == 1
    assert backend.admin.pttl(node_lease) > 0
    assert node.renew()
    assert caplog.text.count("lapsed") == 1


def test_one_thread_says_that_a_node_stood_still(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeat and loop find at the same time that the lease has lapsed."""
    node, barrier, execute = Registration(backend.connect(), "berlin"), threading.Barrier(2), Gather.execute
    node.register()
    backend.admin.unlink(backend.connect().keys.node_lease(node.node_id))

    def at_once(gather: Gather, **options: Any) -> list[Any]:
        found = execute(gather, **options)
        barrier.wait(20)
        return found

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(Gather, "execute", at_once)
        assert [each.result() for each in [pool.submit(node.renew), pool.submit(node.renew)]] == [True, True]
    assert caplog.text.count("The lease of this node lapsed") == 1


def test_a_dead_process_of_this_host_is_replaced_at_once(backend: Backend) -> None:
    """A lease whose holder ran on this host and is gone is taken over without waiting for it to lapse."""
    host, pid, started, *_ = new_token().split("/")
    first = Registration(backend.connect(), "berlin", lease=3600.0)
    for dead in (f"{host}/999999999/1/x", f"{host}/{pid}/{int(started) + 1 if started.isdigit() else 'x'}/x"):
        assert is_dead(dead)
        claim_as(first, dead)
        first.register()
        again = Registration(backend.connect(), "berlin", lease=3600.0)
        again.register()  # an hour, if it waited
        assert again.renew()
        again.leave()
    assert not is_dead(new_token())
    assert not is_dead(f"elsewhere/{pid}/{started}/x")


@pytest.mark.without_rights("only an operator makes a new data set")
def test_a_node_that_lost_everything_registers_again(backend: Backend) -> None:
    """When lease, info and doorbell are gone, as after an outage, the next renewal puts them back."""
    registration = Registration(backend.by_hand())
    registration.register()
    backend.admin.flushall()
    assert registration.renew()
    assert online_nodes(backend.by_hand()) == [registration.node_id]
    assert backend.admin.exists(backend.by_hand().keys.ctl(registration.node_id))


def test_a_dead_unnamed_node_leaves_the_registry(backend: Backend) -> None:
    """An unnamed node that dies is gone from the list once its lease lapsed, and nothing of it stays."""
    registration = Registration(backend.connect(), lease=0.3)
    registration.register()
    eventually(lambda: not list_nodes(backend.connect()))
    assert {key.decode() for key in backend.admin.scan_iter()} <= {f"{PREFIX}:id", f"{PREFIX}:nodes"}
    assert not backend.admin.exists(f"{PREFIX}:nodes")


def test_only_a_named_node_may_come_back(backend: Backend) -> None:
    """The id of an unnamed one is never used again, even while what it said of itself is still there."""
    named, unnamed = Registration(backend.connect(), "berlin"), Registration(backend.connect())
    connection = backend.connect()
    for registration in (named, unnamed):
        registration.register()
        backend.admin.unlink(connection.keys.node_lease(registration.node_id))
    absences = absent_nodes(connection, [named.node_id, unnamed.node_id])
    assert absences == [Absence(named.node_id, comes_back=True), Absence(unnamed.node_id, comes_back=False)]


def enter(backend: Backend, nodes: range, offline: int = 0) -> None:
    """What so many named nodes leave in Redis; some of them are offline."""
    keys = backend.connect().keys
    with backend.admin.pipeline(transaction=False) as pipe:
        pipe.sadd(keys.nodes, *map(str, nodes))
        for node in nodes:
            if node >= nodes.start + offline:
                pipe.set(keys.node_lease(node), "x", px=60_000)
            pipe.hset(keys.node_info(node), "name", f"node {node}")
            pipe.pexpire(keys.node_info(node), 60_000)
        pipe.execute()


@pytest.mark.parametrize("kind", ["count", "ids", "absences"])
def test_who_is_online_costs_few_commands(
    backend: Backend, issued: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A waiting ServerApp asks several times a second, so it does not ask each node, but on a Cluster each slot.

    Those are asked together: what there is to wait for depends on the servers.
    """
    nodes = range(10, 1010), range(10, 4010)
    keys = backend.connect().keys
    slots = len(backend.connect().by_slot(map(keys.node_lease, nodes[0])))
    costs, trips, execute = [], [0], Pipeline.execute

    def travel(pipe: Pipeline, *arguments: Any, **options: Any) -> Any:
        trips[-1] += 1
        return execute(pipe, *arguments, **options)

    monkeypatch.setattr(Pipeline, "execute", travel)
    for each in nodes:
        enter(backend, each, offline=3)
        connection = backend.connect()
        issued.clear()
        trips.append(0)
        match kind:
            case "count":
                assert count_online(connection) == len(each) - 3
            case "ids":
                assert online_nodes(connection) == list(each)[3:]
            case _:
                assert [absence.node_id for absence in absent_nodes(connection, each)] == [10, 11, 12]
        costs.append(len(issued))
        servers, pages = 3 if backend.is_cluster else 1, max(1, issued.count("SSCAN"))
        assert trips[-1] <= 3 * servers * pages + backend.is_found, "three looks, and where the servers are"
        assert set(issued) <= {"SSCAN", "SMEMBERS", "EXISTS", "TIME", "HSTRLEN"}, "nothing that a node wrote is read"
    assert costs[0] <= 170 + slots
    assert costs[1] <= 4.25 * costs[0] + 8, "four times as many, and a page or two more of SSCAN"


def test_waiting_for_nodes_asks_ever_less_often(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses grow to a second, and nodes that come are noticed."""
    clock = Clock()
    monkeypatch.setattr(online, "time", clock)
    with driving(backend) as driver:
        with pytest.raises(TimeoutError, match="only 0 of 2 nodes are online after 60 s"):
            driver.wait_for_nodes(2, timeout=60)
        assert len(clock.slept) <= 70
        assert clock.slept[:-1] == sorted(clock.slept[:-1])
        enter(backend, range(10, 12))
        assert driver.wait_for_nodes(2, timeout=60) == [10, 11]
        assert driver.wait_for_nodes(0) == [10, 11]


def test_what_a_node_says_of_itself_is_bounded(backend: Backend, issued: list[str]) -> None:
    """A field of any size is not read; the others of that node are shown."""
    registration = Registration(backend.connect(), "berlin", {"gpu": "1"})
    registration.register()
    info = backend.connect().keys.node_info(registration.node_id)
    backend.admin.hset(info, mapping={"labels": json.dumps({"a": "x" * 1_000_000}), "more": "x" * 1_000_000})
    issued.clear()
    [found] = list_nodes(backend.connect())
    assert (found.name, found.labels, found.online) == ("berlin", {}, True)
    assert "HGETALL" not in issued
    with federation(backend, nodes=1) as nodes, driving(backend, offline_grace=0.0) as driver:
        issued.clear()
        assert driver.get_node_ids() == sorted([registration.node_id, nodes.nodes[0].node_id])
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert reply.has_content()


def test_labels_that_are_too_long_are_refused(backend: Backend) -> None:
    """Nobody would see them."""
    with pytest.raises(ConfigError, match="labels would take 9009 bytes"):
        Registration(backend.connect(), "berlin", {"a": "x" * 9000})
    with pytest.raises(ConfigError, match="name would take 9000 bytes"):
        Registration(backend.connect(), "x" * 9000)


def test_info_is_plain_text(backend: Backend) -> None:
    """The info hash can be read with redis-cli: text fields, labels as JSON."""
    registration = Registration(backend.connect(), "berlin", {"gpu": "1"})
    registration.register()
    info = backend.admin.hgetall(backend.connect().keys.node_info(registration.node_id))
    assert info[b"name"] == b"berlin"
    assert json.loads(info[b"labels"]) == {"gpu": "1"}


def test_who_has_the_state_directory_has_the_name(backend: Backend) -> None:
    """The lease is that of another host, which cannot be asked; but this process has locked its directory."""
    first = Registration(backend.connect(), "berlin", lease=3600.0)
    claim_as(first, "elsewhere/1/1/x/home")
    first.register()
    again = Registration(backend.connect(), "berlin", home="home")
    again.register()  # an hour, if it waited
    assert again.renew()


def test_what_redis_forgot_of_a_node_comes_back(backend: Backend) -> None:
    """The lease is still there, but what it said of itself is not: the next renewal says it again."""
    registration = Registration(backend.connect(), "berlin", {"gpu": "1"})
    registration.register()
    backend.admin.unlink(backend.connect().keys.node_info(registration.node_id))
    assert registration.renew()
    assert [info.labels for info in list_nodes(backend.connect())] == [{"gpu": "1"}]


def test_a_node_that_was_frozen_looks_for_its_lease_first(backend: Backend) -> None:
    """Another process has its id by now: it executes nothing more, and rings so that the other looks for it."""
    bench = Bench()
    with by_hand(backend, bench.app, None) as node, driving(backend) as driver:
        keys = driver.connection.keys
        node.turn(0.01)
        push(driver, node.node_id, number(1))
        thaw(node)
        backend.admin.set(keys.node_lease(node.node_id), "elsewhere/1/1/x", px=60_000)
        for _ in range(3):
            node.turn(0.01)
        assert bench.executed == {}
        assert node.is_stopping()
        before = backend.admin.xinfo_stream(keys.ctl(node.node_id))["last-generated-id"]
        node.leave()
        assert backend.admin.xinfo_stream(keys.ctl(node.node_id))["last-generated-id"] > before
