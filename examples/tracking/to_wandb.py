"""Weights & Biases: ``pip install wandb``, then ``brokerfl export RUN | python to_wandb.py PROJECT``."""

import sys

import wandb
from points import points

with wandb.init(project=sys.argv[1]) as run:
    for step, name, value in points(sys.stdin):
        run.log({name: value}, step=step)
