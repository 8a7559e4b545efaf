"""Events and what remains of a run: they come back as they were, are bounded, and nothing that others wrote raises."""

from math import inf, isnan, nan

import msgpack
import pytest

from brokerfl.broker.keys import Keys
from brokerfl.broker.ownership import ENDED, Ownership
from brokerfl.broker.remains import Remains
from brokerfl.view.history import said
from brokerfl.wire.event import MAX_EVENT_BYTES, MOST_VALUES, Event, Kind, decode_event, encode_event
from brokerfl.wire.past import (
    MAX_CURVES_BYTES,
    MAX_PAST_BYTES,
    Past,
    curves_of,
    decode_curves,
    decode_past,
    encode_curves,
    encode_past,
)
from brokerfl.wire.run import Run

EVENT = Event(12.5, Kind.ANSWERED, "3", "train", 4, 4, 1, 2.5, 7, "", {"loss": -0.5, "n": 3.0})

RUN = Run(7, "server:app", {"lr": 0.1, "rounds": 3}, 100.0, name="first")


def packed(value: object) -> bytes:
    """A frame that holds anything."""
    return bytes((1,)) + msgpack.packb(value)


def test_an_event_comes_back() -> None:
    """With numbers that are not finite, too: they are what an operator looks for."""
    assert decode_event(encode_event(EVENT)) == EVENT
    found = decode_event(encode_event(Event(values={"a": nan, "b": inf})))
    assert found is not None
    assert isnan(found.values["a"])
    assert found.values["b"] == inf


def test_the_largest_event_fits() -> None:
    """Whatever an app calls its groups and numbers."""
    values = {f"{number:03}" + "\U0001f600" * 100: 0.1 for number in range(2 * MOST_VALUES)}
    flood = "\U0001f600" * 10_000
    event = Event(1e17, flood, flood, flood, 2**63, 2**63, 2**63, 1e17, 2**64 - 1, flood, values)
    assert len(event.values) == MOST_VALUES
    assert len(encode_event(event)) <= MAX_EVENT_BYTES
    assert decode_event(encode_event(event)) == event
    assert decode_event(encode_event(Event(text="\ud800"))) == Event(text="?")


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"rubbish",
        packed([]),
        packed({"at": "now", "sent": -1, "errors": True, "values": [1], "text": 3, "node": 2**64 - 1, "later": 1}),
        packed({"values": {1: 2, "a": "b", "c": True}}),
    ],
)
def test_an_event_of_others(told: bytes) -> None:
    """What is not as it should be counts as not told."""
    assert decode_event(told) in (None, Event(node=2**64 - 1), Event())
    assert decode_past(7, told) is None
    assert decode_curves(told) in ({}, {"values": []})


def test_curves() -> None:
    """By name, with the rounds; a group that is no number comes after the last."""
    events = [
        Event(kind=Kind.ANSWERED, group="1", type="train", values={"loss": 2.0}),
        Event(kind=Kind.METRICS, group="1", values={"loss": 1.5}),
        Event(kind=Kind.ANSWERED, group="4", type="train", values={"loss": 1.0}),
        Event(kind=Kind.ANSWERED, group="warm-up", type="train", values={"loss": 0.5}),
    ]
    curves = curves_of(events)
    assert curves == {"train/loss": [(1, 2.0), (4, 1.0), (5, 0.5)], "loss": [(1, 1.5)]}
    assert decode_curves(encode_curves(curves)) == curves


def test_long_curves_are_thinned() -> None:
    """The last value stays, and the points are at even distances."""
    names = [f"{number:03}" + "\U0001f600" * 100 for number in range(2 * MOST_VALUES)]
    curves = curves_of(
        Event(kind=Kind.ANSWERED, group=str(group), type="train", values=dict.fromkeys(names, group / 3))
        for group in range(100_000, 100_500)
    )
    data = encode_curves(curves)
    assert len(data) <= MAX_CURVES_BYTES
    found = decode_curves(data)
    assert len(found) == MOST_VALUES
    for curve in found.values():
        assert curve[-1] == (100_499, 100_499 / 3)
        assert len({one[0] - other[0] for one, other in zip(curve[1:], curve, strict=False)}) == 1


def test_the_past_comes_back() -> None:
    """With how the run ended; an app of another version may tell less."""
    past = Past(RUN, 200.0, True, 2, 8, 7, 1, {"loss": 0.5})
    assert decode_past(7, encode_past(past)) == past
    encoded = Remains(past, {}).encoded(Keys("p"), Ownership(3, ENDED, 250_500))
    assert decode_past(7, encoded.pop(Keys("p").past(7))) == Past(RUN, 250.5, False, 2, 8, 7, 1, {"loss": 0.5})
    assert not encoded


def test_a_large_config_is_shortened() -> None:
    """What tells runs apart is short."""
    config = {"prompt": "x" * 60_000, **{f"key{number}": "y" * 150 for number in range(100)}, "lr": 0.1}
    run = Run(7, "server:app", config, 100.0, overrides=("prompt", "lr"))  # type: ignore[arg-type]
    data = encode_past(Past(run))
    assert len(data) <= MAX_PAST_BYTES
    found = decode_past(7, data)
    assert found is not None
    assert found.run.run_config.keys() >= {"key0", "lr"}
    assert found.run.overrides == ("lr",)
    assert encode_past(Past(Run(7, "x" * 60_000, {}, 100.0))) == b""


def test_what_a_sealed_run_does_not_tell_is_said_to_be_sealed() -> None:
    """Not as if the app had told nothing."""
    assert said(Event(1.0, Kind.METRICS, "3", text="sealed")) == "round 3: sealed"
    assert said(Event(1.0, Kind.METRICS, "3", values={"loss": 0.5})) == "round 3: loss=0.5"
