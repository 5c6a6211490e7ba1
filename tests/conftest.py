"""Fixtures of the unit tests: tiny corpora, and an environment of their own."""

import pytest
import torch
from helpers import make_corpus, save

from labhelpers.clips import load_clips
from labhelpers.corpus import load_array

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


@pytest.fixture(scope="session")
def genre(shared_corpus):
    return load_clips(shared_corpus, "genre")


@pytest.fixture(scope="session")
def affect(shared_corpus):
    return load_clips(shared_corpus, "affect")


@pytest.fixture(scope="session")
def awkward(tmp_path_factory):
    """Training, validation and test clips of genres, as a corpus can be at its worst.

    Tracks have three clips, validation lacks a class, test clip 501 is training clip 11 again, 502
    an outlier, and 503 one frame long.
    """
    corpus = make_corpus(tmp_path_factory.mktemp("awkward") / "c", train=9, tracks=3)
    folder = corpus.folder("genre")
    twin = load_array(folder / "train" / "11.fused.full.npy")
    for clip, array in (("501", twin), ("502", 1e4 * twin), ("503", twin[:, :1])):
        save(folder / "test" / f"{clip}.fused.full.npy", array)
    clips, test = load_clips(corpus, "genre"), load_clips(corpus, "genre", "test")
    judged = (clips.y < 2) & torch.tensor([group.endswith(("2", "5")) for group in clips.groups])
    return clips.subset(~judged), clips.subset(judged), test
