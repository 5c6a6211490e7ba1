"""Fixtures of the unit tests: a tiny corpus, and a cache, threads and environment of their own."""

import pytest
import torch
from helpers_corpus import make_corpus

from labhelpers.models import Classifier, CNNBackbone, MultitaskRegressor
from labhelpers.records import Predictor, save_run

torch.set_num_threads(1)  # the models are tiny, and the number of threads may change the last bits


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test sees the arrays or the settings of the user; returns the cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LABHELPERS_CACHE", str(folder))
    monkeypatch.delenv("LABHELPERS_DATA", raising=False)
    return folder


@pytest.fixture
def corpus(tmp_path):
    """A corpus to spoil: 3 genres, 24 + 9 genre clips and 20 + 6 affect clips."""
    return make_corpus(tmp_path / "tiny")


@pytest.fixture(scope="session")
def shared_corpus(tmp_path_factory):
    """A corpus to read and train on only: 4 genres, 64 + 16 genre clips, 60 + 10 affect clips."""
    genres = ("Rock", "Blues", "Jazz", "Pop")
    root = tmp_path_factory.mktemp("shared") / "tiny"
    return make_corpus(root, genres=genres, train=16, test=4, affect=(60, 10))


@pytest.fixture
def trained(tmp_path, corpus):
    """A report folder with two untrained models."""
    torch.manual_seed(0)
    settings = {"channels": (2, 2), "pools": (2, 2)}
    out = tmp_path / "report"
    for notebook, task, model in (
        ("07_cnn", "genre", Classifier(CNNBackbone(128, **settings), ["Jazz", "Pop", "Rock"])),
        ("09b_multitask_learning", "affect", MultitaskRegressor(CNNBackbone(128, **settings))),
    ):
        predictors = {task: [Predictor("the model", crop=32)]}
        save_run(notebook, corpus, out, models={"the model": model}, predictors=predictors)
    return out
