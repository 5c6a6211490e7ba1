"""The file that step 10 hands in, in the contest's form; and what is wrong with one that is not."""

import os

import numpy as np
import pytest

from labhelpers.corpora.layout import CorpusError
from labhelpers.records import write_submission


@pytest.fixture
def test_folder(corpus):
    return corpus.folder("affect") / "test"


@pytest.fixture
def ids(corpus):
    return list(corpus.labels("affect", "test")["id"])


@pytest.mark.parametrize(
    "header, first, name",
    [("full", "Id.fused.full.npy.gz", "27.fused.full.npy.gz"), ("id", "Id", "27")],
)
def test_submission_has_the_contests_form(tmp_path, test_folder, ids, header, first, name):
    values = np.linspace(0, 1, 18).reshape(6, 3).round(3)
    path = write_submission(tmp_path / "solution.txt", ids, values, test_folder, header=header)
    lines = path.read_text().split("\n")
    assert (
        lines[0] == f"{first},valence,energy,danceability"
        and lines[1] == f"{name},0.000,0.059,0.118"
    )
    assert len(lines) == 8 and lines[-1] == ""
    assert os.listdir(tmp_path / "tiny") and list(tmp_path.glob("*.partial")) == []


def test_submission_keeps_different_values_different(tmp_path, test_folder, ids):
    values = np.full((6, 3), 0.5) + np.arange(6)[:, None] * 1e-6
    text = write_submission(tmp_path / "s.txt", ids, values, test_folder).read_text()
    assert "0.500005" in text and len({line.split(",")[1] for line in text.splitlines()[1:]}) == 6


def test_files_that_a_mac_leaves_are_no_clips(tmp_path, test_folder, ids):
    (test_folder / f"._{ids[0]}.fused.full.npy").write_bytes(b"")
    write_submission(tmp_path / "s.txt", ids, np.full((6, 3), 0.5), test_folder)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda ids, values: (ids[1:], values[1:]), "not predicted"),
        (lambda ids, values: ([*ids[:-1], ids[0]], values), "predicted twice"),
        (lambda ids, values: ([*ids[:-1], "999"], values), "not predicted|999"),
        (
            lambda ids, values: (ids, np.where(np.arange(6)[:, None] == 2, np.nan, values)),
            "clip 29: valence is nan",
        ),
        (lambda ids, values: (ids, values + 0.9), "energy is 1.4|from 0 to 1"),
        (lambda ids, values: (ids, values[:, :2]), "shape"),
    ],
)
def test_a_wrong_submission_is_a_sentence_and_no_file(tmp_path, test_folder, ids, spoil, said):
    ids, values = spoil(ids, np.full((6, 3), 0.5))
    with pytest.raises(CorpusError, match=said):
        write_submission(tmp_path / "solution.txt", ids, values, test_folder)
    assert not list(tmp_path.glob("solution*"))
