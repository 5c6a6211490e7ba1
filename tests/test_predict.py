"""`labhelpers predict`: genre and affect of audio files by the models of a run."""

import json

import numpy as np
import pytest
import soundfile
import torch

from labhelpers.audio import extract
from labhelpers.baselines import DescriptorMachine, descriptors
from labhelpers.corpora.layout import AFFECT
from labhelpers.datasets import SpectrogramDataset, from_arrays
from labhelpers.models import load_model
from labhelpers.records import Predictor, RunError, read_run, save_run
from labhelpers.series.predict import cuts, predict_files
from labhelpers.training import predict


@pytest.fixture
def tones(tmp_path):
    """Two short files of music, more or less."""
    time = np.arange(22050 * 2) / 22050
    for name, pitch in (("low", 110), ("high", 880)):
        soundfile.write(tmp_path / f"{name}.wav", 0.5 * np.sin(2 * np.pi * pitch * time), 22050)
    return [tmp_path / "low.wav", tmp_path / "high.wav"]


def test_a_table_for_people(trained, tones, capsys):
    assert predict_files(tones, trained, jobs=1) == 0
    said = capsys.readouterr()
    head, low, high, note = said.out.splitlines()
    assert all(axis in head for axis in AFFECT) and "0 to 1" in head and "deviation" in note
    assert low.startswith("low.wav") and high.startswith("high.wav") and "±" in low
    assert "Jazz" in low and len(low) == len(head)
    assert "genre by 1 model(s) of 07_cnn on tiny" in said.err and "synthesised" not in said.err


def test_json_for_programs(trained, tones, capsys):
    assert predict_files(tones, trained, as_json=True, jobs=1) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in rows] == list(map(str, tones))
    for row in rows:
        probabilities = list(row["genre"].values())
        assert sum(probabilities) == pytest.approx(1, abs=1e-3)
        assert probabilities == sorted(probabilities, reverse=True)
        assert list(row["affect"]) == list(AFFECT) == list(row["affect_doubt"])
        assert all(0 <= value <= 1 for value in row["affect"].values())
        assert list(row["genre_doubt"]) == list(row["genre"])


def test_the_numbers_are_those_that_a_notebook_computes(trained, tones, capsys):
    """Each model of a list on the same windows, with the same features; the mean of the models."""
    run = read_run(trained / "records" / "07_cnn.json")
    model = load_model(run.checkpoint("the model"))
    clip = extract(tones[0], beats=False)[0]
    assert clip.shape[1] > 32  # longer than the crop
    expected = predict(model, from_arrays([clip], ["low"], "mel"), crop=32)[0]
    assert predict_files(tones[:1], trained, as_json=True) == 0
    (row,) = json.loads(capsys.readouterr().out)
    found = [row["genre"][name] for name in model.classes]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    of_windows = predict(model, from_arrays(cuts(clip, 32), list("abcde"), "mel"))
    doubt = [row["genre_doubt"][name] for name in model.classes]
    np.testing.assert_allclose(doubt, of_windows.std(axis=0), atol=1e-4)


def test_several_models_of_any_kind_are_averaged(tmp_path, corpus, trained, tones, capsys):
    affect = SpectrogramDataset(corpus, "affect", features="mel")
    machine = DescriptorMachine(descriptors(affect), affect.y.numpy())
    network = load_model(
        read_run(trained / "records/09b_multitask_learning.json").checkpoint("the model")
    )
    members = [Predictor("the network", crop=32), Predictor("svm", "fused")]
    save_run(
        "10_kaggle_submission",
        corpus,
        trained,
        predictors={"affect": members},
        models={"the network": network, "svm": machine},
    )
    assert predict_files(tones[:1], trained, as_json=True) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert "affect by 2 model(s) of 10_kaggle_submission" in said.err  # the last that names some
    clip = extract(tones[0], beats=False)[0]
    ds = from_arrays([clip], ["low"], "fused")
    both = [
        predict(network, ds.with_features("mel"), crop=32)[0],
        machine.predict(descriptors(ds))[0],
    ]
    np.testing.assert_allclose(list(row["affect"].values()), np.mean(both, axis=0), atol=1e-4)


def test_folders_and_the_middle_of_long_files(trained, tones, tmp_path, capsys):
    assert predict_files([tmp_path], trained, as_json=True, jobs=2) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in rows] == sorted(map(str, tones))
    assert predict_files(tones[:1], trained, as_json=True, seconds=1) == 0
    assert json.loads(capsys.readouterr().out)[0]["genre"] != rows[1]["genre"]


def test_models_of_the_sample_say_so(trained, tones, capsys):
    path = trained / "records" / "07_cnn.json"
    path.write_text(path.read_text().replace('"sample": false', '"sample": true'))
    predict_files(tones[:1], trained)
    assert "trained on synthesised music" in capsys.readouterr().err


def test_what_is_no_audio_costs_one_sentence_and_the_others_are_done(
    trained, tones, tmp_path, capsys
):
    (tmp_path / "notes.txt").write_text("no music")
    files = [tmp_path / "notes.txt", tones[0], tmp_path / "absent.mp3"]
    assert predict_files(files, trained, as_json=True, jobs=1) == 1
    said = capsys.readouterr()
    assert [row["file"] for row in json.loads(said.out)] == [str(tones[0])]
    assert "notes.txt" in said.err and "absent.mp3: no such file" in said.err


def test_without_a_run_the_notebook_is_named(tmp_path, tones):
    with pytest.raises(RunError, match="07_cnn"):
        predict_files(tones, tmp_path / "nothing")


def test_a_record_that_names_no_predictor_is_a_sentence(trained, tones, corpus):
    save_run("07_cnn", corpus, trained)
    with pytest.raises(RunError, match="no trained model for genre; run notebook 07_cnn"):
        predict_files(tones, trained)


@pytest.mark.parametrize("damage", ["cut", "text", "gone", "NaN"])
def test_a_damaged_checkpoint_is_a_sentence(trained, tones, damage):
    path = read_run(trained / "records" / "07_cnn.json").checkpoint("the model")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "text":
        path.write_text("no checkpoint")
    elif damage == "gone":
        path.unlink()
    else:
        content = torch.load(path, weights_only=True)
        name = next(key for key in content["state"] if key.endswith("weight"))
        content["state"][name][:] = float("nan")
        torch.save(content, path)
    with pytest.raises(RunError, match="07_cnn") as caught:
        predict_files(tones[:1], trained)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
