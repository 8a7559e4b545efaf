"""A full Redis: nodes ask before they send again, all goes on when there is room, and the log says what fills it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from brokerfl.broker import memory
from brokerfl.broker.books import nodes_of
from brokerfl.broker.memory import ServerMemory, memory_of_run, memory_of_runs, memory_of_server
from brokerfl.broker.room import Room, room_for
from brokerfl.client import ClientApp, upload, waiting
from brokerfl.client.node import Node
from brokerfl.common import Array, ConfigsRecord, Context, Message, ParametersRecord, RecordSet, RedisOutOfMemory
from brokerfl.server import Driver, session, shortage
from brokerfl.wire.payload import WINDOW
from tests.apps import driving, eventually, number, number_in
from tests.conftest import Backend
from tests.stage import beat, layer, model, push, serving, silent, to_all

#: One server is as good as another here, and none of several has a limit of its own.
WITHOUT = ("redis-tls", "sentinel", "cluster", "valkey-cluster")

MIB = 1024 * 1024

#: Bytes of a reply.
LARGE = 4 * MIB


@pytest.fixture
def real(backend: Backend) -> Iterator[Backend]:
    """The backends that have a maxmemory; at the end they have none."""
    if not backend.is_real:
        pytest.skip("fakeredis has no maxmemory")
    yield backend
    backend.admin.config_set("maxmemory", 0)


class Trainer:
    """A ClientApp whose replies are large and all hold the number that it was sent."""

    def __init__(self) -> None:
        self.app = ClientApp()

        @self.app.train()
        def train(message: Message, context: Context) -> Message:
            array = np.full(LARGE, number_in(message), dtype=np.uint8)
            return message.create_reply(RecordSet({"p": ParametersRecord({"w": Array(array)})}))


def value_in(reply: Message) -> int:
    """What all bytes of a large reply are."""
    array = reply.content.parameters_records["p"]["w"].numpy()
    assert array.size == LARGE
    assert array.min() == array.max()
    return int(array[0])


def limit(backend: Backend, more: int) -> None:
    """From now on Redis has room for so many bytes more."""
    backend.admin.config_set("maxmemory", int(backend.admin.info("memory")["used_memory"]) + more)


def in_use(backend: Backend) -> int:
    """Bytes that Redis uses."""
    return int(backend.admin.info("memory")["used_memory"])


def questions(backend: Backend) -> int:
    """How often a write was refused because Redis is full."""
    return int(backend.admin.info("errorstats").get("errorstat_OOM", {}).get("count", 0))


def received(backend: Backend) -> int:
    """Bytes that Redis was sent."""
    return int(backend.admin.info("stats")["total_net_input_bytes"])


@contextmanager
def nodes(backend: Backend, count: int, workers: int = 1) -> Iterator[list[Node]]:
    """So many nodes that train."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(serving(backend, Trainer().app, name=f"n{at}", workers=workers)) for at in range(count)
        ]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes ask often."""
    monkeypatch.setattr(waiting, "_LONGEST", 0.1)
    monkeypatch.setattr(waiting, "_BACK_OFF", waiting.tenacity.wait_random_exponential(multiplier=0.02, max=0.1))
    monkeypatch.setattr(upload, "HOLD", 0.2)


# Nodes.


@pytest.mark.without_rights("a node may not ask how much room there is")
@pytest.mark.usefixtures("eager")
def test_nodes_that_wait_for_room_send_nothing(real: Backend) -> None:
    """Three replies and no room: while they wait, a hundred questions weigh less than one chunk; then all arrive."""
    with nodes(real, 3) as made, driving(real) as driver:
        batch = [driver.create_message(number(at + 1), "train", node.node_id, "1") for at, node in enumerate(made)]
        limit(real, MIB)
        ids = driver.push_messages(batch)
        eventually(lambda: all(node.is_full for node in made))
        streams = [driver.connection.keys.data(node.node_id, driver.run.run_id) for node in made]
        eventually(lambda: not any(map(real.admin.xlen, streams)))
        asked, sent = calls_of_info(real), received(real)
        eventually(lambda: calls_of_info(real) > asked + 100, within=30)
        assert received(real) - sent < MIB / 2
        assert list(driver.replies(ids, timeout=0)) == []
        real.admin.config_set("maxmemory", 0)
        assert sorted(map(value_in, driver.replies(ids, timeout=20))) == [1, 2, 3]
        eventually(lambda: not any(node.is_full for node in made))


def calls_of_info(backend: Backend) -> int:
    """How often Redis was asked about itself."""
    return int(backend.admin.info("commandstats")["cmdstat_info"]["calls"])


@pytest.mark.usefixtures("eager")
def test_settling_lets_replies_through_one_after_the_other(real: Backend) -> None:
    """There is room for one reply and a half: `driver.settle` makes room in a full Redis, and the next one comes."""
    with nodes(real, 3) as made, driving(real) as driver:
        batch = [driver.create_message(number(at + 1), "train", node.node_id, "1") for at, node in enumerate(made)]
        limit(real, LARGE * 3 // 2 + MIB)
        values = []
        for reply in driver.replies(driver.push_messages(batch), timeout=30):
            values.append(value_in(reply))
            driver.settle(reply)
        assert sorted(values) == [1, 2, 3]


@pytest.mark.usefixtures("eager")
def test_replies_of_workers_wait_in_one_process(real: Backend) -> None:
    """Several runs on one node with workers: all their replies arrive once there is room."""
    with nodes(real, 1, workers=3) as [node], driving(real) as first, driving(real) as second:
        limit(real, MIB)
        runs = [(driver, push(driver, node.node_id, number(at))) for at, driver in enumerate((first, second), 1)]
        eventually(lambda: node.is_full)
        real.admin.config_set("maxmemory", 0)
        assert [value_in(reply) for driver, one in runs for reply in driver.replies([one], timeout=20)] == [1, 2]


def test_asking_for_room_leaves_nothing(real: Backend) -> None:
    """Whatever the key is: a stream, a string, or nothing."""
    connection = real.by_hand()
    real.admin.xadd("test:stream", {"d": "x"})
    real.admin.set("test:string", "x")
    for key in ("test:stream", "test:string"):
        real.admin.pexpire(key, 60_000)
    before = {key: real.admin.dump(key) for key in real.admin.scan_iter()}
    for key in ("test:stream", "test:string", "test:none"):
        assert room_for(connection, {key: MIB}) is Room.ENOUGH
        limit(real, 10 * MIB)
        assert room_for(connection, {key: MIB}) is Room.ENOUGH
        assert room_for(connection, {key: 20 * MIB}) is Room.NONE  # the server may still free what was flushed
        real.admin.config_set("maxmemory", 1)
        assert room_for(connection, {key: 0}) is Room.NONE
        real.admin.config_set("maxmemory", 0)
    assert {key: real.admin.dump(key) for key in real.admin.scan_iter()} == before


# ServerApps.


def test_a_broadcast_that_does_not_fit_is_not_sent_again_and_again(
    real: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a push waits for room, Redis is asked; what is sent is the window that was refused, and no more."""
    monkeypatch.setattr(session, "FULL_PATIENCE", 1.0)
    content = model(layer(1, 4 * LARGE))
    with driving(real) as driver:
        node = silent(real)
        push(driver, node, number(1))
        limit(real, MIB)
        sent = received(real)
        with pytest.raises(RedisOutOfMemory):
            push(driver, node, content)
        assert received(real) - sent < 2 * LARGE


def test_the_log_says_what_fills_redis(
    real: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A ServerApp that only waits says once that there is no room for a reply, and why, and when there is room."""
    caplog.set_level("INFO", "brokerfl")
    with driving(real) as driver, nodes(real, 1) as [node]:
        content = model(layer(1, 4 * LARGE))
        push(driver, silent(real), content)
        [reply] = driver.replies([push(driver, node.node_id, number(1))])
        limit(real, 2 * LARGE)
        for _ in range(3):
            beat(driver)
        [warning] = [each.getMessage() for each in caplog.records if "Redis is full" in each.getMessage()]
        assert "this run holds 20M (contents 16M, replies 4M of 1 nodes)" in warning
        assert "; settle replies or raise maxmemory" in warning
        monkeypatch.setattr(shortage, "_AGAIN", 0.0)
        beat(driver)
        assert len([each for each in caplog.records if "Redis is full" in each.getMessage()]) == 2
        real.admin.config_set("maxmemory", in_use(real) * 3)
        beat(driver)
        beat(driver)
        assert len([each for each in caplog.records if "Redis has room again" in each.getMessage()]) == 1
        assert value_in(reply) == 1


def test_a_refused_push_says_what_fills_redis(
    real: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, not with the next heartbeat."""
    monkeypatch.setattr(session, "FULL_PATIENCE", 0.1)
    with driving(real) as driver:
        node = silent(real)
        real.admin.config_set("maxmemory", 1)
        with pytest.raises(RedisOutOfMemory):
            push(driver, node, number(1))
        real.admin.config_set("maxmemory", 0)
    assert "Redis is full: " in caplog.text


# Memory.


def test_the_memory_of_a_run(real: Backend) -> None:
    """What is read is what Redis uses: broadcast, replies, messages; an end leaves nothing."""
    with driving(real) as driver, nodes(real, 2) as made:
        run, ids = driver.run.run_id, [node.node_id for node in made]
        replies = driver.send_and_receive([driver.create_message(number(1), "train", node, "1") for node in ids])
        away = silent(real)
        push(driver, away, model(layer(1, 2 * LARGE)))
        found = memory_of_run(real.by_hand(), run, nodes_of(real.by_hand(), run))
        assert 2 * LARGE <= found.contents <= 2 * LARGE * 1.05
        assert 2 * LARGE <= found.replies <= 2 * LARGE * 1.05
        assert found.repliers == 2
        assert 0 < found.inboxes < MIB
        assert 0 < found.books < MIB
        assert 0 < found.outboxes < MIB
        assert found.context == 0
        assert found.total == found.contents + found.replies + found.inboxes + found.context + found.books
        driver.settle(*replies)
        driver.context.state.configs_records["app"] = ConfigsRecord({"rounds": 1})
        driver.checkpoint()
        found = memory_of_run(real.by_hand(), run, nodes_of(real.by_hand(), run))
        assert found.replies < MIB
        assert 0 < found.context < MIB
    assert memory_of_run(real.by_hand(), run, ids).total < MIB


def test_the_memory_of_all_runs(real: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured together, each run holds what it holds alone; of many nodes some count for all."""
    with driving(real) as large, driving(real) as small, nodes(real, 3) as made:
        for driver in (large, small):
            messages = [driver.create_message(number(1), "train", node.node_id, "1") for node in made]
            ids = driver.push_messages(messages if driver is large else messages[:1])
            assert len([*driver.replies(ids, timeout=30)]) == len(ids)
        runs = [driver.run.run_id for driver in (large, small)]
        connection = real.connect()
        found = memory_of_runs(connection, [*runs, 12345])
        alone = [memory_of_run(connection, run, nodes_of(connection, run)) for run in runs]
        assert [found[run].chunks for run in runs] == [each.chunks for each in alone]
        assert [found[run].repliers for run in runs] == [3, 1]
        assert found[12345].total == 0
        monkeypatch.setattr(memory, "_NODES", 1)
        [sampled] = memory_of_runs(connection, runs[:1]).values()
        assert sampled.repliers == 3
        assert 3 * LARGE <= sampled.replies <= 3 * LARGE * 1.05


def test_the_memory_of_a_server(backend: Backend) -> None:
    """Each primary says what it uses and may use; one that does not say is left out."""
    found = memory_of_server(backend.connect())
    if not backend.is_real:
        assert found == []
        return
    backend.admin.config_set("maxmemory", 1)
    try:
        [full] = memory_of_server(backend.connect())
    finally:
        backend.admin.config_set("maxmemory", 0)
    [server] = memory_of_server(backend.connect())
    assert (full.is_full, full.most, full.free) == (True, 1, 0)
    assert (server.is_full, server.most, server.free) == (False, 0, None)
    assert server.used > 0
    assert server.policy == "noeviction"
    assert server == ServerMemory(server.place, server.used, 0, "noeviction")


def test_the_memory_of_a_run_that_may_not_be_measured(real: Backend) -> None:
    """Without MEMORY USAGE and INFO, entries are counted."""
    with driving(real) as driver, nodes(real, 1) as [node]:
        driver.send_and_receive([driver.create_message(number(1), "train", node.node_id, "1")])
        real.admin.execute_command("ACL", "SETUSER", "default", "-memory|usage", "-info")
        try:
            assert memory_of_server(real.by_hand()) == []
            found = memory_of_run(real.by_hand(), driver.run.run_id, [node.node_id])
        finally:
            real.admin.execute_command("ACL", "SETUSER", "default", "+@all")
        assert LARGE <= found.replies <= LARGE + 3 * MIB


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("share", [1.1, 0.9])
def test_the_sizing_formula(real: Backend, share: float) -> None:
    """A run with N nodes needs (1 + N) times its model.

    With a tenth more, and a window for each process that sends or receives, a round passes without a refusal.
    """
    size, count = 4 * LARGE, 3
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_reply(message.content)

    with ExitStack() as stack:
        driver = stack.enter_context(driving(real))
        made = [stack.enter_context(serving(real, app, name=f"n{at}")) for at in range(count)]
        driver.send_and_receive([driver.create_message(number(1), "train", node.node_id, "0") for node in made])
        buffers = WINDOW * MIB * (1 + count) if share > 1 else 0
        limit(real, round((1 + count) * size * share) + buffers)
        refused = questions(real)
        content = model(layer(1, size))
        if share > 1:
            replies = to_all(driver, [node.node_id for node in made], content)
            assert len(replies) == count
            assert questions(real) == refused
        else:
            ids = driver.push_messages([driver.create_message(content, "train", node.node_id, "1") for node in made])
            eventually(lambda: questions(real) > refused)
            real.admin.config_set("maxmemory", 0)
            assert len(list(driver.replies(ids, timeout=20))) == count


def test_a_driver_that_is_not_full_says_nothing(real: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Heartbeats of a run with room to spare."""
    driver = Driver(real.connect(), "server:app")
    real.admin.config_set("maxmemory", 10 * in_use(real))
    beat(driver)
    beat(driver)
    driver.end()
    assert "full" not in caplog.text
