"""The rows of the table: each a piece of work, what it is compared with, and how far it may be from that.

Owns the targets. It must not know how figures are shown.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks import cpu, memory, secured
from benchmarks.federation import (
    LIMIT,
    Federation,
    array_of,
    ask,
    check,
    empty_round,
    model_content,
    open_run,
    push,
    small_round,
)
from benchmarks.growth import compare_models
from benchmarks.measure import Comparison, Plan, Samples, compare, singles
from benchmarks.models import LARGE, MEGABYTE, WARM_UP, Floats, new_model
from benchmarks.processes import call
from benchmarks.servers import compare_empty, compare_model, compare_waiting
from benchmarks.stage import Stage
from benchmarks.two_runs import measure_two_runs
from benchmarks.view import measure_view
from brokerfl.server import Driver

BARE = "bare redis-py"


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: what ``--only`` takes.
        work: what is done.
        beside: what the figure is compared with.
        target: the greatest ratio that is ok; None where there is none.
        unit: of the figures: ``s`` or ``B``.
        measure: does it.
    """

    name: str
    work: str
    beside: str
    target: float | None
    unit: str
    measure: Callable[[Stage, Plan], Comparison]


def _empty(stage: Stage, plan: Plan) -> Comparison:
    bare = stage.bare.empty_round(5)
    with stage.federation.run() as (driver, nodes):
        return compare(empty_round(driver, nodes[:5]), bare, plan, warm_up=50)


def _small(stage: Stage, plan: Plan) -> Comparison:
    bare = stage.bare.small_round(10, 1000)
    with stage.federation.run() as (driver, nodes):
        ours = small_round(driver, nodes[:10], 1000)
        found = compare(ours, bare, plan)
        times, common = 10 if plan.quick else 30, {"server": [stage.server.pid]}
        spent = cpu.shares(ours, times, {"ServerApp": [os.getpid()], "nodes": stage.federation.pids, **common})
        bare_spent = cpu.shares(bare, times, {"collector": [os.getpid()], "nodes": stage.bare.pids, **common})
    return replace(found, note=f"CPU of a round: {spent}; of bare redis-py: {bare_spent}")


def _model(size: int) -> Callable[[Stage, Plan], Comparison]:
    return lambda stage, plan: compare_models(stage, plan, size)


def _kept_model(stage: Stage, plan: Plan) -> Comparison:
    with Stage(nodes=5, keeps_file=True) as keeping:
        return compare_models(keeping, plan, LARGE)


def _second(stage: Stage, plan: Plan) -> Comparison:
    with stage.federation.run() as (driver, nodes):
        _ask_twice(driver, nodes[:5], "warm-up", WARM_UP)
        pairs = [_ask_twice(driver, nodes[:5], str(turn), LARGE) for turn in range(plan.turns)]
    return Comparison(singles([second for _, second in pairs]), singles([first for first, _ in pairs]))


def _ask_twice(driver: Driver, nodes: Sequence[int], group: str, size: int) -> tuple[float, float]:
    """Return the seconds of two messages with the same model and small replies."""
    model = new_model(size)

    def once() -> float:
        started = time.perf_counter()
        for reply in driver.replies(push(driver, model_content(model), "evaluate", nodes, group)):
            check(reply)
        return time.perf_counter() - started

    return once(), once()


def _server_memory(stage: Stage, plan: Plan) -> Comparison:
    with stage.federation.run():
        pass  # all nodes are there
    url, prefix = stage.server.url, stage.federation.prefix
    return _models([call(fold_models, url, prefix, 5, LARGE) for _ in range(plan.turns)])


def fold_models(url: str, prefix: str, nodes: int, size: int) -> int:
    """Be a ServerApp: send a model, fold the replies; return the peak of memory above what was held before."""
    with open_run(url, prefix) as driver:
        chosen = driver.wait_for_nodes(nodes, timeout=LIMIT)[:nodes]
        _fold(driver, chosen, WARM_UP)  # whatever is made once
        before = memory.reset_peak()
        _fold(driver, chosen, size)
        return memory.peak() - before


def _fold(driver: Driver, nodes: Sequence[int], size: int) -> Floats:
    """Return the sum of what the nodes answer to a new model, which nobody holds here once it is sent."""
    ids = push(driver, model_content(new_model(size)), "train", nodes, f"fold {size}")
    total: Floats | None = None
    for reply in driver.replies(ids):
        array = array_of(reply)
        if total is None:
            total = array.copy()
        else:
            total += array
        driver.settle(reply)
        del reply, array  # or the next one arrives while this one is still here
    assert total is not None
    return total


def _node_memory(stage: Stage, plan: Plan) -> Comparison:
    with Federation(stage.server.url, plan.turns, "bench-memory") as federation, federation.run() as (driver, nodes):
        return _models([_node_peak(driver, node) - 2 * LARGE for node in nodes])


def _node_peak(driver: Driver, node: int) -> int:
    """Return the peak of a node's memory while it answers a model, above what it held before.

    It may still hold the warm-up and its answer, and release them meanwhile: they do not count as held before.
    """
    _fold(driver, [node], WARM_UP)
    before = ask(driver, "query.memory", node)["resident"] - 2 * WARM_UP
    _fold(driver, [node], LARGE)
    return int(ask(driver, "query.memory", node)["peak"] - before)


def _redis_memory(stage: Stage, plan: Plan) -> Comparison:
    # What Redis holds differs by a per mille from turn to turn.
    found = [_broadcast_memory(stage) for _ in range(1 if plan.quick else plan.turns)]
    keys = max(keys for _, keys in found)
    return _models([used for used, _ in found], f"the keys alone {keys / LARGE:.2f}")


def _broadcast_memory(stage: Stage) -> tuple[int, int]:
    """Return what used_memory grew by, and all keys, when a model has arrived at all nodes and none has answered."""
    gate = stage.federation.gate
    with stage.federation.run() as (driver, nodes):
        before = stage.used_memory()
        ids = push(driver, model_content(new_model(LARGE)), "evaluate.gated", nodes, "gated")
        try:
            for _ in nodes:
                _await_arrival(stage.federation, driver, ids)
            found = stage.used_memory() - before, stage.key_memory(stage.federation.prefix)
        finally:
            gate.opened.set()
        for reply in driver.replies(ids):
            check(reply)
        gate.opened.clear()
    return found


def _await_arrival(federation: Federation, driver: Driver, ids: Sequence[str]) -> None:
    until = time.monotonic() + LIMIT
    while not federation.gate.arrived.acquire(timeout=1):
        for reply in driver.pull_messages(ids):
            check(reply)
        if time.monotonic() > until:
            raise TimeoutError(f"the model did not reach all nodes in {LIMIT:g} s")


def _models(peaks: Sequence[int], note: str = "") -> Comparison:
    """Return bytes compared with the bytes of one model."""
    return Comparison(singles(peaks), Samples(((float(LARGE),),) * len(peaks)), note)


ROWS = {
    row.name: row
    for row in (
        Row("empty", "empty round, 5 nodes", BARE, 2.5, "s", _empty),
        Row("small", "1,000 small messages (100-float array) in one push, 10 nodes, echo", BARE, 3.0, "s", _small),
        Row("10mb", "10 MB to 5 nodes, 10 MB back from each", BARE, 1.3, "s", _model(10 * MEGABYTE)),
        Row("100mb", "100 MB to 5 nodes, 100 MB back from each", BARE, 1.2, "s", _model(LARGE)),
        Row("100mb-file", "the same, and the server keeps an append-only file", BARE, 1.2, "s", _kept_model),
        Row("second", "second message with the same 100 MB, small reply, 5 nodes", "the first", 0.15, "s", _second),
        Row(
            "server-memory", "memory added in a ServerApp that sends 100 MB and folds five replies",
            "one model", 2.25, "B", _server_memory,
        ),
        Row(
            "node-memory", "memory added in a node that answers 100 MB, model and reply",
            "one model", 0.25, "B", _node_memory,
        ),
        Row(
            "redis-memory", "memory added in Redis by a 100 MB broadcast to 20 nodes, before replies",
            "one model", 1.1, "B", _redis_memory,
        ),
        Row(
            "two-runs", "p95 of a tiny round, while another run moves 100 MB models over the same 5 nodes (2 workers)",
            "alone", 5.0, "s", measure_two_runs,
        ),
        Row(
            "empty-cluster", "empty round, 5 nodes, on a Cluster of three primaries",
            "one server", None, "s", compare_empty,
        ),
        Row(
            "10mb-cluster", "10 MB to 5 nodes, 10 MB back from each, on a Cluster of three primaries",
            "one server", None, "s", compare_model,
        ),
        Row(
            "empty-wait", "empty round, 5 nodes, with `--wait-replicas 1`, on a primary with one replica",
            "without it", None, "s", compare_waiting,
        ),
        *(
            Row(f"{name}-{option}", f"{work}, with `--{option}`", "without it", None, "s", measure(seals=seals))
            for option, seals in (("sign", False), ("seal", True))
            for name, work, measure in (
                ("empty", "empty round, 5 nodes", secured.compare_empty),
                ("10mb", "10 MB to 5 nodes, 10 MB back from each", secured.compare_model),
            )
        ),
        Row("view", "Redis' time for a look at 20 runs and 1,000 nodes", "1 ms", 1.0, "s", measure_view),
    )
}  # fmt: skip
