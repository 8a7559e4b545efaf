"""What a record has of the objects of torch and of scikit-learn that an app's strategy and evaluate_fn use."""

from typing import Any

import numpy as np
import pytest

from brokerfl.flower.keeper import _Look
from brokerfl.flower.places import Places
from brokerfl.flower.values import RecordTypeError, decode, encode
from tests.flower.names import needs_message_api

pytestmark = needs_message_api


class Strategy:
    """A strategy without attributes."""


def taken(places: Places) -> dict[str, Any]:
    """The values of all places that can be recorded, as a record gives them back."""
    found = {}
    for place in places:
        try:
            encoded = encode(place.read())
        except RecordTypeError:
            continue
        found[place.name] = decode(encoded.tree, encoded.arrays())
    return found


def test_an_estimator_is_put_back() -> None:
    """The attributes that an estimator has by its training come back; the object stays the one that main made."""
    linear_model = pytest.importorskip("sklearn.linear_model")

    def estimator() -> Any:
        return linear_model.SGDClassifier(random_state=np.random.RandomState(4))

    def function_of(model: Any) -> Any:
        def evaluate() -> Any:
            model.partial_fit(np.eye(3), [0, 1, 2], classes=[0, 1, 2])
            return model.coef_.tobytes(), model.t_

        return evaluate

    first, other = function_of(estimator()), function_of(estimator())
    first()
    record = taken(Places(Strategy(), first))
    places = Places(Strategy(), other)
    for name, value in record.items():
        assert places.put_back(name, value), name
    assert first() == other()


def torch_app(torch: Any, seed: int) -> Any:
    """A function that uses a model, a running average of it, an optimizer with a schedule, a tensor and a loader."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    generator = torch.Generator().manual_seed(seed)
    loader = torch.utils.data.DataLoader(torch.eye(4), batch_size=2, shuffle=True, generator=generator)
    total, device = torch.zeros(2), torch.device("cpu")

    def evaluate() -> Any:
        for batch in loader:
            optimizer.zero_grad()
            loss = model(batch.to(device)).square().sum()
            loss.backward()
            optimizer.step()
            total.add_(loss.detach())
        schedule.step()
        average.update_parameters(model)
        tensors = [*model.state_dict().values(), *average.state_dict().values(), total]
        return [tensor.numpy().tobytes() for tensor in tensors], schedule.get_last_lr(), model.training

    return evaluate


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_torch_objects_are_put_back(rounds: int) -> None:
    """Models, optimizers, schedules, tensors and generators go on where they were, in another process's objects."""
    torch = pytest.importorskip("torch")
    first, other = torch_app(torch, 1), torch_app(torch, 2)
    for _ in range(rounds):
        first()
    record = taken(Places(Strategy(), first))
    places = Places(Strategy(), other)
    for name, value in record.items():
        assert places.put_back(name, value), name
    for _ in range(2):
        assert first() == other()


def test_tensors_are_compared_by_their_elements() -> None:
    """A tensor that did not change is not recorded again, and one whose elements were permuted is."""
    torch = pytest.importorskip("torch")
    tensor = torch.eye(64)
    look = _Look(encode(tensor), b"")
    assert look.is_of(encode(tensor), b"")
    tensor.copy_(tensor[torch.arange(63, -1, -1)])
    assert not look.is_of(encode(tensor), b"")


def test_tensors_that_cannot_be_recorded() -> None:
    """They are named by their dtype, and nothing else is raised."""
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(2, dtype=torch.bfloat16), torch.eye(2).to_sparse(), torch.zeros(2, requires_grad=True)):
        with pytest.raises(RecordTypeError, match=r"a tensor of torch\.\w+ on cpu"):
            encode(tensor)
