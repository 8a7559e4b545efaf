"""The handwritten digits of scikit-learn, unevenly divided. Owns the division; knows no models and no messages.

1797 images of 8 x 8 pixels. A fifth is held out for the ServerApp. The rest goes to the nodes label by label, in shares
drawn from a Dirichlet distribution (Hsu et al., 2019, arXiv:1909.06335). Every process computes the same division.
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
ALPHA = 1.0


@cache
def load_test_set() -> Digits:
    """Return the 359 images that are held out, and their labels."""
    (images, labels), held_out = _shuffled()
    return images[:held_out], labels[:held_out]


@cache
def load_partition(partition_id: int, num_partitions: int) -> Digits:
    """Return the images and labels of one node.

    Raises:
        ValueError: there is no such partition, or it got no image.
    """
    if not 0 <= partition_id < num_partitions:
        raise ValueError(f"partition-id={partition_id} is not in 0 to {num_partitions - 1} (num-partitions minus one)")
    (images, labels), held_out = _shuffled()
    images, labels = images[held_out:], labels[held_out:]
    rng = np.random.default_rng(SEED)
    own = []
    for label in np.unique(labels):
        (indices,) = np.nonzero(labels == label)
        shares = rng.dirichlet(np.full(num_partitions, ALPHA))
        cuts = np.round(np.cumsum(shares)[:-1] * len(indices)).astype(int)
        own.append(np.split(indices, cuts)[partition_id])
    chosen = np.concatenate(own)
    if not len(chosen):
        raise ValueError(f"num-partitions={num_partitions} is too many: partition-id={partition_id} got no image")
    return images[chosen], labels[chosen]


def _shuffled() -> tuple[Digits, int]:
    """Return all images and labels in a fixed order, and how many of the first are held out."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    return ((pixels[order] / 16).astype(np.float32), labels[order]), int(HELD_OUT * len(labels))
