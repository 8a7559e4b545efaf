"""ServerApps of flwr that are killed and resumed, in one process: the nodes of all of them, and where they die.

A life ends with an exception that no code catches, and with a heartbeat that stops; the next life takes the run over
with a connection of its own. What a process would forget, an app here forgets as well: it makes all of its objects in
``main``, and seeds the generators with the number of its life, as if it had never seeded them.
"""

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from brokerfl.flower import adapt_server_app
from brokerfl.server import Driver
from brokerfl.server.book.answers import Answers
from brokerfl.server.push import Pusher
from brokerfl.server.upload import Uploader
from brokerfl.testing import FakeServer, Federation, fake_connection
from tests.flower.names import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
    ServerApp,
    array_of,
    record_in,
    strategies,
)
from tests.stage import kill

ROUNDS = 5

#: The rounds in which apps are killed.
DEADLY = range(2, ROUNDS + 1)


#: New objects after which lives collect garbage, which nobody else does here.
_MOST_GARBAGE = 100_000


class Dead(BaseException):
    """What a ServerApp dies of here."""


@dataclass
class Fuse:
    """Dies at one point; counts how often each point is reached.

    A point is a round and what happens there. Pushes, replies and uploads belong to the round that was configured last.
    """

    dies_at: tuple[int, str] | None = None
    server_round: int = 0
    reached: list[tuple[int, str]] = field(default_factory=list)
    is_dead: bool = False
    lock: Any = field(default_factory=threading.Lock)

    def at(self, what: str) -> None:
        """The app is at a point; all of its threads die together."""
        with self.lock:
            count = sum(point[1].partition("#")[0] == what and point[0] == self.server_round for point in self.reached)
            point = self.server_round, f"{what}#{count}"
            self.reached.append(point)
            self.is_dead = self.is_dead or point == self.dies_at
            if self.is_dead:
                raise Dead


#: The fuse of the life that runs now.
FUSE = [Fuse()]


def around(method: Any, what: str) -> Any:
    """A method with a point before it and one after it."""

    def deadly(self: Any, *arguments: Any, **named: Any) -> Any:
        FUSE[0].at(f"before {what}")
        result = method(self, *arguments, **named)
        FUSE[0].at(f"after {what}")
        return result

    return deadly


def _take(self: Any, wanted: Any, take: Any = Answers.take) -> Any:
    message = take(self, wanted)
    if message is not None:
        FUSE[0].at("reply")
    return message


def points_of(chosen: random.Random | None, at_least: int) -> list[Any]:
    """The points of the life that ended last at which an app is to be killed: one of them, or all if none chooses."""
    points = [point for point in FUSE[0].reached if point[0] in DEADLY]
    assert len(points) >= at_least
    return points if chosen is None else chosen.sample(points, 1)


@contextmanager
def deadly_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pushes, uploads and replies of all runs are points."""
    with monkeypatch.context() as patch:
        patch.setattr(Pusher, "_push", around(Pusher._push, "push"))
        patch.setattr(Uploader, "_upload_window", around(Uploader._upload_window, "upload"))
        patch.setattr(Answers, "take", _take)
        yield


class Mortal:
    """A strategy whose hooks are points."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """As flwr's."""
        FUSE[0].server_round = server_round
        FUSE[0].at("configure_train")
        return super().configure_train(server_round, arrays, config, grid)  # type: ignore[misc]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """As flwr's."""
        FUSE[0].at("before aggregate_train")
        result = super().aggregate_train(server_round, replies)  # type: ignore[misc]
        FUSE[0].at("after aggregate_train")
        return result

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """As flwr's."""
        FUSE[0].at("configure_evaluate")
        return super().configure_evaluate(server_round, arrays, config, grid)  # type: ignore[misc]

    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        """As flwr's."""
        FUSE[0].at("before aggregate_evaluate")
        result = super().aggregate_evaluate(server_round, replies)  # type: ignore[misc]
        FUSE[0].at("after aggregate_evaluate")
        return result


def model_of(seed: int, size: int = 20_000) -> Any:
    """A model with a large array and a small one."""
    generator = np.random.default_rng(seed)
    return ArrayRecord({"large": array_of(generator.normal(size=size)), "small": array_of(generator.normal(size=3))})


def nodes_app(executed: dict[int, list[tuple[int, str, int]]]) -> Any:
    """A ClientApp whose updates depend on all bits that it gets; notes what it executes, by run."""
    app = ClientApp()

    def note(message: Any, context: Any) -> tuple[int, Any, Any]:
        partition = int(context.node_config["partition-id"])
        config = record_in(message.content, "config")
        executed.setdefault(context.run_id, []).append(
            (partition, message.metadata.message_type, int(config["server-round"]))
        )
        return partition, config, record_in(message.content, "arrays")

    @app.train()
    def train(message: Any, context: Any) -> Any:
        partition, config, arrays = note(message, context)
        rate = (
            float(config.get("lr", 0.1)) * float(config.get("decay", 1.0)) + float(config.get("proximal-mu", 0.0)) / 7
        )
        new = {
            name: array_of(array.numpy() + rate * np.cos(3 * array.numpy() + partition))
            for name, array in arrays.items()
        }
        metrics = MetricRecord({"loss": float(np.sum(arrays["large"].numpy())), "num-examples": 3 + partition})
        return Message(RecordDict({"arrays": ArrayRecord(new), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Any, context: Any) -> Any:
        partition, _, arrays = note(message, context)
        metrics = MetricRecord({"accuracy": float(arrays["small"].numpy().mean()), "num-examples": 1 + partition})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


@dataclass
class Outcome:
    """What an app has at its end: its model, bit for bit; its history; what else it kept; and what was executed."""

    arrays: list[tuple[str, bytes]]
    history: list[Any]
    kept: Any
    executed: list[tuple[int, str, int]]


#: An app's own part of ``main``: gets the Grid, the Context and the number of the life; returns flwr's Result, and what
#: else is to be compared.
Main = Callable[[Any, Any, int], tuple[Any, Any]]


class Lives:
    """Three nodes, and runs on them, of which each may have several lives."""

    def __init__(self, nodes: int = 3, app: Callable[[dict[int, list[tuple[int, str, int]]]], Any] = nodes_app) -> None:
        self.server = FakeServer()
        self.executed: dict[int, list[tuple[int, str, int]]] = {}
        self.federation = Federation(app(self.executed), nodes, connect=self.connect)
        self.kept = 0  # the run that was kept last

    def connect(self) -> Any:
        """A new connection."""
        return fake_connection(self.server)

    def live(self, main: Main, *deaths: tuple[int, str], **options: Any) -> Outcome:
        """Let an app live until it has ended, dying at each of these points in turn."""
        run = None
        for life, death in enumerate(deaths):
            run = self.die(main, death, run, life, **options)
        return self.end(main, run, len(deaths), **options)

    def die(self, main: Main, death: tuple[int, str], run: int | None = None, life: int = 0, **options: Any) -> int:
        """Let an app live until it dies at a point, in a new run or a former one; return the run."""
        driver = self._driver(run, death, options)
        with pytest.raises(Dead):
            self._run(main, driver, life)
        kill(driver)
        driver.abandon()
        return driver.run.run_id

    def end(self, main: Main, run: int | None = None, life: int = 1, *, keep: bool = False, **options: Any) -> Outcome:
        """Let an app live until it has ended."""
        driver = self._driver(run, None, options)
        driver.record.is_kept = keep
        try:
            [(result, kept)] = self._run(main, driver, life)
        finally:
            if keep:
                driver.checkpoint()
                driver.detach()
                self.kept = driver.run.run_id
            else:
                driver.end()
            if gc.get_count()[0] > _MOST_GARBAGE:  # nobody trains now
                gc.collect()
        return self.outcome(driver.run.run_id, result, kept)

    def refuse(self, main: Main, run: int, **options: Any) -> None:
        """Let an app live until it raises what it is refused with; the run stays."""
        driver = self._driver(run, None, options)
        try:
            self._run(main, driver, 1)
        finally:
            driver.detach()

    def _driver(self, run: int | None, death: tuple[int, str] | None, options: dict[str, Any]) -> Driver:
        FUSE[0] = Fuse(death)
        return Driver(self.connect(), "app", resume=run, takeover=run is not None, **options)

    def _run(self, main: Main, driver: Driver, life: int) -> list[tuple[Any, Any]]:
        ended: list[tuple[Any, Any]] = []
        app = ServerApp()

        @app.main()
        def app_main(grid: Any, context: Any) -> None:
            random.seed(life)
            np.random.seed(life)
            ended.append(main(grid, context, life))

        adapt_server_app(app)(driver, driver.context)
        return ended

    def forget(self, key: str) -> None:
        """Redis loses a key."""
        assert self.connect().at(key).redis.delete(key) == 1

    def in_redis(self) -> set[str]:
        """All keys."""
        return {key.decode() for database in self.server.dbs.values() for key in database}

    def outcome(self, run: int, result: Any, kept: Any) -> Outcome:
        """What a run has at its end."""
        history = [
            {number: dict(record) for number, record in records.items()}
            for records in (
                result.train_metrics_clientapp,
                result.evaluate_metrics_clientapp,
                result.evaluate_metrics_serverapp,
            )
        ]
        arrays = [(name, array.data) for name, array in result.arrays.items()]
        return Outcome(arrays, history, kept, sorted(self.executed[run]))


# Apps.


def mortal(kind: str) -> Any:
    """One of flwr's strategies, whose hooks are points."""
    return type(f"Mortal{kind}", (Mortal, getattr(strategies, kind)), {"__module__": __name__})


def app_of(kind: str, rounds: int = ROUNDS, has_evaluate: bool = True, size: int = 20_000, **options: Any) -> Main:
    """An app with one of flwr's strategies, as its documentation shows it."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        losses: list[float] = []

        def evaluate(server_round: int, arrays: Any) -> Any:
            losses.append(float(np.abs(arrays["large"].numpy()).sum()) + float(np.random.normal()))
            return MetricRecord({"loss": losses[-1], "best": min(losses)})

        strategy = mortal(kind)(min_available_nodes=3, **options)
        result = strategy.start(
            grid=grid,
            initial_arrays=model_of(life, size),
            train_config=ConfigRecord({"lr": 0.1}),
            num_rounds=rounds,
            evaluate_fn=evaluate if has_evaluate else None,
        )
        return result, losses

    return main


def wrapped_app(kind: str, **options: Any) -> Main:
    """An app whose strategy is wrapped by one of differential privacy, which adds noise to what another one gives."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        inner = strategies.FedAdam(min_available_nodes=3, eta=0.05)
        strategy = mortal(kind)(inner, 0.3, num_sampled_clients=3, **options)
        return strategy.start(grid=grid, initial_arrays=model_of(life), num_rounds=ROUNDS), None

    return main


def own_start(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
    """An app with a loop of its own, as Flower's advanced examples have it.

    It sets a learning rate in each round, in the hook halves another one and tells the time, keeps the best model in an
    attribute and a count in ``context.state``, and draws numbers between the hooks.
    """

    class Scheduled(Mortal, strategies.FedAdam):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(min_available_nodes=3)
            self.best, self.best_loss, self.drawn = None, float("inf"), []
            self.generator = np.random.default_rng(life)
            self.total = np.full(20_000, float(life))

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            config["decay"], config["now"] = config.get("decay", 1.0) / 2, time.time()
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            counts = context.state.setdefault("counts", MetricRecord({"rounds": 0}))
            counts["rounds"] += 1
            self.drawn.append(float(self.generator.normal()))
            self.total += counts["rounds"]
            return super().aggregate_train(server_round, replies)

        def start(self, grid: Any, initial_arrays: Any, rounds: int, evaluate_fn: Any) -> Any:
            result = strategies.Result()
            arrays, config = initial_arrays, ConfigRecord({"lr": 0.5})
            for server_round in range(1, rounds + 1):
                config["lr"] = 0.5 / server_round
                messages = self.configure_train(server_round, arrays, config, grid)
                replies = grid.send_and_receive(messages=messages, timeout=60)
                arrays, metrics = self.aggregate_train(server_round, replies)
                result.arrays, result.train_metrics_clientapp[server_round] = arrays, metrics
                measured = evaluate_fn(server_round, arrays)
                if measured["loss"] < self.best_loss:
                    self.best, self.best_loss = arrays, measured["loss"]
                self.drawn.append(random.random())
            return result

    def evaluate(server_round: int, arrays: Any) -> Any:
        return MetricRecord({"loss": abs(float(arrays["small"].numpy().sum()) - 0.4)})

    strategy = Scheduled()
    result = strategy.start(grid, model_of(life), ROUNDS, evaluate)
    best = [(name, array.data) for name, array in strategy.best.items()]
    return result, (best, strategy.best_loss, strategy.drawn, strategy.total.tobytes(), dict(context.state["counts"]))


def two_loops(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
    """An app that trains with one strategy, then goes on with another one, and asks its nodes once more at the end."""
    first = app_of("FedAvg")(grid, context, life)[0]
    context.state["between"] = MetricRecord({"loss": first.train_metrics_clientapp[ROUNDS]["loss"]})
    second = mortal("FedMedian")(min_available_nodes=3).start(grid=grid, initial_arrays=first.arrays, num_rounds=2)
    record = RecordDict({"arrays": second.arrays, "config": ConfigRecord({"server-round": 99})})
    batch = [Message(record, node, "evaluate") for node in grid.get_node_ids()]
    last = [dict(record_in(reply.content, "metrics")) for reply in grid.send_and_receive(batch)]
    return second, (last, first.evaluate_metrics_serverapp, dict(context.state["between"]))


def apps() -> dict[str, Main]:
    """The apps, by what is special about them."""
    return {
        "FedAvg": app_of("FedAvg"),
        "FedAdam": app_of("FedAdam"),
        "FedYogi": app_of("FedYogi"),
        "FedAdagrad": app_of("FedAdagrad"),
        "FedAvgM": app_of("FedAvgM", server_momentum=0.9, server_learning_rate=0.7),
        "FedMedian": app_of("FedMedian"),
        "Krum": app_of("Krum", num_malicious_nodes=0),
        "FedProx": app_of("FedProx", proximal_mu=0.1),
        "sampled": app_of("FedAvg", fraction_train=0.7, fraction_evaluate=0.4, min_evaluate_nodes=1),
        "no evaluation": app_of("FedAvg", fraction_evaluate=0.0),
        "many chunks": app_of("FedAdam", size=150_000),
        "own start": own_start,
        "two loops": two_loops,
        "fixed clipping": wrapped_app("DifferentialPrivacyServerSideFixedClipping", clipping_norm=5.0),
        "adaptive clipping": wrapped_app("DifferentialPrivacyServerSideAdaptiveClipping", clipped_count_stddev=2.0),
    }
