"""The ServerApp: federated averaging; it tests the model, and a running average of it, on data of its own."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.utils.data import DataLoader

from shapes.task import Net, make_data, measure

torch.set_num_threads(1)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, then save the model, the running average and the history."""
    torch.manual_seed(7)
    device = torch.device("cpu")
    model, average = Net().to(device), Net().to(device)
    average.load_state_dict(model.state_dict())
    shuffle = torch.Generator().manual_seed(8)
    loader = DataLoader(make_data(99, 90), batch_size=16, shuffle=True, generator=shuffle)
    weights = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
                ours.lerp_(theirs.to(device), 0.3)
            weights.add_(torch.cat([parameter.flatten() for parameter in model.parameters()]).abs())
        loss, accuracy = measure(model, loader, noise=0.5)
        average_loss, _ = measure(average, loader)
        return MetricRecord(
            {"loss": loss, "accuracy": accuracy, "average-loss": average_loss, "weights": weights.sum().item()}
        )

    result = FedAvg(min_available_nodes=2).start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
    torch.save(average.state_dict(), "average.pt")
    records = (
        result.train_metrics_clientapp,
        result.evaluate_metrics_clientapp,
        result.evaluate_metrics_serverapp,
    )
    history = [{number: dict(record) for number, record in each.items()} for each in records]
    Path("history.json").write_text(json.dumps(history))
