"""The digits of scikit-learn and softmax regression in numpy. Knows nothing of Flower.

A model is a list of two arrays: weights of shape (64, 10) and biases of shape (10,).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Arrays = list[NDArray[np.float64]]

#: Images of shape (n, 64) from 0 to 1, and their labels, 0 to 9.
Digits = tuple[NDArray[np.float64], NDArray[np.int64]]

_HELD_OUT = 297


def load_test_set() -> Digits:
    """Return the 297 images that no node has."""
    images, labels = _shuffled()
    return images[:_HELD_OUT], labels[:_HELD_OUT]


def load_partition(partition_id: int, num_partitions: int) -> Digits:
    """Return what one node has of the other 1500."""
    images, labels = _shuffled()
    mine = slice(_HELD_OUT + partition_id, None, num_partitions)
    return images[mine], labels[mine]


@cache
def _shuffled() -> Digits:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(42).permutation(len(labels))
    return images[order] / 16, labels[order]


def create_model() -> Arrays:
    """Return the model that training begins with."""
    return [np.zeros((64, 10)), np.zeros(10)]


def train(model: Arrays, digits: Digits, lr: float, steps: int) -> Arrays:
    """Return the model after some steps of gradient descent on all of the digits."""
    (weights, biases), (images, labels) = model, digits
    for _ in range(steps):
        error = _probabilities([weights, biases], images)
        error[np.arange(len(labels)), labels] -= 1
        weights = weights - lr * (images.T @ error) / len(labels)
        biases = biases - lr * error.mean(axis=0)
    return [weights, biases]


def evaluate(model: Arrays, digits: Digits) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy, 0 to 1."""
    images, labels = digits
    probabilities = _probabilities(model, images)
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    return float(loss), float(np.mean(probabilities.argmax(axis=1) == labels))


def _probabilities(model: Arrays, images: NDArray[np.float64]) -> NDArray[np.float64]:
    weights, biases = model
    scores = images @ weights + biases
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
