"""Events: what happened in a run, as an operator reads it later.

Owns the kinds, the fields and their layout. It must not know where events are kept, or who writes them.

An event is a map of the fields that differ from their defaults, so that versions can differ in what they tell. What
somebody else wrote into it never raises: a field that is not what it should be counts as not told.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import islice
from typing import Any

from brokerfl.common import FrameError
from brokerfl.wire.frame import pack, unpack
from brokerfl.wire.told import scalar_in, sendable

#: Most numbers of an event, most characters of the name of one, and of other texts.
MOST_VALUES, LONGEST_NAME, LONGEST_TEXT = 50, 64, 200

#: Most bytes of an event. With so few values and characters, each of up to four bytes, it never has more.
MAX_EVENT_BYTES = 24 * 1024


class Kind(StrEnum):
    """What happened."""

    STARTED = "started"  # the run was created
    RESUMED = "resumed"  # another ServerApp owns it now
    RESTORED = "restored"  # Redis had forgotten it, and its ServerApp wrote it again
    DETACHED = "detached"  # its ServerApp left it
    BEGUN = "begun"  # the first messages of a group were pushed
    ANSWERED = "answered"  # the app got replies of a group
    ERROR = "error"  # the app got the first Error of a node
    METRICS = "metrics"  # the app told numbers


@dataclass(frozen=True)
class Event:
    """Something that happened in a run. Texts are cut, and of too many values the first are kept.

    Attributes:
        at: Unix time by Redis' clock, in seconds.
        kind: one of `Kind`, or what another version writes.
        group: the group of messages, usually the round; of numbers that the app told, the round.
        type: the messages' type, such as ``train``.
        sent: how many messages of the group were pushed so far.
        answered: how many of them the app has the replies to.
        errors: how many Errors were among the replies since the group's previous event.
        seconds: from the group's first push to its latest reply.
        node: whose Error it is.
        text: what the Error says.
        values: numbers by name: what the app told, or of each number in the replies since the group's previous event
            the mean.
    """

    at: float = 0.0
    kind: str = ""
    group: str = ""
    type: str = ""
    sent: int = 0
    answered: int = 0
    errors: int = 0
    seconds: float = 0.0
    node: int = 0
    text: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if len(getattr(self, name)) > LONGEST_TEXT:
                object.__setattr__(self, name, getattr(self, name)[:LONGEST_TEXT])
        if self.values:
            values = {name[:LONGEST_NAME]: value for name, value in islice(self.values.items(), MOST_VALUES)}
            object.__setattr__(self, "values", values)


_TEXTS = ("kind", "group", "type", "text")
_DEFAULTS: dict[str, Any] = {each.name: each.default if each.name != "values" else {} for each in fields(Event)}


def encode_event(event: Event) -> bytes:
    """Return an event as bytes, at most `MAX_EVENT_BYTES`."""
    told = {name: value for name, value in vars(event).items() if value != _DEFAULTS[name]}
    try:
        return pack(told, MAX_EVENT_BYTES)
    except ValueError:  # a text that no encoding takes; to look at each one beforehand costs as much as to pack them
        return pack(_plain(told), MAX_EVENT_BYTES)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    return sendable(value) if isinstance(value, str) else value


def decode_event(data: bytes | None) -> Event | None:
    """Return the event that `encode_event` made; None for what is none."""
    try:
        told = unpack(data, MAX_EVENT_BYTES)
    except FrameError:
        return None
    if not isinstance(told, Mapping):
        return None
    scalars = ((name, scalar_in(type(default), told.get(name))) for name, default in _DEFAULTS.items())
    found: dict[str, Any] = {name: value for name, value in scalars if value is not None}
    if isinstance(told.get("values"), Mapping):
        found["values"] = numbers_in(told["values"])
    return Event(**found)


def numbers_in(told: Mapping[Any, Any]) -> dict[str, float]:
    """Return the numbers of a map that have a name; of too many the first."""
    pairs = islice(told.items(), MOST_VALUES)
    return {name: float(value) for name, value in pairs if isinstance(name, str) and type(value) in (int, float)}
