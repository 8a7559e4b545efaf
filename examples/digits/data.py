"""The handwritten digits of scikit-learn, divided over the nodes. Owns the division; knows no models and no messages.

1797 images of 8 x 8 pixels; load_digits reads them from a file that comes with scikit-learn. A fifth is held out for
the ServerApp. The rest goes to the nodes label by label, in shares drawn from a Dirichlet distribution (Hsu et al.,
2019, arXiv:1909.06335), so that some nodes have hardly seen some digits. Every process computes the same division.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

#: Images, float32 of shape (n, 64) from 0 to 1, and their labels, int64 of shape (n,) from 0 to 9.
Digits = tuple[NDArray[np.float32], NDArray[np.int64]]

SEED = 42
HELD_OUT = 0.2

#: Concentration of the Dirichlet distribution: the smaller, the more the nodes differ.
ALPHA = 0.5

#: Least images of a node, unless that is more than a quarter of an equal share.
MIN_SIZE = 20

_MAX_DRAWS = 1000


@cache
def load_test_set() -> Digits:
    """Return the 359 images that are held out, and their labels."""
    digits, order, held_out = _shuffled()
    return _select(digits, order[:held_out])


@cache
def load_partition(partition_id: int, num_partitions: int) -> Digits:
    """Return the images and labels of one node.

    Raises:
        ValueError: there is no such partition, or too few images for so many.
    """
    if not 0 <= partition_id < num_partitions:
        raise ValueError(f"partition-id={partition_id} is not in 0 to {num_partitions - 1} (num-partitions minus one)")
    digits, order, held_out = _shuffled()
    return _select(digits, _divide(digits[1], order[held_out:], num_partitions)[partition_id])


def _shuffled() -> tuple[Digits, NDArray[np.int64], int]:
    """Return all images and labels, an order of them, and how many of the first are held out."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    return ((pixels / 16).astype(np.float32), labels), order, int(HELD_OUT * len(labels))


def _select(digits: Digits, indices: NDArray[np.int64]) -> Digits:
    images, labels = digits
    return images[indices], labels[indices]


def _divide(labels: NDArray[np.int64], rest: NDArray[np.int64], num_partitions: int) -> list[NDArray[np.int64]]:
    """Return the indices of each partition: the first draw in which none is too small."""
    smallest = max(1, min(MIN_SIZE, len(rest) // num_partitions // 4))
    for seed in range(SEED, SEED + _MAX_DRAWS):
        partitions = _draw(labels, rest, num_partitions, seed)
        if min(map(len, partitions)) >= smallest:
            return partitions
    raise ValueError(f"num-partitions={num_partitions} is too many for {len(rest)} images")


def _draw(
    labels: NDArray[np.int64], rest: NDArray[np.int64], num_partitions: int, seed: int
) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    pieces = []
    for label in np.unique(labels):
        indices = rest[labels[rest] == label]
        shares = rng.dirichlet(np.full(num_partitions, ALPHA))
        cuts = np.round(np.cumsum(shares)[:-1] * len(indices)).astype(int)
        pieces.append(np.split(indices, cuts))
    return [np.concatenate(partition) for partition in zip(*pieces, strict=True)]
