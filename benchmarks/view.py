"""The view: what it costs Redis to be looked at, by `brokerfl runs`, `nodes` or `top`.

Owns the runs and nodes that are looked at. It must not know what is shown of them.
"""

import statistics
import time
from collections.abc import Sequence

from benchmarks.measure import Comparison, Plan, Samples, singles
from benchmarks.stage import Stage
from brokerfl.broker.connection import Connection, connect
from brokerfl.broker.node_info import STATUS
from brokerfl.broker.runs import forget_registry
from brokerfl.server import Driver
from brokerfl.view.overview import read_overview
from brokerfl.wire.status import About, Awaited, Doing, NodeStatus, Phase, RunStatus, encode_status

RUNS, NODES = 20, 1000

#: Seconds of Redis that a look may take.
_ALLOWED = 0.001

#: Milliseconds that leases last: longer than the measurement.
_LEASE = 3600_000

_PREFIX = "bench-view"


def measure_view(stage: Stage, plan: Plan) -> Comparison:
    """Return the seconds of Redis for a look at 20 runs and 1,000 nodes, compared with what it may take."""
    connection = connect(stage.server.url, prefix=_PREFIX)
    drivers = [Driver(connection, "server:app", {"lr": 0.1, "rounds": run}) for run in range(RUNS)]
    for driver in drivers:
        driver.detach()  # a heartbeat would count too
    nodes = range(10**18, 10**18 + NODES)
    _tell(stage, connection, [driver.run.run_id for driver in drivers], nodes)
    read_overview(connection)
    times = 3 if plan.quick else 20
    found = [statistics.median(_look(stage, connection) for _ in range(times)) for _ in range(plan.turns)]
    started = time.perf_counter()
    read_overview(connection)
    took = time.perf_counter() - started
    for key in stage.client.scan_iter(match=f"{_PREFIX}:*", count=1000):
        stage.client.unlink(key)
    forget_registry(connection)
    reference = Samples(((_ALLOWED,),) * len(found))
    return Comparison(singles(found), reference, f"two round trips; {took * 1e3:.0f} ms for the whole look")


def _look(stage: Stage, connection: Connection) -> float:
    """Return the seconds that Redis spent on the commands of one look."""
    stage.client.config_resetstat()
    found = read_overview(connection)
    spent = stage.client.info("commandstats")
    if (len(found.runs), len(found.nodes)) != (RUNS, NODES):
        raise RuntimeError(f"{len(found.runs)} runs and {len(found.nodes)} nodes were seen")
    return sum(each["usec"] for name, each in spent.items() if not name.startswith("cmdstat_config")) / 1e6


def _tell(stage: Stage, connection: Connection, runs: Sequence[int], nodes: Sequence[int]) -> None:
    """Write what ServerApps and nodes say of themselves, all of them at work."""
    keys, now = connection.keys, connection.read_time()
    with stage.client.pipeline(transaction=False) as pipe:
        for node in nodes:
            doing = (Doing(runs[node % len(runs)], "0" * 32, "train", "21", now - 3),)
            about = {"name": f"site-{node}", "labels": '{"site": "berlin"}', "version": "0.1.0", "since": repr(now)}
            about["app"] = '["client:app", "project", "1.0", "0123456789abcdef"]'
            status = NodeStatus(
                now,
                now,
                "host",
                1234,
                doing=doing,
                queue=2,
                done=20,
                last=3.1,
                median=3.0,
                disk=10**10,
                about=About(**about),
            )
            pipe.hset(keys.node_info(node), mapping={**about, STATUS: encode_status(status)})
            pipe.set(keys.node_lease(node), "host/1/1/x/", px=_LEASE)
            pipe.sadd(keys.nodes, str(node))
        for run in runs:
            awaited = tuple(Awaited(node, now - 3) for node in nodes[:8])
            said = RunStatus(now, Phase.REPLIES, now - 3, "21", 1000, 900, owing=100, awaited=awaited, usually=3.0)
            pipe.set(keys.run_status(run), encode_status(said), px=_LEASE)
            pipe.set(keys.run_lease(run), "1:host/1/1/x/", px=_LEASE)
        pipe.execute()
