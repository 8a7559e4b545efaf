"""How a round grows with the number of nodes and with the payload: brokerfl and bare redis-py, in alternation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.federation import model_round, small_round
from benchmarks.measure import Comparison, Plan, compare
from benchmarks.models import WARM_UP
from benchmarks.stage import NODES, Stage

_FLEETS = (1, 2, 5, 10, NODES)
_SIZES = tuple(10**power for power in range(3, 9))


@dataclass(frozen=True)
class Curve:
    """One figure.

    Attributes:
        name: what ``--only`` takes.
        title: what grows.
        axis: what its values are.
        label: how one of them is written.
        measure: a round at one of them.
        values: the values.
    """

    name: str
    title: str
    axis: str
    label: Callable[[int], str]
    measure: Callable[[Stage, Plan, int], Comparison]
    values: tuple[int, ...]


#: What a curve came to: at each value a comparison.
Points = Sequence[tuple[int, Comparison]]


def measure_curve(curve: Curve, stage: Stage, plan: Plan) -> Points:
    """Return the curve's points; a quick plan leaves out the largest payload, which is a row of the table anyway."""
    values = curve.values[:-1] if plan.quick and curve.name == "payload" else curve.values
    return [(value, curve.measure(stage, plan, value)) for value in values]


def size_label(size: int) -> str:
    """Return bytes as people say them: 10 MB."""
    for unit, factor in (("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} B"


def _by_nodes(stage: Stage, plan: Plan, nodes: int) -> Comparison:
    bare = stage.bare.small_round(nodes, nodes)
    with stage.federation.run() as (driver, ids):
        return compare(small_round(driver, ids[:nodes], nodes), bare, plan, warm_up=10)


def compare_models(stage: Stage, plan: Plan, size: int) -> Comparison:
    """Return rounds with a new model to 5 nodes and another one back from each."""
    bare = stage.bare
    with stage.federation.run() as (driver, ids):
        nodes = ids[:5]
        bare.model_round(5, WARM_UP)()
        model_round(driver, nodes, WARM_UP)()
        return compare(model_round(driver, nodes, size), bare.model_round(5, size), plan, warm_up=size <= WARM_UP)


CURVES = {
    curve.name: curve
    for curve in (
        Curve("nodes", "A small message to each node and back", "nodes", str, _by_nodes, _FLEETS),
        Curve(
            "payload", "A model to 5 nodes and another back from each", "payload", size_label, compare_models, _SIZES
        ),
    )
}
