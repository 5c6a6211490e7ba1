"""What notebooks hand to each other: written whole, read back exactly, refused with a sentence."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_corpus import change_line

from labhelpers import records
from labhelpers.baselines import BLOCKS, DescriptorMachine
from labhelpers.corpora import find
from labhelpers.corpora.layout import AFFECT, Corpus, CorpusError
from labhelpers.metrics import Estimate, result_rows
from labhelpers.models import LSTMBackbone, Regressor, load_model
from labhelpers.records import (
    Predictor,
    RunError,
    load_run,
    out_folder,
    plain,
    save_run,
    slug,
    versions,
    write_submission,
)
from labhelpers.training import History

ESTIMATE = Estimate(0.5, 0.4, 0.6, float("nan"), 1, 9)
RESULTS = result_rows("LSTM", "genre", "beat mel", "test", accuracy=ESTIMATE)
STORED = [RESULTS[0] | {"deviation": None}]  # JSON knows no NaN


@pytest.fixture(autouse=True)
def attached(tmp_path, monkeypatch):
    """Where a session on Kaggle would find the outputs of attached notebooks; here nothing."""
    found = []
    monkeypatch.setattr(records, "KAGGLE_INPUT", tmp_path / "kaggle")
    monkeypatch.setattr(records, "kaggle_reports", lambda corpus_name: list(found))
    return found


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """Kaggle's input folder, with nothing attached; found by the package's own way."""
    monkeypatch.setattr(records, "kaggle_reports", find.kaggle_reports)
    monkeypatch.setattr(find, "KAGGLE_INPUT", records.KAGGLE_INPUT)
    monkeypatch.setattr(find, "MOUNT_WAIT", 0)
    records.KAGGLE_INPUT.mkdir()
    return records.KAGGLE_INPUT


def test_there_and_back(corpus, tmp_path):
    torch.manual_seed(0)
    model = Regressor(LSTMBackbone(12, 4))
    values = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    path = save_run(
        "05_lstm",
        corpus,
        tmp_path / "out",
        results=RESULTS,
        params={"SEED": 0, "DATA": Path("x")},
        facts={"counts": np.arange(2), "share": np.float32(0.5), "chosen": ("a", None)},
        predictions={("LSTM", "test"): (["a", "b"], [values, values + 1])},
        histories={"LSTM beat": History([{"epoch": 1, "train_loss": 0.5}], 1)},
        models={"LSTM beat mel": model},
        predictors={"genre": [Predictor("LSTM beat mel", "fused", 256), Predictor("other")]},
    )
    assert path == tmp_path / "out" / "records" / "05_lstm.json"
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == ["05_lstm.json", "05_lstm.lstm-beat-mel.pt"]
    run = load_run("05_lstm", corpus, tmp_path / "out")
    assert run.results == STORED and run.params == {"SEED": 0, "DATA": "x"}
    assert run.facts == {"counts": [0, 1], "share": 0.5, "chosen": ["a", None]}
    expected = {"name": "tiny", "sample": False, "fingerprint": corpus.fingerprint}
    assert run.corpus == expected and run.notebook == "05_lstm"
    assert run.histories == {"LSTM beat": [{"epoch": 1, "train_loss": 0.5}]}
    assert run.versions == versions() and run.versions["torch"] in torch.__version__
    ids, arrays = run.predictions("LSTM", "test")
    assert ids == ["a", "b"] and len(arrays) == 2
    for seed, array in enumerate(arrays):  # in the order of the seeds, to the last bit
        np.testing.assert_array_equal(array.astype(np.float32), values + seed)
    assert run.predictors == {
        "genre": [Predictor("LSTM beat mel", "fused", 256), Predictor("other", "mel", None)]
    }
    again = load_model(run.checkpoint("LSTM beat mel"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_record_of_an_older_version_is_refused(corpus, tmp_path):
    path = save_run("05_lstm", corpus, tmp_path, predictions={("a", "test"): (["b"], [[[0.5]]])})
    path.write_text(path.read_text().replace('"runs"', '"values"'))  # as it once was
    with pytest.raises(RunError, match="not a record .KeyError: 'runs'.; run 05_lstm.ipynb again"):
        load_run("05_lstm", corpus, tmp_path)


def test_what_a_run_does_not_have(corpus, tmp_path):
    predictions = {("SVM", "test"): (["b"], [[[0.1]]]), ("LSTM", "test"): (["a"], [[[0.5]]])}
    save_run("05_lstm", corpus, tmp_path / "out", predictions=predictions)
    run = load_run("05_lstm", corpus, tmp_path / "out")
    with pytest.raises(RunError, match="no checkpoint 05_lstm.other; run notebook 05_lstm again"):
        run.checkpoint("Other")
    for model, test_set in (("CNN", "test"), ("LSTM", "held-out")):
        with pytest.raises(RunError, match=f"no predictions of {model} on {test_set}; it has .*LS"):
            run.predictions(model, test_set)
    assert run.predictions("LSTM", "test") == (["a"], [[[0.5]]])  # and not another model's


def test_a_descriptor_machine_is_a_checkpoint_too(corpus, tmp_path):
    rng = np.random.default_rng(0)
    blocks = {name: rng.normal(size=(9, 2)) for name in BLOCKS}
    machine = DescriptorMachine(blocks, rng.random((9, 3)))
    save_run("08_affect", corpus, tmp_path, models={"SVR descriptors": machine})
    path = load_run("08_affect", corpus, tmp_path).checkpoint("SVR descriptors")
    assert path.name == "08_affect.svr-descriptors.npz"
    again = DescriptorMachine.load(path)
    np.testing.assert_array_equal(again.predict(blocks), machine.predict(blocks))


def test_models_of_an_earlier_run_are_removed_and_other_notebooks_keep_theirs(corpus, tmp_path):
    model = Regressor(LSTMBackbone(12, 4))
    for notebook in ("05_lstm", "05_lstm2"):
        save_run(notebook, corpus, tmp_path, models={"old": model})
    save_run("05_lstm", corpus, tmp_path, models={"new": model})
    files = sorted(file.name for file in (tmp_path / "records").iterdir())
    assert files == ["05_lstm.json", "05_lstm.new.pt", "05_lstm2.json", "05_lstm2.old.pt"]


def test_missing_record_names_the_notebook(corpus, tmp_path):
    words = "no record of notebook 05_lstm in .*out.records; run 05_lstm.ipynb first"
    with pytest.raises(RunError, match=words):
        load_run("05_lstm", corpus, tmp_path / "out")


def test_on_kaggle_a_missing_record_says_the_clicks_and_what_is_attached(kaggle, corpus, tmp_path):
    (kaggle / "notebooks" / "me" / "labhelpers-05-lstm").mkdir(parents=True)
    (kaggle / "music" / "data").mkdir(parents=True)
    with pytest.raises(RunError) as caught:
        load_run("05_lstm", corpus, tmp_path / "out")
    said = str(caught.value)
    for part in ("Add Input", "Your Work", f"Attached: {kaggle / 'music'}, "):
        assert part in said
    assert said.endswith("Empty after 0 s: " + str(kaggle / "notebooks/me/labhelpers-05-lstm."))


def test_on_kaggle_a_record_in_an_input_that_fills_late_is_found(
    kaggle, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(find, "MOUNT_WAIT", 20)
    mount = kaggle / "labhelpers-05-lstm"
    mount.mkdir(parents=True)
    made = save_run("05_lstm", corpus, tmp_path / "reports" / corpus.name).parents[2]
    threading.Timer(0.5, shutil.move, [made, mount]).start()
    run = load_run("05_lstm", corpus, tmp_path / "out")
    assert run.corpus["fingerprint"] == corpus.fingerprint


def test_record_of_another_state_of_the_corpus(corpus, tmp_path):
    save_run("05_lstm", corpus, tmp_path / "out", results=RESULTS)
    labels = corpus.root / "fma_genre_spectrograms" / "train_labels.txt"
    change_line(labels, 2, "11.fused.full.npy.gz\tJazz")
    words = "05_lstm.json was made on another state of the corpus tiny.*run 05_lstm.ipynb again"
    with pytest.raises(RunError, match=words):
        load_run("05_lstm", Corpus(corpus.root), tmp_path / "out")


DAMAGED = ["", "{", "[]", "{}", "null", '{"corpus": 3}', '{"corpus": {"fingerprint": ""}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_record(corpus, tmp_path, text):
    save_run("05_lstm", corpus, tmp_path / "out").write_text(text)
    with pytest.raises(RunError, match="05_lstm.json: not a record .*run 05_lstm.ipynb again"):
        load_run("05_lstm", corpus, tmp_path / "out")


@pytest.mark.parametrize(
    "field, value",
    [
        ("predictors", []),
        ("predictors", {"genre": [{"checkpoint": 1, "rows": 2}]}),
        ("corpus", {"name": "tiny"}),
        ("results", None),
        ("predictions", 3),
    ],
)
def test_record_of_another_version(corpus, tmp_path, field, value):
    path = save_run("05_lstm", corpus, tmp_path / "out")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(RunError, match="05_lstm.json: not a record .*run 05_lstm.ipynb again"):
        load_run("05_lstm", corpus, tmp_path / "out")


def test_record_of_an_attached_kaggle_notebook(corpus, tmp_path, attached):
    """Our own comes first, unless it was made on another state of the corpus."""
    folder = tmp_path / "kaggle" / "05-lstm" / "reports" / "tiny"
    attached.append(folder)
    model = Regressor(LSTMBackbone(12, 4))
    save_run("05_lstm", corpus, folder, results=RESULTS, models={"m": model})
    run = load_run("05_lstm", corpus, tmp_path / "out")
    assert run.checkpoint("m").is_relative_to(folder)
    own = save_run("05_lstm", corpus, tmp_path / "out", results=[])
    assert load_run("05_lstm", corpus, tmp_path / "out").results == []
    content = json.loads(own.read_text())
    content["corpus"]["fingerprint"] = "other"
    own.write_text(json.dumps(content))
    assert load_run("05_lstm", corpus, tmp_path / "out").results == STORED


@pytest.mark.parametrize("change", [{"low": None}, {"rows": 3}])
def test_result_with_other_fields_is_refused(corpus, tmp_path, change):
    row = RESULTS[0] | change
    row = {key: value for key, value in row.items() if value is not None}
    with pytest.raises(ValueError, match=f"missing or unknown: {next(iter(change))}"):
        save_run("05_lstm", corpus, tmp_path / "out", results=[row])
    assert not (tmp_path / "out").exists()


def test_full_disk_keeps_the_old_record(corpus, tmp_path, monkeypatch):
    path = save_run("05_lstm", corpus, tmp_path / "out", results=RESULTS)
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="05_lstm.*: cannot be written .No space left.*make room"):
        save_run("05_lstm", corpus, tmp_path / "out", models={"m": Regressor(LSTMBackbone(12, 4))})
    with pytest.raises(OSError, match="05_lstm.json: cannot be written .No space left"):
        save_run("05_lstm", corpus, tmp_path / "out", results=[])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_out_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "project_root", lambda: tmp_path / "project")
    assert out_folder(corpus) == tmp_path / "project" / "reports" / "tiny"
    assert out_folder(corpus, tmp_path / "mine") == tmp_path / "mine"
    assert (tmp_path / "mine" / "records").is_dir()
    (tmp_path / "file").touch()
    words = "file.reports: cannot be written .*; set OUT to a folder that can"
    with pytest.raises(RunError, match=words):
        out_folder(corpus, tmp_path / "file" / "reports")


def test_numbers_become_plain_and_stay_apart():
    assert plain({1: (np.int64(2), float("inf"), np.bool_(True))}) == {"1": [2, None, True]}
    generator = np.random.default_rng(0)
    values = generator.random(10_000).astype(np.float32)
    stored = np.array(plain(values), np.float32)
    np.testing.assert_array_equal(stored, values)


def test_slugs():
    assert slug("LSTM beat mel") == "lstm-beat-mel" and slug("CNN (3 seeds)/x") == "cnn-3-seeds-x"
    assert slug("LSTM mel+") != slug("LSTM mel")


# --- submission -----------------------------------------------------------------------------------


@pytest.fixture
def contest(corpus):
    """The test clips' ids as the contest knows them, and their folder."""
    folder = corpus.root / "multitask_dataset" / "test"
    ids = sorted(path.name.split(".")[0] for path in folder.iterdir())
    return ids, folder


def read_back(path):
    header, *lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    return header, [row[0] for row in rows], np.array([row[1:] for row in rows], float)


@pytest.mark.parametrize(
    "header, first, name",
    [("full", "Id.fused.full.npy.gz", "{}.fused.full.npy.gz"), ("id", "Id", "{}")],
)
def test_submission_is_what_was_predicted(contest, tmp_path, header, first, name):
    ids, folder = contest
    values = np.random.default_rng(0).random((len(ids), 3))
    path = write_submission(tmp_path / "solution.txt", ids, values, folder, header)
    head, names, numbers = read_back(path)
    assert head == f"{first},valence,energy,danceability" and AFFECT == (
        "valence",
        "energy",
        "danceability",
    )
    assert names == [name.format(clip) for clip in ids]
    np.testing.assert_allclose(numbers, values, atol=6e-4)
    assert all(len(field.split(".")[1]) == 3 for field in path.read_text().split(",")[4:6])


def test_a_tie_costs_rank_so_there_are_as_many_digits_as_it_takes(contest, tmp_path):
    ids, folder = contest
    values = 0.5 + 1e-6 * np.arange(3 * len(ids)).reshape(-1, 3)
    _, _, numbers = read_back(write_submission(tmp_path / "s.txt", ids, values, folder))
    assert (np.diff(numbers, axis=0) > 0).all()


def spoilt(ids, values, what):
    ids, values = list(ids), values.copy()
    if what == "missing":
        return ids[1:], values[1:]
    if what == "twice":
        return [*ids[:-1], ids[0]], values
    if what == "unknown":
        return [*ids, "999"], np.vstack([values, values[:1]])
    if what == "shape":
        return ids, values[:, :2]
    values[2, 1] = {"NaN": np.nan, "below": -0.1, "above": 1.01}[what]
    return ids, values


@pytest.mark.parametrize(
    "what, words",
    [
        ("missing", "clip .* and 0 others are in .* but not predicted"),
        ("twice", "and 0 others are predicted twice"),
        ("unknown", "predicted but not in"),
        ("shape", r"shape \(6, 2\) for 6 clips"),
        ("NaN", "clip .*: energy is nan; a number from 0 to 1"),
        ("below", "energy is -0.1"),
        ("above", "energy is 1.01"),
    ],
)
def test_a_submission_that_the_contest_would_refuse(contest, tmp_path, what, words):
    ids, folder = contest
    values = np.full((len(ids), 3), 0.5)
    with pytest.raises(CorpusError, match=words):
        write_submission(tmp_path / "s.txt", *spoilt(ids, values, what), folder)
    with pytest.raises(ValueError, match="header 'Id'; known: full, id"):
        write_submission(tmp_path / "s.txt", ids, values, folder, "Id")
    assert not list(tmp_path.glob("s.txt*"))
