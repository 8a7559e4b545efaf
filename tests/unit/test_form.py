"""The form of a content: what fits another one, and what is said of what does not."""

import re
from typing import Any

import numpy as np
import pytest

from brokerfl.common import Array, ConfigsRecord, MetricsRecord, ParametersRecord, RecordSet
from brokerfl.common.form import Form

NAN = float("nan")


def arrays(**changed: Any) -> ParametersRecord:
    """A model of two layers, with these in place of its own, or after them; None takes one out."""
    layers = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)} | changed
    return ParametersRecord({name: Array(layer) for name, layer in layers.items() if layer is not None})


MISFITS: dict[str, tuple[ParametersRecord, str]] = {
    "shape": (
        arrays(w=np.zeros((3, 2), np.float32)),
        r"'w' is float32 of shape \(3, 2\), not float32 of shape \(2, 3\)",
    ),
    "dtype": (arrays(b=np.zeros(3)), r"'b' is float64 of shape \(3,\), not float32 of shape \(3,\)"),
    "missing": (arrays(b=None), "it has no 'b'"),
    "more": (arrays(c=np.zeros(3)), "it also has 'c'"),
    "order": (ParametersRecord({name: arrays()[name] for name in ("b", "w")}), "'b' is in the place of 'w'"),
    "NaN": (arrays(w=np.full((2, 3), NAN, np.float32)), "'w' has a value that is infinite or NaN"),
    "inf": (arrays(b=np.array([0, 0, np.inf], np.float32)), "'b' has a value that is infinite or NaN"),
    "none": (ParametersRecord(), "it has no 'w'"),
    "stype": (
        ParametersRecord({**arrays(), "b": Array("float32", (3,), "mine", b"")}),
        r"'b' is float32 of shape \(3,\) and stype 'mine', not float32 of shape \(3,\)",
    ),
    "data": (
        ParametersRecord({**arrays(), "b": Array("float32", (3,), "numpy.ndarray", b"x")}),
        "'b' cannot be read: ",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
@pytest.mark.parametrize("is_named", [True, False])
def test_what_does_not_fit(what: str, is_named: bool) -> None:
    """The reason names the record, the array, and what differs."""
    record, reason = MISFITS[what]
    form = Form(RecordSet({"model": arrays()}) if is_named else arrays())
    assert form.misfit(RecordSet({"model": arrays()})) is None
    found = form.misfit(RecordSet({"model": record}))
    assert found is not None
    assert re.match(f"ParametersRecord 'model': {reason}", found), found


def test_how_many_records_there_may_be() -> None:
    """A record alone is like the only one of a content, whatever its name; a RecordSet leaves alone what it has not."""
    one, two = RecordSet({"a": arrays()}), RecordSet({"a": arrays(), "b": arrays(w=None)})
    assert Form(arrays()).misfit(one) is None
    assert Form(arrays()).misfit(two) == "it has 2 parameters_records, not one"
    assert Form(arrays()).misfit(RecordSet()) == "it has 0 parameters_records, not one"
    assert Form(one).misfit(two) is None
    assert Form(two).misfit(one) == "it has no ParametersRecord 'b'"
    assert Form(RecordSet()).misfit(two) is None


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"n": 1, "loss": 0.5, "rest": [1, 2]}, None),
        ({"n": 1, "loss": 0, "rest": [1]}, None),
        ({"n": 1, "loss": 0.5, "rest": []}, None),
        ({"n": 1, "loss": 0.5, "rest": [1], "more": NAN}, None),
        ({"n": 1, "rest": [1]}, "it has no 'loss'"),
        ({"n": 1.5, "loss": 0.5, "rest": [1]}, "'n' is of type float, not of type int"),
        ({"n": 1, "loss": NAN, "rest": [1]}, "'loss' has the value nan"),
        ({"n": 1, "loss": 0.5, "rest": 1}, "'rest' is of type int, not a list of int"),
        ({"n": [1], "loss": 0.5, "rest": [1]}, "'n' is a list of int, not of type int"),
        ({"n": 1, "loss": 0.5, "rest": [1.5]}, "'rest' is a list of float, not a list of int"),
    ],
)
def test_metrics(metrics: dict[str, Any], reason: str | None) -> None:
    """They have the keys, with finite values of the types; an int may stand for a float."""
    form = Form(RecordSet({"m": MetricsRecord({"n": 0, "loss": 0.0, "rest": [0]})}))
    found = form.misfit(RecordSet({"m": MetricsRecord(metrics)}))
    assert found == (reason and f"MetricsRecord 'm': {reason}")


def test_configs() -> None:
    """As metrics; a bool is no int, and text no bytes."""
    form = Form(RecordSet({"c": ConfigsRecord({"on": True, "name": "", "raw": [b""]})}))
    assert form.misfit(RecordSet({"c": ConfigsRecord({"on": False, "name": "x", "raw": [b"y", b"z"]})})) is None
    for config, reason in (
        ({"on": 1, "name": "x", "raw": [b"y"]}, "'on' is of type int, not of type bool"),
        ({"on": True, "name": b"x", "raw": [b"y"]}, "'name' is of type bytes, not of type str"),
        ({"on": True, "name": "x", "raw": ["y"]}, "'raw' is a list of str, not a list of bytes"),
    ):
        assert form.misfit(RecordSet({"c": ConfigsRecord(config)})) == f"ConfigsRecord 'c': {reason}"
    assert form.misfit(RecordSet({"c": MetricsRecord()})) == "it has no ConfigsRecord 'c'"


def test_a_reason_is_short() -> None:
    """Whatever names and shapes a node makes up."""
    form = Form(arrays())
    for record in (
        ParametersRecord({**arrays(), "n" * 10**6: arrays()["b"]}),
        ParametersRecord({**arrays(), "b": Array("float32", (1,) * 10**5, "numpy.ndarray", b"x")}),
        ParametersRecord({**arrays(), "b": Array("x" * 10**5, (3,), "y" * 10**5, b"x")}),
    ):
        found = form.misfit(RecordSet({"m": record}))
        assert found is not None
        assert len(found) < 300


def test_a_form_keeps_no_array() -> None:
    """What it is made from can be freed, or changed."""
    layer = np.zeros(3, np.float32)
    record = ParametersRecord({"w": Array(layer)})
    form = Form(record)
    record.clear()
    assert form.misfit(RecordSet({"m": ParametersRecord({"w": Array(layer)})})) is None
    assert form.misfit(RecordSet({"m": ParametersRecord()})) is not None


@pytest.mark.parametrize("wrong", [[], {}, np.zeros(3), MetricsRecord(), "model"])
def test_what_makes_no_form(wrong: Any) -> None:
    """It is a TypeError that says what does."""
    with pytest.raises(TypeError, match="like= takes a RecordSet or a ParametersRecord, not "):
        Form(wrong)
