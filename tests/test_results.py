"""The notebooks' run on the sample is held to the committed reference, and agrees with itself.

`make test` runs the notebooks first; they leave their records in reports/tests.
"""

import json

import numpy as np
import pytest

from labhelpers import metrics, records
from labhelpers.clips import load_clips
from labhelpers.corpus import AFFECT, PROJECT, Corpus
from labhelpers.training import predict
from scripts.reference import distance_of

FOLDER = PROJECT / "reports" / "tests"
SAMPLE = Corpus(PROJECT / "data" / "sample")
REFERENCE = records.reference(name="sample")
# How far each result may move: twice what it moved between two instruction sets, at least .04; what
# did not move there is the same everywhere. `tools.tolerances` writes it.
TOLERANCES = json.loads((records.REFERENCE / "tolerances.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs():
    paths = sorted((FOLDER / "records").glob("*.json"))
    assert paths, "no records in reports/tests: `make test` runs the notebooks first"
    return {path.stem: records.read_run(path) for path in paths}


def test_every_notebook_has_recorded_its_results(runs):
    """Some keys name what came out ("Pop commonest mistake"), and differ between machines."""
    assert runs.keys() == REFERENCE.keys()
    for notebook, run in runs.items():
        absent = TOLERANCES[notebook].keys() - run.results.keys()
        assert not absent, notebook


@pytest.mark.parametrize("notebook", REFERENCE)
def test_results_are_those_of_the_reference(runs, notebook):
    far = {}
    for key, tolerance in TOLERANCES[notebook].items():
        value, expected = runs[notebook].results[key], REFERENCE[notebook][key]
        if distance_of(value, expected) > tolerance:
            far[key] = f"{value}, not {expected} (± {tolerance})"
    assert not far


# --- a run agrees with itself ---------------------------------------------------------------------


def labels(clips_set, ids):
    """Class codes (N,), or affect values (N, 3), of clips by their ids."""
    if clips_set == "genre test":
        return load_clips(SAMPLE, "genre", "test").select(ids).y.numpy()
    table = SAMPLE.labels("affect") if clips_set == "out of fold" else SAMPLE.answers()
    assert sorted(table["id"]) == sorted(ids)  # each clip is predicted once
    return table.set_index("id").loc[ids, list(AFFECT)].to_numpy()


def test_results_follow_from_the_predictions_beside_them(runs):
    checked = 0
    for run in runs.values():
        for entry in run.content["predictions"]:
            model, ids = entry["model"], entry["ids"]
            y = labels(entry["set"], ids)
            expected = {}
            _, predictions = run.predictions(model, entry["set"])
            if entry["set"] == "genre test":
                codes = [p.argmax(1) if p.ndim == 2 else p for p in predictions]
                expected[f"{model} accuracy"] = np.mean([metrics.accuracy(y, p) for p in codes])
                expected[f"{model} macro-F1"] = np.mean([metrics.macro_f1(y, p) for p in codes])
            else:
                name = model if entry["set"] == "out of fold" else f"{model} test"
                for i, axis in enumerate(AFFECT):
                    values = [metrics.rho(y[:, i], p[:, i]) for p in predictions]
                    expected[f"{name} rho {axis}"] = np.mean(values)
                means = [metrics.mean_rho(y, p) for p in predictions]
                expected[f"{name} rho mean"] = np.mean(means)
            for key, value in expected.items():
                if key in run.results:
                    assert run.results[key].value == pytest.approx(value, abs=1e-6), key
                    checked += 1
    assert checked > 60


def test_a_saved_model_gives_the_recorded_prediction(runs):
    run = runs["07_cnn"]
    ids, predictions = run.predictions("CNN mel", "genre test")
    clip = load_clips(SAMPLE, "genre", "test").select(ids[:3])
    np.testing.assert_allclose(predict(run.model("CNN mel 0"), clip), predictions[0][:3], atol=1e-4)


def test_the_submission_is_of_every_test_clip_in_the_literal_form():
    lines = (FOLDER / "solution.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "Id.fused.full.npy.gz,valence,energy,danceability"
    names = [line.split(",")[0] for line in lines[1:]]
    expected = [f"{clip}.fused.full.npy.gz" for clip in SAMPLE.labels("affect", "test")["id"]]
    assert sorted(names) == sorted(expected)
    values = np.array([line.split(",")[1:] for line in lines[1:]], float)
    assert values.shape == (100, 3) and values.min() >= 0 and values.max() <= 1
    answers = labels("affect test", [name.split(".")[0] for name in names])
    for i in range(3):  # each axis in its column
        assert np.argmax([metrics.rho(values[:, i], answers[:, j]) for j in range(3)]) == i
