"""flower-digits: the side of the server."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_digits import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for num-server-rounds rounds, or for what an interrupted run has left of them; save the model."""
    config, state = context.run_config, context.state
    if "arrays" not in state:
        state["arrays"] = ArrayRecord(task.create_model())
        state["progress"] = MetricRecord({"round": 0})
    done = state["progress"]["round"]
    digits = task.load_test_set()

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Save the progress, from which a resumed run continues; measure the model on digits that no node has."""
        state["arrays"] = arrays
        state["progress"] = MetricRecord({"round": done + server_round})
        loss, accuracy = task.evaluate(arrays.to_numpy_ndarrays(), digits)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    FedAvg(min_available_nodes=config["min-nodes"]).start(
        grid=grid,
        initial_arrays=state["arrays"],
        num_rounds=config["num-server-rounds"] - done,
        train_config=ConfigRecord({"lr": config["train.lr"], "steps": config["train.steps"]}),
        evaluate_fn=after_round,
    )
    np.savez("final_model.npz", *state["arrays"].to_numpy_ndarrays())
