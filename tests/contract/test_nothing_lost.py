"""Redis goes away, connections break, memory runs full: waits go on, and nothing is lost or counted twice."""

import random
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from brokerfl.broker import connection as connection_module
from brokerfl.broker.books import Books
from brokerfl.broker.connection import connect
from brokerfl.broker.contact import READ_ON, ring_doorbell
from brokerfl.broker.embedded import EmbeddedServer, free_port
from brokerfl.broker.inbox import Delivery, Inboxes
from brokerfl.broker.nodes import Registration
from brokerfl.broker.outbox import Outgoing, publish
from brokerfl.broker.sockets import Command, Sockets
from brokerfl.client import wanted
from brokerfl.client.publisher import Publisher
from brokerfl.client.stop import Stop
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import ErrorCode, Message, Metadata, OutageLimit, RedisOutOfMemory, RedisUnreachable
from brokerfl.server import Driver, reconcile
from brokerfl.server import session as session_module
from brokerfl.server.book import Book
from brokerfl.wire.message import encode_message, message_id_of
from brokerfl.wire.record import encode_content
from tests.apps import Clock, Gate, driving, echo_app, eventually, federation, number, number_in, text
from tests.conftest import PREFIX, Backend, check_keys, keys_of, real_backend
from tests.stage import (
    after_commit,
    compare,
    cut,
    dropped,
    in_inbox,
    in_ledger,
    is_stale,
    kill,
    push,
    read_outbox,
    renews,
    serving,
    silent,
    start,
)


@pytest.fixture(params=["valkey", "redis"])
def restartable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[EmbeddedServer, Backend]]:
    """A server with an append-only file, which the test may stop and start again."""
    binary = request.getfixturevalue("redis_binary") if request.param == "redis" else None
    server = EmbeddedServer(data=tmp_path / "data", binary=binary)
    server.start()
    backend = real_backend(request.param, server.url)
    yield server, backend
    check_keys(backend.admin)
    server.stop()


def test_a_run_goes_on_after_a_restart(restartable: tuple[EmbeddedServer, Backend]) -> None:
    """Redis is restarted while a node trains: node and ServerApp wait, and the reply arrives, executed once."""
    server, backend = restartable
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        ids = driver.push_messages([driver.create_message(number(5), "train", node, "1")])
        replies: list[Message] = []
        waiter = threading.Thread(target=lambda: replies.extend(driver.replies(ids)))
        waiter.start()
        assert gate.begun.acquire(timeout=10)
        server.stop()
        gate.go.set()
        server.start()
        waiter.join(30)
        assert [number_in(reply) for reply in replies] == [5]
        [reply] = driver.send_and_receive([driver.create_message(number(6), "train", node, "2")])
        assert number_in(reply) == 6
        assert gate.calls == 2


def test_an_outage_beyond_the_limit_ends_the_wait(restartable: tuple[EmbeddedServer, Backend]) -> None:
    """A ServerApp whose Redis stays away longer than its limit gets OutageLimit; its run is still there afterwards."""
    server, backend = restartable
    driver = Driver(backend.connect(), "server:app", outage_limit=0.5)
    server.stop()
    with pytest.raises(OutageLimit, match=r"more than 0\.5 s"):
        driver.wait_for_nodes(1)
    driver.detach()
    server.start()
    assert backend.admin.exists(f"{PREFIX}:{{run:{driver.run.run_id}}}:meta")


def test_an_outage_does_not_outlast_a_timeout(restartable: tuple[EmbeddedServer, Backend]) -> None:
    """A wait with a timeout ends at its timeout although Redis is away, and can be repeated when it is back."""
    server, backend = restartable
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        ids = driver.push_messages([driver.create_message(number(5), "train", nodes.nodes[0].node_id, "1")])
        assert gate.begun.acquire(timeout=10)
        server.stop()
        assert list(driver.replies(ids, timeout=0.5)) == []
        gate.go.set()
        server.start()
        assert [number_in(reply) for reply in driver.replies(ids)] == [5]


# redis-py leaves a socket to the garbage collector when its TLS handshake is cut.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_broken_connections_lose_and_double_nothing(backend: Backend) -> None:
    """All connections are cut once or twice in each round, which still has exactly one reply of each node."""
    if not backend.is_real:
        pytest.skip("fakeredis has no connections to cut")
    rounds, nodes_count = 12, 3
    mine = backend.admin.client_id()

    def cut(*delays: float) -> None:
        for delay in delays:
            threading.Event().wait(delay)
            for client in backend.admin.client_list():
                if int(client["id"]) != mine:
                    backend.admin.client_kill_filter(_id=client["id"])

    with federation(backend, nodes=nodes_count) as nodes, driving(backend) as driver, ThreadPoolExecutor(1) as cutter:
        for turn in range(rounds):
            batch = [driver.create_message(number(turn), "train", n.node_id, str(turn)) for n in nodes.nodes]
            # At any moment of a round, and in every other one again while all come back.
            cutting = cutter.submit(cut, random.uniform(0, 0.01), *[random.uniform(0, 0.3)] * (turn % 2))
            replies = driver.send_and_receive(batch)
            cutting.result()
            assert [number_in(reply) for reply in replies] == [turn] * nodes_count
            assert len({reply.metadata.src_node_id for reply in replies}) == nodes_count


def test_a_full_redis_refuses_the_push_and_nothing_else(backend: Backend) -> None:
    """At maxmemory the push raises and enters nothing, and leases live; with room again, pushes work."""
    if not backend.is_real:
        pytest.skip("fakeredis has no maxmemory")
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        keys, run = driver.connection.keys, driver.run.run_id
        backend.admin.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisOutOfMemory, match="full"):
                driver.push_messages([driver.create_message(text(a="x" * 1000), "train", node, "2")])
            assert backend.admin.hlen(keys.ledger(run)) == 1
            assert backend.admin.xlen(keys.inbox(node, run)) == 0
            assert renews(nodes.nodes[0])
        finally:
            backend.admin.config_set("maxmemory", 0)
        [reply] = driver.send_and_receive([driver.create_message(number(2), "train", node, "2")])
        assert number_in(reply) == 2


@pytest.mark.with_rights
def test_a_reply_waits_until_there_is_room(backend: Backend) -> None:
    """A node whose reply a full Redis refuses keeps it, and the message with it, and publishes when there is room."""
    if not backend.is_real:
        pytest.skip("fakeredis has no maxmemory")
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        keys, run = driver.connection.keys, driver.run.run_id
        ids = driver.push_messages([driver.create_message(number(8), "train", node, "1")])
        assert gate.begun.acquire(timeout=10)
        backend.admin.config_set("maxmemory", 1)
        try:
            refused = int(backend.admin.info("errorstats").get("errorstat_OOM", {}).get("count", 0))
            gate.go.set()
            eventually(lambda: int(backend.admin.info("errorstats").get("errorstat_OOM", {}).get("count", 0)) > refused)
            assert backend.admin.xlen(keys.inbox(node, run)) == 1, "the message left the inbox without its reply"
            assert list(driver.replies(ids, timeout=0.2)) == []
        finally:
            backend.admin.config_set("maxmemory", 0)
        assert [number_in(reply) for reply in driver.replies(ids)] == [8]
        assert gate.calls == 1


def test_replies_gather_while_a_publish_is_in_flight(backend: Backend) -> None:
    """What is finished while a publish is in flight goes out with the next one: 200 replies in two transactions."""
    if not backend.is_real:
        pytest.skip("fakeredis has no INFO")
    with driving(backend) as driver:
        registration = Registration(backend.by_hand(), "node")
        registration.register()
        node, run = registration.node_id, driver.run.run_id
        ids = driver.push_messages([driver.create_message(number(i), "train", node, "1") for i in range(200)])
        inboxes = Inboxes(backend.by_hand(), node)
        inboxes.refresh()
        works = [Work(run, message_id_of(d.fields), d.fields, [d.entry_id]) for d in inboxes.read(200, block=1.0)]
        in_flight, go = threading.Event(), threading.Event()

        class Held(Worklist):
            def done(self, work: Work, published: Collection[str]) -> list[str]:
                in_flight.set()
                assert go.wait(20)
                return super().done(work, published)

        stop = Stop()
        publisher = Publisher(backend.by_hand(), node, Held(), stop)
        before = executed_transactions(backend)
        for index, work in enumerate(works):
            header = Metadata(run, "", node, 1, work.message_id, "1", 60.0, "train")
            publisher.put(work, encode_message(work.message_id, header, encode_content(number(index))), more=True)
            assert in_flight.wait(10)
        go.set()
        publisher.close()
        assert stop.failure is None
        assert executed_transactions(backend) - before == 2
        assert sorted(number_in(reply) for reply in driver.replies(ids)) == list(range(200))


def executed_transactions(backend: Backend) -> int:
    return int(backend.admin.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"])


Lose = Callable[[int], None]


@pytest.fixture
def lose_answers(monkeypatch: pytest.MonkeyPatch) -> Lose:
    """Let this thread's next transactions that send be executed, and the connection break before their answers come."""
    transact = Sockets.transact_on
    thread, left = threading.get_ident(), [0]

    def lossy(sockets: Sockets, socket: Any, commands: Sequence[Command], after: Sequence[Command] = ()) -> object:
        results = transact(sockets, socket, commands, after)
        if threading.get_ident() == thread and left[0] and sends(commands):
            left[0] -= 1
            raise redis_py.ConnectionError("cut after EXEC")
        return results

    monkeypatch.setattr(Sockets, "transact_on", lossy)
    return lambda count: left.__setitem__(0, count)


def sends(commands: Sequence[Command]) -> bool:
    """Whether this transaction puts something into an inbox."""
    return any(command[0] == "XADD" and ":in:" in str(command[1]) for command in commands)


def test_a_push_whose_answer_was_lost_is_made_once(backend: Backend, lose_answers: Lose) -> None:
    """Redis executed the push and the connection broke before it said so: the inbox holds the message once."""
    registration = Registration(backend.connect(), "later")
    registration.register()
    with driving(backend) as driver:
        keys, run = driver.connection.keys, driver.run.run_id
        for group in ("1", "2"):
            lose_answers(1)
            [message_id] = driver.push_messages(
                [driver.create_message(number(3), "train", registration.node_id, group)]
            )
            assert message_id
        assert backend.admin.xlen(keys.inbox(registration.node_id, run)) == 2
        assert backend.admin.hlen(keys.ledger(run)) == 2
        assert backend.admin.hget(keys.meta(run), "messages") == b"2"


def test_a_push_that_arrives_late_has_no_effect(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The EXEC was on its way when the connection was given up: it arrives when Redis was asked, and said that no."""
    transact, has = Sockets.transact_on, Books.has
    answers: list[object] = []
    late: list[tuple[Sockets, Any]] = []

    def delayed(sockets: Sockets, socket: Any, commands: Sequence[Command], after: Sequence[Command] = ()) -> object:
        if sends(commands) and not late:
            late.append((sockets, sockets.take()))
            sockets.talk(late[0][1], [*after, ("MULTI",), *commands])  # `after` watches the owner
            raise redis_py.TimeoutError("no answer")
        return transact(sockets, socket, commands, after)

    def asks(books: Books, message_id: str) -> bool:
        found = has(books, message_id)
        other, socket = late[0]
        answers.extend(other.talk(socket, [("EXEC",)]))
        return found

    with driving(backend) as driver:
        node = silent(backend)
        monkeypatch.setattr(Sockets, "transact_on", delayed)
        monkeypatch.setattr(Books, "has", asks)
        message_id = push(driver, node, number(3))
        monkeypatch.undo()
        assert answers == [None]
        assert in_inbox(backend, driver, node) == [message_id]
        assert in_ledger(backend, driver) == {message_id}


def test_a_server_that_flaps_is_given_ever_longer_pauses(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers the probe and fails the next command, again and again; one that has held for a while is new."""
    clock = Clock()
    connection = backend.connect()
    monkeypatch.setattr(connection_module, "time", clock)
    monkeypatch.setattr(connection_module.random, "uniform", lambda least, most: most)
    for _ in range(6):
        assert connection.wait_until_up(clock.now + 100.0)
    assert len(clock.slept) == 5, "the first failure is none of a flapping server"
    assert clock.slept == sorted(set(clock.slept)), "they grow"
    assert connection.wait_until_up(clock.now)
    assert clock.slept.pop() == 0.0, "the caller has no more time"
    clock.now += 100.0
    clock.slept.clear()
    assert connection.wait_until_up(clock.now + 100.0)
    assert clock.slept == []


def test_a_wait_for_redis_ends_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a Redis that is away asks before each attempt whether to go on."""
    clock, asked = Clock(), []

    def stop() -> bool:
        asked.append(True)
        return len(asked) >= 3

    connection = connect(f"redis://127.0.0.1:{free_port()}", check=False)
    monkeypatch.setattr(connection_module, "time", clock)
    assert not connection.wait_until_up(clock.now + 60.0, stop)
    assert len(asked) == 3
    assert len(clock.slept) == 2


def test_a_wait_for_redis_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the pauses are, the caller's time is not exceeded."""
    clock, asked = Clock(), []

    def stop() -> bool:
        asked.append(True)
        assert len(asked) < 1000, "it goes on and on"
        return False

    connection = connect(f"redis://127.0.0.1:{free_port()}", check=False)
    monkeypatch.setattr(connection_module, "time", clock)
    until = clock.now + 10.0
    assert not connection.wait_until_up(until, stop)
    assert clock.now == pytest.approx(until, abs=1e-3)


def test_a_reply_whose_publish_was_lost_is_counted_once(backend: Backend) -> None:
    """A node that does not know whether its reply was taken publishes it again; the run counts one."""
    with driving(backend) as driver:
        registration = Registration(backend.by_hand(), "node")
        registration.register()
        node = registration.node_id
        ids = driver.push_messages([driver.create_message(number(3), "train", node, "1")])
        [delivery] = Inboxes(backend.by_hand(), node).drain() or read_new(backend, node)
        header = Metadata(driver.run.run_id, "", node, 1, ids[0], "1", 60.0, "train")
        reply = encode_message(ids[0], header, encode_content(number(9)))
        for _ in range(2):
            publish(backend.by_hand(), node, [Outgoing(driver.run.run_id, (delivery.entry_id,), reply)])
        assert [number_in(message) for message in driver.replies(ids)] == [9]
        assert driver.pull_messages(ids) == []
        eventually(lambda: (driver.pull_messages(ids), dropped(driver))[1] == 1)
        driver.checkpoint()
        driver.pull_messages([])
        driver.push_messages([driver.create_message(number(3), "train", node, "2")])
        assert backend.admin.xlen(driver.connection.keys.outbox(node, driver.run.run_id)) == 0


def read_new(backend: Backend, node: int) -> list[Delivery]:
    """Read what is new in a node's inboxes, as the node does."""
    inboxes = Inboxes(backend.by_hand(), node)
    inboxes.refresh()
    return inboxes.read(count=10, block=1.0)


def test_what_was_delivered_before_a_reconnect_is_taken_up(backend: Backend) -> None:
    """A message that Redis handed out, but that never arrived, is served after the next connect."""
    with driving(backend) as driver:
        registration = Registration(backend.by_hand(), "node")
        registration.register()
        ids = driver.push_messages([driver.create_message(number(3), "train", registration.node_id, "1")])
        assert len(read_new(backend, registration.node_id)) == 1  # and then the process is gone
        registration.leave()
        with serving(backend, echo_app(), name="node"):
            assert [number_in(reply) for reply in driver.replies(ids)] == [3]


def test_all_that_was_delivered_before_a_reconnect_is_taken_up(backend: Backend) -> None:
    """However much it is: a node reads what it has in hand in parts."""
    with driving(backend) as driver:
        node = silent(backend)
        driver.push_messages([driver.create_message(number(i), "train", node, "1") for i in range(250)])
        former = Inboxes(backend.by_hand(), node)
        former.refresh()
        assert len(former.read(250, block=1.0)) == 250
        again = Inboxes(backend.by_hand(), node).drain()
        assert len({delivery.entry_id for delivery in again}) == len(again) == 250
        assert all(delivery.is_old for delivery in again)


def test_a_ring_brings_what_a_former_process_read(backend: Backend) -> None:
    """One that lost its name reads once more after its successor has looked, and rings when it notices."""
    with driving(backend) as driver:
        node = silent(backend)
        push(driver, node, number(1))
        former, present = (Inboxes(backend.by_hand(), node) for _ in range(2))
        former.refresh()
        assert present.drain() == []
        [delivery] = former.read(1, block=1.0)
        ring_doorbell(driver.connection, node)
        assert [(each.entry_id, each.is_old) for each in present.read(1, block=1.0)] == [(delivery.entry_id, True)]


def test_a_ring_brings_what_a_former_process_read_of_a_busy_run(backend: Backend) -> None:
    """Between messages that its successor has in hand, which do not come again; another run has only such ones."""
    with driving(backend) as driver, driving(backend) as other:
        node = silent(backend)
        for each in (driver, other):
            push(each, node, number(1))
        hand: dict[int, list[str]] = {}
        former = Inboxes(backend.by_hand(), node)
        present = Inboxes(backend.by_hand(), node, in_hand=lambda: hand)
        for inboxes in (former, present):
            inboxes.refresh()

        def take(inboxes: Inboxes) -> list[Delivery]:
            found = inboxes.read(1, block=1.0)
            return found or inboxes.read(1, block=1.0)  # the first one may only hear the rings of the contacts

        def keep(deliveries: list[Delivery]) -> None:
            for each in deliveries:
                hand.setdefault(each.run_id, []).append(each.entry_id)

        keep(take(present))
        push(driver, node, number(2))
        [lost] = take(former)
        push(driver, node, number(3))
        keep(take(present))
        assert [len(hand[each.run.run_id]) for each in (driver, other)] == [2, 1]
        ring_doorbell(driver.connection, node)
        assert [(each.entry_id, each.is_old) for each in present.read(1, block=1.0)] == [(lost.entry_id, True)]


def test_a_ring_of_its_own_hides_no_other(backend: Backend) -> None:
    """A node that woke itself deletes that ring, and hears the one behind it: of a former process, or of a new run."""
    with driving(backend) as driver:
        node = silent(backend)
        push(driver, node, number(1))
        former, present = (Inboxes(backend.by_hand(), node) for _ in range(2))
        former.refresh()
        present.drain()
        [delivery] = former.read(1, block=1.0)
        for word in (READ_ON, "", READ_ON):
            ring_doorbell(driver.connection, node, word)
        found = [each.entry_id for _ in range(2) for each in present.read(1, block=0.01)]
        assert found == [delivery.entry_id]
        assert backend.admin.xlen(driver.connection.keys.ctl(node)) == 0


def answer(backend: Backend, driver: Driver, node: int, message_id: str, value: int) -> None:
    """Publish what a node replies that has read nothing."""
    header = Metadata(driver.run.run_id, "", node, 1, message_id, "1", 60.0, "train")
    inbox = driver.connection.keys.inbox(node, driver.run.run_id)
    entries = [entry.decode() for entry, fields in backend.admin.xrange(inbox) if fields[b"i"].decode() == message_id]
    fields = encode_message(message_id, header, encode_content(number(value)))
    publish(backend.by_hand(), node, [Outgoing(driver.run.run_id, tuple(entries) or ("1-0",), fields)])


def test_a_reply_with_an_id_from_the_past_is_read(backend: Backend) -> None:
    """Redis forgot an outbox and its clock was set back: after an outage all outboxes are read from their beginning."""
    with driving(backend) as driver:
        node = silent(backend)
        first, second = push(driver, node, number(1)), push(driver, node, number(2))
        answer(backend, driver, node, first, 8)
        assert [number_in(reply) for reply in driver.replies([first])] == [8]
        answer(backend, driver, node, second, 9)
        outbox = driver.connection.keys.outbox(node, driver.run.run_id)
        fields = backend.admin.xrange(outbox)[-1][1]
        backend.admin.unlink(outbox)
        backend.admin.xadd(outbox, fields, id="1-0")
        cut(driver)
        assert [number_in(reply) for reply in driver.replies([second], timeout=20)] == [9]


@pytest.mark.parametrize("when", ["before its inbox is read", "after the book was compared"])
def test_what_is_answered_during_a_comparison_is_not_sent_again(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A message moves from its inbox to the outbox while a run looks for it in one after the other."""
    with driving(backend) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(1))
        read, compared = reconcile.entries_of, Book.compare

        def reads(*arguments: Any) -> Any:
            answer(backend, driver, node, message_id, 9)
            return list(read(*arguments))

        def compares(book: Book, seen: Any) -> Any:
            found = compared(book, seen)
            answer(backend, driver, node, message_id, 9)
            read_outbox(driver, node)
            return found

        if when == "before its inbox is read":
            monkeypatch.setattr(reconcile, "entries_of", reads)
        else:
            backend.admin.xtrim(driver.connection.keys.inbox(node, driver.run.run_id), maxlen=0)
            monkeypatch.setattr(Book, "compare", compares)
        compare(driver)
        assert in_inbox(backend, driver, node) == []
        assert [number_in(reply) for reply in driver.replies([message_id])] == [9]


def test_a_connection_that_is_repaired_silently_is_a_loss(backend: Backend) -> None:
    """redis-py reconnects a socket that it finds broken before a command: nobody hears of it, but it is counted."""
    if not backend.is_real:
        pytest.skip("fakeredis has no connections to cut")
    connection = backend.connect()
    connection.redis.ping()
    assert connection.losses == 0
    backend.admin.client_kill_filter(_type="normal", skipme=True)
    with suppress(redis_py.ConnectionError):  # the end of the socket may not have arrived
        connection.redis.ping()
    connection.redis.ping()
    assert connection.losses == 1


def test_a_loss_is_remembered_until_a_comparison_saw_it_all(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that redis-py repaired silently, and one in the middle of a comparison, which may have missed it."""
    with driving(backend) as driver:
        push(driver, silent(backend), number(1))
        assert not is_stale(driver)
        driver.connection.losses += 1
        assert is_stale(driver)
        compare(driver)
        assert not is_stale(driver)
        read = reconcile.entries_of

        def breaks(*arguments: Any) -> Any:
            driver.connection.losses += 1
            return read(*arguments)

        monkeypatch.setattr(reconcile, "entries_of", breaks)
        compare(driver)
        assert is_stale(driver)
        monkeypatch.undo()
        compare(driver)
        assert not is_stale(driver)


def test_a_server_that_flaps_for_too_long_is_an_outage(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers when it is probed, but no command succeeds in between: the limit counts from the first failure."""
    clock = Clock()
    driver = start(backend, outage_limit=600.0)
    kill(driver)  # a beat would succeed
    monkeypatch.setattr(session_module, "time", clock)
    for _ in range(2):
        cut(driver)
        clock.now += 301.0
    with pytest.raises(OutageLimit):
        cut(driver)
    monkeypatch.undo()
    driver.detach()


def test_an_inbox_that_vanished_is_opened_again(backend: Backend) -> None:
    """When a node's streams are gone in mid-run, the next push creates them anew, with groups and lifetimes."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        keys, run = driver.connection.keys, driver.run.run_id
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        backend.admin.unlink(*keys.of_node_and_run(node, run), keys.node_runs(node))
        [reply] = driver.send_and_receive([driver.create_message(number(2), "train", node, "1")])
        assert number_in(reply) == 2
        check_keys(backend.admin)


def test_a_spoilt_inbox_is_error_5_and_hurts_nobody_else(backend: Backend) -> None:
    """A node whose inbox and outbox were made into something else is Error 5; the others' replies come."""
    if not backend.is_real:
        pytest.skip("fakeredis breaks on an XREAD of a string")
    with federation(backend, nodes=2) as nodes, driving(backend) as driver:
        spoilt, good = (node.node_id for node in nodes.nodes)
        keys, run = driver.connection.keys, driver.run.run_id

        def batch() -> list[Message]:
            return [driver.create_message(number(1), "train", node, "1") for node in (spoilt, good)]

        driver.send_and_receive(batch())
        for key in (keys.inbox(spoilt, run), keys.outbox(spoilt, run)):
            backend.admin.set(key, "spoilt", px=60_000)
        replies = {reply.metadata.src_node_id: reply for reply in driver.send_and_receive(batch())}
        assert replies[spoilt].error.code == ErrorCode.NODE_UNAVAILABLE
        assert number_in(replies[good]) == 1
        backend.admin.unlink(keys.inbox(spoilt, run), keys.outbox(spoilt, run))


def test_a_message_that_was_about_to_run_is_not_stranded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis goes away just when the node asks whether a queued message is still wanted: it is executed all the same."""
    gate, failed = Gate(), []
    ask = wanted.pending_entries

    def flaky(*arguments: object) -> bool:
        if not failed:
            failed.append(True)
            raise RedisUnreachable("cut")
        return ask(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(wanted, "pending_entries", flaky)
    monkeypatch.setattr(wanted, "READ_AHEAD", 1e-9)  # whatever was queued is asked for
    gate.go.set()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        replies = driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        assert [number_in(reply) for reply in replies] == [1]
    assert failed
    assert gate.calls == 1


@pytest.mark.parametrize("error", [OutageLimit("gone"), KeyboardInterrupt()], ids=["outage", "ctrl-c"])
def test_a_push_that_seems_to_have_failed_leaves_no_key(backend: Backend, error: BaseException) -> None:
    """Redis executed it, and its answer never came: the end of the run deletes what the first contact made."""
    with federation(backend, nodes=1) as nodes:
        node = nodes.nodes[0].node_id
        driver = start(backend)
        with pytest.raises(type(error)), after_commit(driver, error):
            driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        driver.end()
        assert keys_of(backend.admin, driver.run.run_id) == []
        assert str(driver.run.run_id).encode() not in backend.admin.hkeys(driver.connection.keys.node_runs(node))
