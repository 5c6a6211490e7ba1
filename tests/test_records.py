"""What one notebook hands to the next comes back as it was, or is refused by name."""

import json

import numpy as np
import pytest
import torch
from helpers import make_corpus, save

from labhelpers import records
from labhelpers.baselines import DescriptorMachine
from labhelpers.clips import Reads, load_clips
from labhelpers.corpus import Corpus, load_array
from labhelpers.metrics import Difference, Estimate
from labhelpers.models import CNN, Classifier
from labhelpers.records import RunError, load_run, out_folder, save_run
from labhelpers.training import predict

RESULTS = {
    "CNN mel accuracy": Estimate(0.75, 0.7, 0.8, 0.02, 3, 159),
    "SVM accuracy": Estimate(0.65, 0.6, 0.7, float("nan"), 1, 159),
    "CNN mel - SVM accuracy": Difference(0.1, 0.02, 0.18, 3, 3, 159, 12),
    "epoch": np.int64(7),
    "chosen": "CNN mel",
    "share": np.float32(0.25),
}


def small(classes="abc"):
    torch.manual_seed(0)
    return Classifier(CNN(Reads("mel", window=16), (2,), ((2, 8),)), classes)


def test_a_run_comes_back_as_it_was(corpus, tmp_path):
    out = out_folder(corpus, tmp_path / "out")
    clips = load_clips(corpus, "genre")
    model = small(clips.classes)
    blocks = {"rows": np.random.default_rng(0).normal(size=(24, 5))}
    machine = DescriptorMachine(blocks, clips.y.numpy(), clips.classes)
    runs = [predict(model, clips), np.eye(3)[clips.y]]
    more = {"params": {"SEEDS": 3}, "histories": {"CNN": [{"epoch": 1, "train_loss": 0.5}]}}
    more["predictions"] = {("CNN mel", "test"): (clips.ids, runs)}
    more["models"] = {"CNN mel+": model, "CNN mel": small(), "SVM": machine}
    save_run("07_cnn", corpus, out, results=RESULTS, **more)
    run = load_run("07_cnn", corpus, out)
    assert run.params == {"SEEDS": 3} and run.histories["CNN"][0]["train_loss"] == 0.5
    assert np.isnan(run.results.pop("SVM accuracy").deviation)
    assert run.results == {key: RESULTS[key] for key in RESULTS if key != "SVM accuracy"}
    ids, again = run.predictions("CNN mel", "test")
    assert ids == clips.ids
    np.testing.assert_allclose(again[0], runs[0], rtol=1e-8)
    twin = run.model("CNN mel+")
    assert twin.reads == model.reads
    np.testing.assert_array_equal(predict(twin, clips), runs[0])
    np.testing.assert_array_equal(run.model("SVM").predict(blocks), machine.predict(blocks))
    written = json.loads((out / "records" / "07_cnn.json").read_text())
    assert written["results"]["CNN mel - SVM accuracy"]["verdict"] == "ahead"
    with pytest.raises(RunError, match="no model LSTM; it has"):
        run.model("LSTM")
    with pytest.raises(RunError, match="no predictions of LSTM on test"):
        run.predictions("LSTM", "test")


def test_ties_are_not_made_by_writing(corpus, tmp_path):
    values = np.nextafter(np.full((2, 1), 0.3, np.float32), [[1], [0]], dtype=np.float32)
    out = out_folder(corpus, tmp_path / "out")
    save_run("08", corpus, out, results={}, predictions={("m", "s"): (["1", "2"], [values])})
    again = load_run("08", corpus, out).predictions("m", "s")[1][0].astype(np.float32)
    np.testing.assert_array_equal(again, values)


def test_a_run_on_other_data_is_refused(corpus, tmp_path):
    out = out_folder(corpus, tmp_path / "out")
    save_run("05_lstm", corpus, out, results={})
    assert load_run("05_lstm", corpus, out).notebook == "05_lstm"
    path = corpus.root / "fma_genre_spectrograms" / "train" / "11.fused.full.npy"
    save(path, np.full_like(load_array(path), -40.0))
    with pytest.raises(RunError, match="made on other data; run 05_lstm.ipynb again"):
        load_run("05_lstm", Corpus(corpus.root), out)


def test_a_missing_or_spoilt_record_names_the_notebook_to_run(corpus, tmp_path):
    out = out_folder(corpus, tmp_path / "out")
    with pytest.raises(RunError, match="run 05_lstm.ipynb"):
        load_run("05_lstm", corpus, out)
    for text in ("", "{", "[]", '{"notebook": "05_lstm"}'):
        (out / "records" / "05_lstm.json").write_text(text)
        with pytest.raises(RunError, match="05_lstm.json: not a record"):
            load_run("05_lstm", corpus, out)


def test_runs_of_attached_kaggle_notebooks_are_read(corpus, tmp_path, monkeypatch):
    attached = tmp_path / "input" / "notebooks" / "me" / "lab-05" / "reports" / "tiny"
    save_run("05_lstm", corpus, out_folder(corpus, attached), results={"epoch": 3})
    monkeypatch.setenv("LABHELPERS_KAGGLE_INPUT", str(tmp_path / "input"))
    out = out_folder(corpus, tmp_path / "out")
    assert load_run("05_lstm", corpus, out).results["epoch"] == 3
    save_run("05_lstm", corpus, out, results={"epoch": 4})
    assert load_run("05_lstm", corpus, out).results["epoch"] == 4


def test_two_corpora_do_not_share_a_folder(corpus, tmp_path, monkeypatch):
    out = out_folder(corpus, tmp_path / "out")
    other = make_corpus(tmp_path / "other" / "tiny", train=2, test=1, affect=(4, 1))
    with pytest.raises(RunError, match="holds the results on"):
        out_folder(other, out)
    corpus.root.rename(tmp_path / "moved")  # the same corpus in another place
    assert out_folder(Corpus(tmp_path / "moved"), out) == out
    monkeypatch.setenv("LABHELPERS_OUT", str(tmp_path / "named"))
    assert out_folder(other) == tmp_path / "named"


def test_models_that_would_share_a_file_are_refused(corpus, tmp_path):
    out = out_folder(corpus, tmp_path / "out")
    with pytest.raises(ValueError, match="share a file"):
        save_run("x", corpus, out, results={}, models={"CNN mel": small(), "CNN  mel": small()})


def test_reference_results(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "REFERENCE", tmp_path)
    assert records.reference() == {}
    content = {"notebooks": {"07_cnn": {key: records.as_json(v) for key, v in RESULTS.items()}}}
    (tmp_path / "emotify.json").write_text(json.dumps(records.plain(content)))
    assert records.reference()["07_cnn"]["CNN mel accuracy"] == RESULTS["CNN mel accuracy"]
    corpus = Corpus(tmp_path / "emotify")
    assert records.reference(Corpus(tmp_path)) and not records.reference(corpus)
