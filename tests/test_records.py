"""What notebooks hand to each other: written whole, read back exactly, and refused with the notebook's name."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_corpus import change_line

from labhelpers import records
from labhelpers.corpora.layout import Corpus
from labhelpers.models import LSTMBackbone, Regressor
from labhelpers.records import COLUMNS, RunError, compare_runs, load_run, out_folder, save_run, slug
from labhelpers.training import History

ROW = dict(zip(COLUMNS, ["LSTM", "genre", "beat mel", "test", "accuracy", 0.5, 0.4, 0.6, 9], strict=True))


@pytest.fixture(autouse=True)
def kaggle(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "KAGGLE_INPUT", tmp_path / "kaggle")
    return tmp_path / "kaggle"


def test_there_and_back(corpus, tmp_path):
    torch.manual_seed(0)
    model = Regressor(LSTMBackbone(12, 4))
    path = save_run(
        "05_lstm", corpus, tmp_path / "out",
        results=[ROW], params={"SEED": 0, "DATA": Path("x")}, facts={"counts": np.arange(2), "share": np.float32(0.5)},
        predictions={"LSTM beat": (["a", "b"], torch.tensor([[0.123456789, 1], [0.5, 0.25]]))},
        histories={"LSTM beat": History([{"epoch": 1, "train_loss": 0.5}], 1)}, models={"LSTM beat mel": model},
    )  # fmt: skip
    assert path == tmp_path / "out" / "records" / "05_lstm.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["05_lstm.json", "05_lstm.lstm-beat-mel.pt"]
    run = load_run("05_lstm", corpus, tmp_path / "out")
    assert run["results"] == [ROW] and run["params"] == {"SEED": 0, "DATA": "x"}
    assert run["facts"] == {"counts": [0, 1], "share": 0.5}
    assert run["corpus"] == {"name": "tiny", "sample": False, "fingerprint": corpus.fingerprint}
    assert run["histories"] == {"LSTM beat": [{"epoch": 1, "train_loss": 0.5}]}
    assert run["versions"]["torch"] == torch.__version__.split("+")[0] or run["versions"]["torch"] == torch.__version__
    assert run.ids("LSTM beat") == ["a", "b"]
    np.testing.assert_allclose(run.prediction("LSTM beat"), [[0.12346, 1], [0.5, 0.25]])
    assert run.checkpoint("LSTM beat mel").is_file()
    with pytest.raises(RunError, match="05_lstm.other.pt is missing; run notebook 05_lstm again"):
        run.checkpoint("Other")


def test_missing_record_names_the_notebook(corpus, tmp_path):
    with pytest.raises(RunError, match="no record of notebook 05_lstm in .*out.records; run 05_lstm.ipynb first"):
        load_run("05_lstm", corpus, tmp_path / "out")


def test_record_of_another_state_of_the_corpus(corpus, tmp_path):
    save_run("05_lstm", corpus, tmp_path / "out", results=[ROW])
    change_line(corpus.root / "fma_genre_spectrograms" / "train_labels.txt", 2, "11.fused.full.npy.gz\tJazz")
    with pytest.raises(
        RunError, match="05_lstm.json was made on another state of the corpus tiny.*run 05_lstm.ipynb again"
    ):
        load_run("05_lstm", Corpus(corpus.root), tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"corpus": 3, "results": []}', '{"corpus": {"fingerprint": ""}}']
)
def test_damaged_record(corpus, tmp_path, text):
    save_run("05_lstm", corpus, tmp_path / "out").write_text(text)
    with pytest.raises(RunError, match="05_lstm.json: not a record .*run 05_lstm.ipynb again"):
        load_run("05_lstm", corpus, tmp_path / "out")


def test_record_of_an_attached_kaggle_notebook(corpus, tmp_path, kaggle):
    """Found below Kaggle's input; our own comes first, unless it was made on another state of the corpus."""
    attached = kaggle / "notebooks" / "someone" / "05-lstm" / "reports" / "tiny"
    save_run("05_lstm", corpus, attached, results=[ROW], models={"m": Regressor(LSTMBackbone(12, 4))})
    run = load_run("05_lstm", corpus, tmp_path / "out")
    assert run.checkpoint("m").is_relative_to(attached)
    own = save_run("05_lstm", corpus, tmp_path / "out", results=[])
    assert load_run("05_lstm", corpus, tmp_path / "out")["results"] == []
    content = json.loads(own.read_text())
    content["corpus"]["fingerprint"] = "other"
    own.write_text(json.dumps(content))
    assert load_run("05_lstm", corpus, tmp_path / "out")["results"] == [ROW]


def test_incomplete_row_is_refused(corpus, tmp_path):
    row = {key: value for key, value in ROW.items() if key != "low"}
    with pytest.raises(ValueError, match="a result row has the fields model, task, .*; found model"):
        save_run("05_lstm", corpus, tmp_path / "out", results=[row])
    assert not (tmp_path / "out").exists()


def test_full_disk_keeps_the_old_record(corpus, tmp_path, monkeypatch):
    path = save_run("05_lstm", corpus, tmp_path / "out", results=[ROW])
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="05_lstm.json: cannot be written .No space left.*OUT"):
        save_run("05_lstm", corpus, tmp_path / "out", results=[])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_out_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "project_root", lambda: tmp_path / "project")
    assert out_folder(corpus) == tmp_path / "project" / "reports" / "tiny"
    assert out_folder(corpus, tmp_path / "mine") == tmp_path / "mine" and (tmp_path / "mine" / "records").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file.reports: cannot be written .*; set OUT to a folder that can"):
        out_folder(corpus, tmp_path / "file" / "reports")


def test_comparing_two_runs():
    def run(*values):
        return {"results": [ROW | {"metric": metric, "value": value} for metric, value in values]}

    a = run(("accuracy", 0.50), ("macro_f1", 0.4))
    tolerance = {"accuracy": 0.05}
    assert compare_runs(a, a, {}) == compare_runs(a, run(("accuracy", 0.54), ("macro_f1", 0.4)), tolerance) == []
    (said,) = compare_runs(a, run(("accuracy", 0.56), ("macro_f1", 0.4)), tolerance)
    assert said == "LSTM / genre / beat mel / test / accuracy: 0.500 against 0.560, more than 0.05 apart"
    assert len(compare_runs(a, run(("accuracy", 0.56), ("macro_f1", 0.3999)), tolerance)) == 2  # no tolerance: exact
    (said,) = compare_runs(a, run(("accuracy", 0.5)), tolerance)
    assert said.endswith("macro_f1: only in one of the two records")
    assert len(compare_runs(a, run(("accuracy", float("nan")), ("macro_f1", 0.4)), tolerance)) == 1


def test_slugs():
    assert slug("LSTM beat mel") == "lstm-beat-mel" and slug("CNN (3 seeds)/x") == "cnn-3-seeds-x"
