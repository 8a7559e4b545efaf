"""Several servers: a Cluster of three primaries compared with one server, and the price of waiting for a replica.

Owns which servers these rows run on. How a Cluster is started is known to `tests.topology.fleets`.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import cpu, rivals
from benchmarks.federation import Federation, empty_round, model_round
from benchmarks.measure import Comparison, Plan, Round, compare
from benchmarks.models import MEGABYTE, WARM_UP
from benchmarks.stage import PREFIX, Stage
from brokerfl.broker.embedded import EmbeddedServer, find_server
from tests.topology.fleets import ClusterFleet, until

_NODES = 5

#: The servers' own default. The tests' fleets take a primary for dead that is silent for a second, as here a busy one
#: might be.
_CALM = ("--cluster-node-timeout", "15000")


@dataclass(frozen=True)
class Side:
    """Nodes of brokerfl, and where their keys are.

    Attributes:
        federation: the nodes.
        primaries: a bare client of each server that has keys.
        pids: the process ids of these servers.
    """

    federation: Federation
    primaries: list[Any]
    pids: list[int]


@contextmanager
def three_and_one(nodes: int) -> Iterator[tuple[Side, Side]]:
    """Give so many nodes on a Cluster of three primaries without replicas, and as many on one server."""
    with (
        ClusterFleet(find_server(), options=_CALM) as fleet,
        EmbeddedServer() as server,
        Federation(fleet.url, nodes, PREFIX) as three,
        Federation(server.url, nodes, PREFIX) as one,
    ):
        ports = fleet.primaries()
        cluster = Side(three, [fleet.client(port) for port in ports], [fleet.servers[port].pid for port in ports])
        yield cluster, Side(one, [rivals.connect(server.url)], [server.pid])


def compare_empty(stage: Stage, plan: Plan) -> Comparison:
    """Return empty rounds on the Cluster and on one server."""
    with three_and_one(_NODES) as sides, ExitStack() as stack:
        three, one = (empty_round(*stack.enter_context(side.federation.run())) for side in sides)
        found = compare(three, one, plan, warm_up=50)
        spent, spent_on_one = (_shares(*pair, plan) for pair in zip((three, one), sides, strict=True))
    return replace(found, note=f"CPU of a round: {spent}; on one server: {spent_on_one}")


def _shares(round_: Round, side: Side, plan: Plan) -> str:
    times = 100 if plan.quick else 1000
    return cpu.shares(round_, times, {"ServerApp": [os.getpid()], "nodes": side.federation.pids, "servers": side.pids})


def compare_model(stage: Stage, plan: Plan) -> Comparison:
    """Return rounds of 10 MB to each node and back, on the Cluster and on one server."""
    with three_and_one(_NODES) as sides, ExitStack() as stack:
        runs = [stack.enter_context(side.federation.run()) for side in sides]
        for driver, nodes in runs:
            model_round(driver, nodes, WARM_UP)()
        three, one = (model_round(driver, nodes, 10 * MEGABYTE) for driver, nodes in runs)
        return compare(three, one, plan, warm_up=0)


def compare_waiting(stage: Stage, plan: Plan) -> Comparison:
    """Return empty rounds of a run that waits for a replica, and of one that does not, over the same nodes."""
    with (
        EmbeddedServer(options=("--repl-diskless-sync-delay", "0")) as server,
        EmbeddedServer(options=("--replicaof", f"127.0.0.1 {server.port}")) as replica,
        Federation(server.url, _NODES, PREFIX) as federation,
    ):
        client = rivals.connect(replica.url)
        until(lambda: client.info("replication")["master_link_status"] == "up", "the replica is up")
        with federation.run(wait_replicas=1) as (waiting, nodes), federation.run() as (driver, _):
            round_, client = empty_round(waiting, nodes), rivals.connect(server.url)
            found = compare(round_, empty_round(driver, nodes), plan, warm_up=50)
            before, times = _waits(client), 20
            for _ in range(times):
                round_()
            waits = (_waits(client) - before) / times
    if not waits:
        raise RuntimeError("no transaction waited for the replica")
    return replace(found, note=f"{waits:.3g} WAIT a round")


def _waits(client: Any) -> int:
    return int(client.info("commandstats").get("cmdstat_wait", {"calls": 0})["calls"])
