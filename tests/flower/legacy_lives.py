"""ServerApps of ``flwr.server`` that are killed and resumed: legacy strategies in a Server, and in workflows."""

import random
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.flower.lives import FUSE, ROUNDS, Lives, Main, Outcome
from tests.flower.names import (
    ClientApp,
    DefaultWorkflow,
    LegacyContext,
    NumPyClient,
    SecAggPlusWorkflow,
    Server,
    ServerConfig,
    SimpleClientManager,
    flwr_app_utils,
    flwr_server_app,
    flwr_workflows,
    legacy,
    legacy_mods,
    ndarrays_to_parameters,
    records_in,
    start_server,
)

Executed = dict[int, list[tuple[int, str, int]]]
Weights = list[Any]


def model_of(seed: int, size: int = 20_000) -> Weights:
    """A model with a large array and a small one."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=size), generator.normal(size=3)]


class Client(NumPyClient):  # type: ignore[misc]  # of any flwr
    """A client whose updates depend on all bits that it gets; notes what it executes, by run."""

    def __init__(self, executed: Executed, context: Any) -> None:
        self.partition = int(context.node_config["partition-id"])
        self.notes = executed.setdefault(context.run_id, [])

    def get_parameters(self, config: Any) -> Weights:
        """Another model each time that it is asked."""
        self.notes.append((self.partition, "get_parameters", 0))
        return model_of(100 + len(self.notes))

    def fit(self, parameters: Weights, config: Any) -> Any:
        """As flwr's."""
        self.notes.append((self.partition, "train", int(config["round"])))
        new = [array + 0.1 * np.cos(3 * array + self.partition) for array in parameters]
        return new, 3 + self.partition, {"sum": float(np.sum(parameters[0]))}

    def evaluate(self, parameters: Weights, config: Any) -> Any:
        """As flwr's."""
        self.notes.append((self.partition, "evaluate", int(config["round"])))
        return float(np.abs(parameters[0]).sum()), 1 + self.partition, {"mean": float(parameters[1].mean())}


def clients_app(executed: Executed) -> Any:
    """A ClientApp of such clients."""
    return ClientApp(client_fn=lambda context: Client(executed, context).to_client())


def secure_app(executed: Executed) -> Any:
    """A ClientApp of such clients, whose updates are masked."""
    return ClientApp(client_fn=lambda context: Client(executed, context).to_client(), mods=[legacy_mods.secaggplus_mod])


class LegacyLives(Lives):
    """Three nodes, and runs of ``flwr.server`` on them."""

    looking: ClassVar[list[tuple[Any, Any]]] = []  # threads that look for nodes, and what ends them

    def die(self, main: Main, death: tuple[int, str], run: int | None = None, life: int = 0, **options: Any) -> int:
        """As above. No thread outlives its process, though flwr's would here."""
        try:
            return super().die(main, death, run, life, **options)
        finally:
            self._end_threads()

    def refuse(self, main: Main, run: int) -> None:
        """As above."""
        try:
            super().refuse(main, run)
        finally:
            self._end_threads()

    def _end_threads(self) -> None:
        while self.looking:
            thread, stop = self.looking.pop()
            stop.set()
            thread.join()

    @classmethod
    def watch(cls, patch: pytest.MonkeyPatch) -> None:
        """Know flwr's threads."""

        def starting(*arguments: Any, start: Any = flwr_app_utils.start_update_client_manager_thread) -> Any:
            started = start(*arguments)
            cls.looking.append(started[:2])
            return started

        for module in (flwr_server_app, flwr_workflows):
            patch.setattr(module, "start_update_client_manager_thread", starting)

    def outcome(self, run: int, result: Any, kept: Any) -> Outcome:
        """What a run has at its end."""
        tensors, history = result
        arrays = [(str(number), bytes(tensor)) for number, tensor in enumerate(tensors)]
        return Outcome(arrays, [vars(history)], kept, sorted(self.executed[run]))


class Mortal:
    """A legacy strategy whose hooks are points."""

    def initialize_parameters(self, client_manager: Any) -> Any:
        """As flwr's."""
        FUSE[0].server_round = 0
        return super().initialize_parameters(client_manager)  # type: ignore[misc]

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        """As flwr's."""
        FUSE[0].server_round = server_round
        FUSE[0].at("before configure_fit")
        result = super().configure_fit(server_round, parameters, client_manager)  # type: ignore[misc]
        FUSE[0].at("after configure_fit")
        return result

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """As flwr's."""
        FUSE[0].at("before aggregate_fit")
        result = super().aggregate_fit(server_round, results, failures)  # type: ignore[misc]
        FUSE[0].at("after aggregate_fit")
        return result

    def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        """As flwr's."""
        FUSE[0].at("configure_evaluate")
        return super().configure_evaluate(server_round, parameters, client_manager)  # type: ignore[misc]

    def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> Any:
        """As flwr's."""
        FUSE[0].at("before aggregate_evaluate")
        result = super().aggregate_evaluate(server_round, results, failures)  # type: ignore[misc]
        FUSE[0].at("after aggregate_evaluate")
        return result


def mean_of(results: Any) -> dict[str, Any]:
    """How metrics are aggregated."""
    return {name: sum(count * metrics[name] for count, metrics in results) for name in results[0][1]}


def strategy_of(
    kind: str, life: int, losses: list[float], mortality: tuple[Any, ...] = (Mortal,), **options: Any
) -> Any:
    """One of flwr's legacy strategies, whose hooks are points, as its documentation shows it."""

    def evaluate(server_round: int, weights: Weights, config: Any) -> Any:
        losses.append(float(np.abs(weights[0]).sum()) + random.random())
        return losses[-1], {"best": min(losses)}

    options = {"initial_parameters": ndarrays_to_parameters(model_of(life)), "min_available_clients": 3} | options
    made = type(f"Mortal{kind}", (*mortality, getattr(legacy, kind)), {"__module__": __name__})
    return made(
        evaluate_fn=evaluate,
        on_fit_config_fn=lambda server_round: {"round": server_round},
        on_evaluate_config_fn=lambda server_round: {"round": server_round},
        fit_metrics_aggregation_fn=mean_of,
        evaluate_metrics_aggregation_fn=mean_of,
        **options,
    )


def clipped_strategy(kind: str, life: int, losses: list[float]) -> Any:
    """A strategy in one of differential privacy, which adds noise to what it gives."""
    outer = legacy.DifferentialPrivacyServerSideFixedClipping
    made = type("MortalClipping", (Mortal, outer), {"__module__": __name__})
    return made(strategy_of(kind, life, losses, mortality=()), 0.3, clipping_norm=5.0, num_sampled_clients=3)


def app_of(kind: str, rounds: int = ROUNDS, server: Any = Server, make: Any = strategy_of, **options: Any) -> Main:
    """An app with a Server."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        losses: list[float] = []
        strategy = make(kind, life, losses, **options)
        made = server(client_manager=SimpleClientManager(), strategy=strategy)
        history = start_server(grid, made, ServerConfig(num_rounds=rounds))
        return (made.parameters.tensors, history), losses

    return main


def workflow_of(kind: str, rounds: int = ROUNDS, fit: Any = None, **options: Any) -> Main:
    """An app with a DefaultWorkflow."""

    def main(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
        losses: list[float] = []
        strategy = strategy_of(kind, life, losses, **options)
        seen = LegacyContext(context=context, config=ServerConfig(num_rounds=rounds), strategy=strategy)
        DefaultWorkflow(fit_workflow=fit and fit())(grid, context=seen)
        [(_, arrays)] = [item for item in records_in(context.state) if item[0] == "parameters"]
        return ([array.data for array in arrays.values()], seen.history), losses

    return main


def secure() -> Any:
    """SecAgg+ with all of three nodes."""
    return SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, max_weight=64)


class Counting(Server):  # type: ignore[misc]  # of any flwr
    """A Server of an app's own, which does more in a round than flwr's."""

    def fit_round(self, *arguments: Any, **named: Any) -> Any:
        """As flwr's; sums up the model of each round."""
        result = super().fit_round(*arguments, **named)
        if not hasattr(self, "sums"):
            self.sums = []
        self.sums.append(sum(map(len, result[0].tensors)))
        return result


def apps() -> dict[str, Main]:
    """The apps, by what is special about them."""
    return {
        "FedAvg": app_of("FedAvg"),
        "FedAdam": app_of("FedAdam"),
        "FedAvgM": app_of("FedAvgM", server_momentum=0.9, server_learning_rate=0.7),
        "sampled": app_of("FedAvg", fraction_fit=0.7, fraction_evaluate=0.4, min_evaluate_clients=1),
        "no evaluation": app_of("FedAvg", fraction_evaluate=0.0),
        "first model of a client": app_of("FedAvg", initial_parameters=None),
        "fixed clipping": app_of("FedAdam", make=clipped_strategy),
        "own server": app_of("FedAvg", server=Counting),
        "workflow": workflow_of("FedAdam"),
        "workflow, sampled": workflow_of("FedAvg", fraction_fit=0.7, fraction_evaluate=0.4, min_evaluate_clients=1),
        "workflow, first model of a client": workflow_of("FedAvg", initial_parameters=None),
    }
