"""An unmodified Flower app outlives its ServerApp: killed anywhere, it ends as if nothing had happened."""

import gc
import io
import random
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.nodes import Registration
from brokerfl.common import RunDiverged
from brokerfl.flower import models
from brokerfl.wire.payload import Payload
from tests.flower.lives import FUSE, ROUNDS, Lives, app_of, apps, deadly_points, model_of, mortal, points_of
from tests.flower.names import HAS_MESSAGE_API, ConfigRecord, Message, MetricRecord, RecordDict, strategies
from tests.stage import distrust, driver_of

if not HAS_MESSAGE_API:
    pytest.skip("flwr 1.13 has no strategies of the message API", allow_module_level=True)


#: Bytes of the model of these apps.
MODEL = 8 * 20_003


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    """Nodes that all runs of this module share: with other ids, sums would have another order."""
    made = Lives()
    with made.federation, pytest.MonkeyPatch.context() as patch, deadly_points(patch):
        yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", apps())
def test_killed_anywhere(lives: Lives, name: str, chosen: random.Random | None) -> None:
    """Killed at a point of rounds 2 to 5 and resumed: model and history are equal bit for bit, and nobody works twice.

    The app begins with another model and other random numbers in its second life.
    """
    main = apps()[name]
    undisturbed = lives.live(main)
    for point in points_of(chosen, at_least=31):
        assert lives.live(main, point) == undisturbed, f"{name}, killed at {point}"


def test_killed_again_and_again(lives: Lives) -> None:
    """A run has any number of lives: one may end where the last one did, or before it is live again."""
    main = apps()["sampled"]
    undisturbed = lives.live(main)
    deaths = [(2, "before aggregate_train#0"), (2, "reply#0"), (2, "before push#0"), (3, "configure_evaluate#0")]
    assert lives.live(main, *deaths) == undisturbed


@pytest.mark.parametrize("death", [(1, "configure_train#0"), (1, "before push#0"), (1, "after push#0")])
def test_killed_in_the_first_round(lives: Lives, death: tuple[int, str]) -> None:
    """Before its first push a run has nothing that could be lost; from then on its first model is recorded."""
    main = app_of("FedAdam")
    died = lives.die(main, death)
    undisturbed = lives.live(main)
    life = 1 if "after" in death[1] else 0  # without a record, an app is as good as its seeds
    assert lives.end(main, died, life) == undisturbed


def test_hooks_that_take_any_arguments(lives: Lives) -> None:
    """A hook of an app's own may take whatever flwr gives it."""

    class Taking(mortal("FedAvg")):  # type: ignore[misc]
        def configure_train(self, *arguments: Any) -> Any:
            return super().configure_train(*arguments)

        def aggregate_train(self, *arguments: Any, **named: Any) -> Any:
            return super().aggregate_train(*arguments, **named)

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        return Taking().start(grid=grid, initial_arrays=model_of(life), num_rounds=3), None

    assert lives.live(main, (2, "reply#1")) == lives.live(main)


def test_other_nodes_are_online(lives: Lives) -> None:
    """A hook that was called before the kill chooses the same nodes again, whoever came and went meanwhile."""
    main = apps()["sampled"]
    undisturbed = lives.live(main)
    run = lives.die(main, (5, "after push#1"))
    registration = Registration(lives.connect())
    registration.register()
    try:
        assert lives.end(main, run) == undisturbed
    finally:
        registration.leave()


def test_redis_forgets_a_record(lives: Lives) -> None:
    """What Redis has lost of a record is written again after a lost connection, as all that a run has."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        driver = driver_of(grid)

        def lose() -> None:
            lives.forget(driver.connection.keys.steps(driver.run.run_id))
            distrust(driver)

        def evaluate(server_round: int, arrays: Any) -> Any:
            if server_round == 3 and not life:
                lose()
            return MetricRecord({"round": server_round})

        strategy = mortal("FedAvg")()
        return strategy.start(grid=grid, initial_arrays=model_of(life), num_rounds=5, evaluate_fn=evaluate), None

    undisturbed = lives.end(main, None, 0)
    assert lives.live(main, (4, "after push#0")) == undisturbed


# What a user sees.


def test_a_run_is_extended(lives: Lives) -> None:
    """A run that was kept goes on after its last round, with everything that its strategy had."""
    longer = lives.live(app_of("FedAdam", rounds=5))
    shorter = lives.end(app_of("FedAdam", rounds=3), None, 0, keep=True)
    assert len(shorter.executed) == 18
    assert lives.end(app_of("FedAdam", rounds=5), lives.kept) == longer
    once = lives.end(app_of("FedAdam", rounds=3), None, 0, keep=True)
    assert lives.end(app_of("FedAdam", rounds=3), lives.kept) == once


def test_where_a_run_goes_on(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    """The log says at which step a resumed run goes on, and what is not executed again."""
    caplog.set_level("INFO", "brokerfl")
    run = lives.die(app_of("FedAvg"), (3, "before aggregate_evaluate#0"))
    assert f"Run {run} is resumable: steps" in caplog.text
    lives.end(app_of("FedAvg"), run)
    assert f"Run {run} goes on in round 3 (evaluate); 18 executions are not repeated" in caplog.text


#: Another app, by what is different: what the error says that the record has, and that the app has.
OTHERS = {
    "strategy": (
        app_of("FedMedian"),
        "the strategy tests.flower.lives.MortalFedAvg",
        "tests.flower.lives.MortalFedMed",
    ),
    "hooks": (app_of("FedAvg", has_evaluate=False), "round 0 (evaluate_fn)", "round 1 (train)"),
    "rounds": (app_of("FedAvg", rounds=2), "round 3 (train)", "the end of its loop"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_app_is_refused(lives: Lives, what: str) -> None:
    """An app that does something else than what was recorded is told the first difference; the run stays."""
    other, recorded, found = OTHERS[what]
    main = app_of("FedAvg")
    undisturbed = lives.live(main)
    run = lives.die(main, (4, "reply#1"))
    with pytest.raises(RunDiverged, match=re.escape(f"its record has {recorded}") + ".*" + re.escape(found)):
        lives.refuse(other, run)
    assert lives.end(main, run) == undisturbed


def test_another_model_is_refused(lives: Lives) -> None:
    """So is an app whose first model has other arrays."""

    def another(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        arrays = model_of(0)
        arrays["small"] = arrays["large"]
        return mortal("FedAvg")().start(grid=grid, initial_arrays=arrays, num_rounds=ROUNDS), None

    run = lives.die(app_of("FedAvg"), (2, "reply#1"))
    with pytest.raises(RunDiverged, match=r"small: float64 of shape \(3,\) where this app has small: .* \(20000,\)"):
        lives.refuse(another, run)
    lives.refuse(app_of("FedAvg"), run)


def test_what_cannot_be_recorded_is_named(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    """Once, in the first round: after a resume it is as main makes it, and everything else as it was."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        strategy = mortal("FedAvg")()
        strategy.notes, strategy.seen = io.StringIO(f"life {life}"), [life]
        result = strategy.start(grid=grid, initial_arrays=model_of(life), num_rounds=2)
        return result, (strategy.notes.getvalue(), strategy.seen)

    outcome = lives.live(main, (2, "reply#1"))
    assert outcome.kept == ("life 1", [0])
    assert caplog.text.count("cannot record strategy.notes (a _io.StringIO): after a resume it is as main") == 2


def test_a_loop_that_cannot_be_recorded(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    """It says so, goes on, and would start over: what cannot be recorded must not be lost silently."""

    class Odd(dict[str, float]):
        pass

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        strategy = mortal("FedAvg")(train_metrics_aggr_fn=lambda records, key: Odd(loss=1.0))
        result = strategy.start(grid=grid, initial_arrays=model_of(0), num_rounds=3)
        result.train_metrics_clientapp.clear()
        return result, None

    outcome = lives.live(main, (2, "reply#1"))
    assert "would start over: aggregate_train gave a tests.flower.test_steps." in caplog.text
    assert len(outcome.executed) == 18 + 9


def test_a_record_counts_against_the_limit_of_a_run(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    """FedAdam needs four models where a broadcast is one: under a limit for two it runs, and says what that costs."""
    main = app_of("FedAdam")
    undisturbed = lives.live(main)
    assert "would start over" not in caplog.text
    assert lives.live(main, max_run=2 * 20_000 * 8 + 100_000) == undisturbed
    assert "would start over: the content needs" in caplog.text


def test_a_record_leaves_nothing_behind(lives: Lives) -> None:
    """From round to round a run takes no more chunks, and in the end it has none, and no record."""
    counts: list[int] = []

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        run = driver_of(grid).run.run_id

        def look(server_round: int) -> None:
            counts.append(len([key for key in lives.in_redis() if f":blob:{run}:" in key]))
            assert not server_round or [key for key in lives.in_redis() if key.endswith(f"run:{run}}}:steps")]

        def evaluate(server_round: int, arrays: Any) -> None:
            look(server_round)

        strategy = strategies.FedAdam()
        return strategy.start(grid, model_of(0), num_rounds=5, evaluate_fn=evaluate), run

    run = lives.end(main).kept
    assert counts[2] == counts[5]
    assert not [key for key in lives.in_redis() if f":blob:{run}:" in key or key.endswith(f"run:{run}}}:steps")]


def test_a_loop_holds_no_model_of_early_rounds(lives: Lives) -> None:
    """A ServerApp needs no more memory in its last round than in its third."""
    models: list[bytes] = []
    counts: list[int] = []

    def evaluate(server_round: int, arrays: Any) -> None:
        models.append(arrays["large"].data)
        if server_round == 8:
            gc.collect()
            counts.extend(sys.getrefcount(models[index]) for index in range(5))

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        strategy = strategies.FedAdam()
        return strategy.start(grid=grid, initial_arrays=model_of(0), num_rounds=8, evaluate_fn=evaluate), None

    lives.live(main)
    models.append(bytes(MODEL))
    assert counts[1:] == [sys.getrefcount(models[-1])] * 4


def test_arrays_are_sent_once(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four models in FedAdam's record one was broadcast in the round before: it is not sent again."""
    size = 150_000  # more than a chunk, or it would share one with a description
    sent: list[int] = []
    sizes: dict[int, int] = {}

    def bring(blobs: Blobs, payload: Payload, indices: Any, bring: Any = Blobs.bring) -> None:
        sent.extend(payload.size(index) for index in indices)
        bring(blobs, payload, indices)

    monkeypatch.setattr(Blobs, "bring", bring)

    def evaluate(server_round: int, arrays: Any) -> None:
        sizes[server_round] = sum(sent)

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        strategy = strategies.FedAdam()
        return strategy.start(grid=grid, initial_arrays=model_of(0, size), num_rounds=5, evaluate_fn=evaluate), None

    lives.live(main)
    assert (sizes[5] - sizes[2]) / 3 == pytest.approx(3 * 8 * size, rel=0.05)


def test_a_number_changes_its_sign(lives: Lives) -> None:
    """What is equal to what was recorded is not yet the same: 0.0 and -0.0, 1 and True."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        strategy = mortal("FedAvg")()
        strategy.kept = [0.0, 1, np.zeros(20_000)]

        def evaluate(server_round: int, arrays: Any) -> None:
            if server_round == 1:
                strategy.kept[:2] = [-0.0, True]

        result = strategy.start(grid=grid, initial_arrays=model_of(0), num_rounds=3, evaluate_fn=evaluate)
        return result, repr(strategy.kept[:2])

    assert lives.live(main, (2, "reply#1")).kept == "[-0.0, True]"


def test_redis_loses_what_the_app_changes(lives: Lives) -> None:
    """A record has each array as it was when its round began, also if Redis loses it before the commit."""
    is_losing: list[bool] = []

    class Changing(mortal("FedAvg")):  # type: ignore[misc]
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            if server_round == 3 and is_losing:
                for key in lives.in_redis() - self.keys:
                    lives.forget(key)
                distrust(driver_of(grid))
            self.total += 1
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
            result = super().aggregate_evaluate(server_round, replies)
            self.total += 1
            self.keys = lives.in_redis()
            return result

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        driver_of(grid).connection.persists = False  # or what is lost would be written from a copy
        strategy = Changing()
        strategy.total, strategy.keys = np.zeros(20_000), set()
        result = strategy.start(grid=grid, initial_arrays=model_of(0), num_rounds=ROUNDS)
        return result, strategy.total.tobytes()

    undisturbed = lives.live(main)
    is_losing.append(True)
    run = lives.die(main, (3, "reply#1"))
    is_losing.clear()
    assert lives.end(main, run) == undisturbed


#: What an app does to an ndarray in place, so that sums over it stay as they are.
CHANGES = {
    "rows": lambda array: array.__setitem__([0, 1], array[[1, 0]]),
    "shape": lambda array: setattr(array, "shape", array.shape[::-1]),
    "dtype": lambda array: setattr(array, "dtype", np.int64),
}


@pytest.mark.parametrize("rows", [7, 64], ids=["small", "large"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_ndarray_changes_in_place(lives: Lives, change: str, rows: int) -> None:
    """It is recorded again, whatever has changed of it."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        strategy = mortal("FedAvg")()
        strategy.labels = np.eye(rows, 1024)

        def evaluate(server_round: int, arrays: Any) -> None:
            if server_round == 1:
                CHANGES[change](strategy.labels)

        result = strategy.start(grid=grid, initial_arrays=model_of(0), num_rounds=3, evaluate_fn=evaluate)
        return result, (strategy.labels.dtype, strategy.labels.shape, strategy.labels.tobytes())

    assert lives.live(main, (2, "reply#1")).kept == lives.live(main).kept


class Summing(strategies.FedAvg):  # type: ignore[misc,name-defined]
    """A loop of an app's own that looks into the model of each round."""

    def start(self, grid: Any, initial_arrays: Any, num_rounds: int) -> Any:
        """Five rounds."""
        result, arrays, self.sums = strategies.Result(), initial_arrays, []
        for server_round in range(1, num_rounds + 1):
            FUSE[0].server_round = server_round
            replies = grid.send_and_receive(self.configure_train(server_round, arrays, ConfigRecord(), grid))
            arrays, _ = self.aggregate_train(server_round, replies)
            self.sums.append(float(arrays["small"].numpy().sum()))
        result.arrays = arrays
        return result


class Asking(Summing):
    """A loop that asks its nodes between two steps."""

    def start(self, grid: Any, initial_arrays: Any, num_rounds: int) -> Any:
        """As above, with a push of its own after each aggregation."""
        result, arrays = strategies.Result(), initial_arrays
        for server_round in range(1, num_rounds + 1):
            FUSE[0].server_round = server_round
            replies = grid.send_and_receive(self.configure_train(server_round, arrays, ConfigRecord(), grid))
            arrays, _ = self.aggregate_train(server_round, replies)
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": server_round})})
            list(grid.send_and_receive([Message(content, node, "evaluate") for node in grid.get_node_ids()]))
        result.arrays = arrays
        return result


def test_a_push_between_two_steps(lives: Lives) -> None:
    """What an app pushes by itself inside its loop settles no reply whose step is not recorded yet."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        return Asking().start(grid, model_of(life), ROUNDS), None

    undisturbed = lives.live(main)
    again = lives.live(main, (3, "after push#1"))
    assert again.arrays == undisturbed.arrays
    trained = [each for each in again.executed if each[1] == "train"]
    assert trained == [(node, "train", number) for node in range(3) for number in range(1, ROUNDS + 1)]


def test_models_of_early_rounds(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of an app's own may use all its models again; beyond the limit that is an error, not a wrong model."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        strategy = Summing()
        return strategy.start(grid, model_of(life), ROUNDS), strategy.sums

    undisturbed = lives.live(main)
    assert lives.live(main, (5, "reply#0")) == undisturbed
    monkeypatch.setattr(models, "MOST_KEPT", 3 * 170_000)
    assert lives.live(main, (3, "reply#0")) == undisturbed
    run = lives.die(main, (5, "reply#0"))
    with pytest.raises(RunDiverged, match="uses the model of an early round again"):
        lives.refuse(main, run)
