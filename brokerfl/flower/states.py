"""The objects of torch that give their state away and take it back: models, optimizers, schedules, generators.

Owns which objects these are, and what of them is recorded. It must not know where they are in an app. torch is looked
at only if the app has imported it.
"""

import sys
from typing import Any

#: Modules of torch, by name, and the classes in them whose state is recorded.
_KINDS = (("torch.nn", "Module"), ("torch.optim", "Optimizer"), ("torch.optim.lr_scheduler", "LRScheduler"))

#: What main makes again.
_MADE_AGAIN = (("torch", "device"), ("torch", "dtype"), ("torch.utils.data", "Dataset"))

_FLAGS, _STATE = "training", "state"


def has_state(value: Any) -> bool:
    """Return whether it is a model, an optimizer or a schedule."""
    return _is_one_of(value, _KINDS)


def is_made_again(value: Any) -> bool:
    """Return whether it has nothing that changes in a loop, such as a device."""
    return _is_one_of(value, _MADE_AGAIN)


def is_loader(value: Any) -> bool:
    """Return whether it is a DataLoader: its generator changes in a loop, and is recorded."""
    return _is_one_of(value, (("torch.utils.data", "DataLoader"),))


def state_of(value: Any) -> dict[str, Any]:
    """Return the state of what `has_state`; its tensors share memory with it."""
    flags = [each.training for each in value.modules()] if _is_one_of(value, _KINDS[:1]) else []
    return {_STATE: value.state_dict(), _FLAGS: flags}


def load_state(value: Any, state: dict[str, Any]) -> None:
    """Put a state back that `state_of` returned."""
    value.load_state_dict(state[_STATE])
    if state[_FLAGS]:
        for each, flag in zip(value.modules(), state[_FLAGS], strict=True):
            each.training = flag


def own_names(value: Any) -> frozenset[str]:
    """Return the names of the attributes of what `has_state` that are torch's, and not the app's."""
    is_model = _is_one_of(value, _KINDS[:1])
    return frozenset(vars(sys.modules["torch.nn"].Module() if is_model else value))


def is_tensor(value: Any) -> bool:
    """Return whether it is a tensor, and no parameter."""
    return type(value) is getattr(sys.modules.get("torch"), "Tensor", None)


def is_generator(value: Any) -> bool:
    """Return whether it is one of torch's random generators."""
    return _is_one_of(value, (("torch", "Generator"),))


def _is_one_of(value: Any, kinds: tuple[tuple[str, str], ...]) -> bool:
    found = [getattr(sys.modules.get(module), name, None) for module, name in kinds]
    return isinstance(value, tuple(kind for kind in found if kind is not None))
