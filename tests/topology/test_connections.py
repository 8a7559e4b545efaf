"""Connections to real Sentinels and a real Cluster: which server is asked, and what is lost when it changes."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import ConnectionError

from brokerfl.broker import servers
from brokerfl.broker.client import Clients
from brokerfl.broker.connection import Connection, connect
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.broker.failure import AstrayError
from brokerfl.broker.sockets import Sockets
from brokerfl.common import RedisRefuses, RedisUnreachable
from tests.cli.conftest import stand_in
from tests.topology.fleets import ClusterFleet, SentinelFleet, until
from tests.topology.lab import KEYS, PREFIX

pytestmark = pytest.mark.timeout(120)

#: Keys of three slots that three primaries have.
SPREAD = ("bar", "hello", "foo", "abc", "x", "test")


@pytest.fixture
def connection(cluster: ClusterFleet) -> Iterator[Connection]:
    """A connection to the shared Cluster, which is empty."""
    cluster.flushall()
    made = connect(cluster.url, prefix=PREFIX)
    yield made
    made.close()


def port_of(connection: Connection, key: str) -> int:
    return int(connection.at(key).redis.connection_pool.connection_kwargs["port"])


def test_each_key_has_its_primary(connection: Connection, cluster: ClusterFleet) -> None:
    """`at` gives the server that has the slot, which answers; without a look-up it is the same object each time."""
    for key in SPREAD:
        assert port_of(connection, key) == cluster.primary_of(key)
        assert connection.at(key).sockets.exchange([("SET", key, key)]) == [b"OK"]
        assert connection.at(key) is connection.at(key)
    assert {port_of(connection, key) for key in SPREAD} == set(cluster.primaries())
    assert connection.redis is connection.at(KEYS.identity).redis
    assert connection.losses == 0


def test_scatter_answers_in_order(connection: Connection) -> None:
    """Several keys of several servers, some twice, some without commands: the answers are where they were asked for."""
    asked = [(key, [("SET", key, n), ("GET", key)]) for n, key in enumerate(SPREAD)]
    answers = connection.scatter([*asked, ("x", []), ("bar", [("INCR", "bar"), ("LPUSH", "bar", 1)])])
    assert answers[: len(SPREAD)] == [[b"OK", str(n).encode()] for n in range(len(SPREAD))]
    assert answers[-2] == []
    assert answers[-1][0] == 1
    assert "WRONGTYPE" in str(answers[-1][1])
    assert connection.scatter([]) == []
    assert connection.losses == 0


def test_scatter_sends_all_before_it_reads(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three servers work at the same time."""
    events: list[str] = []
    begin = Sockets.begin

    def spy(sockets: Sockets, taken: object, commands: servers.Sequence[servers.Command]) -> object:
        read = begin(sockets, taken, commands)
        events.append("sent")
        return lambda: (events.append("read"), read())[1]

    monkeypatch.setattr(Sockets, "begin", spy)
    connection.scatter([(key, [("SET", key, 1)]) for key in SPREAD])
    assert events == ["sent"] * 3 + ["read"] * 3


def test_scatter_drops_only_the_socket_that_broke(connection: Connection, cluster: ClusterFleet) -> None:
    """One server cuts its connections: the others' answers are read, and their sockets go on."""
    keys = {cluster.primary_of(key): key for key in SPREAD}
    connection.scatter([(key, [("SET", key, 1)]) for key in keys.values()])
    broken, *others = keys
    cluster.client(broken).client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(ConnectionError):
        connection.scatter([(key, [("INCR", key)]) for key in keys.values()])
    assert [int(cluster.client(port).get(keys[port])) for port in others] == [2, 2]
    connection.scatter([(key, [("INCR", key)]) for key in keys.values()])
    assert connection.losses == 1


def test_a_slot_that_moves(connection: Connection, cluster: ClusterFleet) -> None:
    """A command for a slot that was moved has no effect and is a loss; the next one goes to the new primary.

    The other slots keep their servers and their sockets.
    """
    key, other = "{moves}", next(key for key in SPREAD if cluster.primary_of(key) != cluster.primary_of("{moves}"))
    connection.at(key).redis.set(key, 1)
    kept = connection.at(other)
    kept.redis.ping()
    cluster.move_slot(key, next(port for port in cluster.primaries() if port != cluster.primary_of(key)))
    with pytest.raises(AstrayError):
        connection.at(key).sockets.exchange([("INCR", key)])
    assert connection.losses > 0
    assert connection.at(key).sockets.exchange([("INCR", key)]) == [2]
    assert port_of(connection, key) == cluster.primary_of(key)
    assert connection.at(other) is kept


def test_a_slot_that_is_being_moved(connection: Connection, cluster: ClusterFleet) -> None:
    """A key that is on its way is not missing: that is a refusal, which ends when the slot has moved."""
    source = cluster.primary_of(KEYS.identity)
    to = next(port for port in cluster.primaries() if port != source)
    connection.redis.set(KEYS.identity, 1)
    slot = key_slot(KEYS.identity.encode())
    cluster.client(to).execute_command("CLUSTER SETSLOT", slot, "IMPORTING", cluster.id_of(source))
    cluster.client(source).execute_command("CLUSTER SETSLOT", slot, "MIGRATING", cluster.id_of(to))
    cluster.client(source).migrate("127.0.0.1", to, KEYS.identity, 0, 5000)
    with pytest.raises(AstrayError):
        connection.redis.get(KEYS.identity)
    with pytest.raises(AstrayError):  # also where errors are answers
        connection.redis.pipeline(transaction=False).get(KEYS.identity).execute(raise_on_error=False)
    assert not connection.wait_until_up(time.monotonic() + 0.3)
    cluster.move_slot(KEYS.identity, to)
    assert connection.wait_until_up(time.monotonic() + 30)
    assert connection.redis.get(KEYS.identity) == b"1"


def test_a_blocked_read_outlasts_the_move_of_its_slot(connection: Connection, cluster: ClusterFleet) -> None:
    """A thread that is blocked in an XREADGROUP when its keys leave hears of it, and reads on where they are."""
    key = KEYS.ctl(1)
    connection.at(key).redis.xgroup_create(key, "g", id="0", mkstream=True)
    read = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", 20_000, "STREAMS", key, ">")
    found: list[Any] = []

    def listen() -> None:
        try:
            found.append(connection.at(key).sockets.exchange([read]))
        except ConnectionError as error:
            found.append(error)

    source = cluster.primary_of(key)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    until(lambda: cluster.client(source).info("clients")["blocked_clients"] == 1, "it is blocked")
    cluster.move_slot(key, next(port for port in cluster.primaries() if port != source))
    thread.join(10)
    assert not thread.is_alive()
    [answer] = found if isinstance(found[0], AstrayError) else found[0]
    assert str(answer).startswith(("UNBLOCKED", "NOGROUP")) or isinstance(answer, AstrayError)
    assert connection.wait_until_up(time.monotonic() + 30)
    until(lambda: connection.at(key).redis.xadd(key, {"f": "v"}), "the new primary takes it")
    assert b"v" in str(connection.at(key).sockets.exchange([read])).encode()


def test_a_slot_that_nobody_has(connection: Connection, cluster: ClusterFleet) -> None:
    """The Cluster is down for it: that is said, and waited out."""
    port = cluster.lose_slot(KEYS.identity)
    try:
        with pytest.raises(RedisRefuses, match="nobody serves this slot: look at CLUSTER INFO"):
            connect(cluster.url, prefix=PREFIX)
        assert not connection.wait_until_up(time.monotonic() + 0.3)
    finally:
        cluster.take_slot(KEYS.identity, port)
    assert connection.wait_until_up(time.monotonic() + 30)
    connection.redis.set(KEYS.identity, 1)


def test_sentinels_name_the_primary(sentinels: SentinelFleet) -> None:
    """Every key is there, whatever the prefix, and a replica that a Sentinel names is refused."""
    connection = connect(sentinels.url, prefix="fl")
    assert port_of(connection, "a") == port_of(connection, "b") == sentinels.primary_of("")
    connection.close()
    replica = next(port for port in sentinels.servers if port != sentinels.primary_of(""))
    with named_by(replica) as url, pytest.raises(RedisRefuses, match="is a replica now; looking for the new primary"):
        connect(url)


class named_by:  # noqa: N801  (a context manager, like a function)
    """Sentinels that name a port, which may be changed."""

    def __init__(self, port: int) -> None:
        self._answers: dict[bytes, bytes] = {b"HELLO": b"%1\r\n$5\r\nproto\r\n:3\r\n", b"CLIENT": b"+OK\r\n"}
        self.name(port)
        self._stand_in = stand_in(self._answers)

    def name(self, port: int) -> None:
        text = str(port).encode()
        self._answers[b"SENTINEL"] = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(text), text)

    def __enter__(self) -> str:
        return self._stand_in.__enter__().replace("redis://", "redis+sentinel://") + "/main"

    def __exit__(self, *_: object) -> None:
        self._stand_in.__exit__(None, None, None)


def test_a_primary_that_was_cut_off_makes_nobody_deaf(redis_binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The former primary answers as ever, but Sentinels name another one: after a look-up nobody asks it any more.

    Who is blocked there, or holds one of its sockets, has lost the connection.
    """
    with EmbeddedServer(binary=redis_binary) as old, EmbeddedServer(binary=redis_binary) as new:
        told = named_by(old.port)
        with told as url:
            connection = connect(url)
            held = connection.sockets.take()
            ended = threading.Event()

            def listen() -> None:
                with pytest.raises(ConnectionError):
                    connection.sockets.exchange([("BLPOP", "k", 20)])
                ended.set()

            threading.Thread(target=listen, daemon=True).start()
            until(lambda: sum("blpop" in str(each) for each in clients(old)), "it is blocked")
            told.name(new.port)
            assert port_of(connection, "k") == old.port  # what was looked up still holds
            monkeypatch.setattr(servers, "FRESH", 0.0)
            connection._servers.refresh()
            assert port_of(connection, "k") == new.port
            assert ended.wait(10)
            assert connection.losses > 0
            for _ in range(2):  # nor does one connect to it again
                with pytest.raises(ConnectionError):
                    connection.sockets.talk(held, [("SET", "k", 1)])
            connection.sockets.give(held)
            assert connection.sockets.exchange([("SET", "k", 2)]) == [b"OK"]
            assert connection.sockets.take() is not held
            with connect(old.url).redis as former:
                assert former.get("k") is None
            connection.close()


def test_a_primary_that_takes_no_writes_is_left(redis_binary: Path) -> None:
    """One without replicas, of which it was told to have one, is asked no more once Sentinels name another."""
    with EmbeddedServer(binary=redis_binary) as old, EmbeddedServer(binary=redis_binary) as new:
        told = named_by(old.port)
        with told as url:
            connection = connect(url)
            with connect(old.url).redis as admin:
                admin.config_set("min-replicas-to-write", 1)
            assert not connection.wait_until_up(time.monotonic() + 0.3)
            told.name(new.port)
            assert connection.wait_until_up(time.monotonic() + 30)
            assert port_of(connection, "k") == new.port
            connection.close()


def clients(server: EmbeddedServer) -> list[object]:
    with connect(server.url).redis as admin:
        return list(admin.client_list())


def test_what_was_looked_up_holds_for_a_while(sentinels: SentinelFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentinels are asked at the start, and again only when the look-up has become old."""
    asked: list[object] = []
    ask = Clients.ask
    monkeypatch.setattr(Clients, "ask", lambda *args: (asked.append(args), ask(*args))[1])
    connection = connect(sentinels.url)
    for _ in range(3):
        connection.redis.ping()
    assert len(asked) == 1
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 2 * servers.FRESH)
    for _ in range(3):
        connection.redis.ping()
    assert len(asked) == 2
    assert connection.losses == 0
    connection.close()


def test_sentinels_may_all_be_gone(redis_binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the primary that is known goes on; a new process finds none, and says whom it asked."""
    monkeypatch.setattr(servers, "FRESH", 0.0)
    with EmbeddedServer(binary=redis_binary) as server:
        with named_by(server.port) as url:
            connection = connect(url)
        assert connection.redis.ping()
        assert connection.wait_until_up(time.monotonic() + 10)
        connection.close()
        with pytest.raises(RedisUnreachable, match=r"no Sentinel answers \(127.0.0.1:\d+: Error 111"):
            connect(url)


def test_a_demoted_primary_is_left(redis_binary: Path) -> None:
    """A plain URL stays with its server, but not with its socket: the name may lead to another one next time."""
    with EmbeddedServer(binary=redis_binary) as server:
        connection = connect(server.url)
        connection.redis.set("k", 1)
        losses = connection.losses
        with connect(server.url).redis as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(AstrayError):
            connection.redis.set("k", 2)
        assert not connection.wait_until_up(time.monotonic() + 0.2)
        assert connection.losses > losses
        with connect(server.url).redis as admin:
            admin.execute_command("REPLICAOF", "NO", "ONE")
        assert connection.wait_until_up(time.monotonic() + 30)
        connection.close()
