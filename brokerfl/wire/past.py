"""What remains of a run after its end: what it was, how it ended, and how its numbers went.

Owns the layout, and how much is kept. It must not know where it is kept, or for how long.

There are two parts, because who lists runs reads only the first: what the run was with its last numbers, and the curves
of all its numbers. Both are bounded, whatever a run told. What somebody else wrote never raises.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from brokerfl.common import BrokerflError, FrameError, UserConfig
from brokerfl.wire.event import LONGEST_NAME, MOST_VALUES, Event, Kind, numbers_in
from brokerfl.wire.frame import pack, unpack
from brokerfl.wire.run import Run, decode_run, encode_run

#: Most bytes of the two parts.
MAX_PAST_BYTES, MAX_CURVES_BYTES = 24 * 1024, 48 * 1024

#: Most points of all curves together, and of one.
_MOST_POINTS, _MOST_OF_ONE = 2000, 200

#: Most characters of a config, and of a value in it: longer ones are left out.
_LONGEST_CONFIG, _LONGEST_VALUE = 2000, 200

#: The points of each number, by name: its round and its value, in the order in which they were told.
Curves = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Past:
    """What a run was.

    Attributes:
        run: its app, name, config and creation; of a large config only the short values.
        ended_at: Unix time of its end by Redis' clock, in seconds.
        was_stopped: somebody stopped it; else its app came to its end.
        nodes: how many nodes it contacted.
        messages: how many messages it pushed.
        replies: how many replies were settled.
        errors: how many Errors its app got, as far as its events tell.
        metrics: the last value of each number.
    """

    run: Run
    ended_at: float = 0.0
    was_stopped: bool = False
    nodes: int = 0
    messages: int = 0
    replies: int = 0
    errors: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


#: The fields that are counts.
_COUNTS = ("nodes", "messages", "replies", "errors")


def encode_past(past: Past) -> bytes:
    """Return the first part as bytes, at most `MAX_PAST_BYTES`; b"" if the run's app or origin is too long for it."""
    told = {name: getattr(past, name) for name in ("ended_at", "was_stopped", *_COUNTS)}
    try:
        frame = encode_run(_shortened(past.run))
        return pack({**told, "run": frame, "metrics": dict(past.metrics)}, MAX_PAST_BYTES)
    except (BrokerflError, ValueError):
        return b""


def _shortened(run: Run) -> Run:
    """Return a run without the long values of its config, and without what is too much of it, or sealed."""
    left, config = _LONGEST_CONFIG, UserConfig()
    for key, value in run.run_config.items():
        size = len(str(value))
        if size <= _LONGEST_VALUE and len(key) + size <= left:
            config[key] = value
            left -= len(key) + size
    overrides = None if run.overrides is None else tuple(key for key in run.overrides if key in config)
    proof = None if run.proof is None else replace(run.proof, config=b"", wrapped=b"")  # nobody needs its keys any more
    return replace(run, run_config=config, overrides=overrides, proof=proof)


def decode_past(run_id: int, data: bytes | None) -> Past | None:
    """Return what `encode_past` made; None for what is none."""
    try:
        match unpack(data, MAX_PAST_BYTES):
            case {"run": bytes(frame), "ended_at": float(ended_at), "was_stopped": bool(was_stopped), **told}:
                metrics = told.get("metrics")
                return Past(
                    decode_run(run_id, frame),
                    ended_at,
                    was_stopped,
                    metrics=numbers_in(metrics) if isinstance(metrics, Mapping) else {},
                    **{name: value for name in _COUNTS if type(value := told.get(name)) is int and value >= 0},
                )
    except FrameError:
        pass
    return None


def curves_of(events: Iterable[Event]) -> Curves:
    """Return the numbers that a run told, by name: ``accuracy``; those of replies as ``train/loss``.

    A group that is no number counts as the one after the curve's last.
    """
    curves: Curves = {}
    for event in events:
        prefix = f"{event.type}/" if event.kind == Kind.ANSWERED else ""
        for name, value in event.values.items():
            if f"{prefix}{name}" in curves or len(curves) < MOST_VALUES:
                curve = curves.setdefault(f"{prefix}{name}", [])
                is_round = event.group.isdecimal() and len(event.group) < 10
                curve.append((int(event.group) if is_round else curve[-1][0] + 1 if curve else 1, value))
    return curves


def encode_curves(curves: Curves) -> bytes:
    """Return the second part as bytes, at most `MAX_CURVES_BYTES`; of long curves, points at even distances."""
    most = min(_MOST_OF_ONE, _MOST_POINTS // max(1, len(curves)))
    try:
        return pack({name: _thinned(curve, most) for name, curve in curves.items()}, MAX_CURVES_BYTES)
    except (BrokerflError, ValueError):
        return b""


def _thinned(curve: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Return at most so many points, the last of them always."""
    step = -(-len(curve) // most)
    return curve[::-step][::-1]


def decode_curves(data: bytes | None) -> Curves:
    """Return the curves that `encode_curves` made; none for what are none."""
    try:
        told = unpack(data, MAX_CURVES_BYTES)
    except FrameError:
        return {}
    if not isinstance(told, Mapping):
        return {}
    return {
        name: [(each[0], float(each[1])) for each in curve if _is_point(each)]
        for name, curve in told.items()
        if isinstance(name, str) and len(name) <= LONGEST_NAME + 201 and isinstance(curve, list)
    }


def _is_point(told: object) -> bool:
    return isinstance(told, list) and [type(each) for each in told] in ([int, float], [int, int])
