"""TensorBoard: ``pip install tensorboard torch``, then ``brokerfl export RUN | python to_tensorboard.py FOLDER``."""

import sys

from points import points
from torch.utils.tensorboard import SummaryWriter

with SummaryWriter(sys.argv[1]) as writer:
    for step, name, value in points(sys.stdin):
        writer.add_scalar(name, value, step)
