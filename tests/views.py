"""Runs and nodes as a view shows them, made by hand, for tests of what is shown."""

from brokerfl.broker.capacity import ServerMemory
from brokerfl.broker.node_info import NodeInfo
from brokerfl.broker.seen import SeenServer
from brokerfl.common.text import short
from brokerfl.view.judge import NodeJudged, RunJudged
from brokerfl.view.overview import NodeRef, NodeView, Overview, RunView
from brokerfl.view.reasons import NodeState, Reason, RunState
from brokerfl.wire.run import Run
from brokerfl.wire.status import Awaited, Doing, NodeStatus, Phase, RunStatus

NOW = 1_800_000_000.0


def run_view(
    run_id: int, name: str = "", state: RunState = RunState.RUNNING, why: str = "", ended: float = 0
) -> RunView:
    """A run of which its ServerApp said something, or one that has ended."""
    if ended:
        return RunView(run_id, short(run_id), RunJudged(state), ended_at=ended)
    run = Run(run_id, "server:app", {"lr": 0.1, "big": True}, NOW - 100, name=name)
    awaited = (Awaited(7, NOW - 50),) if why else ()
    status = RunStatus(NOW - 1, Phase.REPLIES, NOW - 50, "21", 16, 15, 2, owing=len(awaited), awaited=awaited,
                       usually=3.0, rounds=(1.0, 2.0), bytes_in=2**20, bytes_out=2**26, memory=2**24)  # fmt: skip
    reason = Reason.NODE_LATE if why else Reason.NONE
    judged = RunJudged(state, reason, why, (7,) if why else ())
    refs = (NodeRef(7, "site-7"),) if why else ()
    return RunView(run_id, short(run_id), judged, refs, run, "process 5 on host", 3, 40, 39, status)


def node_view(node_id: int, name: str = "", state: NodeState = NodeState.READY) -> NodeView:
    """A node that has said something, and executes something if its state says so."""
    doing = Doing(1111222233334444, "m", "train", "21", NOW - 22) if state is NodeState.TRAINING else None
    status = NodeStatus(NOW - 1, NOW - 1, "host", 99, doing=(doing,) if doing else (), queue=4, done=9, errors=1,
                        error="ValueError", last=31.0, median=30.0, disk=2**30)  # fmt: skip
    info = NodeInfo(node_id, state is not NodeState.LOST, name, {"site": "b"}, "0.1", NOW - 1000, status=status)
    return NodeView(info, NodeJudged(state, doing, 22.0 if doing else 0.0), status, doing.run if doing else None)


def overview_of(runs: list[RunView], nodes: list[NodeView], used: int = 100 * 2**20) -> Overview:
    """Everything, on one server of 400 MiB."""
    server = SeenServer("Redis 7.0.15", ServerMemory("", used, 400 * 2**20, "noeviction"), 51, 450, "ok")
    return Overview(NOW, (server,), tuple(runs), tuple(nodes))
