"""Apps in the shape of Flower's examples compute what they compute without a broker.

The numbers of the linear models are fractions of powers of two with few digits: they come out the same in whichever
order replies arrive, so results are compared bit for bit.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from brokerfl.common import ErrorCode
from brokerfl.testing import run_simulation
from tests.flower.names import (
    VERSION,
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    DefaultWorkflow,
    LegacyContext,
    Message,
    MetricRecord,
    NumPyClient,
    RecordDict,
    SecAggPlusWorkflow,
    ServerApp,
    ServerAppComponents,
    ServerConfig,
    arrays_of,
    legacy,
    legacy_mods,
    message_to,
    mods,
    ndarrays_to_parameters,
    needs_message_api,
    record_in,
    records_in,
    records_of,
    reply_to,
    strategies,
)

Weights = list["np.ndarray[Any, Any]"]
Config = dict[str, Any]

#: What a node does with weights and a config: returns weights, the number of its examples, and metrics.
Fit = Callable[[Weights, Config, int], tuple[Weights, int, dict[str, float]]]

#: What a strategy makes of the weights that it sent, what came back, and the number of the round.
Combine = Callable[[Weights, list[tuple[Weights, int]], int], Weights]

ROUNDS = 2
LR = 2.0**-4
INITIAL: Weights = [np.array([1.0, 0.0, -1.0]), np.zeros(1)]


def data_of(partition: int) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Small whole numbers; 16, 16, 32, 64, … of them."""
    random = np.random.default_rng(partition)
    size = 16 * 2 ** max(0, partition - 1)
    return random.integers(-2, 3, (size, 3)).astype(float), random.integers(-4, 5, size).astype(float)


def loss_of(weights: Weights, partition: int) -> float:
    """The mean square error of a linear model."""
    x, y = data_of(partition)
    return float(np.mean((x @ weights[0] + weights[1] - y) ** 2))


def fit_line(weights: Weights, config: Config, partition: int) -> tuple[Weights, int, dict[str, float]]:
    """Two steps of gradient descent on a linear model, with FedProx's term where its strategy asks for it."""
    x, y = data_of(partition)
    mu = config.get("proximal-mu", config.get("proximal_mu", 0.0))
    (start, start_bias), (slope, bias) = weights, weights
    for _ in range(2):
        error = x @ slope + bias - y
        gradient, bias_gradient = x.T @ error / len(y), error.sum() / len(y)
        slope, bias = (
            slope - config["lr"] * (gradient + mu * (slope - start)),
            bias - config["lr"] * (bias_gradient + mu * (bias - start_bias)),
        )
    return [slope, bias], len(y), {"loss": loss_of([slope, bias], partition)}


def alone(fit: Fit, combine: Combine, nodes: int, initial: Weights = INITIAL, **config: Any) -> list[Weights]:
    """The weights after each round, without any broker."""
    weights, history = initial, []
    for number in range(1, ROUNDS + 1):
        answers = [fit(weights, {"lr": LR, **config}, partition) for partition in range(nodes)]
        weights = combine(weights, [(update, count) for update, count, _ in answers], number)
        history.append(weights)
    return history


# The same app in both of Flower's programming interfaces.


class App:
    """An app that learns: what is in ``history`` after `run` are the weights after each round.

    Args:
        fit: what a node does.
        strategy: the name of the strategy.
        options: given to it.
        wrap: makes the strategy that is run of it.
        mod: the name of a mod, or a mod, around the ClientApp.
        initial: the first weights.
    """

    def __init__(
        self,
        fit: Fit = fit_line,
        strategy: str = "FedAvg",
        options: dict[str, Any] | None = None,
        wrap: Callable[[Any, Any], Any] = lambda module, strategy: strategy,
        mod: Any = None,
        initial: Weights = INITIAL,
    ) -> None:
        self.fit = fit
        self.strategy = strategy
        self.options = options or {}
        self.wrap = wrap
        self.mod = mod
        self.initial = initial
        self.history: list[Weights] = []
        self.losses: list[float] = []

    def run(self, api: str, nodes: int = 2) -> list[Weights]:
        """Run it in one programming interface."""
        apps = self.of_messages if api == "messages" else self.of_clients
        run_simulation(*apps(nodes), nodes)
        assert len(self.losses) == ROUNDS
        return self.history[1:]  # the first are those before the first round

    def mods_of(self, module: Any) -> list[Any]:
        """The mods, of the interface's own module."""
        if self.mod is None:
            return []
        return [self.mod(module) if callable(self.mod) else getattr(module, self.mod)]

    def of_messages(self, nodes: int) -> tuple[Any, Any]:
        """ServerApp and ClientApp of messages, as `flwr new` writes them today."""
        client_app, server_app = ClientApp(), ServerApp()

        @client_app.train(mods=self.mods_of(mods))
        def train(message: Any, context: Any) -> Any:
            arrays, config = message.content["arrays"], message.content["config"]
            partition = context.node_config["partition-id"]
            weights, count, metrics = self.fit(arrays.to_numpy_ndarrays(), dict(config), partition)
            metrics_record = MetricRecord({**metrics, "num-examples": count})
            return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics_record}), reply_to=message)

        @client_app.evaluate()
        def evaluate(message: Any, context: Any) -> Any:
            weights, partition = message.content["arrays"].to_numpy_ndarrays(), context.node_config["partition-id"]
            metrics = MetricRecord({"loss": self.loss(weights, partition), "num-examples": self.count(partition)})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        @server_app.main()
        def main(grid: Any, context: Any) -> None:
            counts = {"min_train_nodes": nodes, "min_evaluate_nodes": nodes, "min_available_nodes": nodes}
            strategy = getattr(strategies, self.strategy)(**counts, **self.options)
            result = self.wrap(strategies, strategy).start(
                grid=grid,
                initial_arrays=ArrayRecord(self.initial),
                train_config=ConfigRecord({"lr": LR}),
                num_rounds=ROUNDS,
                evaluate_fn=lambda _, arrays: self.history.append(arrays.to_numpy_ndarrays()),
            )
            self.losses += [float(metrics["loss"]) for metrics in result.evaluate_metrics_clientapp.values()]

        return server_app, client_app

    def of_clients(self, nodes: int) -> tuple[Any, Any]:
        """ServerApp and ClientApp of a NumPyClient and a legacy strategy, as examples up to 1.20 have them."""

        class Client(NumPyClient):  # type: ignore[misc,valid-type]
            def __init__(client, partition: int) -> None:  # noqa: N805
                client.partition = partition

            def get_parameters(client, config: Config) -> Weights:  # noqa: N805
                return self.initial

            def fit(client, parameters: Weights, config: Config) -> Any:  # noqa: N805
                return self.fit(parameters, config, client.partition)

            def evaluate(client, parameters: Weights, config: Config) -> Any:  # noqa: N805
                return self.loss(parameters, client.partition), self.count(client.partition), {}

        def client_fn(context: Any) -> Any:
            return Client(context.node_config["partition-id"]).to_client()

        def keep(number: int, weights: Weights, config: Config) -> None:
            self.history.append(weights)

        outer = self

        def server_fn(context: Any) -> Any:
            counts = {"min_fit_clients": nodes, "min_evaluate_clients": nodes, "min_available_clients": nodes}
            kind = getattr(legacy, self.strategy)
            options = {"initial_parameters": ndarrays_to_parameters(self.initial), **self.options}

            class Strategy(kind):  # type: ignore[misc,valid-type]
                def aggregate_evaluate(self, *arguments: Any) -> Any:
                    loss, metrics = super().aggregate_evaluate(*arguments)
                    outer.losses.append(loss)
                    return loss, metrics

            strategy = Strategy(evaluate_fn=keep, on_fit_config_fn=lambda _: {"lr": LR}, **counts, **options)
            return ServerAppComponents(strategy=self.wrap(legacy, strategy), config=ServerConfig(num_rounds=ROUNDS))

        return ServerApp(server_fn=server_fn), ClientApp(client_fn=client_fn, mods=self.mods_of(legacy_mods))

    def loss(self, weights: Weights, partition: int) -> float:
        """What a node says when it evaluates."""
        return loss_of(weights, partition)

    def count(self, partition: int) -> int:
        """How many examples it has."""
        return len(data_of(partition)[1])


both = pytest.mark.parametrize("api", [pytest.param("messages", marks=needs_message_api), "clients"])


def assert_same(found: list[Weights], expected: list[Weights], rtol: float = 0.0) -> None:
    """Compare all arrays of all rounds."""
    assert len(found) == len(expected) == ROUNDS
    for weights, wanted in zip(found, expected, strict=True):
        for array, other in zip(weights, wanted, strict=True):
            np.testing.assert_allclose(array, other, rtol=rtol, atol=0.0)


def average(weights: Weights, updates: list[tuple[Weights, int]], number: int = 0) -> Weights:
    """What FedAvg makes of updates."""
    total = sum(count for _, count in updates)
    return [sum(update[layer] * (count / total) for update, count in updates) for layer in range(len(weights))]  # type: ignore[misc]


def median(weights: Weights, updates: list[tuple[Weights, int]], number: int) -> Weights:
    """What FedMedian makes of updates."""
    return [np.median([update[layer] for update, _ in updates], axis=0) for layer in range(len(weights))]


def krum(weights: Weights, updates: list[tuple[Weights, int]], number: int) -> Weights:
    """The update that is nearest to the two next to it: what Krum chooses of five, one of which may be a lie."""
    flat = [np.concatenate(update) for update, _ in updates]
    distances = [sorted(float(((one - other) ** 2).sum()) for other in flat if other is not one) for one in flat]
    return updates[int(np.argmin([sum(nearest[:2]) for nearest in distances]))][0]


class Adam:
    """What FedAdam makes of updates (Reddi and others 2021, algorithm 2), with Adam's correction of both moments."""

    def __init__(self, eta: float, beta_1: float, beta_2: float, tau: float) -> None:
        self.eta, self.beta_1, self.beta_2, self.tau = eta, beta_1, beta_2, tau
        self.first: Weights = [np.zeros_like(layer) for layer in INITIAL]
        self.second: Weights = [np.zeros_like(layer) for layer in INITIAL]

    def __call__(self, weights: Weights, updates: list[tuple[Weights, int]], number: int) -> Weights:
        deltas = [new - old for new, old in zip(average(weights, updates), weights, strict=True)]
        rate = self.eta * math.sqrt(1 - self.beta_2 ** (number + 1)) / (1 - self.beta_1 ** (number + 1))
        result = []
        for layer, delta in enumerate(deltas):
            self.first[layer] = self.beta_1 * self.first[layer] + (1 - self.beta_1) * delta
            self.second[layer] = self.beta_2 * self.second[layer] + (1 - self.beta_2) * delta**2
            result.append(weights[layer] + rate * self.first[layer] / (np.sqrt(self.second[layer]) + self.tau))
        return result


# Strategies.


@both
def test_fedavg(api: str) -> None:
    """FedAvg over three unequal nodes ends with the weights and the losses of the plain average, bit for bit."""
    app, expected = App(), alone(fit_line, average, 3)
    assert_same(app.run(api, 3), expected)
    losses = [[loss_of(weights, partition) * app.count(partition) for partition in range(3)] for weights in expected]
    assert app.losses == pytest.approx([sum(items) / 64 for items in losses], rel=1e-12)


@both
def test_fedprox(api: str) -> None:
    """FedProx's mu reaches the nodes, and holds them back."""
    expected = alone(fit_line, average, 2, **{"proximal-mu": 0.5})
    assert not np.array_equal(expected[0][0], alone(fit_line, average, 2)[0][0])
    assert_same(App(strategy="FedProx", options={"proximal_mu": 0.5}).run(api), expected)


@both
def test_fedadam(api: str) -> None:
    """FedAdam keeps its moments from round to round."""
    options = {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}
    expected = alone(fit_line, Adam(**options), 2)
    assert_same(App(strategy="FedAdam", options=options).run(api), expected, rtol=1e-12)


@both
def test_fedmedian(api: str) -> None:
    """FedMedian takes the median of three nodes, of each weight by itself."""
    assert_same(App(strategy="FedMedian").run(api, 3), alone(fit_line, median, 3))


@both
def test_krum(api: str) -> None:
    """Krum takes the update of one node, and not that of the one that lies."""

    def fit(weights: Weights, config: Config, partition: int) -> tuple[Weights, int, dict[str, float]]:
        update, count, metrics = fit_line(weights, config, partition)
        return ([1000 - array for array in update] if partition == 2 else update), count, metrics

    name = "num_malicious_nodes" if api == "messages" else "num_malicious_clients"
    assert_same(App(fit, strategy="Krum", options={name: 1}).run(api, 5), alone(fit, krum, 5))


def test_the_first_weights_of_a_node() -> None:
    """A legacy strategy without initial parameters asks a node for its own."""
    app = App(options={"initial_parameters": None})
    assert_same(app.run("clients"), alone(fit_line, average, 2))
    np.testing.assert_array_equal(app.history[0][0], INITIAL[0])


# Models of scikit-learn.


@both
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # it is to stop after a few steps
def test_logistic_regression(api: str) -> None:
    """scikit-learn's logistic regression on digits learns what it learns without a broker, and well enough."""
    images, labels = load_digits(return_X_y=True)
    parts = [slice(0, 600), slice(600, 1200)]

    def fit(weights: Weights, config: Config, partition: int) -> tuple[Weights, int, dict[str, float]]:
        model = LogisticRegression(max_iter=10, warm_start=True)
        model.classes_ = np.arange(10)
        model.coef_, model.intercept_ = weights
        part = parts[partition]
        model.fit(images[part] / 16, labels[part])
        return [model.coef_, model.intercept_], 600, {"loss": 0.0}

    class Digits(App):
        def loss(self, weights: Weights, partition: int) -> float:
            return float(np.mean((images[1200:] @ weights[0].T / 16 + weights[1]).argmax(axis=1) != labels[1200:]))

    initial = [np.zeros((10, 64)), np.zeros(10)]
    app = Digits(fit, initial=initial)
    assert_same(app.run(api), alone(fit, average, 2, initial), rtol=1e-9)
    assert app.losses[-1] < 0.15


# Queries.


def ask_all(answer: Callable[[int], Any], nodes: int) -> list[Any]:
    """The contents that all nodes answer a query with."""
    client_app, server_app, contents = ClientApp(), ServerApp(), []

    @client_app.query()
    def query(message: Any, context: Any) -> Any:
        return reply_to(message, answer(context.node_config["partition-id"]))

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        batch = [message_to(grid, node, RecordDict()) for node in grid.get_node_ids()]
        contents.extend(reply.content for reply in grid.send_and_receive(batch))

    run_simulation(server_app, client_app, nodes)
    return contents


def test_federated_analytics() -> None:
    """Histograms as bytes and sums as metrics, of three nodes, add up to those of all data."""
    parts = [np.random.default_rng(seed).integers(0, 2**40, 200 * (seed + 1)) for seed in range(3)]

    def histogram(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        return np.histogram(values, bins=16, range=(0, 2**40))[0].astype("<u4")

    def answer(partition: int) -> Any:
        values = parts[partition]
        metrics = {"count": len(values), "sums": [int(values.sum()), sum(int(value) ** 2 >> 40 for value in values)]}
        config = {"histogram": histogram(values).tobytes(), "empty": b""}
        return records_of({"metrics": MetricRecord(metrics), "config": ConfigRecord(config)})

    contents, everything = ask_all(answer, 3), np.concatenate(parts)
    metrics, configs = zip(*((record_in(one, "metrics"), record_in(one, "config")) for one in contents), strict=True)
    assert sum(record["count"] for record in metrics) == len(everything)
    assert [sum(sums) for sums in zip(*(record["sums"] for record in metrics), strict=True)] == [
        int(everything.sum()),
        sum(int(value) ** 2 >> 40 for value in everything),
    ]
    assert all(type(record["histogram"]) is bytes and record["empty"] == b"" for record in configs)
    total = sum(np.frombuffer(record["histogram"], "<u4") for record in configs)
    np.testing.assert_array_equal(total, histogram(everything))


def survival(observations: Sequence[tuple[float, int]]) -> list[tuple[float, Fraction]]:
    """Kaplan and Meier's curve: how many outlive each time, of those that died (1) or were last seen (0) at theirs."""
    curve, alive = [], Fraction(1)
    for time in sorted({time for time, _ in observations}):
        at_risk = sum(other >= time for other, _ in observations)
        alive *= 1 - Fraction(sum(died for other, died in observations if other == time), at_risk)
        curve.append((time, alive))
    return curve


def test_kaplan_meier() -> None:
    """The survival curve of what four nodes answered is the curve of the pooled patients exactly."""

    def patients(partition: int) -> list[tuple[float, int]]:
        random = np.random.default_rng(partition)
        times = random.exponential(10.0, 30).round(1 if partition else 15)  # ties between nodes, and odd fractions
        return list(zip(times.tolist(), random.integers(0, 2, 30).tolist(), strict=True))

    def answer(partition: int) -> Any:
        times, died = zip(*patients(partition), strict=True)
        return records_of({"patients": MetricRecord({"times": list(times), "died": list(died)})})

    pooled = []
    for content in ask_all(answer, 4):
        record = record_in(content, "patients")
        pooled += zip(record["times"], record["died"], strict=True)
    assert survival(pooled) == survival([patient for partition in range(4) for patient in patients(partition)])


# Secure aggregation.

MAX_WEIGHT, CLIPPING_RANGE, QUANTIZATION_RANGE = 1024, 8.0, 2**22


@pytest.mark.parametrize("dead", [set(), {2}], ids=["all", "one drops out"])
def test_secure_aggregation(dead: set[int]) -> None:
    """SecAgg+ ends within its quantisation error of the plain average, also when a node drops out in the middle."""
    nodes = 4
    history: list[Weights] = []
    sampled = []

    def fit(weights: Weights, config: Config, partition: int) -> tuple[Weights, int, dict[str, float]]:
        if partition in dead:
            raise RuntimeError("dropped out")
        return fit_line(weights, {"lr": LR}, partition)

    class Client(NumPyClient):  # type: ignore[misc,valid-type]
        def __init__(self, partition: int) -> None:
            self.partition = partition

        def fit(self, parameters: Weights, config: Config) -> Any:
            return fit(parameters, config, self.partition)

    class FedAvg(legacy.FedAvg):  # type: ignore[misc,name-defined]
        def aggregate_fit(self, number: int, results: Any, failures: Any) -> Any:
            sampled.append((len(results), len(failures)))
            return super().aggregate_fit(number, results, failures)

    def keep(number: int, weights: Weights, config: Config) -> None:
        history.append(weights)

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        strategy = FedAvg(
            min_fit_clients=nodes,
            min_available_clients=nodes,
            fraction_evaluate=0.0,
            evaluate_fn=keep,
            initial_parameters=ndarrays_to_parameters(INITIAL),
        )
        secure = SecAggPlusWorkflow(
            num_shares=nodes,
            reconstruction_threshold=2,
            max_weight=MAX_WEIGHT,
            clipping_range=CLIPPING_RANGE,
            quantization_range=QUANTIZATION_RANGE,
        )
        config = ServerConfig(num_rounds=ROUNDS)
        DefaultWorkflow(fit_workflow=secure)(grid, LegacyContext(context=context, config=config, strategy=strategy))

    client_app = ClientApp(
        client_fn=lambda context: Client(context.node_config["partition-id"]).to_client(),
        mods=[legacy_mods.secaggplus_mod],
    )
    run_simulation(server_app, client_app, nodes)
    assert len(history) == ROUNDS + 1
    assert {results for results, _ in sampled} == {nodes - len(dead)}
    for before, after in pairwise(history):
        alive = [partition for partition in range(nodes) if partition not in dead]
        updates = [fit(before, {}, partition)[:2] for partition in alive]
        # Each node's part, weighted, is rounded to one of the steps, so it is wrong by one step at most.
        step = 2 * CLIPPING_RANGE / QUANTIZATION_RANGE
        bound = len(alive) * step / (sum(count for _, count in updates) / MAX_WEIGHT)
        for found, expected in zip(after, average(before, updates), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0.0, atol=bound)


# Mods.


def clipped(weights: Weights, update: Weights, norm: float) -> tuple[Weights, bool]:
    """Weights that went no further than ``norm``, and whether they had to be held."""
    deltas = [new - old for new, old in zip(update, weights, strict=True)]
    length = math.sqrt(sum(float((delta**2).sum()) for delta in deltas))
    scale = min(1.0, norm / length)
    return [old + delta * scale for old, delta in zip(weights, deltas, strict=True)], scale < 1


@both
def test_fixed_clipping(api: str) -> None:
    """The mod of central DP with fixed clipping holds every update to the norm that its strategy sends."""

    def fit(weights: Weights, config: Config, partition: int) -> tuple[Weights, int, dict[str, float]]:
        update, count, metrics = fit_line(weights, config, partition)
        return clipped(weights, update, 0.25)[0], count, metrics

    def wrap(module: Any, strategy: Any) -> Any:
        return module.DifferentialPrivacyClientSideFixedClipping(strategy, 0.0, 0.25, 2)

    expected = alone(fit, average, 2)
    assert not np.allclose(expected[0][0], alone(fit_line, average, 2)[0][0])
    assert_same(App(wrap=wrap, mod="fixedclipping_mod").run(api), expected, rtol=1e-12)


@both
def test_adaptive_clipping(api: str) -> None:
    """The mod of central DP with adaptive clipping tells whether it clipped, and the next norm follows from that."""
    norms = [0.5]

    def combine(weights: Weights, updates: list[tuple[Weights, int]], number: int) -> Weights:
        held = [clipped(weights, update, norms[-1]) for update, _ in updates]
        share = sum(was_held for _, was_held in held) / len(held)
        norms.append(norms[-1] * math.exp(-0.2 * (share - 0.5)))
        return average(weights, [(update, count) for (update, _), (_, count) in zip(held, updates, strict=True)])

    wrapped: list[Any] = []

    def wrap(module: Any, strategy: Any) -> Any:
        wrapped.append(module.DifferentialPrivacyClientSideAdaptiveClipping(strategy, 0.0, 2, norms[0], 0.5, 0.2))
        return wrapped[0]

    app = App(wrap=wrap, mod="adaptiveclipping_mod")
    found = app.run(api)
    assert_same(found, alone(fit_line, combine, 2), rtol=1e-12)
    assert wrapped[0].clipping_norm == pytest.approx(norms[-1], rel=1e-12)
    assert norms[-1] != norms[0]


@both
def test_local_dp(api: str) -> None:
    """The mod of local DP clips, and adds the noise of its epsilon, delta and sensitivity."""
    clipping, sensitivity, epsilon, delta = 0.25, 0.5, 4.0, 1e-5

    def fit(weights: Weights, config: Config, partition: int) -> tuple[Weights, int, dict[str, float]]:
        np.random.seed(7)  # the mod draws right after this, in the same thread
        return fit_line(weights, config, partition)

    def noisy(weights: Weights, config: Config, partition: int) -> tuple[Weights, int, dict[str, float]]:
        update, count, metrics = fit_line(weights, config, partition)
        random, scale = np.random.RandomState(7), sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
        held, _ = clipped(weights, update, clipping)
        if VERSION == (1, 13):
            return held, count, metrics  # that version draws the noise, and forgets to add it
        return [array + random.normal(0, scale, array.shape) for array in held], count, metrics

    app = App(fit, mod=lambda module: module.LocalDpMod(clipping, sensitivity, epsilon, delta))
    assert_same(app.run(api, 1), alone(noisy, average, 1), rtol=1e-9)


def test_size_mods(caplog: pytest.LogCaptureFixture) -> None:
    """The mods that log sizes count at the node what the ServerApp sent."""
    arrays_mod = getattr(legacy_mods, "arrays_size_mod", None) or legacy_mods.parameters_size_mod  # up to 1.13
    client_app = ClientApp(mods=[legacy_mods.message_size_mod, arrays_mod])
    server_app = ServerApp()
    arrays = arrays_of(np.zeros((20, 5), np.float32), np.zeros(3))
    content = records_of({"a": arrays, "m": MetricRecord({"n": [1, 2]}), "c": ConfigRecord({"text": "abc"})})

    @client_app.query()
    def query(message: Any, context: Any) -> Any:
        return reply_to(message, message.content)

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        grid.send_and_receive([message_to(grid, node, content)])

    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        run_simulation(server_app, client_app, 1)
    finally:
        logger.removeHandler(caplog.handler)
    sizes = re.findall(r"[Mm]essage size: (\d+) bytes|Total .*: (\d+) bytes", caplog.text)
    total = sum(record.count_bytes() for _, record in records_in(content))
    assert {int(size) for size, _ in sizes if size} == {total}
    assert {int(size) for _, size in sizes if size} == {arrays.count_bytes()}


@needs_message_api
def test_a_mods_error_is_the_reply() -> None:
    """A mod that refuses a message answers with an Error of its own code."""
    client_app, server_app, errors = ClientApp(mods=[mods.fixedclipping_mod] if mods else []), ServerApp(), []

    @client_app.train()
    def train(message: Any, context: Any) -> Any:
        raise AssertionError("the mod lets nothing through")

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        content = RecordDict({"arrays": arrays_of(np.zeros(2)), "config": ConfigRecord({"no": "norm"})})
        errors.extend(reply.error for reply in grid.send_and_receive([Message(content, node, "train")]))

    run_simulation(server_app, client_app, 1)
    assert [error.code for error in errors] == [ErrorCode.MOD_FAILED_PRECONDITION]


# What came with the message API.


@needs_message_api
def test_lifespans() -> None:
    """A lifespan surrounds every call of a ClientApp, and the ServerApp, also one that raises."""
    client_app, server_app = ClientApp(), ServerApp()
    seen: list[str] = []

    @client_app.lifespan()
    def client_lifespan(context: Any) -> Iterator[None]:
        seen.append(f"enter {context.run_config['name']}")
        try:
            yield
        finally:
            seen.append("leave")

    @client_app.query()
    def query(message: Any, context: Any) -> Any:
        seen.append("query")
        return reply_to(message, message.content)

    @client_app.train()
    def train(message: Any, context: Any) -> Any:
        raise ZeroDivisionError("mine")

    @server_app.lifespan()
    def server_lifespan(context: Any) -> Iterator[None]:
        seen.append(f"begin {context.run_config['name']}")
        try:
            yield
        finally:
            seen.append("end")

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        for kind in ("query", "train"):
            grid.send_and_receive([Message(RecordDict(), node, kind)])
        raise KeyError("mine too")

    with pytest.raises(KeyError, match="mine too"):
        run_simulation(server_app, client_app, 1, run_config={"name": "a"})
    assert seen == ["begin a", "enter a", "query", "leave", "enter a", "leave", "end"]


@needs_message_api
def test_actions() -> None:
    """Messages with an action reach the function that is registered for it, each category by itself."""
    client_app, server_app, answers = ClientApp(), ServerApp(), {}
    kinds = ["train", "train.custom", "evaluate.custom", "query", "query.x", "query.missing"]

    def register(kind: str) -> None:
        category, _, action = kind.partition(".")

        @getattr(client_app, category)(*([action] if action else []))
        def function(message: Any, context: Any) -> Any:
            assert message.metadata.message_type == kind
            return Message(RecordDict({"c": ConfigRecord({"by": kind})}), reply_to=message)

    for kind in kinds[:-1]:
        register(kind)

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        for kind in kinds:
            [reply] = grid.send_and_receive([Message(RecordDict(), node, kind)])
            answers[kind] = reply.error.reason if reply.has_error() else reply.content["c"]["by"]

    run_simulation(server_app, client_app, 1)
    missing = answers.pop("query.missing")
    assert answers == {kind: kind for kind in kinds[:-1]}
    assert missing == "ValueError: No query function registered with name 'missing'"


def test_a_main_that_runs_nothing() -> None:
    """A coroutine or a generator that a main function returns is refused: its run is not completed."""

    async def coroutine(grid: Any, context: Any) -> None:
        raise AssertionError("nobody awaits it")

    def generator(grid: Any, context: Any) -> Iterator[None]:
        yield

    for main in (coroutine, generator):
        server_app = ServerApp()
        server_app.main()(main)
        with pytest.raises(TypeError, match=f"^the main function returned a {main.__name__}, which runs nothing "):
            run_simulation(server_app, ClientApp(), 1)


def test_a_server_fn_that_runs_nothing() -> None:
    """So is that of a server_fn, which flwr would look for a strategy in."""

    async def coroutine(context: Any) -> Any:
        raise AssertionError("nobody awaits it")

    def generator(context: Any) -> Iterator[None]:
        yield

    for server_fn in (coroutine, generator):
        match = f"^the server_fn function returned a {server_fn.__name__}, which runs nothing by itself: write "
        with pytest.raises(TypeError, match=match):
            run_simulation(ServerApp(server_fn=server_fn), ClientApp(), 1)
