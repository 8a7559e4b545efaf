"""Load spreads: what runs cost is shared by the primaries, and so are the chunks of one broadcast."""

from collections import Counter
from contextlib import ExitStack
from itertools import count

import pytest

from brokerfl.broker import owner
from brokerfl.broker.memory import memory_of_runs
from brokerfl.wire import manifest, payload
from tests.apps import driving, federation, number, number_in
from tests.conftest import Backend
from tests.stage import CHUNK, INLINE, chunks_in, layer, model, to_all
from tests.topology.fleets import ClusterFleet

pytestmark = pytest.mark.timeout(120)

#: Each of three primaries does at least this part.
SHARE = 0.15

#: The message path, as servers count it.
MESSAGES = ("xadd", "xdel", "xread", "xreadgroup", "exec")


@pytest.fixture(autouse=True)
def same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs have the same ids each time: eight random ones leave a primary out now and then."""
    ids = count(2)
    monkeypatch.setattr(owner, "new_id", lambda: next(ids))


def called(cluster: ClusterFleet, *names: str) -> "Counter[int]":
    """How many of these commands each primary was given."""
    found: Counter[int] = Counter()
    for port in cluster.primaries():
        stats = cluster.client(port).info("commandstats")
        found[port] = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)
    return found


def is_shared(counts: "Counter[int]") -> bool:
    """Whether all three primaries have a part."""
    return len(counts) == 3 and min(counts.values()) >= SHARE * counts.total()


def test_eight_runs_use_all_primaries(spread: Backend, cluster: ClusterFleet) -> None:
    """Each run is on one of them."""
    with federation(spread, nodes=3) as nodes, ExitStack() as stack:
        drivers = [stack.enter_context(driving(spread)) for _ in range(8)]
        before = called(cluster, *MESSAGES)
        for turn in range(5):
            for driver in drivers:
                replies = to_all(driver, [node.node_id for node in nodes.nodes], number(turn), str(turn))
                assert [number_in(reply) for reply in replies] == [turn] * 3
        spent = called(cluster, *MESSAGES)
        spent.subtract(before)
        assert is_shared(spent), spent


def test_the_chunks_of_a_broadcast_are_on_all_primaries(
    spread: Backend, cluster: ClusterFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a large model does not fill one of them, and is read from all."""
    monkeypatch.setattr(payload, "INLINE", INLINE)
    monkeypatch.setattr(manifest, "CHUNK", CHUNK)
    with federation(spread, nodes=3) as nodes, driving(spread) as driver:
        before, kept = called(cluster, "get"), called(cluster, "set")
        replies = to_all(driver, [node.node_id for node in nodes.nodes], model(layer(1, 100 * CHUNK)))
        assert not any(reply.has_error() for reply in replies)
        assert len(chunks_in(spread)) >= 100
        held = memory_of_runs(spread.connect(), [driver.run.run_id])[driver.run.run_id]
        assert 100 * CHUNK <= held.contents <= 110 * CHUNK
        blobs = Counter({port: len(list(cluster.client(port).scan_iter("*:blob:*"))) for port in cluster.primaries()})
        read, written = called(cluster, "get"), called(cluster, "set")
        read.subtract(before)
        written.subtract(kept)
        assert read.total() >= 300
        assert is_shared(blobs), blobs
        assert is_shared(read), read
        assert is_shared(written), written
