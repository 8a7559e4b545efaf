"""The models that travel: new random numbers each time, so that nothing is saved by recognising bytes."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MEGABYTE = 1_000_000

#: Bytes of the large model of the rows that say "100 MB".
LARGE = 100 * MEGABYTE

#: Bytes of a model that goes before the first one that counts: a few chunks, so that whatever is made once is made, and
#: little, for a node may still hold it when its memory is looked at.
WARM_UP = 2 * MEGABYTE

_generator = np.random.Generator(np.random.SFC64())


def new_model(size: int) -> Floats:
    """Return ``size`` bytes of float32 between 0 and 1 that were never seen before."""
    return _generator.random(size // 4, dtype=np.float32)


def check_answer(model: Floats, answer: Floats) -> int:
    """Return the number that a node added to ``model``.

    Of a large one only the ends are looked at, for the contestants are to be measured: all of it takes as long as
    hashing it. The warm-up is compared whole.

    Raises:
        RuntimeError: the answer is not what some node should have made of the model.
    """
    shift = round(float(answer[0] - model[0]))
    ends = slice(None) if model.nbytes == WARM_UP else slice(None, None, max(1, len(model) - 1))
    if answer.shape != model.shape or shift < 1 or not np.array_equal(answer[ends], model[ends] + np.float32(shift)):
        raise RuntimeError("an answer is not what the node should have made of the model")
    return shift
