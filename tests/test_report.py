"""The runner.   pytest tests/test_report.py"""

import shutil
import time
from contextlib import contextmanager

import nbformat
import numpy as np
import pytest

from labhelpers.corpus import Corpus
from scripts import report
from scripts.report import (
    ReportError,
    choose,
    claim,
    fault,
    load_state,
    read_series,
    refresh_text,
    remove_old,
)

V4 = nbformat.v4
FIRST = """
import json, os, pathlib
folder = pathlib.Path(os.environ["LABHELPERS_OUT"], "records")
folder.mkdir(parents=True, exist_ok=True)
(folder / "01_first").mkdir(exist_ok=True)
(folder / "01_first" / "net.pt").write_bytes(bytes(N))
(folder / "01_first.json").write_text(json.dumps({"N": N, "results": {}}))
print(N, os.environ["OMP_NUM_THREADS"], os.getcwd().split("/")[-1])
"""
SECOND = """
import json, os, pathlib
load_run = lambda name: json.loads(
    pathlib.Path(os.environ["LABHELPERS_OUT"], "records", name + ".json").read_text())
print(load_run("01_first")["N"] + 1)
"""


def write_notebook(path, *code, parameters="N = 3"):
    cells = [V4.new_markdown_cell(f"# {path.stem}")]
    if parameters:
        cells.append(V4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [V4.new_code_cell(source.strip()) for source in code]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(V4.new_notebook(cells=cells, metadata=kernel), path)


def write_corpus(root, affect=True):
    """Two clips for each part."""
    parts = {"fma_genre_spectrograms": "Id\tGenre\n1\tRock\n2\tFolk\n"}
    if affect:
        parts["multitask_dataset"] = "Id,valence,energy,danceability\n1,.1,.2,.3\n2,.3,.2,.1\n"
    for name, labels in parts.items():
        for split in ("train", "test"):
            (root / name / split).mkdir(parents=True)
            (root / name / f"{split}_labels.txt").write_text(labels)
            for clip in (1, 2):
                np.save(root / name / split / f"{clip}.fused.full.npy", np.zeros((140, 9), "f4"))
    return Corpus(root)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A checkout with three notebooks; the second reads the first, the third neither."""
    top = tmp_path_factory.mktemp("house")
    write_notebook(top / "notebooks" / "01_first.ipynb", FIRST)
    write_notebook(top / "notebooks" / "02_second.ipynb", SECOND)
    write_notebook(
        top / "notebooks" / "03_third.ipynb",
        "import os; print(os.getpid() > 0, M)",
        parameters="M = 0.5",
    )
    (top / "labhelpers").mkdir()
    (top / "labhelpers" / "audio.py").write_text("RATE = 1\n")
    write_corpus(top / "music")
    return top


def run_of(house, out, monkeypatch, parameters=(), fresh=False):
    """A Run on the house's notebooks, as the command line makes it."""
    monkeypatch.setattr(report, "PACKAGE", house / "labhelpers")
    series = read_series(house / "notebooks")
    given = report.check_parameters(list(series.values()), list(parameters))
    return report.Run(series, given, Corpus(house / "music"), out, load_state(out), fresh)


def numbers(out):
    """What each executed notebook printed."""
    texts = {}
    for path in sorted((out / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        texts[path.stem] = "".join(o.get("text", "") for cell in cells for o in cell.outputs)
    return texts


@pytest.fixture(scope="module")
def done(house, tmp_path_factory):
    """A report folder after a whole run, two notebooks at a time."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        run = run_of(house, out, patch)
        run.execute(2)
    assert run.failed == []
    return out


def stale(run):
    return [name for name in run.notebooks if not run.is_unchanged(name)]


def test_outputs_records_and_environment(done):
    assert numbers(done) == {
        "01_first": "3 1 notebooks\n",
        "02_second": "4\n",
        "03_third": "True 0.5\n",
    }
    state = load_state(done)
    assert [entry["state"] for entry in state["notebooks"].values()] == ["done"] * 3


def test_a_second_run_does_nothing(house, done, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.ipynb")}
    began = time.perf_counter()
    run_of(house, done, monkeypatch).execute(2)
    assert time.perf_counter() - began < 2
    assert capsys.readouterr().out.count("unchanged") == 3
    assert before == {path: path.stat().st_mtime_ns for path in done.rglob("*.ipynb")}


def test_one_by_one_gives_the_same(house, done, tmp_path, monkeypatch):
    run_of(house, tmp_path, monkeypatch).execute(1)
    assert numbers(tmp_path) == numbers(done)


def test_only_what_changed_is_run_again(house, done, tmp_path, monkeypatch):
    def run(**options):
        return run_of(house, done, monkeypatch, **options)

    assert stale(run()) == []
    assert stale(run(parameters=[("M", "0.25")])) == ["03_third"]
    assert len(stale(run(fresh=True))) == 3
    with changed(house / "labhelpers" / "audio.py", b"RATE = 2\n"):
        assert len(stale(run())) == 3
    array = house / "music" / "fma_genre_spectrograms" / "train" / "1.fused.full.npy"
    other = array.read_bytes()[:-4] + np.float32(-40).tobytes()  # of the same size
    with changed(array, other):
        assert len(stale(run())) == 3
    with changed(done / "records" / "01_first" / "net.pt", b"abc"):
        assert stale(run()) == ["01_first", "02_second"]
    with changed(done / "records" / "01_first" / "net.pt", None):  # lost
        assert stale(run()) == ["01_first", "02_second"]
    with changed(done / "notebooks" / "02_second.ipynb", None):
        assert stale(run()) == ["02_second"]
    assert stale(run()) == []


@contextmanager
def changed(path, content):
    """A file with other content, or without one, for a while."""
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    yield
    path.write_bytes(before)


def test_new_text_needs_no_run(house, done, monkeypatch):
    source = house / "notebooks" / "02_second.ipynb"
    text = source.read_text().replace("# 02_second", "# Another title")
    with changed(source, text.encode()):
        executed = done / "notebooks" / "02_second.ipynb"
        assert stale(run_of(house, done, monkeypatch)) == []
        refresh_text(read_series(house / "notebooks")["02_second"], executed)
        assert nbformat.read(executed, 4).cells[0].source == "# Another title"
        assert numbers(done)["02_second"] == "4\n"
    with changed(source, source.read_bytes().replace(b"+ 1", b"+ 2")):  # it has not run
        refresh_text(read_series(house / "notebooks")["02_second"], executed)
        assert nbformat.read(executed, 4).cells[0].source == "# Another title"


def test_a_failure_stops_only_what_depends_on_it(house, tmp_path, monkeypatch, capsys):
    source = house / "notebooks" / "01_first.ipynb"
    with changed(source, source.read_bytes().replace(b"print(N", b"print(lost")):
        run = run_of(house, tmp_path, monkeypatch)
        run.execute(2)
    printed = capsys.readouterr().out
    assert "cell In [2] failed with NameError: name 'lost' is not defined" in printed
    assert f"{'02_second':28} not run: it needs 01_first" in printed
    assert run.failed == ["01_first", "02_second"]
    states = {name: entry["state"] for name, entry in load_state(tmp_path)["notebooks"].items()}
    assert states == {"01_first": "failed", "03_third": "done"}
    assert "03_third" in numbers(tmp_path) and "02_second" not in numbers(tmp_path)


def test_an_early_exit_is_a_failure_and_stderr_is_told(tmp_path):
    path = tmp_path / "01_exit.ipynb"
    write_notebook(path, "import sys; print('careful', file=sys.stderr)", "sys.exit(0)", "x = 1")
    result = report.execute(path, tmp_path / "out" / "01_exit.ipynb", {})
    assert result["problem"]
    assert result["warnings"][0] == "cell In [2] wrote to stderr: careful"


@pytest.mark.parametrize(
    "name, value, default",
    [
        ("EPOCHS", 0, 20), ("SEEDS", -1, 3), ("EPOCHS", 2.5, 20), ("EPOCHS", "many", 20),
        ("EPOCHS", True, 20), ("FOLDS", 1, 5), ("SEED", -1, 0), ("DROPOUT", 2, 0.3),
        ("LR", 0, 1e-3), ("LR", float("inf"), 1e-3), ("LR", float("nan"), 1e-3),
        ("CHANNELS", (24,), (16, 32)), ("CHANNELS", (16, 0), (16, 32)), ("CHANNELS", 5, (16, 32)),
        ("POOLS", ("a", 1), (2, 2)), ("CLIPS", [], ["1"]), ("EPOCHS", "9**9**9", 20),
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused(name, value, default):
    assert fault(name, value, default)


@pytest.mark.parametrize(
    "name, value, default",
    [
        ("EPOCHS", 1, 20), ("SEED", 0, 0), ("DROPOUT", 0, 0.3), ("LR", 1e-5, 1e-3), ("C", 3, 1.5),
        ("CHANNELS", [8, 16], (16, 32)), ("CLIP", "5", None), ("DEVICE", "cuda", "auto"),
    ],
)  # fmt: skip
def test_a_sound_parameter_is_taken(name, value, default):
    assert fault(name, value, default) == ""


def test_parameters_are_told_before_anything_runs(house, monkeypatch):
    series = list(read_series(house / "notebooks").values())
    given = report.check_parameters(series, [("N", "7")])
    assert given == {"01_first": {"N": 7}, "02_second": {"N": 7}, "03_third": {}}
    for pair in (("NN", "1"), ("N", "0"), ("N", "9**9**9"), ("DATA", "x"), ("OUT", "x")):
        with pytest.raises(ReportError, match=pair[0]):
            report.check_parameters(series, [pair])


def test_notebooks_by_number(house):
    series = read_series(house / "notebooks")
    assert choose(series, None) == list(series)
    assert choose(series, "3,01") == ["01_first", "03_third"]
    assert series["02_second"].needs == ("01_first",)
    with pytest.raises(ReportError, match="01, 02, 03"):
        choose(series, "13")


def test_nothing_foreign_is_overwritten_or_deleted(tmp_path):
    (tmp_path / "html").mkdir()
    for name in ("thesis.pdf", "html/homepage.html", "report.pdf"):
        (tmp_path / name).write_text("mine")
    state = load_state(tmp_path)
    with pytest.raises(ReportError, match="report.pdf"):
        claim(tmp_path, state, ["index.html", "report.pdf"])
    claim(tmp_path, state, ["index.html"])
    (tmp_path / "index.html").write_text("made")
    outside = tmp_path.parent / "outside.html"
    outside.write_text("mine")
    remove_old(tmp_path, state, ["index.html", "../outside.html"])
    assert not (tmp_path / "index.html").exists() and outside.exists()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "homepage.html", "report.pdf", "run.json", "thesis.pdf",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["[]", "{}", '{"notebooks": 3}', "x", '{"corpus": []}'])
def test_a_strange_run_json_is_told(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ReportError, match="run.json"):
        load_state(tmp_path)


def test_without_affect_labels_steps_8_to_10_are_left_out(tmp_path, monkeypatch, capsys):
    books = tmp_path / "notebooks"
    write_notebook(books / "07_cnn.ipynb", "print(6 * 7)", parameters="SEEDS = 3")
    write_notebook(books / "08_affect_regression.ipynb", "raise ValueError", parameters="")
    write_corpus(tmp_path / "mine", affect=False)
    monkeypatch.setattr(report, "NOTEBOOKS", books)
    out = tmp_path / "out"
    command = [
        "--data",
        str(tmp_path / "mine"),
        "--out",
        str(out),
        "--author",
        "Ada",
        "--jobs",
        "1",
    ]
    assert report.main([*command, "-p", "SEEDS", "1"]) == 0
    printed = capsys.readouterr().out
    sentence = "Steps 8 to 10 are left out: this corpus has no affect labels."
    assert sentence in printed and f"Report: {out / 'index.html'}" in printed
    assert sentence in (out / "index.html").read_text()
    assert numbers(out) == {"07_cnn": "42\n"}
    assert load_state(out)["author"] == "Ada"
    # The same folder is not for another corpus.
    write_corpus(tmp_path / "other" / "mine", affect=False)
    command[1] = str(tmp_path / "other" / "mine")
    assert report.main(command) == 1
    assert str(tmp_path / "mine") in capsys.readouterr().err
    # Pages alone need no corpus.
    shutil.rmtree(tmp_path / "mine")
    assert report.main(["--pages-only", "--out", str(out), "--course", "Patterns"]) == 0
    assert "Patterns" in (out / "index.html").read_text()


def test_wrong_arguments_are_told_at_once(tmp_path, capsys):
    for command in (["--only", "13"], ["--data", "/nowhere"]):
        assert report.main(command) == 1
        assert command[1] in capsys.readouterr().err
    for command in (["--jobs", "0"], ["--onyl", "5"]):
        with pytest.raises(SystemExit):
            report.main(command)
