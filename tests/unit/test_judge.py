"""The judge: each state and each reason, and which of several is said."""

from dataclasses import replace

import pytest

from brokerfl.common.text import shown_node, sized
from brokerfl.view.judge import (
    LATE_AFTER,
    STUCK_AFTER,
    NodeJudged,
    RunJudged,
    Seer,
    judge_node,
    judge_run,
)
from brokerfl.view.reasons import NodeState, Reason, RunState
from brokerfl.view.words import lasting, short_among
from brokerfl.wire.status import Awaited, Doing, NodeStatus, Phase, RunStatus

NOW = 1_000_000.0

READY = NodeStatus(at=NOW, turned=NOW, median=3.0)


def busy(seconds: float, **more: float) -> NodeStatus:
    """What a node says that has executed a message for so long."""
    return replace(READY, doing=(Doing(5, "m", "train", "1", NOW - seconds, **more),))


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (READY, NodeState.READY),
        (None, NodeState.READY),
        (busy(5), NodeState.TRAINING),
        (busy(LATE_AFTER), NodeState.TRAINING),
        (busy(LATE_AFTER + 1), NodeState.LATE),
        (replace(busy(LATE_AFTER + 1), median=4.0), NodeState.TRAINING),
        (replace(busy(13), median=4.0), NodeState.LATE),
        (replace(READY, is_paused=True), NodeState.PAUSED),
        (replace(busy(5), is_paused=True), NodeState.PAUSED),
        (replace(busy(60), is_paused=True), NodeState.LATE),
        (busy(5, over_since=NOW - STUCK_AFTER + 1), NodeState.TRAINING),
        (busy(5, over_since=NOW - STUCK_AFTER - 1), NodeState.STUCK),
        (replace(busy(500), at=NOW - 498), NodeState.TRAINING),  # it may have ended since it said so
        (replace(READY, turned=NOW - 2 - STUCK_AFTER), NodeState.STUCK),
        (replace(READY, turned=NOW - 2 - STUCK_AFTER, is_full=True), NodeState.READY),  # its loop waits for room
        (replace(READY, at=NOW - 500, turned=NOW - 500), NodeState.READY),  # Redis was full, and took no status
    ],
)
def test_a_node(status: NodeStatus | None, state: NodeState) -> None:
    """What it is by its own words; without its lease it is lost, whatever it said."""
    assert judge_node(True, status, NOW).state is state
    assert judge_node(False, status, NOW).state is NodeState.LOST


def test_a_node_without_a_median_is_compared_with_the_others() -> None:
    """And where none has one, nobody can say that it is late."""
    status = replace(busy(60), median=0.0)
    assert judge_node(True, status, NOW).state is NodeState.TRAINING
    assert judge_node(True, status, NOW, [0.0, 3.0, 5.0]).state is NodeState.LATE
    assert judge_node(True, status, NOW, [30.0]).state is NodeState.TRAINING


def test_the_oldest_of_several_messages_counts() -> None:
    """A node with workers is as late as what it has executed for the longest time."""
    status = replace(READY, doing=(Doing(5, since=NOW - 1), Doing(6, since=NOW - 60)))
    judged = judge_node(True, status, NOW)
    assert judged.doing is not None
    assert (judged.state, judged.doing.run, judged.busy) == (NodeState.LATE, 6, 60.0)


# Runs.


def seer(node_id: int, state: NodeState, busy_for: float = 0.0, usual: float = 3.0) -> Seer:
    """A node that is called after its id."""
    doing = Doing(5, since=NOW - busy_for) if busy_for else None
    return Seer(node_id, f"site-{node_id}", NodeJudged(state, doing, busy_for, usual), usual)


NODES = {
    each.node_id: each
    for each in (
        seer(1, NodeState.READY),
        seer(2, NodeState.LATE, 708.0),
        seer(3, NodeState.STUCK, 90.0),
        seer(4, NodeState.LOST),
        seer(5, NodeState.TRAINING, 22.0, 30.0),
        seer(6, NodeState.TRAINING, 2.0),
        seer(9, NodeState.PAUSED),
        seer(10, NodeState.PAUSED, 2.0),
    )
}


def awaiting(*nodes: int, seconds: float = 60.0) -> RunStatus:
    """What a ServerApp says that has waited for these nodes for so long."""
    owed = tuple(Awaited(node, NOW - seconds) for node in nodes)
    return RunStatus(NOW, Phase.REPLIES, NOW - seconds, "3", 16, 15, owing=len(nodes), awaited=owed, usually=4.0)


@pytest.mark.parametrize(
    ("status", "state", "reason", "why", "nodes"),
    [
        (None, RunState.RUNNING, Reason.NONE, "", ()),
        (RunStatus(NOW, Phase.APP), RunState.RUNNING, Reason.NONE, "", ()),
        (
            RunStatus(NOW, Phase.NODES, needed=30, online=16),
            RunState.WAITING,
            Reason.WAITING_NODES,
            "waiting for nodes: 16 of 30 online",
            (),
        ),
        (awaiting(1, seconds=3.5), RunState.RUNNING, Reason.NONE, "", ()),
        (replace(awaiting(1), at=NOW - 59), RunState.RUNNING, Reason.NONE, "", ()),  # it was short when it was said
        (awaiting(1), RunState.WAITING, Reason.WAITING_REPLY, "waiting for site-1 (1) (1m00s, usually 4s)", (1,)),
        (
            awaiting(7, seconds=20),
            RunState.WAITING,
            Reason.WAITING_REPLY,
            "waiting for node 7 (20s, usually 4s)",
            (7,),
        ),
        (
            awaiting(1, 2, seconds=1),
            RunState.STUCK,
            Reason.NODE_LATE,
            "site-2 (2) busy 11m48s, usually 3s",
            (2, 1),
        ),
        (awaiting(2, 3), RunState.STUCK, Reason.NODE_STUCK, "site-3 (3) stuck for 1m30s", (3, 2)),
        (awaiting(4), RunState.STUCK, Reason.NODE_STUCK, "site-4 (4) is offline", (4,)),
        (awaiting(1, 9, seconds=1), RunState.STUCK, Reason.NODE_STUCK, "site-9 (9) is paused", (9, 1)),
        (awaiting(10), RunState.WAITING, Reason.WAITING_REPLY, "waiting for site-10 (10) (1m00s, usually 4s)", (10,)),
        (awaiting(5), RunState.STUCK, Reason.NODE_LATE, "site-5 (5) 10 times slower than the others", (5,)),
        (awaiting(6), RunState.WAITING, Reason.WAITING_REPLY, "waiting for site-6 (6) (1m00s, usually 4s)", (6,)),
        (
            replace(awaiting(1, 6, 7, 8), owing=40),
            RunState.WAITING,
            Reason.WAITING_REPLY,
            "waiting for site-1 (1), site-6 (6), node 7 and 37 more (1m00s, usually 4s)",
            (1, 6, 7, 8),
        ),
        (
            replace(awaiting(2), is_full=True),
            RunState.STUCK,
            Reason.REDIS_FULL,
            "Redis is full",
            (2,),
        ),
        (
            replace(awaiting(2), is_draining=True),
            RunState.DRAINING,
            Reason.NODE_LATE,
            "site-2 (2) busy 11m48s, usually 3s",
            (2,),
        ),
    ],
)
def test_a_run(status: RunStatus | None, state: RunState, reason: Reason, why: str, nodes: tuple[int, ...]) -> None:
    """What it waits for, and who holds it up."""
    assert judge_run("running", True, status, NOW, NODES) == RunJudged(state, reason, why, nodes)


@pytest.mark.parametrize(
    ("books", "is_attached", "full", "reason"),
    [
        ("stopping", True, "Redis is full", Reason.STOPPING),
        ("ending", False, "", Reason.STOPPING),
        ("running", False, "Redis is full", Reason.DETACHED),
        ("running", True, "Redis is full", Reason.REDIS_FULL),
        ("running", True, "", Reason.NODE_STUCK),
    ],
)
def test_the_first_reason_that_applies(books: str, is_attached: bool, full: str, reason: Reason) -> None:
    """The end goes before a missing ServerApp, that before a full Redis, and that before nodes."""
    assert judge_run(books, is_attached, awaiting(2, 3), NOW, NODES, full).reason is reason


def test_a_detached_run_says_for_how_long() -> None:
    """As far as its ServerApp said anything."""
    judged = judge_run("running", False, replace(awaiting(2), at=NOW - 90), NOW, NODES)
    assert (judged.state, judged.why) == (RunState.DETACHED, "has had no ServerApp for 1m30s")
    assert judge_run("running", False, None, NOW, NODES).why == "has no ServerApp"


def test_words() -> None:
    """How ids, durations and sizes are written."""
    assert [short_among(12345, others) for others in ([], [12345, 99999], [12349])] == ["1234…", "1234…", "12345"]
    assert (shown_node(6239123456, "site-7"), shown_node(6239123456), shown_node(62)) == (
        "site-7 (6239…)",
        "node 6239…",
        "node 62",
    )
    durations = (0, 0.44, 3, 9.94, 9.96, 59.4, 59.6, 708, 3599.7, 11_100, 187_200)
    assert " ".join(map(lasting, durations)) == "0s 0.4s 3s 9.9s 10s 59s 1m00s 11m48s 1h00m 3h05m 2d04h"
    assert " ".join(map(sized, (0, 512, 65_536, 1_572_864, 418_381_824, 10**18))) == "0 512B 64K 1.5M 399M 888P"
