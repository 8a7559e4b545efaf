"""The metrics: their names, labels and values, as docs/monitoring describes them.

Owns how an overview becomes metrics. It must not know how it was read. A run that has ended has no metrics, so that
their number does not grow with time; states and reasons are the closed lists of view/reasons.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from threading import Thread
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from brokerfl.broker.seen import SeenServer
from brokerfl.cli.serving import taking
from brokerfl.common.text import shown
from brokerfl.view.overview import NodeView, Overview, RunView
from brokerfl.view.reasons import OVER, NodeState, Reason, RunState
from brokerfl.view.watch import Watch
from brokerfl.wire.status import Phase

#: Characters of a name that are exported.
_LONGEST = 100

_RUN_STATES = [state for state in RunState if state not in OVER]

#: Without those that are never seen from here.
_REASONS = [reason for reason in Reason if reason not in (Reason.NONE, Reason.REDIS_AWAY)]

Viewed = TypeVar("Viewed", RunView, NodeView, SeenServer)
Family = GaugeMetricFamily | CounterMetricFamily


class _Value(NamedTuple, Generic[Viewed]):
    """A metric: its name, what it means, and its value of what is viewed at a time; None if it is not known."""

    name: str
    text: str
    value: Callable[[Viewed, float], float | None]


_OF_RUNS: tuple[_Value[RunView], ...] = (
    _Value("messages_total", "Messages that were pushed.", lambda run, _: run.messages),
    _Value("replies_total", "Replies that are settled.", lambda run, _: run.replies),
    _Value("errors_total", "Replies that were Errors.", lambda run, _: run.status.errors),
    _Value("sent_bytes_total", "What was pushed.", lambda run, _: run.status.bytes_out),
    _Value("received_bytes_total", "What the replies had.", lambda run, _: run.status.bytes_in),
    _Value("group_messages", "Messages of the latest group.", lambda run, _: run.status.sent),
    _Value("group_answered", "Messages of the latest group that are answered.", lambda run, _: run.status.answered),
    _Value("owing_nodes", "Nodes that owe a reply.", lambda run, _: run.status.owing),
    _Value(
        "waiting_seconds", "For how long it has waited for nodes, or for a reply.", lambda run, now: _wait(run, now)
    ),
    _Value("age_seconds", "Since it was started.", lambda run, now: _since(run.run.created_at if run.run else 0, now)),
    _Value("told_age_seconds", "Since its ServerApp last said something.", lambda run, now: _since(run.status.at, now)),
    _Value("memory_bytes", "What it has in Redis.", lambda run, _: run.status.memory),
)

_OF_NODES: tuple[_Value[NodeView], ...] = (
    _Value("busy_seconds", "For how long it has executed its oldest message.", lambda node, _: node.judged.busy),
    _Value("queue_messages", "Messages received and not begun.", lambda node, _: node.status.queue),
    _Value("executions_total", "Messages executed since it started.", lambda node, _: node.status.done),
    _Value("errors_total", "Exceptions of the ClientApp since it started.", lambda node, _: node.status.errors),
    _Value("last_execution_seconds", "How long the last one took.", lambda node, _: node.status.last or None),
    _Value("median_execution_seconds", "The median of the last ones.", lambda node, _: node.status.median or None),
    _Value("seen_age_seconds", "Since it last said something.", lambda node, now: _since(node.status.at, now)),
    _Value("disk_free_bytes", "Free where its journal is.", lambda node, _: node.status.disk or None),
)

_OF_SERVERS: tuple[_Value[SeenServer], ...] = (
    _Value("used_bytes", "What its data take.", lambda server, _: server.memory.used or None),
    _Value(
        "max_bytes", "Its maxmemory; 0 for no limit.", lambda server, _: server.memory.most if server.product else None
    ),
    _Value("full", "Whether it has no room.", lambda server, _: server.memory.is_full),
    _Value("clients", "Connected clients.", lambda server, _: server.clients or None),
    _Value(
        "operations_per_second",
        "Commands executed in the last second.",
        lambda server, _: server.operations if server.product else None,
    ),
)


@contextmanager
def serving(watch: Watch, host: str, port: int) -> Iterator[tuple[int, Thread]]:
    """Serve the metrics in a thread during the block; yield its port and the thread.

    Raises:
        PortInUse, ConfigError: as `taking`.
    """
    registry = CollectorRegistry()
    registry.register(WatchCollector(watch))
    with taking(host, port):
        server, thread = start_http_server(port, host, registry)
    try:
        yield server.server_port, thread
    finally:
        server.shutdown()
        server.server_close()


class WatchCollector(Collector):
    """Looks at each scrape."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics. While Redis is away, only that."""
        sight = self._watch.look()
        yield GaugeMetricFamily("brokerfl_up", "Whether Redis answers.", not sight.is_away)
        yield GaugeMetricFamily("brokerfl_redis_away", "Whether Redis does not answer.", sight.is_away)
        if sight.overview is not None and not sight.is_away:
            yield from _families(sight.overview)


def _families(seen: Overview) -> Iterator[Metric]:
    runs = [run for run in seen.runs if not run.is_over]
    yield _count("brokerfl_runs", "Runs that have not ended.", _RUN_STATES, [run.state for run in runs])
    yield _count("brokerfl_nodes", "Nodes.", list(NodeState), [node.state for node in seen.nodes])
    named = [(_names(run.run_id, run.run.name if run.run else "", run.run.app if run.run else ""), run) for run in runs]
    labels = ("run", "name", "app")
    states = [(names, run.state) for names, run in named]
    yield _one_hot("brokerfl_run_state", "Whether it is in this state.", labels, "state", _RUN_STATES, states)
    reasons = [(names, run.reason) for names, run in named]
    yield _one_hot("brokerfl_run_reason", "Why it does not get on.", labels, "reason", _REASONS, reasons)
    yield from _values("brokerfl_run_", _OF_RUNS, labels, named, seen.at)
    nodes = [(_names(node.info.node_id, node.info.name), node) for node in seen.nodes]
    labels_of_nodes = ("node", "name")
    in_states = [(names, node.state) for names, node in nodes]
    yield _one_hot(
        "brokerfl_node_state", "Whether it is in this state.", labels_of_nodes, "state", list(NodeState), in_states
    )
    yield from _values("brokerfl_node_", _OF_NODES, labels_of_nodes, nodes, seen.at)
    servers = [((str(number),), server) for number, server in enumerate(seen.servers, 1)]
    yield from _values("brokerfl_redis_", _OF_SERVERS, ("server",), servers, seen.at)


def _count(name: str, text: str, states: Sequence[StrEnum], found: Sequence[StrEnum]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state.value], found.count(state))
    return family


def _one_hot(
    name: str,
    text: str,
    labels: Sequence[str],
    label: str,
    values: Sequence[StrEnum],
    found: Sequence[tuple[Sequence[str], StrEnum]],
) -> Metric:
    """Return a metric that is 1 for the value that is the case, and 0 for all others."""
    family = GaugeMetricFamily(name, text, labels=[*labels, label])
    for names, one in found:
        for value in values:
            family.add_metric([*names, value.value], value is one)
    return family


def _values(
    prefix: str,
    metrics: Sequence[_Value[Viewed]],
    labels: Sequence[str],
    viewed: Sequence[tuple[Sequence[str], Viewed]],
    now: float,
) -> Iterator[Metric]:
    for metric in metrics:
        kind = CounterMetricFamily if metric.name.endswith("_total") else GaugeMetricFamily
        family: Family = kind(prefix + metric.name, metric.text, labels=labels)
        for names, each in viewed:
            value = metric.value(each, now)
            if value is not None:
                family.add_metric(names, value)
        yield family


def _names(number: int, *names: str) -> tuple[str, ...]:
    return (str(number), *(shown(name)[:_LONGEST] for name in names))


def _since(at: float, now: float) -> float | None:
    return max(0.0, now - at) if at else None


def _wait(run: RunView, now: float) -> float:
    """Return for how long a run has waited; 0 if it does not."""
    status = run.status
    if status.phase == Phase.NODES:
        return max(0.0, now - status.since) if status.since else 0.0
    return max(0.0, now - min((each.since for each in status.awaited if each.since), default=now))
