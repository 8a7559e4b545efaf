"""The states of runs and nodes, and the reasons why a run stands still: closed lists, the same wherever one looks.

Owns the words that tables, JSON, metrics and the log use. It must not know how a state is found out.
"""

from enum import StrEnum


class RunState(StrEnum):
    """What a run is."""

    RUNNING = "running"  # its ServerApp is alive, and it gets on
    WAITING = "waiting"  # its ServerApp is alive, and waits for nodes or replies
    STUCK = "stuck"  # it waits for a node that is late or stuck, or for room in Redis
    DRAINING = "draining"  # it pushes nothing any more, and finishes what is out
    DETACHED = "detached"  # it has no ServerApp
    STOPPING = "stopping"  # somebody stopped it, or it is ending
    COMPLETED = "completed"
    STOPPED = "stopped"


#: The states of runs that are over.
OVER = frozenset({RunState.COMPLETED, RunState.STOPPED})


class NodeState(StrEnum):
    """What a node is."""

    READY = "ready"  # it waits for messages
    TRAINING = "training"  # it executes one, whatever its type
    LATE = "late"  # it has executed one for much longer than usual
    STUCK = "stuck"  # it executes what nobody waits for, or its loop stands still
    PAUSED = "paused"  # it begins nothing new
    LOST = "lost"  # its lease has lapsed


class Reason(StrEnum):
    """Why a run does not get on. The first that applies is given; NONE if it does."""

    NONE = ""
    STOPPING = "stopping"  # it is ending, or somebody stopped it
    DETACHED = "detached"  # it has no ServerApp
    REDIS_AWAY = "redis_away"  # its ServerApp does not reach Redis; only its own log can say so
    REDIS_FULL = "redis_full"  # Redis has no room
    WAITING_NODES = "waiting_nodes"  # fewer nodes are online than it needs
    NODE_STUCK = "node_stuck"  # a node that owes a reply is stuck, lost or paused
    AWAITS_APPROVAL = "awaits_approval"  # the site of a node that owes a reply has not let the run in
    NODE_LATE = "node_late"  # a node that owes a reply takes much longer than usual
    WAITING_REPLY = "waiting_reply"  # nodes owe replies, and none of them is late


#: The reasons that make a run stuck.
STANDING_STILL = frozenset({Reason.REDIS_FULL, Reason.NODE_STUCK, Reason.NODE_LATE})
