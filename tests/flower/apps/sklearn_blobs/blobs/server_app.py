"""The ServerApp: federated averaging; it keeps the model that did best on data of its own."""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.metrics import log_loss

from blobs.task import CLASSES, create_model, get_params, load_data, set_params

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, then save the model, the best one and the history."""
    model = create_model(context.run_config["C"])
    features, labels, _, _ = load_data(99)
    best, best_loss = get_params(model), np.inf

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal best, best_loss
        set_params(model, arrays.to_numpy_ndarrays())
        some = np.random.permutation(len(labels))[:80]
        loss = log_loss(labels[some], model.predict_proba(features[some]), labels=range(CLASSES))
        if loss < best_loss:
            best, best_loss = get_params(model), loss
        return MetricRecord({"loss": loss, "best": best_loss})

    np.random.seed(7)
    result = FedAvg(min_available_nodes=2).start(
        grid=grid,
        initial_arrays=ArrayRecord(get_params(model)),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
    np.savez("best.npz", *best)
    records = (
        result.train_metrics_clientapp,
        result.evaluate_metrics_clientapp,
        result.evaluate_metrics_serverapp,
    )
    history = [{number: dict(record) for number, record in each.items()} for each in records]
    Path("history.json").write_text(json.dumps(history))
