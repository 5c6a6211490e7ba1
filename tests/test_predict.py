"""`labhelpers predict`: genre and affect of audio files by the models of a run."""

import json

import numpy as np
import pytest
import soundfile

from labhelpers.corpora.layout import AFFECT
from labhelpers.records import RunError, save_run
from labhelpers.series.predict import predict_files


@pytest.fixture
def tones(tmp_path):
    """Two short files of music, more or less."""
    time = np.arange(22050 * 2) / 22050
    for name, pitch in (("low", 110), ("high", 880)):
        soundfile.write(tmp_path / f"{name}.wav", 0.5 * np.sin(2 * np.pi * pitch * time), 22050)
    return [tmp_path / "low.wav", tmp_path / "high.wav"]


def test_a_table_for_people(trained, tones, capsys):
    assert predict_files(tones, trained) == 0
    head, low, high = capsys.readouterr().out.splitlines()
    assert all(axis in head for axis in AFFECT)
    assert low.startswith("low.wav") and high.startswith("high.wav") and "Jazz" in low and len(low) == len(head)


def test_json_for_programs(trained, tones, capsys):
    assert predict_files(tones, trained, as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in rows] == list(map(str, tones))
    for row in rows:
        probabilities = list(row["genre"].values())
        assert sum(probabilities) == pytest.approx(1, abs=1e-3) and probabilities == sorted(probabilities, reverse=True)
        assert list(row["affect"]) == list(AFFECT) and all(0 <= value <= 1 for value in row["affect"].values())


def test_what_is_no_audio_costs_one_sentence_and_the_others_are_done(trained, tones, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no music")
    assert predict_files([tmp_path / "notes.txt", tones[0], tmp_path / "absent.mp3"], trained, as_json=True) == 1
    said = capsys.readouterr()
    assert [row["file"] for row in json.loads(said.out)] == [str(tones[0])]
    assert len(said.err.splitlines()) == 3 and "notes.txt" in said.err and "absent.mp3" in said.err


def test_without_a_run_the_notebook_is_named(tmp_path, tones):
    with pytest.raises(RunError, match="07_cnn"):
        predict_files(tones, tmp_path / "nothing")


def test_a_record_that_names_no_predictor_is_a_sentence(trained, tones, corpus):
    save_run("07_cnn", corpus, trained)
    with pytest.raises(RunError, match="run notebook 07_cnn again"):
        predict_files(tones, trained)
