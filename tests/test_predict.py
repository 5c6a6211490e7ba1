"""scripts/predict.py: which models, what they say, and of which file."""

import os

import numpy as np
import pytest
import soundfile
from helpers import small_cnn

from labhelpers.audio import extract
from labhelpers.baselines import DescriptorMachine, descriptors
from labhelpers.clips import Clips, load_clips
from labhelpers.corpus import AFFECT, Corpus
from labhelpers.models import Classifier, Regressor
from labhelpers.records import save_run
from labhelpers.training import fit, predict
from scripts import predict as script

BLEND = {"blend weight of the CNNs": 0.25}
for axis in AFFECT:
    BLEND |= {f"blend scale {axis}": 2.0, f"blend shift {axis}": -0.5}


def learned(model, clips, seed=0):
    fit(model.start_from(clips), clips, epochs=2, lr=1e-2, seed=seed)
    return model


def record(corpus: Corpus, out, affect=True):
    """What notebooks 07 and 10 leave in a report folder, with two small networks each."""
    genre = load_clips(corpus, "genre")
    machine = DescriptorMachine(descriptors(genre), genre.y.numpy(), genre.classes)
    models = {"SVM descriptors": machine}
    for seed in range(2):
        network = learned(Classifier(small_cnn(), genre.classes), genre, seed)
        models[f"CNN mel {seed}"] = network
    save_run("07_cnn", corpus, out, results={}, models=models)
    if affect:
        clips = load_clips(corpus, "affect")
        models = {"CNN three heads 0": learned(Regressor(small_cnn()), clips)}
        models["SVR descriptors"] = DescriptorMachine(descriptors(clips), clips.y.numpy())
        save_run("10_kaggle_submission", corpus, out, results=BLEND, models=models)
    return out


@pytest.fixture(scope="module")
def report(shared_corpus, tmp_path_factory):
    return record(shared_corpus, tmp_path_factory.mktemp("report"))


@pytest.fixture
def music(tmp_path):
    """Two folders with a file of the same name each."""
    t = np.arange(3 * 22050) / 22050
    for folder, pitch in (("Folk", 220), ("Rock", 660)):
        (tmp_path / folder).mkdir()
        sound = 0.4 * np.sin(2 * np.pi * pitch * t) * np.exp(-6 * (t % 0.5))
        soundfile.write(tmp_path / folder / "1.wav", sound, 22050)
    return tmp_path


def test_each_file_has_a_line_and_folders_stay_apart(report, music, capsys):
    assert script.main([str(music), "--models", str(report)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "tiny" in head and "Blues" in head and head.endswith("Affect goes from 0 to 1.")
    for line, folder in zip(lines, ("Folk", "Rock"), strict=True):
        assert line.startswith(f"{music / folder / '1.wav'}: ") and "models say" in line
        assert all(axis in line for axis in AFFECT)


def test_the_models_are_mixed_as_their_notebooks_do(report, music):
    panel = script.Panel(report)
    samples, _ = soundfile.read(music / "Rock" / "1.wav")
    clips = Clips.of([extract(samples, beats=False)[0]], ["x"])
    *networks, machine = panel.genre
    shares = np.mean([predict(network, clips)[0] for network in networks], axis=0) / 2
    shares += machine.predict(descriptors(clips))[0] / 2
    first = panel.genre[0].classes[shares.argmax()]
    line = panel.line(samples)
    assert line.startswith(f"{first} {shares.max():.2f}")
    network, machine = panel.affect
    values = 0.25 * (2 * predict(network, clips)[0] - 0.5)
    values += 0.75 * machine.predict(descriptors(clips))[0]
    for axis, value in zip(AFFECT, values):
        assert f"{axis} {value:.2f}" in line
    assert panel.affect_line(np.full((2, 3), -0.1)).startswith("valence 0.00")  # a scale from 0


def test_disagreement_is_put_in_words(report):
    panel = script.Panel(report)
    line = panel.genre_line(np.array([[0.9, 0.1, 0, 0], [0.1, 0.8, 0.1, 0], [0.8, 0.2, 0, 0]]))
    assert line == "Blues 0.65, Jazz 0.33 (2 of 3 models say Blues)"
    line = panel.affect_line(np.array([[0.5, 0.5, 0.5], [0.5, 0.4, 0.9]]))  # 2 x 0.5 - 0.5
    assert line.count("disagree") == 1 and line.endswith("danceability 0.80 (models disagree)")


def test_a_bad_file_does_not_cost_the_answers_for_the_others(report, music, capsys):
    (music / "Folk" / "0.wav").write_text("no audio")
    loud = np.full(66150, 1e30, np.float32)
    soundfile.write(music / "Folk" / "2.wav", loud, 22050, subtype="FLOAT")
    assert script.main([str(music), "--models", str(report)]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3
    assert "0.wav: left out" in said.err and "2.wav: left out" in said.err


def test_a_folder_without_audio_is_named(report, tmp_path):
    (tmp_path / "cover.jpg").touch()
    with pytest.raises(SystemExit, match=str(tmp_path)):
        script.main([str(tmp_path), "--models", str(report)])


def test_without_affect_models_there_is_genre_alone(shared_corpus, music, tmp_path):
    out = record(shared_corpus, tmp_path / "report", affect=False)
    samples, _ = soundfile.read(music / "Rock" / "1.wav")
    line = script.Panel(out).line(samples)
    assert "models say" in line and "valence" not in line


def test_reports_on_the_sample_and_of_tests_are_passed_by(shared_corpus, tmp_path, monkeypatch):
    def leave(name, corpus, age):
        out = tmp_path / "reports" / name
        (out / "records").mkdir(parents=True)
        path = save_run("07_cnn", corpus, out, results={})
        os.utime(path, (2e9 - age, 2e9 - age))
        return out

    monkeypatch.setattr(script, "work_folder", lambda: tmp_path)
    leave("tests", Corpus(tmp_path / "sample"), age=0)
    leave("sample", Corpus(tmp_path / "sample"), age=1)
    assert script.newest_report() == script.COMMITTED
    leave("z-old", shared_corpus, age=3)
    newest = leave("new", shared_corpus, age=2)
    assert script.newest_report() == newest


def test_the_page_shows_and_plays_each_file(report, music, tmp_path):
    os.rename(music / "Folk" / "1.wav", music / "Folk" / "<b>.wav")
    page = tmp_path / "page.html"
    assert script.main([str(music), "--models", str(report), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<audio") == text.count("data:image/png") == 2
    assert "<b>.wav" not in text and "&lt;b&gt;.wav" in text
