"""The judge: what a node's and a run's own words, and the moment they are read, say about their state.

Owns the rules, and the sentence that says why a run does not get on. It must not know Redis, or how anything is shown.

Durations are measured up to the moment at which the words were written: what was short then may be over by now.

A node is late when it has executed a message for `LATE_FACTOR` times its own median, or that of the other nodes if it
has none yet, and for `LATE_AFTER` seconds at least. Without any median nobody can say what is late.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from brokerfl.common.text import shown_node
from brokerfl.view.reasons import STANDING_STILL, NodeState, Reason, RunState
from brokerfl.view.words import lasting
from brokerfl.wire.status import Doing, NodeStatus, Phase, RunStatus

#: A node is late from so many medians on, and not before so many seconds.
LATE_FACTOR, LATE_AFTER = 3.0, 10.0

#: Seconds after which a node is stuck that executes what nobody waits for, or whose loop stands still.
STUCK_AFTER = 30.0

#: A node is slow if its median is so many times that of the others.
SLOW_FACTOR = 3.0

#: Seconds that a ServerApp may wait before its run counts as waiting: rounds that are faster get on.
WAITS_AFTER = 3.0

#: Nodes that a sentence names.
_NAMED = 3


@dataclass(frozen=True)
class NodeJudged:
    """What a node is.

    Attributes:
        state: its state.
        doing: what it has executed for the longest time; None for nothing.
        busy: seconds since that began.
        usually: seconds that it usually takes; 0 if unknown.
    """

    state: NodeState
    doing: Doing | None = None
    busy: float = 0.0
    usually: float = 0.0


def judge_node(is_online: bool, status: NodeStatus | None, now: float, others: Iterable[float] = ()) -> NodeJudged:
    """Return what a node is.

    Args:
        is_online: it holds its lease.
        status: what it last said.
        now: Unix time by Redis' clock, in seconds.
        others: the medians of the other nodes.
    """
    if not is_online:
        return NodeJudged(NodeState.LOST)
    if status is None:
        return NodeJudged(NodeState.READY)
    doing = min(status.doing, key=lambda each: each.since, default=None)
    busy = max(0.0, status.at - doing.since) if doing is not None else 0.0
    usually = status.median or median([each for each in others if each] or [0.0])
    state = _state_of(status, busy, usually)
    if doing is not None and state in (NodeState.LATE, NodeState.STUCK):
        busy = max(0.0, now - doing.since)
    return NodeJudged(state, doing, busy, usually)


def _state_of(status: NodeStatus, busy: float, usually: float) -> NodeState:
    over = [status.at - each.over_since for each in status.doing if each.over_since]
    # Compared with what it wrote: a Redis that was full or away took no status, and that says nothing of the loop.
    waits = bool(status.doing) or status.is_full
    stands_still = status.turned > 0 and status.at - status.turned > STUCK_AFTER and not waits
    if stands_still or any(seconds > STUCK_AFTER for seconds in over):
        return NodeState.STUCK
    if status.doing and usually and busy > max(LATE_AFTER, LATE_FACTOR * usually):
        return NodeState.LATE
    if status.is_paused:
        return NodeState.PAUSED
    return NodeState.TRAINING if status.doing else NodeState.READY


@dataclass(frozen=True)
class Seer:
    """A node as a run's judge knows it; ``withheld`` are the runs that wait at its gate."""

    node_id: int
    name: str
    judged: NodeJudged
    median: float = 0.0
    withheld: Collection[int] = ()


@dataclass(frozen=True)
class RunJudged:
    """What a run is, and why it does not get on.

    Attributes:
        state: its state.
        reason: why it stands still, or waits.
        why: the same in words; "" for none.
        nodes: the nodes that it waits for, those that hold it up first.
    """

    state: RunState
    reason: Reason = Reason.NONE
    why: str = ""
    nodes: tuple[int, ...] = ()


def judge_run(
    books: str,
    is_attached: bool,
    status: RunStatus | None,
    now: float,
    nodes: Mapping[int, Seer],
    full: str = "",
    run_id: int = 0,
) -> RunJudged:
    """Return what a run is, and why it does not get on.

    Args:
        books: the status in its books: ``running``, ``stopping`` or ``ending``.
        is_attached: a ServerApp holds its lease.
        status: what that last said.
        now: Unix time by Redis' clock, in seconds.
        nodes: what is known of nodes.
        full: how full Redis is, in words; "" if it has room.
        run_id: the run.
    """
    if books != "running":
        return RunJudged(RunState.STOPPING, Reason.STOPPING, "is being stopped" if books == "stopping" else "is ending")
    if not is_attached:
        return RunJudged(RunState.DETACHED, Reason.DETACHED, _detached(status, now), _owing(status))
    if full or (status is not None and status.is_full):
        return RunJudged(RunState.STUCK, Reason.REDIS_FULL, full or "Redis is full", _owing(status))
    if status is None:
        return RunJudged(RunState.RUNNING)
    found = waiting(status, now, nodes, run_id)
    waits = found.reason is not Reason.NONE
    if status.is_draining:
        state = RunState.DRAINING
    else:
        state = RunState.STUCK if found.reason in STANDING_STILL else RunState.WAITING if waits else RunState.RUNNING
    return RunJudged(state, found.reason, found.why, found.nodes)


def _detached(status: RunStatus | None, now: float) -> str:
    if status is None or not status.at:
        return "has no ServerApp"
    return f"has had no ServerApp for {lasting(now - status.at)}"


def _owing(status: RunStatus | None) -> tuple[int, ...]:
    return () if status is None else tuple(each.node for each in status.awaited)


@dataclass(frozen=True)
class Waiting:
    """What a run waits for: `Reason.NONE` for nothing, or not for long."""

    reason: Reason = Reason.NONE
    why: str = ""
    nodes: tuple[int, ...] = ()


def waiting(status: RunStatus, now: float, nodes: Mapping[int, Seer], run_id: int = 0) -> Waiting:
    """Return what a run waits for, by what its ServerApp and the nodes say."""
    if status.phase == Phase.NODES:
        return Waiting(Reason.WAITING_NODES, f"waiting for nodes: {status.online} of {status.needed} online")
    owing = [nodes.get(each.node) or Seer(each.node, "", NodeJudged(NodeState.READY)) for each in status.awaited]
    if not owing:
        return Waiting()
    oldest = min((each.since for each in status.awaited if each.since), default=status.at)
    is_long = status.at - oldest > max(WAITS_AFTER, status.usually)
    for reason, sentences in (
        (Reason.NODE_STUCK, {node.node_id: _stuck(node) for node in owing}),
        (Reason.AWAITS_APPROVAL, {node.node_id: _withheld(node, run_id) for node in owing}),
        (Reason.NODE_LATE, {node.node_id: _late(node) for node in owing}),
        (Reason.NODE_LATE, {node.node_id: _slow(node, nodes) for node in owing if is_long}),
    ):
        if held_up := [node_id for node_id, sentence in sentences.items() if sentence]:
            return Waiting(reason, _joined([sentences[each] for each in held_up]), _first(held_up, owing))
    return awaiting(status, now, nodes) if is_long else Waiting()


def awaiting(status: RunStatus, now: float, nodes: Mapping[int, Seer]) -> Waiting:
    """Return for whose replies a run waits, none of whom is known to hold it up; see `waiting`."""
    longest = now - min((each.since for each in status.awaited if each.since), default=now)
    usually = f", usually {lasting(status.usually)}" if status.usually else ""
    owing = [(each.node, nodes[each.node].name if each.node in nodes else "") for each in status.awaited]
    named = _joined([shown_node(*node) for node in owing], status.owing)
    why = f"waiting for {named} ({lasting(longest)}{usually})"
    return Waiting(Reason.WAITING_REPLY, why, tuple(node for node, _ in owing))


def _stuck(node: Seer) -> str:
    """Return why a node will not answer; "" if it may."""
    who, judged = shown_node(node.node_id, node.name), node.judged
    if judged.state is NodeState.LOST:
        return f"{who} is offline"
    if judged.state is NodeState.PAUSED and judged.doing is None:
        return f"{who} is paused"
    if judged.state is not NodeState.STUCK:
        return ""
    return f"{who} stuck for {lasting(judged.busy)}" if judged.doing is not None else f"{who} stuck"


def _withheld(node: Seer, run_id: int) -> str:
    """Return that the site of a node has not let the run in; "" if it has."""
    return f"{shown_node(node.node_id, node.name)} has not approved it" if run_id in node.withheld else ""


def _late(node: Seer) -> str:
    judged = node.judged
    if judged.state is not NodeState.LATE:
        return ""
    return f"{shown_node(node.node_id, node.name)} busy {lasting(judged.busy)}, usually {lasting(judged.usually)}"


def _slow(node: Seer, nodes: Mapping[int, Seer]) -> str:
    """Return how much slower than the others a node is that takes as long as it always does."""
    others = [each.median for each in nodes.values() if each.median and each.node_id != node.node_id]
    if node.judged.doing is None or not others or node.median < SLOW_FACTOR * median(others):
        return ""
    return f"{shown_node(node.node_id, node.name)} {node.median / median(others):.0f} times slower than the others"


def _joined(sentences: Sequence[str], count: int = 0) -> str:
    """Return the first sentences, and how many of ``count`` are left."""
    rest = max(count, len(sentences)) - _NAMED
    return ", ".join(sentences[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _first(held_up: Collection[int], owing: Sequence[Seer]) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*held_up, *(node.node_id for node in owing))))
