"""An unmodified app of ``flwr.server`` outlives its ServerApp: killed anywhere, it ends as if nothing had happened."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from brokerfl.broker.nodes import Registration
from brokerfl.common import RunDiverged
from brokerfl.flower import models
from brokerfl.flower.clients import seen
from tests.flower.legacy_lives import LegacyLives, app_of, apps, clients_app, secure, secure_app, workflow_of
from tests.flower.lives import deadly_points, points_of
from tests.flower.names import SimpleClientManager, flwr_quantization, flwr_workflows


@pytest.fixture(scope="module")
def lives() -> Iterator[LegacyLives]:
    """Nodes that all runs of this module share: with other ids, sums would have another order."""
    made = LegacyLives(app=clients_app)
    with made.federation, pytest.MonkeyPatch.context() as patch, deadly_points(patch):
        LegacyLives.watch(patch)
        yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", apps())
def test_killed_anywhere(lives: LegacyLives, name: str, chosen: random.Random | None) -> None:
    """Killed at a point of rounds 2 to 5 and resumed: model and history are equal bit for bit, and nobody works twice.

    The app begins with another model and other random numbers in its second life.
    """
    main = apps()[name]
    undisturbed = lives.live(main)
    for point in points_of(chosen, at_least=31):
        assert lives.live(main, point) == undisturbed, f"{name}, killed at {point}"


@pytest.fixture(scope="module")
def secure_lives() -> Iterator[LegacyLives]:
    """Nodes that mask their updates. They round to the nearest number: flwr's rounding is random."""
    made = LegacyLives(app=secure_app)
    with made.federation, pytest.MonkeyPatch.context() as patch, deadly_points(patch):
        LegacyLives.watch(patch)
        patch.setattr(flwr_quantization, "_stochastic_round", lambda array: np.rint(array).astype(np.int32))
        yield made


@pytest.mark.timeout(600)
def test_secure_aggregation_is_killed_anywhere(secure_lives: LegacyLives, chosen: random.Random | None) -> None:
    """So is SecAgg+, in any of its stages: the keys that nodes have made are still good, and nobody trains again."""
    main = workflow_of("FedAvg", fit=secure)
    undisturbed = secure_lives.live(main)
    for point in points_of(chosen, at_least=81):
        assert secure_lives.live(main, point) == undisturbed, f"killed at {point}"


@pytest.mark.parametrize("name", ["sampled", "workflow, sampled"])
def test_other_nodes_are_online(lives: LegacyLives, name: str) -> None:
    """A hook that was called before the kill samples the same nodes again, whoever came and went meanwhile."""
    main = apps()[name]
    undisturbed = lives.live(main)
    run = lives.die(main, (5, "before aggregate_evaluate#0"))
    registration = Registration(lives.connect())
    registration.register()
    try:
        assert lives.end(main, run) == undisturbed
    finally:
        registration.leave()


def test_a_node_that_was_online(lives: LegacyLives) -> None:
    """A hook that is called again gets the clients that it saw, in their order, also those that are offline by now."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        lives.executed[context.run_id] = []
        manager = SimpleClientManager()
        again = seen(manager, lambda ask: ["718", "11"], grid, is_again=True)
        found = again.num_available(), list(again.all()), sorted(client.node_id for client in again.sample(2))
        return ([], manager), (found, manager.num_available())

    assert lives.end(main).kept == ((2, ["718", "11"], [11, 718]), 0)


def test_a_run_is_extended(lives: LegacyLives) -> None:
    """A run that was kept goes on after its last round, with everything that its strategy had."""
    longer = lives.live(app_of("FedAdam", rounds=5))
    shorter = lives.end(app_of("FedAdam", rounds=3), None, 0, keep=True)
    assert len(shorter.executed) == 18
    assert lives.end(app_of("FedAdam", rounds=5), lives.kept) == longer


@pytest.mark.parametrize("app", [app_of, workflow_of])
def test_where_a_run_goes_on(lives: LegacyLives, app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The log says at which step a resumed run goes on, and what is not executed again; what it skips is silent."""
    caplog.set_level("INFO", "brokerfl")
    run = lives.die(app("FedAvg"), (3, "before aggregate_evaluate#0"))
    assert f"Run {run} is resumable: steps" in caplog.text
    lives.end(app("FedAvg"), run)
    assert f"Run {run} goes on in round 3 (evaluate); 18 executions are not repeated" in caplog.text
    assert "from node" not in caplog.text


def test_another_strategy_is_refused(lives: LegacyLives) -> None:
    """An app that does something else than what was recorded is told the first difference; the run stays."""
    main = app_of("FedAvg")
    undisturbed = lives.live(main)
    run = lives.die(main, (4, "reply#1"))
    with pytest.raises(RunDiverged, match=r"has the strategy .*MortalFedAvg where this app has .*MortalFedMedian"):
        lives.refuse(app_of("FedMedian"), run)
    assert lives.end(main, run) == undisturbed


def test_a_workflow_of_the_app_starts_over(lives: LegacyLives, caplog: pytest.LogCaptureFixture) -> None:
    """What a round of the app's own does besides its hooks is not known: it is a hand-written loop, and says so."""

    def own() -> Any:
        return lambda grid, context: flwr_workflows.default_fit_workflow(grid, context)

    caplog.set_level("INFO", "brokerfl")
    outcome = lives.live(workflow_of("FedAvg", fit=own), (2, "after aggregate_fit#0"))
    assert "resumable: from the start" in caplog.text
    assert "resumable: steps" not in caplog.text
    assert len(outcome.executed) == 9 + 30


def test_models_of_early_rounds(lives: LegacyLives, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Server of an app's own may use all its models again; beyond the limit that is an error, not a wrong model."""
    main = apps()["own server"]
    undisturbed = lives.live(main)
    monkeypatch.setattr(models, "MOST_KEPT", 3 * 170_000)
    run = lives.die(main, (5, "reply#0"))
    with pytest.raises(RunDiverged, match="uses the model of an early round again"):
        lives.refuse(main, run)
    monkeypatch.undo()
    assert lives.live(main, (5, "reply#0")) == undisturbed
