"""What others wrote is not trusted: a node can hurt only itself, whatever it makes of the keys it may write."""

from collections.abc import Callable, Iterable

import pytest

from brokerfl.broker import inbox, presence
from brokerfl.broker import nodes as nodes_module
from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import Inboxes
from brokerfl.broker.nodes import Registration, list_nodes
from brokerfl.broker.outbox import Outgoing, publish
from brokerfl.broker.presence import online_nodes, registered
from brokerfl.cli.tables import local_time
from brokerfl.common import Array, ConfigError, ErrorCode, Metadata, ParametersRecord, RecordSet
from brokerfl.server import Driver
from brokerfl.server.book.message import MOST_REOPENED
from brokerfl.wire.frame import MANIFEST, Fields
from brokerfl.wire.manifest import CHUNK, Manifest
from brokerfl.wire.message import encode_message
from brokerfl.wire.record import encode_content
from tests.apps import driving, federation, number, number_in, runs_seen
from tests.conftest import PREFIX, Backend
from tests.stage import compare, cut, dropped, push, read_anew, read_outbox, silent, spares_of, to_be_deleted

#: TLS changes nothing here; test_messages.py and test_nothing_lost.py have it.
WITHOUT = ("redis-tls",)


@pytest.mark.parametrize("ring", [b"9" * 5000, b"-1", b"x", b"", b"\xff", str(2**64).encode()])
def test_forged_rings_cost_only_time(backend: Backend, ring: bytes) -> None:
    """A bell full of numbers that are none disturbs no wait."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        for _ in range(3):
            backend.admin.xadd(driver.connection.keys.bell(driver.run.run_id), {"n": ring})
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert number_in(reply) == 1


def test_replies_come_without_a_bell_that_can_be_read(backend: Backend) -> None:
    """Without a bell that can be read, sweeps find the replies."""
    if not backend.is_real:
        pytest.skip("fakeredis breaks on an XREAD of a string")
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        bell = driver.connection.keys.bell(driver.run.run_id)
        backend.admin.set(bell, "no stream", px=60_000)
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert number_in(reply) == 1


def test_rubbish_in_the_registry_hides_no_node(backend: Backend) -> None:
    """Members of the registry that are no ids are removed, and info that is no hash, or not text, is an empty one."""
    with federation(backend, nodes=1) as nodes, driving(backend, offline_grace=0.0) as driver:
        good = nodes.nodes[0].node_id
        backend.admin.sadd(f"{PREFIX}:nodes", "abc", "9" * 30, str(2**64), "77", "78")
        backend.admin.set(f"{PREFIX}:{{77}}:info", "no hash", px=60_000)
        backend.admin.set(f"{PREFIX}:{{77}}:lease", "x", px=60_000)
        backend.admin.hset(f"{PREFIX}:{{78}}:info", mapping={"labels": "[", "since": "x", "name": b"\xff"})
        backend.admin.pexpire(f"{PREFIX}:{{78}}:info", 60_000)
        assert driver.get_node_ids() == sorted([good, 77])
        assert {info.node_id: info.labels for info in list_nodes(backend.connect())} == {good: {}, 77: {}, 78: {}}
        assert backend.admin.smembers(f"{PREFIX}:nodes") == {b"77", b"78", str(good).encode()}
        replies = driver.send_and_receive([driver.create_message(number(1), "train", node, "1") for node in (good, 78)])
        assert {reply.metadata.src_node_id: reply.has_content() for reply in replies} == {good: True, 78: False}


def test_strange_runs_are_passed_over(backend: Backend) -> None:
    """A run whose frame cannot be read is listed all the same, and a field that is no run id disturbs no node."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        backend.admin.hset(driver.connection.keys.node_runs(node), mapping={"abc": "x", "77": b"\x09"})
        backend.admin.pexpire(driver.connection.keys.node_runs(node), 60_000)
        backend.admin.zadd(f"{PREFIX}:runs", {"88": 5})
        backend.admin.hset(f"{PREFIX}:{{run:88}}:meta", mapping={"frame": b"\x09", "status": "running"})
        backend.admin.pexpire(f"{PREFIX}:{{run:88}}:meta", 60_000)
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        assert number_in(reply) == 1
        assert {info.run_id for info in runs_seen(backend.connect())} == {driver.run.run_id, 88}


@pytest.mark.parametrize("member", [b"01", b"0077", b"00000000000000000077", b" 77", b"+77"])
def test_a_node_has_one_name(backend: Backend, member: bytes) -> None:
    """A node is counted once, however else its id can be written."""
    backend.admin.sadd(f"{PREFIX}:nodes", "77", member)
    backend.admin.set(f"{PREFIX}:{{77}}:lease", "x", px=60_000)
    assert [info.node_id for info in list_nodes(backend.connect())] == [77]
    assert backend.admin.smembers(f"{PREFIX}:nodes") == {b"77"}


@pytest.mark.parametrize("look", [online_nodes, list_nodes])
def test_many_forged_members_of_the_registry_go(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, look: Callable[[Connection], object]
) -> None:
    """Members that are no node's are looked at some at a time, removed, and hide no node."""
    online_among, looked = presence.online_among, []

    def count(connection: Connection, node_ids: Iterable[int]) -> set[int]:
        looked.append(len(list(node_ids)))
        return online_among(connection, node_ids)

    for module in (presence, nodes_module):
        monkeypatch.setattr(module, "online_among", count)
    with federation(backend, nodes=1) as nodes:
        good = nodes.nodes[0].node_id
        backend.admin.sadd(f"{PREFIX}:nodes", *range(10, 5010))
        look(backend.connect())
        assert online_nodes(backend.connect()) == [good]
        assert max(looked) <= 2 * 1000
        assert backend.admin.smembers(f"{PREFIX}:nodes") == {str(good).encode()}


@pytest.mark.parametrize("key", ["nodes", "runs", "id"])
def test_a_registry_of_another_type_is_one_clear_error(backend: Backend, key: str) -> None:
    """Another program's key where the registry should be is named, with what to do."""
    backend.admin.hset(f"{PREFIX}:{key}", "a", "b")
    actions: dict[str, list[Callable[[], object]]] = {
        "nodes": [
            lambda: list_nodes(backend.connect()),
            lambda: registered(backend.connect(), [77]),
            Registration(backend.connect(), "a").register,
        ],
        "runs": [lambda: Driver(backend.connect(), "a")],
        "id": [Registration(backend.connect(), "b").register, lambda: Driver(backend.connect(), "a")],
    }
    for action in actions[key]:
        with pytest.raises(ConfigError, match=rf"{PREFIX}:{key}.* another program uses this prefix"):
            action()


@pytest.mark.parametrize("identity", [b"", b"x" * 65, b"x" * 1_000_000])
def test_an_identity_of_another_size_is_one_clear_error(backend: Backend, identity: bytes) -> None:
    """The identity of a data set names a file, so it has a limit."""
    backend.admin.set(f"{PREFIX}:id", identity)
    with pytest.raises(ConfigError, match=f"{PREFIX}:id at .* another program"):
        Registration(backend.connect(), "a").register()


def test_an_identity_of_any_size_is_not_read(backend: Backend, issued: list[str]) -> None:
    """Each renewal looks at it, and so does each comparison of a ServerApp."""
    registration = Registration(backend.connect(), "a")
    registration.register()
    with driving(backend) as driver:
        issued.clear()
        registration.renew()
        assert "GETRANGE" in issued
        assert issued.count("GET") == 1, "of the lease"
        issued.clear()
        cut(driver)
        compare(driver)
        assert "GETRANGE" in issued
    backend.admin.set(f"{PREFIX}:id", b"x" * 1_000_000)
    with pytest.raises(ConfigError, match="another program"):
        registration.renew()


def test_many_forged_runs_are_removed(backend: Backend) -> None:
    """Each new run looks at some of them."""
    backend.admin.zadd(f"{PREFIX}:runs", {str(run): 5 for run in range(10, 260)})
    for left in (150, 50, 0):
        Driver(backend.connect(), "server:app").end()
        assert backend.admin.zcount(f"{PREFIX}:runs", 0, "+inf") == left


@pytest.mark.parametrize("since", ["inf", "-inf", "nan", "1e300", "-5", "1e999999"])
def test_the_times_of_others_are_no_errors(backend: Backend, since: str) -> None:
    """A node that says it has been there for ever is listed without a time."""
    backend.admin.sadd(f"{PREFIX}:nodes", "77")
    backend.admin.hset(f"{PREFIX}:{{77}}:info", mapping={"since": since})
    backend.admin.pexpire(f"{PREFIX}:{{77}}:info", 60_000)
    [info] = list_nodes(backend.connect())
    assert local_time(info.since) is None
    assert local_time(float(since)) is None or since == "-5"


def test_what_is_foreign_among_runs_breaks_no_list(backend: Backend) -> None:
    """Members that are no ids, leases that are no text, and books of another type."""
    with driving(backend) as driver:
        forged = {"abc": 5, b"\xff": 6, "0077": 7, "99": 8, "98": 9, "x": -2e12, "97": "-inf"}
        backend.admin.zadd(f"{PREFIX}:runs", forged)
        backend.admin.hset(f"{PREFIX}:{{run:99}}:meta", mapping={"frame": "x", "status": b"\xff", "messages": "many"})
        backend.admin.set(f"{PREFIX}:{{run:99}}:lease", b"1:\xff/\xff/\xff", px=60_000)
        backend.admin.pexpire(f"{PREFIX}:{{run:99}}:meta", 60_000)
        backend.admin.set(f"{PREFIX}:{{run:98}}:meta", "no hash", px=60_000)
        assert {info.run_id for info in runs_seen(backend.connect())} == {driver.run.run_id, 99}
        Driver(backend.connect(), "server:app").end()
        assert backend.admin.zscore(f"{PREFIX}:runs", "abc") is None


@pytest.mark.parametrize("lease", [b"\xff\xfe", b"1:\xff", b"a/\xb2/c", b"", "host/²/x".encode()])
def test_a_lease_that_is_no_text_is_waited_out(backend: Backend, lease: bytes) -> None:
    """Who holds a name is not known then; it lapses as any other lease."""
    registration = Registration(backend.connect(), "a")
    backend.admin.set(f"{PREFIX}:{{{registration.node_id}}}:lease", lease, px=300)
    registration.register()
    assert online_nodes(backend.connect()) == [registration.node_id]
    registration.leave()


def test_forged_runs_are_served_up_to_a_limit(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, issued: list[str]
) -> None:
    """A node that already serves a run goes on with it, takes no more runs than it may, and says so once."""
    monkeypatch.setattr(inbox, "MOST_RUNS", 20)
    seen: list[set[int]] = []
    connection = backend.connect()
    inboxes = Inboxes(connection, 7, lambda frames: seen.append(set(frames)))
    keys = connection.keys

    def forge(run_id: int) -> None:
        backend.admin.hset(keys.node_runs(7), str(run_id), b"frame")
        backend.admin.xgroup_create(keys.inbox(7, run_id), "brokerfl", id="0", mkstream=True)
        backend.admin.pexpire(keys.inbox(7, run_id), 60_000)

    forge(500)
    inboxes.refresh()
    for run_id in range(100, 150):
        forge(run_id)
    backend.admin.pexpire(keys.node_runs(7), 60_000)
    inboxes.refresh()
    inboxes.refresh()
    issued.clear()
    inboxes.refresh(only_new=True)
    assert issued.count("TYPE") == 0, "a ring does not make it look at those that it does not serve"
    assert [len(runs) for runs in seen] == [1, 20, 20, 20]
    assert 500 in seen[3]
    assert seen[1] == seen[2]
    assert caplog.text.count("it serves 20 of them") == 1


def test_lost_groups_are_made_again(backend: Backend) -> None:
    """A doorbell or an inbox whose group was destroyed is served again, and so is every other run."""
    with federation(backend, nodes=1) as nodes, driving(backend) as one, driving(backend) as other:
        node, keys = nodes.nodes[0].node_id, one.connection.keys
        for driver in (one, other):
            driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        backend.admin.xgroup_destroy(keys.ctl(node), "brokerfl")
        backend.admin.xgroup_destroy(keys.inbox(node, one.run.run_id), "brokerfl")
        for driver in (one, other):
            [reply] = driver.send_and_receive([driver.create_message(number(2), "train", node, "1")])
            assert number_in(reply) == 2


def head_of(driver: Driver, node: int, message_id: str) -> Fields:
    """The head of a reply that a node writes itself."""
    metadata = Metadata(
        run_id=driver.run.run_id,
        message_id="",
        src_node_id=node,
        dst_node_id=1,
        reply_to_message=message_id,
        group_id="1",
        ttl=1.0,
        message_type="train",
    )
    return encode_message(message_id, metadata)


def publish_by_hand(backend: Backend, driver: Driver, node: int, *replies: Fields) -> None:
    """Put into a node's outbox whatever it likes."""
    outgoing = [Outgoing(driver.run.run_id, ("0-1",), fields) for fields in replies]
    assert all(publish(backend.connect(), node, outgoing))


@pytest.mark.parametrize(("limit", "size"), [(16 * 1024**3, 2_000_000), (10_000, 20_000)])
def test_a_reply_holds_no_more_than_it_may(backend: Backend, limit: int, size: int) -> None:
    """What leaves its content in the entry itself, beyond the limit or what any node leaves there, is Error 4."""
    with driving(backend, max_message=limit) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(1))
        array = Array("uint8", [size], "numpy.ndarray", bytes(size))
        content = encode_content(RecordSet({"p": ParametersRecord({"w": array})}))
        publish_by_hand(backend, driver, node, {**head_of(driver, node, message_id), **content})
        [reply] = driver.replies([message_id], timeout=20)
        assert reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
        assert "bytes in the message itself" in reply.error.reason


def test_copies_without_end_are_not_kept(backend: Backend) -> None:
    """A node that repeats a large reply with other chunks fills neither the memory nor the time of the ServerApp."""
    manifests = [
        Manifest((10, 3 * CHUNK), tuple(bytes([k]) * 32 for k in range(4)), tuple(f"{n}-{k}" for k in range(4)))
        for n in range(1, 41)
    ]
    with driving(backend) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(1))
        head = head_of(driver, node, message_id)
        publish_by_hand(backend, driver, node, *({**head, MANIFEST: manifest.encoded} for manifest in manifests))
        read_outbox(driver, node)
        kept = spares_of(driver, message_id)
        assert len(kept) == MOST_REOPENED
        assert dropped(driver) == len(manifests) - 1
        read_anew(driver)  # a reconnect
        read_outbox(driver, node)
        assert kept.isdisjoint(to_be_deleted(driver))


@pytest.mark.parametrize("places", [[(5, 0)] * 40, [(5, 0), (5, 1)] * 20, [(n, 0) for n in range(40, 0, -1)]])
def test_a_chunk_is_named_once(backend: Backend, places: list[tuple[int, int]]) -> None:
    """A reply whose manifest names one chunk again and again is Error 4 before any of it is read."""
    with driving(backend) as driver:
        node = silent(backend)
        message_id = push(driver, node, number(1))
        entries = tuple(f"{at}-{number}" for at, number in places)
        manifest = Manifest((10, 39 * CHUNK), (b"d" * 32,) * 40, entries)
        head = head_of(driver, node, message_id)
        publish_by_hand(backend, driver, node, {**head, MANIFEST: manifest.encoded})
        [reply] = driver.replies([message_id], timeout=20)
        assert reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
        assert "each once" in reply.error.reason
