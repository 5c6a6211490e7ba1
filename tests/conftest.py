"""Fixtures of the unit tests: tiny corpora, and an environment of their own."""

import pytest
import torch
from helpers import make_corpus

torch.set_num_threads(1)  # the models are tiny


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """No test sees the settings of the user."""
    for name in ("LABHELPERS_DATA", "LABHELPERS_OUT", "LABHELPERS_KAGGLE_INPUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def corpus(tmp_path):
    """A corpus to spoil: 3 genres, 24 + 9 genre clips and 20 + 6 affect clips."""
    return make_corpus(tmp_path / "tiny")


@pytest.fixture(scope="session")
def shared_corpus(tmp_path_factory):
    """A corpus to read only: 4 genres, 64 + 16 genre and 60 + 10 affect clips, two a track."""
    genres = ("Rock", "Blues", "Jazz", "Pop")
    root = tmp_path_factory.mktemp("shared") / "tiny"
    return make_corpus(root, genres=genres, train=16, test=4, affect=(60, 10), tracks=2)
