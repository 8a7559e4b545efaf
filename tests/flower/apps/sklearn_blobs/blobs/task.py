"""The model and its data."""

import numpy as np
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression

CLASSES, FEATURES = 3, 4


def create_model(strength):
    """A model whose parameters are zeros; each fit is one epoch from where they are."""
    model = LogisticRegression(C=strength, max_iter=1, warm_start=True, solver="saga", random_state=3)
    model.classes_ = np.arange(CLASSES)
    set_params(model, [np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES)])
    return model


def get_params(model):
    """The parameters as a list of arrays."""
    return [model.coef_, model.intercept_]


def set_params(model, params):
    """Put parameters into a model."""
    model.coef_, model.intercept_ = params


def load_data(partition_id):
    """The data of a partition: features and labels for training, then for tests."""
    centers = np.random.default_rng(5).normal(size=(CLASSES, FEATURES))
    features, labels = make_blobs(150, FEATURES, centers=centers, random_state=partition_id)
    return features[:120], labels[:120], features[120:], labels[120:]
