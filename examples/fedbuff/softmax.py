"""Softmax regression in numpy, trained by minibatch SGD. Owns its shapes and gradients; knows nothing of nodes.

A model is two float32 arrays: weights (64, 10) and biases (10,).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

BATCH_SIZE = 16


def create() -> list[Floats]:
    """Return a new model, all zeros: without a hidden layer there is no symmetry to break."""
    return [np.zeros((64, 10), np.float32), np.zeros(10, np.float32)]


def train(
    parameters: list[Floats], images: Floats, labels: Labels, lr: float, epochs: int, rng: np.random.Generator
) -> list[Floats]:
    """Return a trained copy of a model.

    Args:
        parameters: as `create` made them.
        images: shape (n, 64), 0 to 1.
        labels: shape (n,), 0 to 9.
        lr: step size.
        epochs: passes over the images.
        rng: shuffles them.
    """
    weights, biases = (array.copy() for array in parameters)
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            error = _probabilities([weights, biases], images[batch])
            error[np.arange(len(batch)), labels[batch]] -= 1.0
            weights -= lr / len(batch) * (images[batch].T @ error)
            biases -= lr / len(batch) * error.sum(axis=0)
    return [weights, biases]


def evaluate(parameters: list[Floats], images: Floats, labels: Labels) -> tuple[float, float]:
    """Return a model's mean cross-entropy and its accuracy, 0 to 1."""
    probabilities = _probabilities(parameters, images)
    loss = -np.log(probabilities[np.arange(len(labels)), labels] + 1e-9).mean()
    return float(loss), float(np.mean(probabilities.argmax(axis=1) == labels))


def _probabilities(parameters: list[Floats], images: Floats) -> Floats:
    weights, biases = parameters
    scores = images @ weights + biases
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
