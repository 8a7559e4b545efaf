"""flower-digits: the side of the server."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_digits import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for num-server-rounds rounds; save the model."""
    config = context.run_config
    digits = task.load_test_set()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Measure the model on digits that no node has."""
        loss, accuracy = task.evaluate(arrays.to_numpy_ndarrays(), digits)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    result = FedAvg(min_available_nodes=config["min-nodes"]).start(
        grid=grid,
        initial_arrays=ArrayRecord(task.create_model()),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord({"lr": config["train.lr"], "steps": config["train.steps"]}),
        evaluate_fn=evaluate,
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
