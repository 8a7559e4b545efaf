"""A node with many runs, and a run with much of anything: no command has more than a thousand arguments."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from brokerfl.broker import blobs, fields, inbox, reach
from brokerfl.broker.contact import READ_ON, ring
from brokerfl.broker.inbox import Inboxes, add_message
from brokerfl.broker.keys import GROUP
from brokerfl.broker.nodes import list_nodes
from brokerfl.broker.outbox import Outgoing, publish
from brokerfl.broker.packer import Packer
from brokerfl.broker.stream import MOST_ARGUMENTS
from brokerfl.common import Array, ParametersRecord, RecordSet
from brokerfl.wire.payload import Payload
from brokerfl.wire.record import encode_content
from tests.apps import driving, echo_app, eventually, federation, number
from tests.conftest import Backend
from tests.stage import first_contact, kill, resumed, silent, start

#: fakeredis packs no commands, and TLS changes nothing here.
WITHOUT = ("fakeredis", "redis-tls")


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The most arguments that a command of each name had. At the end no one may have had too many."""
    most: dict[str, int] = {}

    pack_all = Packer.pack_all

    def count(self: Packer, commands: Iterable[Sequence[Any]]) -> Any:
        commands = list(commands)
        for command in commands:
            name = str(command[0])
            most[name] = max(len(command), most.get(name, 0))
        return pack_all(self, commands)

    monkeypatch.setattr(Packer, "pack_all", count)
    yield most
    assert {name: count for name, count in most.items() if count > MOST_ARGUMENTS} == {}


def contacted(backend: Backend, runs: range) -> int:
    """A node that so many runs have contacted, and that has heard so."""
    keys, node = backend.connect().keys, silent(backend)
    with backend.admin.pipeline(transaction=False) as pipe:
        for run_id in runs:
            first_contact(pipe, keys, node, run_id)
        pipe.xtrim(keys.ctl(node), maxlen=0, approximate=False)
        pipe.execute()
    return node


def deliver(backend: Backend, node: int, runs: range, count: int = 1) -> None:
    """So many messages of each; nobody rings where the inbox shares the doorbell's slot."""
    connection = backend.connect()
    with backend.admin.pipeline(transaction=False) as pipe:
        for run_id in runs:
            for _ in range(count):
                add_message(pipe, connection.keys, node, run_id, {b"i": b"m"})
            if not connection.shares_slot(connection.keys.ctl(node), connection.keys.inbox(node, run_id)):
                ring(pipe, connection.keys, node, f"{READ_ON} {run_id}")
        pipe.execute()


def served(inboxes: Inboxes, runs: range) -> None:
    """Each of these runs has its message read, once, although the read may wait for long."""
    found = list[int]()
    eventually(lambda: (found.extend(each.run_id for each in inboxes.read(1, block=60.0)), len(found) >= len(runs))[1])
    assert sorted(found) == list(runs)


def test_more_runs_than_one_command_reads(
    backend: Backend, longest: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node serves all that it may, and takes up all that its predecessor had been given."""
    monkeypatch.setattr(inbox, "MOST_RUNS", 1000)
    runs = range(2, 702)
    node = contacted(backend, runs)
    inboxes = Inboxes(backend.by_hand(), node)
    inboxes.drain()
    deliver(backend, node, runs)
    served(inboxes, runs)
    assert longest["XREADGROUP"] > MOST_ARGUMENTS - 20 or backend.is_cluster
    assert {each.run_id for each in Inboxes(backend.by_hand(), node).drain()} == {*runs}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """As if one command read only five streams, the doorbell included."""
    for module in (inbox, reach):
        monkeypatch.setattr(module, "MOST_STREAMS", 5)
    return 5


def test_a_run_that_is_not_waited_for_is_heard(backend: Backend, few: int) -> None:
    """Although nobody rings: the read that waits for others ends."""
    runs = range(2, 8)
    node = contacted(backend, runs)
    inboxes = Inboxes(backend.by_hand(), node)
    inboxes.drain()
    for run_id in runs:
        assert inboxes.read(1, block=0.01) == []
        deliver(backend, node, range(run_id, run_id + 1))
        served(inboxes, range(run_id, run_id + 1))


def test_runs_come_and_go_where_there_are_many(backend: Backend, few: int) -> None:
    """Who ends makes room for others, and a run whose inbox is gone stops nobody."""
    keys, runs = backend.by_hand().keys, range(2, 22)
    node = contacted(backend, runs)
    inboxes = Inboxes(backend.by_hand(), node)
    inboxes.drain()
    for run_id in range(2, 19):
        backend.admin.unlink(keys.inbox(node, run_id))
    deliver(backend, node, range(19, 22))
    served(inboxes, range(19, 22))
    eventually(lambda: (inboxes.read(1, block=0.01), backend.admin.hlen(keys.node_runs(node)))[1] == 3)
    deliver(backend, node, range(19, 22))
    served(inboxes, range(19, 22))


def test_what_was_delivered_is_read_again_in_parts(backend: Backend, few: int) -> None:
    """Of each inbox more than one page."""
    runs = range(2, 22)
    node = contacted(backend, runs)
    deliver(backend, node, range(2, 12), 120)
    inboxes = Inboxes(backend.by_hand(), node)
    inboxes.drain()
    found = list[int]()
    eventually(lambda: (found.extend(each.run_id for each in inboxes.read(64, block=0.1)), len(found) >= 1200)[1])
    again = Inboxes(backend.by_hand(), node).drain()
    assert sorted(each.run_id for each in again) == sorted(found) == sorted([*range(2, 12)] * 120)


# What else may be much.


def test_a_push_of_many_groups(backend: Backend, longest: dict[str, int]) -> None:
    """And their end, one by one and together."""
    with driving(backend) as driver:
        node = silent(backend)
        messages = [driver.create_message(number(n), "train", node, str(n)) for n in range(1200)]
        driver.cancel_messages(driver.push_messages(messages))
        del messages
        driver.checkpoint()
    assert longest["RPUSH"] > MOST_ARGUMENTS - 20
    assert longest["HDEL"] > MOST_ARGUMENTS - 20


def test_many_replies_at_once(backend: Backend, longest: dict[str, int]) -> None:
    """What a node had finished before an outage goes in one transaction."""
    keys, node = backend.by_hand().keys, contacted(backend, range(2, 3))
    with backend.admin.pipeline(transaction=False) as pipe:
        for _ in range(1200):
            add_message(pipe, keys, node, 2, {b"i": b"m"})
        entries = [entry.decode() for entry in pipe.execute()]
    assert all(publish(backend.by_hand(), node, [Outgoing(2, (entry,), {b"i": b"m"}) for entry in entries]))
    assert backend.admin.xlen(keys.inbox(node, 2)) == 0
    assert longest["XACK"] > MOST_ARGUMENTS - 20


def test_many_rings_at_once(backend: Backend, longest: dict[str, int]) -> None:
    """A node empties its doorbell."""
    keys, node = backend.by_hand().keys, contacted(backend, range(2, 4))
    with backend.admin.pipeline(transaction=False) as pipe:
        for _ in range(1200):
            ring(pipe, keys, node, READ_ON)
        pipe.execute()
    inboxes = Inboxes(backend.by_hand(), node)
    inboxes.drain()
    eventually(lambda: (inboxes.read(0, block=0.01), backend.admin.xlen(keys.ctl(node)))[1] == 0)
    assert min(longest["XACK"], longest["XDEL"]) > MOST_ARGUMENTS - 20
    assert backend.admin.xpending(keys.ctl(node), GROUP)["pending"] == 0


def test_many_small_arrays(backend: Backend, longest: dict[str, int]) -> None:
    """In a message, in its reply, and in a state that is saved."""
    arrays = {str(n): Array(np.array([n])) for n in range(600)}
    content = RecordSet({"model": ParametersRecord(arrays)})
    with federation(backend, echo_app(), nodes=1) as nodes:
        driver = start(backend)
        node = nodes.nodes[0].node_id
        [reply] = driver.send_and_receive([driver.create_message(content, "train", node, "1")])
        assert reply.content == content
        driver.context.state["model"] = content["model"]
        driver.checkpoint()
        kill(driver)
        with resumed(backend, driver) as again:
            assert again.context.state == content


def test_many_contents_at_once(backend: Backend, longest: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run broadcast them, has to write their manifests again, and needs none of them any more."""
    monkeypatch.setattr(blobs, "_KEEP_MANIFEST", -1.0)
    connection, contents = backend.by_hand(), blobs.Blobs(backend.by_hand(), 7, 60.0)
    for n in range(1200):
        contents.enter(Payload(encode_content(number(n))))

    def run(put: Callable[[Any], None]) -> None:
        with connection.at(connection.keys.blobs(7)).redis.pipeline(transaction=True) as pipe:
            put(pipe)
            pipe.execute()

    run(contents.write_manifests_again)
    assert backend.admin.hlen(connection.keys.blobs(7)) == 1200
    contents.removed([*contents.contents])
    run(contents.remove_manifests)
    assert backend.admin.hlen(connection.keys.blobs(7)) == 0
    assert min(longest["HSET"], longest["HDEL"]) > MOST_ARGUMENTS - 20


def test_much_that_others_wrote(backend: Backend, longest: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of the registry that are no ids, and a hash that is too large to be read at once."""
    connection = backend.by_hand()
    keys = connection.keys
    with backend.admin.pipeline(transaction=False) as pipe:
        for n in range(3000):
            pipe.sadd(keys.nodes, f"x{n}")
            pipe.hset(keys.node_runs(7), f"{n}", bytes(50))
        pipe.pexpire(keys.node_runs(7), 60_000)
        pipe.execute()
    assert list_nodes(connection) == []
    assert backend.admin.scard(keys.nodes) == 0
    monkeypatch.setattr(fields, "_MOST_WHOLE", 60_000)
    assert len(fields.read_hash(connection, keys.node_runs(7), 100)) == 1200
    assert longest["HMGET"] > MOST_ARGUMENTS - 20
