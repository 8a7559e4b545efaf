"""Two small classifiers in numpy, trained by minibatch SGD. Owns their shapes and gradients; knows nothing of nodes.

A model is a list of float32 arrays: weights (inputs, outputs) and biases (outputs,) of each layer in turn. Softmax
regression is the network without a hidden layer, so the same code serves both.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

#: Inputs, hidden units if any, classes.
LAYERS = {"softmax": (64, 10), "mlp": (64, 32, 10)}

#: Step sizes that suit them.
LEARNING_RATES = {"softmax": 0.5, "mlp": 0.1}

BATCH_SIZE = 16


def create(model: str, seed: int) -> list[Floats]:
    """Return a new model: weights as He et al. draw them (2015, arXiv:1502.01852), zero biases.

    Raises:
        ValueError: ``model`` is not in `LAYERS`.
    """
    if model not in LAYERS:
        raise ValueError(f"the model {model!r} is not one of {', '.join(LAYERS)}")
    rng = np.random.default_rng(seed)
    parameters = []
    for inputs, outputs in pairwise(LAYERS[model]):
        weights = rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs))
        parameters += [weights.astype(np.float32), np.zeros(outputs, np.float32)]
    return parameters


def train(
    parameters: list[Floats], images: Floats, labels: Labels, lr: float, epochs: int, rng: np.random.Generator
) -> float:
    """Train a model in place; return the mean loss over the last epoch.

    Args:
        parameters: as `create` made them; they must be writable.
        images: shape (n, 64), 0 to 1.
        labels: shape (n,), 0 to 9.
        lr: step size.
        epochs: passes over the images.
        rng: shuffles them.
    """
    loss = 0.0
    for _ in range(epochs):
        loss = 0.0
        order = rng.permutation(len(labels))
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            activations = _forward(parameters, images[batch])
            loss += _loss(activations[-1], labels[batch]) * len(batch) / len(order)
            for array, gradient in zip(parameters, _gradients(parameters, activations, labels[batch]), strict=True):
                array -= lr * gradient
    return loss


def evaluate(parameters: list[Floats], images: Floats, labels: Labels) -> tuple[float, float]:
    """Return a model's mean loss and its accuracy, 0 to 1."""
    probabilities = _forward(parameters, images)[-1]
    return _loss(probabilities, labels), float(np.mean(probabilities.argmax(axis=1) == labels))


def _layers(parameters: list[Floats]) -> list[tuple[Floats, Floats]]:
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def _forward(parameters: list[Floats], images: Floats) -> list[Floats]:
    """Return the images, the hidden activations if any, and the probabilities of the classes."""
    *hidden, (weights, biases) = _layers(parameters)
    activations = [images]
    for hidden_weights, hidden_biases in hidden:
        activations.append(np.maximum(activations[-1] @ hidden_weights + hidden_biases, 0.0))
    scores = activations[-1] @ weights + biases
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return [*activations, exponentials / exponentials.sum(axis=1, keepdims=True)]


def _loss(probabilities: Floats, labels: Labels) -> float:
    """Return the mean cross-entropy."""
    return float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-9).mean())


def _gradients(parameters: list[Floats], activations: list[Floats], labels: Labels) -> list[Floats]:
    """Return the gradients of the mean cross-entropy, in the order of the parameters."""
    *inputs, probabilities = activations
    error = probabilities.copy()
    error[np.arange(len(labels)), labels] -= 1.0
    error /= len(labels)
    gradients: list[Floats] = []
    for (weights, _), layer_inputs in zip(reversed(_layers(parameters)), reversed(inputs), strict=True):
        gradients[:0] = [layer_inputs.T @ error, error.sum(axis=0)]
        error = (error @ weights.T) * (layer_inputs > 0.0)
    return gradients
