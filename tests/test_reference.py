"""What the notebooks have just recorded, held to the reference; conftest runs this file after the notebooks."""

import time

import pytest

from labhelpers.corpora import project_root
from labhelpers.records import compare_runs
from labhelpers.reference import TOLERANCE, load_reference, load_results

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
    assert compare_runs(REFERENCE[notebook], recorded[notebook], TOLERANCE) == []


@pytest.mark.parametrize("notebook", [name for name in REFERENCE if name in ("06_evaluation", "07_cnn")])
def test_networks_beat_the_majority_class(notebook, recorded):
    majority = accuracies(recorded["06_evaluation"])["majority class"]
    now = accuracies(recorded[notebook])
    for model, accuracy in accuracies(REFERENCE[notebook]).items():
        if model.startswith(("LSTM", "CNN")) and accuracy > majority + 0.1:
            assert now[model] > majority


def accuracies(run):
    return {row["model"]: row["value"] for row in run["results"] if row["metric"] == "accuracy"}
