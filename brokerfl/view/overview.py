"""The overview: all runs and nodes with their states and reasons, as every view shows them.

Owns how what is seen becomes what is shown. It must not know Redis commands, tables or pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

from brokerfl.broker.connection import Connection
from brokerfl.broker.node_info import NodeInfo
from brokerfl.broker.seen import EndedRun, Seen, SeenRun, SeenServer, look
from brokerfl.common import UserConfig
from brokerfl.common.text import shown_node, sized
from brokerfl.view.judge import NodeJudged, RunJudged, Seer, judge_node, judge_run
from brokerfl.view.reasons import OVER, NodeState, Reason, RunState
from brokerfl.view.words import short_among
from brokerfl.wire.run import Run
from brokerfl.wire.status import NodeStatus, RunStatus


class NodeRef(NamedTuple):
    """A node that something is said of."""

    node_id: int
    name: str

    def __str__(self) -> str:
        return shown_node(*self)


@dataclass(frozen=True)
class NodeView:
    """A node. Times are Unix time by Redis' clock, durations seconds.

    Attributes:
        info: what the registry says: id, name, labels, version, app.
        judged: its state, and what it has been doing for how long.
        status: what it last said; the defaults if it said nothing.
        serves: the run that it is executing a message of; None for none.
    """

    info: NodeInfo
    judged: NodeJudged
    status: NodeStatus
    serves: int | None

    @property
    def ref(self) -> NodeRef:
        """Its id and name."""
        return NodeRef(self.info.node_id, self.info.name)

    @property
    def state(self) -> NodeState:
        """Its state."""
        return self.judged.state


_NOTHING_SAID = RunStatus()


@dataclass(frozen=True)
class RunView:
    """A run. Of one that has ended, what remains of it is known; if nothing does, only its id, state and end.

    Attributes:
        run_id: its id.
        short: as much of it as tells it from the other runs.
        judged: its state, reason, and why in words.
        waiting_for: the nodes that it waits for, those that hold it up first.
        run: its app, name, config and creation; None if it has ended and nothing remains of it.
        holder: which process holds it; "" for none.
        nodes: how many nodes it has contacted.
        messages: how many messages it has pushed.
        replies: how many replies are settled.
        status: what its ServerApp last said; the defaults if it said nothing. Of a run that has ended: its errors.
        ended_at: Unix time of its end; 0 if it has not ended.
        metrics: of a run that has ended, the last value of each number.
    """

    run_id: int
    short: str
    judged: RunJudged
    waiting_for: tuple[NodeRef, ...] = ()
    run: Run | None = None
    holder: str = ""
    nodes: int = 0
    messages: int = 0
    replies: int = 0
    status: RunStatus = _NOTHING_SAID
    ended_at: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def state(self) -> RunState:
        """Its state."""
        return self.judged.state

    @property
    def reason(self) -> Reason:
        """Why it does not get on."""
        return self.judged.reason

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in OVER

    @property
    def config(self) -> UserConfig:
        """What tells it from other runs of its app: the values that override defaults of the project."""
        if self.run is None:
            return {}
        given = self.run.overrides
        return {key: value for key, value in self.run.run_config.items() if given is None or key in given}


@dataclass(frozen=True)
class Overview:
    """Everything, at one moment. ``at`` is Unix time by Redis' clock; runs are the newest first, nodes by name."""

    at: float
    servers: tuple[SeenServer, ...]
    runs: tuple[RunView, ...]
    nodes: tuple[NodeView, ...]

    @property
    def full(self) -> str:
        """How full Redis is, in words; "" if it has room."""
        return fullness(self.servers)


def read_overview(connection: Connection) -> Overview:
    """Return the overview: two round trips, whatever the number of runs and nodes.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    return overview_of(look(connection))


def overview_of(seen: Seen) -> Overview:
    """Return what is to be shown of what was seen."""
    medians = [node.status.median for node in seen.nodes if node.status is not None and node.status.median]
    usually = median(medians or [0.0])
    nodes = tuple(_node(node, seen.at, usually) for node in seen.nodes)
    seers = {
        node.info.node_id: Seer(*node.ref, node.judged, node.status.median, node.status.withheld_runs) for node in nodes
    }
    ids = [each.summary.run.run_id for each in seen.runs] + [each.run_id for each in seen.ended]
    full = fullness(seen.servers)
    runs = [_run(each, ids, seen.at, seers, full) for each in seen.runs]
    ended = [_ended(each, ids) for each in seen.ended]
    newest = sorted(runs, key=lambda view: -(view.run.created_at if view.run else 0.0))
    return Overview(seen.at, seen.servers, (*newest, *ended), nodes)


def _node(info: NodeInfo, now: float, usually: float) -> NodeView:
    status, judged = info.status or NodeStatus(), judge_node(info.online, info.status, now, [usually])
    return NodeView(info, judged, status, judged.doing.run if judged.doing else None)


def _run(seen: SeenRun, ids: Sequence[int], now: float, seers: dict[int, Seer], full: str) -> RunView:
    summary, run_id = seen.summary, seen.summary.run.run_id
    judged = judge_run(summary.status, bool(seen.holder), seen.status, now, seers, full, run_id)
    waiting_for = tuple(NodeRef(each, seers[each].name if each in seers else "") for each in judged.nodes)
    return RunView(
        run_id,
        short_among(run_id, ids),
        judged,
        waiting_for,
        summary.run,
        seen.holder,
        summary.nodes,
        summary.messages,
        summary.replies,
        seen.status or _NOTHING_SAID,
    )


def _ended(ended: EndedRun, ids: Sequence[int]) -> RunView:
    state = RunState.STOPPED if ended.was_stopped else RunState.COMPLETED
    view = RunView(ended.run_id, short_among(ended.run_id, ids), RunJudged(state), ended_at=ended.ended_at)
    past = ended.past
    if past is None:
        return view
    return replace(
        view,
        run=past.run,
        nodes=past.nodes,
        messages=past.messages,
        replies=past.replies,
        status=RunStatus(errors=past.errors),
        metrics=past.metrics,
    )


def fullness(servers: Sequence[SeenServer]) -> str:
    """Return how full Redis is, in words; "" if it has room."""
    full = [server.memory for server in servers if server.memory.is_full]
    if not full:
        return ""
    which = "Redis is full" if len(servers) == 1 else f"{len(full)} of {len(servers)} Redis servers are full"
    return f"{which}: {sized(full[0].used)} of {sized(full[0].most)}"
