"""MLflow: ``pip install mlflow``, then ``brokerfl export RUN | python to_mlflow.py RUN``."""

import sys

import mlflow
from points import points

with mlflow.start_run(run_name=sys.argv[1]):
    for step, name, value in points(sys.stdin):
        mlflow.log_metric(name, value, step=step)
