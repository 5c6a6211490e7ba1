"""What the notebooks have just recorded, held to the reference; it runs after the notebooks.

`make test` cuts trainings short (tools/quick_trainings): then the networks' results say nothing,
and what is held to the reference is which results there are, and those of the baselines.
"""

import json
import os
import re
import time
from pathlib import Path

import pytest

from labhelpers.corpora.find import find_corpus
from labhelpers.corpora.layout import AFFECT
from labhelpers.files import project_root
from tools import reference
from tools.reference import beaten, compare_runs, read_solution, recorded, spread_of

REFERENCE = reference.load("sample.json")
SPREAD = reference.load("spread.json")
QUICK = "quick_trainings" in os.environ.get("PYTHONPATH", "")
STARTED = time.time()  # of collection, before any notebook ran
ROW = {
    "model": "CNN",
    "task": "genre",
    "input": "mel",
    "set": "test",
    "metric": "accuracy",
    "baseline": False,
    "value": 0.5,
    "low": 0.4,
    "high": 0.6,
    "deviation": 0.01,
    "seeds": 3,
    "n": 9,
}
SVM = ROW | {"model": "SVM", "baseline": True, "deviation": None, "seeds": 1}
TOLERANT = {"results": {"accuracy": 0.05}, "facts": ["epochs.CNN"]}


@pytest.fixture(scope="module")
def now(request):
    """What the notebooks of this session recorded."""
    ran = request.config.stash.get("notebooks", set())
    if not ran:
        pytest.skip("no notebook ran in this session: `make test` runs them")
    out = project_root() / "reports" / ("tests" if QUICK else "sample")
    found = recorded(out, find_corpus("sample"))
    for name in ran & found.keys():
        path = out / "records" / f"{name}.json"
        assert path.stat().st_mtime > STARTED, f"{name} failed, or recorded elsewhere"
    wanted = ran | {"solution.txt"} if "10_kaggle_submission" in ran else ran
    return {name: content for name, content in found.items() if name in wanted}


def test_every_notebook_with_a_record_has_a_reference(now):
    if not REFERENCE:
        pytest.skip("no reference yet: run `make reference`")
    assert now.keys() <= REFERENCE.keys()


@pytest.mark.parametrize("notebook", REFERENCE)
def test_results_are_those_of_the_reference(notebook, now, request):
    if notebook not in now:
        ran = request.config.stash["notebooks"]
        assert notebook not in ran, "it left no record"
        pytest.skip("did not run in this session")
    before, ours = REFERENCE[notebook], now[notebook]
    if not QUICK:
        assert compare_runs(before, ours, SPREAD) == []
        return
    metrics = {row["metric"] for row in before["results"]}
    found = compare_runs(before, ours, SPREAD | {"results": dict.fromkeys(metrics, 9.9)})
    if "05" <= notebook < "99":  # what a training finds is a fact, too
        found = [text for text in found if not text.startswith("fact ")]
    assert found == []


@pytest.mark.skipif(QUICK, reason="trainings are cut short: `make results` does them whole")
def test_networks_beat_the_baselines_that_they_beat_in_the_reference(now):
    """Only where the reference's lead is larger than what a machine moves."""
    ran = [run for notebook, run in REFERENCE.items() if notebook in now]
    every = [row for run in ran for row in run["results"]]
    ours = beaten([row for run in now.values() for row in run["results"]])
    lead = []
    for row in every:
        moved = 0.0 if row["baseline"] else SPREAD.get("results", {}).get(row["metric"], 0.0)
        lead.append(row | {"value": row["value"] - moved})
    assert beaten(lead) <= ours


def test_readme_shows_the_reference():
    rows = [row for run in REFERENCE.values() for row in run["results"]]
    if not rows:
        pytest.skip("no reference yet: run `make reference`")
    text = (project_root() / "README.md").read_text(encoding="utf-8")
    between = text.split(reference.README_RESULTS)[1]
    for row in rows:
        if row["set"] == "test" and row["task"] == "genre":
            assert f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" in between


def test_what_is_kept_of_real_music_is_whole_and_has_no_music():
    kept = project_root() / "reports" / "reference" / "emotify"
    index = (kept / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:href|src)="([^"]*)"', index)
    outside = {link for link in links if not link.startswith(("#", "data:", "https:"))}
    assert outside == {"report.pdf"} and (kept / "report.pdf").is_file()
    summary = (kept / "summary.md").read_text(encoding="utf-8")
    for text in (index, summary):
        assert "<audio" not in text and "audio/" not in text
        assert not re.search(r"[\"' (](/home|/root|/tmp|/work|/mnt)/", text)
    for link in re.findall(r"\]\(([^)#]+\.(?:ipynb|png))", summary):
        assert (kept / link).is_file(), link
    assert len(list(kept.glob("*.png"))) == summary.count("![") > 5 and "![png]" not in summary
    readme = (project_root() / "README.md").read_text(encoding="utf-8")
    between = readme.split(reference.README_REAL)[1]
    for picture in kept.glob("*.svg"):
        assert f"reports/reference/emotify/{picture.name}" in between
    lines = (kept.parent / "emotify-solution.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 81 and lines[0] == "Id.fused.full.npy.gz,valence,energy,danceability"


# --- the comparison -------------------------------------------------------------------------------


def run(*rows, **facts):
    return {"results": list(rows), "facts": facts}


def test_a_run_is_like_itself():
    assert compare_runs(run(ROW, SVM, clips=3), run(ROW, SVM, clips=3), {}) == []


@pytest.mark.parametrize("field", ["value", "low", "high", "deviation"])
def test_a_networks_numbers_may_move_as_far_as_was_measured(field):
    near, far = ROW | {field: ROW[field] + 0.049}, ROW | {field: ROW[field] + 0.051}
    assert compare_runs(run(ROW), run(near), TOLERANT) == []
    (said,) = compare_runs(run(ROW), run(far), TOLERANT)
    assert said.startswith(f"CNN / genre / mel / test / accuracy: {field} ")
    assert len(compare_runs(run(ROW), run(near), {})) == 1  # nothing was measured: the same
    assert len(compare_runs(run(ROW), run(ROW | {field: float("nan")}), TOLERANT)) == 1


@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_a_baseline_has_to_be_the_same(field):
    assert compare_runs(run(SVM), run(SVM | {field: SVM[field] + 1e-7}), TOLERANT) == []
    assert len(compare_runs(run(SVM), run(SVM | {field: SVM[field] + 1e-5}), TOLERANT)) == 1


def test_rows_that_lack_or_were_added_and_other_counts_are_differences():
    (said,) = compare_runs(run(ROW, SVM), run(SVM), TOLERANT)
    assert said == "CNN / genre / mel / test / accuracy: only in the reference"
    (said,) = compare_runs(run(SVM), run(SVM, ROW), TOLERANT)
    assert said == "CNN / genre / mel / test / accuracy: only in the run"
    for change in ({"n": 8}, {"seeds": 2}, {"baseline": True}, {"deviation": None}):
        assert len(compare_runs(run(ROW), run(ROW | change), TOLERANT)) >= 1


def test_facts_are_the_same_but_for_those_that_were_seen_to_move():
    facts = {"classes": ["a", "b"], "epochs": {"CNN": 7, "SVM": 0}, "share": 0.5}
    assert compare_runs(run(**facts), run(**facts), {}) == []
    moved = facts | {"epochs": {"CNN": 8, "SVM": 0}}
    assert compare_runs(run(**facts), run(**moved), TOLERANT) == []
    for other in (
        facts | {"epochs": {"CNN": 7, "SVM": 1}},
        facts | {"classes": ["b", "a"]},
        facts | {"share": 0.51},
        facts | {"more": 1},
        {"classes": ["a", "b"], "share": 0.5},
    ):
        assert compare_runs(run(**facts), run(**other), TOLERANT)


def test_what_moved_is_measured_with_room():
    runs = []
    for value, epochs in ((0.50, 7), (0.52, 7), (0.48, 9)):
        network = ROW | {"value": value, "high": value + 0.1 + (epochs == 9) * 0.02}
        runs.append({"07": run(network, SVM | {"value": value}, epochs={"CNN": epochs}, clips=3)})
    spread = spread_of(runs)
    assert spread == {"results": {"accuracy": pytest.approx(0.06)}, "facts": ["epochs.CNN"]}
    for one in runs:
        assert len(compare_runs(runs[0]["07"], one["07"], spread)) == (one is not runs[0])


def test_who_beats_the_baselines():
    better = ROW | {"value": 0.6}
    first = ("CNN", "genre", "mel", "test", "accuracy")
    assert beaten([SVM, better, ROW | {"model": "LSTM"}]) == {first}
    assert beaten([better]) == set()  # there is nothing to beat


def test_a_submission_is_read_back_against_the_labels_kept_aside(corpus, tmp_path):
    answers = corpus.root / "kept_aside"
    answers.mkdir()
    ids = [str(number) for number in range(27, 33)]
    lines = [f"{clip},0.{i + 1},0.{i + 2},0.{i + 3}" for i, clip in enumerate(ids)]
    head = ",".join(["Id", *AFFECT])
    (answers / "multitask_test_labels.txt").write_text("\n".join([head, *lines]) + "\n")
    solution = tmp_path / "solution.txt"
    solution.write_text("\n".join([head, *lines]))
    found = read_solution(solution, corpus)
    assert found["results"][0]["value"] == pytest.approx(1) and found["results"][0]["n"] == 6
    assert found["facts"]["header"] == head
    rows = [line.split(",") for line in lines]
    mixed = [",".join([row[0], *other[1:]]) for row, other in zip(rows, reversed(rows))]
    solution.write_text("\n".join([head, *mixed]))  # the values of other clips
    assert read_solution(solution, corpus)["results"][0]["value"] == pytest.approx(-1)


def test_the_reference_is_of_todays_form():
    for notebook, content in REFERENCE.items():
        assert set(content) == {"results", "facts"}, notebook
        assert json.loads(json.dumps(content)) == content
    assert not SPREAD or SPREAD["results"] and len(SPREAD["machines"]) > 1
    assert Path(project_root() / "reports" / "reference" / "sample-report.pdf").is_file()
