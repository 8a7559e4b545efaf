"""What a node and a ServerApp say they are doing, as they write it with each heartbeat.

Owns the fields and their layout. It must not know where a status is kept, or what is concluded from it.

A status is a map of the fields that differ from their defaults, so that versions can differ in what they tell. What
somebody else wrote into it never raises: a field that is not what it should be counts as not told.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from brokerfl.common import FrameError
from brokerfl.wire.frame import pack, unpack
from brokerfl.wire.told import scalar_in, sendable

#: Most items of a list in a status, and most characters of a text.
MOST_TOLD, LONGEST_TOLD = 8, 100

#: Most bytes of a status. With so few items and characters, each of up to four bytes, it never has more.
MAX_STATUS_BYTES = 16 * 1024

Status = TypeVar("Status", bound="_Told")


@dataclass(frozen=True)
class _Told:
    """A map of fields. Texts and lists are cut to what is told."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, str | tuple):
                object.__setattr__(self, each.name, value[: LONGEST_TOLD if isinstance(value, str) else MOST_TOLD])


@dataclass(frozen=True)
class Doing(_Told):
    """One message that a node is executing.

    Attributes:
        run: its run's id.
        message: its id.
        type: its type, such as ``train``.
        group: its group, usually the round.
        since: Unix time by Redis' clock, in seconds, at which the ClientApp was called.
        over_since: the same, at which the node learned that nobody waits for the reply; 0 while somebody does.
    """

    run: int = 0
    message: str = ""
    type: str = ""
    group: str = ""
    since: float = 0.0
    over_since: float = 0.0


@dataclass(frozen=True)
class About(_Told):
    """What the registry says of a node, as texts of the registry's form; all are empty if it is not told.

    Attributes:
        name: its name.
        labels: its labels.
        version: of brokerfl there.
        since: when it registered.
        app: where its app comes from.
    """

    name: str = ""
    labels: str = ""
    version: str = ""
    since: str = ""
    app: str = ""


@dataclass(frozen=True)
class Dead(_Told):
    """One message that a node set aside because it killed it too often.

    Attributes:
        run: its run's id.
        message: its id.
        crashes: how often it killed the node.
        at: Unix time by the node's clock, in seconds, at which it was set aside.
    """

    run: int = 0
    message: str = ""
    crashes: int = 0
    at: float = 0.0


@dataclass(frozen=True)
class NodeStatus(_Told):
    """What a node says of itself. Times are Unix time by Redis' clock; durations are seconds.

    Attributes:
        at: when this was written.
        turned: when the node's loop last took a turn.
        host: the name of its machine.
        pid: its process there.
        is_paused: it finishes what it executes, and begins nothing new.
        is_full: Redis has no room for a reply of it.
        doing: what it is executing, at most `MOST_TOLD`.
        queue: how many messages it has received and not begun.
        done: how many it has executed since it started.
        errors: how many of them the ClientApp answered with an exception.
        error: the class of the last exception.
        last: how long the last execution took.
        median: the median of the last 50 executions.
        disk: free bytes where its journal is; 0 if unknown, or without a journal.
        withheld: how many runs wait until the node's site lets their messages in.
        withheld_runs: which, at most `MOST_TOLD`.
        about: what the registry says of it, too: whoever looks at a thousand nodes reads one field of each.
        dead: how many messages it has set aside.
        latest_dead: the latest of them, the last one first.
    """

    at: float = 0.0
    turned: float = 0.0
    host: str = ""
    pid: int = 0
    is_paused: bool = False
    is_full: bool = False
    doing: tuple[Doing, ...] = ()
    queue: int = 0
    done: int = 0
    errors: int = 0
    error: str = ""
    last: float = 0.0
    median: float = 0.0
    disk: int = 0
    withheld: int = 0
    withheld_runs: tuple[int, ...] = ()
    about: About = About()
    dead: int = 0
    latest_dead: tuple[Dead, ...] = ()


@dataclass(frozen=True)
class Awaited(_Told):
    """A node of which a ServerApp waits for a reply, since the push of the oldest message that it owes."""

    node: int = 0
    since: float = 0.0


class Phase(StrEnum):
    """What a ServerApp is at."""

    NODES = "waiting for nodes"
    REPLIES = "waiting for replies"
    PUSHING = "pushing"
    APP = "app"  # the app itself works


@dataclass(frozen=True)
class RunStatus(_Told):
    """What a ServerApp says of its run. Times are Unix time by Redis' clock; durations are seconds, sizes bytes.

    Attributes:
        at: when this was written.
        phase: one of `Phase`, or what another version writes.
        since: when that began.
        group: the group that was pushed last, usually the round; of those with open messages, if there are any.
        sent: how many messages of that group were pushed.
        answered: how many of them were answered.
        errors: how many replies of the run were Errors.
        needed: for how many nodes it waits.
        online: how many of them are online.
        owing: how many nodes owe a reply.
        awaited: those that have owed one for the longest time, at most `MOST_TOLD`.
        usually: the median time from the push of a message to its reply.
        rounds: how long the last groups took, from push to last reply, the latest last; at most `MOST_TOLD`.
        bytes_out: what it pushed, each content once for each node.
        bytes_in: what the replies had.
        memory: what the run has in Redis, as far as the ServerApp knows.
        record: how much of that is the record of its steps.
        recorded_at: where its replies are recorded, as ``host:directory``; "" if they are not.
        is_full: Redis has no room for what the run pushes.
        is_draining: it pushes nothing any more, and finishes what is out.
    """

    at: float = 0.0
    phase: str = ""
    since: float = 0.0
    group: str = ""
    sent: int = 0
    answered: int = 0
    errors: int = 0
    needed: int = 0
    online: int = 0
    owing: int = 0
    awaited: tuple[Awaited, ...] = ()
    usually: float = 0.0
    rounds: tuple[float, ...] = ()
    bytes_out: int = 0
    bytes_in: int = 0
    memory: int = 0
    record: int = 0
    recorded_at: str = ""
    is_full: bool = False
    is_draining: bool = False


def encode_status(status: NodeStatus | RunStatus) -> bytes:
    """Return a status as bytes, at most `MAX_STATUS_BYTES`."""
    return pack(_map_of(status), MAX_STATUS_BYTES)


def _map_of(status: _Told) -> dict[str, Any]:
    return {
        each.name: _plain(value) for each in fields(status) if (value := getattr(status, each.name)) != each.default
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, _Told):
        return _map_of(value)
    return sendable(value) if isinstance(value, str) else value


def decode_status(kind: type[Status], data: bytes | None) -> Status | None:
    """Return the status that `encode_status` made; None if there is none, or somebody else wrote something else."""
    try:
        status: Status | None = _told(kind, unpack(data, MAX_STATUS_BYTES))
    except FrameError:
        return None
    return status


def _told(kind: Any, told: Any) -> Any:
    if not isinstance(told, Mapping):
        return None
    hints = _hints(kind)
    found = {name: value for name, given in told.items() if (value := _checked(hints.get(name), given)) is not None}
    return kind(**found)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}


def _checked(hint: Any, value: Any) -> Any:
    """Return a value if it is of this type, and one that its writer may have meant; else None."""
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        items = [_checked(kind, each) for each in value[:MOST_TOLD]] if isinstance(value, list) else [None]
        return tuple(items) if None not in items else None
    if isinstance(hint, type) and issubclass(hint, _Told):
        return _told(hint, value)
    return scalar_in(hint, value)
