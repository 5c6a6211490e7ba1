"""What the notebooks have just recorded, held to the reference; conftest runs this file after the notebooks."""

import time

import pytest

from labhelpers.files import project_root
from labhelpers.records import compare_runs
from tools.reference import (
    load_reference,
    load_results,
    load_tolerance,
    pooled_deviation,
    results_table,
)

REFERENCE = load_reference()
STARTED = time.time()  # of collection, before any notebook ran


@pytest.fixture(scope="module")
def recorded(request):
    """What the notebooks of this session recorded."""
    if not request.config.stash.get("notebooks_ran", False):
        pytest.skip("the notebooks did not run in this session: `make test` runs them")
    out = project_root() / "reports" / "sample"
    stale = [path.name for path in (out / "records").glob("*.json") if path.stat().st_mtime < STARTED]
    assert not stale, f"{stale} are older than this session: their notebooks failed, or recorded elsewhere"
    return load_results(out)


def test_every_notebook_with_results_has_a_reference(recorded):
    assert REFERENCE, "no reference yet: run `make reference`"
    assert recorded.keys() == REFERENCE.keys()


@pytest.mark.parametrize("notebook", REFERENCE)
def test_results_lie_within_the_tolerance(notebook, recorded):
    assert compare_runs(REFERENCE[notebook], recorded[notebook], load_tolerance()) == []


def test_deviation_leaves_out_what_moves_all_models_of_a_drawn_split():
    def run(shift, network):
        values = {"SVR": 0.5 + shift, "CNN": 0.6 + shift + network, "LSTM": 0.4 + shift - network, "constant": 0.0}
        row = dict(task="affect", set="held-out", metric="mean_spearman")
        fixed = dict(task="genre", set="test", metric="accuracy", model="CNN", value=0.5 + network)
        return {"08": {"results": [row | {"model": name, "value": value} for name, value in values.items()] + [fixed]}}

    deviation = pooled_deviation([run(0.0, -0.1), run(0.2, 0.0), run(-0.3, 0.1)])
    assert deviation == pytest.approx({"accuracy": 0.1, "mean_spearman": 0.1 * (2 / 3) ** 0.5}, abs=1e-4)


def test_readme_shows_the_reference():
    assert results_table(REFERENCE) in (project_root() / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", [name for name in REFERENCE if name in ("06_evaluation", "07_cnn")])
def test_networks_beat_the_majority_class(notebook, recorded):
    majority = accuracies(recorded["06_evaluation"])["majority class"]
    now = accuracies(recorded[notebook])
    for model, accuracy in accuracies(REFERENCE[notebook]).items():
        if model.startswith(("LSTM", "CNN")) and accuracy > majority + 0.1:
            assert now[model] > majority


def accuracies(run):
    return {row["model"]: row["value"] for row in run["results"] if row["metric"] == "accuracy"}
