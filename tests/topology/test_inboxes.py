"""A node on a Cluster: its inboxes are on all primaries, and are read when their runs have rung."""

from typing import Any

import pytest

from brokerfl.broker import inbox
from brokerfl.broker.contact import READ_ON, ring, ring_doorbell
from brokerfl.broker.inbox import Inboxes, add_message
from brokerfl.broker.keys import BELL_LENGTH
from brokerfl.broker.sockets import Sockets
from brokerfl.wire.frame import size_of
from tests.apps import eventually
from tests.conftest import Backend
from tests.stage import first_contact, silent

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The streams that were read, in order."""
    streams: list[str] = []
    stream = Sockets.stream

    def spy(sockets: Sockets, commands: Any, *most: Any) -> Any:
        reads = [command[command.index("STREAMS") + 1 :] for command in commands if command[0] == "XREADGROUP"]
        streams.extend(key for keys in reads for key in keys[: len(keys) // 2])
        return stream(sockets, commands, *most)

    monkeypatch.setattr(Sockets, "stream", spy)
    return streams


def met(backend: Backend, node: int, runs: range) -> Inboxes:
    """The inboxes of a node that knows these runs, and has heard all rings."""
    keys = backend.connect().keys
    with backend.admin.pipeline() as pipe:
        for run_id in runs:
            first_contact(pipe, keys, node, run_id)
        pipe.execute()
    inboxes = Inboxes(backend.connect(), node)
    inboxes.drain()
    assert inboxes.read(1, block=0.01) == []
    return inboxes


def test_one_read_hears_all_rings(spread: Backend) -> None:
    """Also if it takes one message of each run: otherwise the runs would wait for each other."""
    keys, node = spread.connect().keys, silent(spread)
    inboxes = met(spread, node, range(2, 42))
    assert spread.admin.xlen(keys.ctl(node)) == 0
    with spread.admin.pipeline() as pipe:
        for run_id in range(2, 42):
            add_message(pipe, keys, node, run_id, {b"i": b"m"})
            ring(pipe, keys, node, f"{READ_ON} {run_id}")
        pipe.execute()
    assert {each.run_id for each in inboxes.read(1, block=1.0)} == {*range(2, 42)}
    assert spread.admin.xlen(keys.ctl(node)) == 0


def test_a_contact_concerns_its_run(spread: Backend, read: list[str]) -> None:
    """A run that asks a node again, which owes a reply, does not have it read what others sent."""
    keys, node = spread.connect().keys, silent(spread)
    inboxes = met(spread, node, range(2, 42))
    ring_doorbell(spread.connect(), node, "7")
    read.clear()
    assert inboxes.read(1, block=1.0) == []
    assert {*read} == {keys.ctl(node), keys.inbox(node, 7)}
    ring_doorbell(spread.connect(), node, "")
    assert inboxes.read(1, block=1.0) == []
    assert {*read} == {keys.ctl(node), *(keys.inbox(node, run_id) for run_id in range(2, 42))}


def test_what_rang_before_a_reconnect_is_read_after_it(spread: Backend) -> None:
    """The ring was read, and the connection broke before the inbox was: nobody rings again soon."""
    keys, node = spread.connect().keys, silent(spread)
    inboxes = met(spread, node, range(2, 4))
    spread.admin.xadd(keys.inbox(node, 2), {"i": "m"})
    assert inboxes.drain() == []
    assert [each.run_id for each in inboxes.read(1, block=0.01)] == [2]


def test_a_ring_that_fell_out_of_a_full_doorbell_is_made_up_for(spread: Backend) -> None:
    """The node hears as many rings as a doorbell holds: whoever rang before is not among them, and is looked at."""
    keys, node = spread.connect().keys, silent(spread)
    inboxes = met(spread, node, range(2, 4))
    with spread.admin.pipeline() as pipe:
        add_message(pipe, keys, node, 2, {b"i": b"m"})
        for _ in range(3 * BELL_LENGTH):
            ring(pipe, keys, node, f"{READ_ON} 3")
        pipe.execute()
    assert [each.run_id for each in inboxes.read(1, block=1.0)] == [2]


def test_reading_many_inboxes_has_one_budget(spread: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each primary answers for its own, but what a node has in memory is bounded; the rest is read in parts."""
    keys, node = spread.connect().keys, silent(spread)
    inboxes = met(spread, node, range(2, 22))
    monkeypatch.setattr(inbox, "MOST_ANSWER", 100_000)
    with spread.admin.pipeline() as pipe:
        for run_id in range(2, 22):
            add_message(pipe, keys, node, run_id, {b"i": bytes(60_000)})
            ring(pipe, keys, node, f"{READ_ON} {run_id}")
        pipe.execute()
    sizes, found = [], []
    while batch := inboxes.read(1, block=0.01):
        sizes.append(sum(size_of(each.fields) for each in batch))
        found += [each.run_id for each in batch]
    assert {*found} == {*range(2, 22)}
    assert max(sizes) < 400_000


def test_a_run_that_expired_is_noticed(spread: Backend) -> None:
    """Nobody rings, and no read waits for its inbox: the node looks at its inboxes now and then."""
    keys, node = spread.connect().keys, silent(spread)
    inboxes = met(spread, node, range(2, 4))
    spread.admin.unlink(keys.inbox(node, 2))
    runs = keys.node_runs(node)
    eventually(lambda: inboxes.read(0, block=0.01) == [] and spread.admin.hkeys(runs) == [b"3"])
