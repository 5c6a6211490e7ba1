"""The runner, on two notebooks small enough to run here: what runs, with what, and what is said."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from labhelpers.records import RunError
from labhelpers.series import notebooks, pages, run
from labhelpers.series.notebooks import check_parameters, choose, defaults, merged, read_series

PARAMETERS = (
    'DATA = None\nOUT = None  # a comment with = in it\nSEED = 0\nRATE = 0.1\nDEVICE = "cpu"'
)
RECORD = """
import json, os, pathlib
rows = []
for model, baseline, value in [("majority class", True, .2), ("CNN", False, .5)]:
    rows.append(dict(
        model=model, task="genre", input="mel", set="test", metric="accuracy", baseline=baseline,
        value=value, low=value - .1, high=value + .1, deviation=None, seeds=1, n=10,
    ))
record = dict(
    notebook="01_first", corpus=dict(name="tiny", sample=True, fingerprint="f"),
    params=dict(SEED=SEED), versions=dict(python="3"), facts={}, results=rows, histories={},
    predictions=[], predictors={},
)
folder = pathlib.Path(OUT) / "records"
(folder / "01_first.json").write_text(json.dumps(record))
import librosa
librosa.ex  # loads pooch, and that tqdm.auto
import tqdm.auto
"""
READ = """
import pathlib
print(len((pathlib.Path(OUT) / "records" / ("01_first" + ".json")).read_text()))
"""


def write(folder, name, *cells):
    """A notebook of Markdown (text) and code (text in a list; the first holds the parameters)."""
    v4 = nbformat.v4
    nb = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for cell in cells:
        markdown = isinstance(cell, str)
        nb.cells.append(v4.new_markdown_cell(cell) if markdown else v4.new_code_cell(*cell))
    nb.cells[1].metadata["tags"] = ["parameters"]
    folder.mkdir(exist_ok=True)
    nbformat.write(nb, folder / f"{name}.ipynb")


@pytest.fixture
def series(tmp_path):
    """Folder of two notebooks; the second reads the record of the first."""
    folder = tmp_path / "notebooks"
    write(folder, "01_first", "# 1 The first", [PARAMETERS], "## 1α One", [RECORD])
    write(folder, "02_second", "# 2 The second", [PARAMETERS], "## 2β Two", [READ])
    return folder


class Run:
    """Calls `run_series` on the small series and keeps what it said."""

    def __init__(self, corpus, series, out, caplog):
        self.corpus, self.series, self.out, self.log = corpus, series, out, caplog

    def __call__(self, **options):
        self.log.clear()
        return run.run_series(self.corpus.root, self.out, notebooks=self.series, **options)

    @property
    def said(self):
        return [record.getMessage() for record in self.log.records if record.name == "labhelpers"]

    def ran(self):
        return [line.split(":")[0] for line in self.said if " cells in " in line]


@pytest.fixture
def small(corpus, series, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run, "_package", lambda: "as it is")  # someone may edit it meanwhile
    monkeypatch.setenv("PYTHONWARNINGS", "error")  # must not reach the kernel
    caplog.set_level(logging.INFO, "labhelpers")
    return Run(corpus, series, tmp_path / "out", caplog)


def test_the_series_runs_once_and_leaves_a_report(small):
    index = small()
    assert index == small.out / "index.html" and small.ran() == ["01_first", "02_second"]
    assert any(line.startswith("01_first, notebook 1 of 2") for line in small.said)
    assert "Genre: 5 of 10 test clips right (CNN); majority class 2." in small.said
    executed = nbformat.read(small.out / "notebooks" / "01_first.ipynb", 4)
    assert notebooks.faults(executed) == []  # not even tqdm's, where ipywidgets is missing
    assert not [part for part in (executed, *executed.cells) if "papermill" in part.metadata]
    assert "majority class" in index.read_text() and "1 The first" in index.read_text()
    assert json.loads((small.out / "run.json").read_text())["corpus"]["name"] == "tiny"

    before = {
        path: path.stat().st_mtime_ns for path in small.out.rglob("*") if path.name != ".lock"
    }
    small()
    after = {path: path.stat().st_mtime_ns for path in small.out.rglob("*") if path.name != ".lock"}
    assert small.ran() == [] and before == after  # nothing runs, nothing is written


def test_only_what_changed_runs_again(small):
    small(report=False)
    write(small.series, "02_second", "# 2 The second, reworded", [PARAMETERS], ["print('new')"])
    small(report=False)
    assert small.ran() == ["02_second"]
    record = small.out / "records" / "01_first.json"
    record.write_text(record.read_text() + " ")  # written by other than the run that is kept
    small(only="1", report=False)
    assert small.ran() == ["01_first"]
    small(parameters={"SEED": "1"}, only=["01"], report=False)
    assert small.ran() == ["01_first"] and json.loads(record.read_text())["params"]["SEED"] == 1


def test_a_text_that_changed_needs_no_run(small):
    small(parameters={"SEED": "3"}, report=False)
    before = nbformat.read(small.out / "notebooks" / "02_second.ipynb", 4)
    write(small.series, "02_second", "# 2 Reworded", [PARAMETERS], "## 2β Two", "More.", [READ])
    small(parameters={"SEED": "3"}, report=False)
    after = nbformat.read(small.out / "notebooks" / "02_second.ipynb", 4)
    assert small.ran() == []
    assert [cell.source for cell in after.cells if cell.cell_type == "markdown"] == [
        "# 2 Reworded",
        "## 2β Two",
        "More.",
    ]
    code = [cell for cell in after.cells if cell.cell_type == "code"]
    assert code == [cell for cell in before.cells if cell.cell_type == "code"]
    assert len(code) == 3 and "SEED = 3" in code[1].source  # the parameters that were given


def test_a_failure_says_where_and_keeps_what_was_done(small, monkeypatch):
    write(
        small.series,
        "02_second",
        "# 2 Fails",
        [PARAMETERS],
        ["x = 1"],
        ["raise ValueError('no such')"],
    )
    said = r"02_second, cell In \[4\] failed with ValueError: no such\n.*02_second.ipynb"
    for _ in range(2):  # the second time its error mark is there already
        with pytest.raises(RunError, match=said):
            small()
        assert small.out.joinpath("report.pdf").is_file() and not any(
            "either" in line for line in small.said
        )
    html = (small.out / "index.html").read_text()
    assert "failed" in html and "majority class" in html

    def fails(*_, **__):
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(run, "write_report", fails)  # it must not hide what stopped the run
    with pytest.raises(RunError, match=said):
        small(fresh=True)
    assert any("could not be written either: of ours" in line for line in small.said)
    write(
        small.series, "02_second", "# 2 Stops", [PARAMETERS], ["import sys; sys.exit(0)"], ["x = 1"]
    )
    with pytest.raises(RunError, match="ended early: cell 5: did not run"):
        small(report=False)


def test_what_readers_should_not_meet_is_told(small):
    write(
        small.series,
        "02_second",
        "# 2 Warns",
        [PARAMETERS],
        ["import sys; print('x', file=sys.stderr)"],
    )
    small(only="2", report=False)
    assert "02_second, cell 4: wrote to stderr: x" in small.said


def test_one_report_at_a_time(small):
    (small.out / "records").mkdir(parents=True)
    with run._alone_in(small.out), pytest.raises(RunError, match="another report is being written"):
        small()


def test_sigterm_ends_the_kernel_too(small, tmp_path):
    marker = tmp_path / "pid"
    busy = (
        f"import os, pathlib, time\npathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(99)"
    )
    write(small.series, "02_second", "# 2 Busy", [PARAMETERS], [busy])
    call = (
        "import sys; from labhelpers.series.run import run_series; "
        "run_series(sys.argv[1], sys.argv[2], only='2', notebooks=sys.argv[3])"
    )
    paths = map(str, (small.corpus.root, small.out, small.series))
    process = subprocess.Popen([sys.executable, "-c", call, *paths], cwd=Path(__file__).parents[1])
    while not (marker.is_file() and marker.read_text()):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    for _ in range(100):
        try:
            os.kill(int(marker.read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the kernel outlives its report by 10 s")


# --- no kernel needed from here -------------------------------------------------------------------


def key_of(series, corpus, out, name="02_second", own=None):
    known = read_series(series)
    return run._key(known[name], known, own or {}, corpus, out)


@pytest.mark.parametrize("module", ["audio.py", "corpora/layout.py"])
def test_a_changed_module_runs_everything_again(series, corpus, tmp_path, monkeypatch, module):
    copy = tmp_path / "labhelpers"
    (copy / "corpora").mkdir(parents=True)
    (copy / "series").mkdir()
    for name in ("audio.py", "corpora/layout.py", "series/cli.py"):
        (copy / name).write_text("x = 1")
    monkeypatch.setattr(run, "PACKAGE", copy)
    before = key_of(series, corpus, tmp_path)
    (copy / "series" / "cli.py").write_text("x = 2")  # which no notebook calls
    assert key_of(series, corpus, tmp_path) == before
    (copy / module).write_text("x = 2")
    assert key_of(series, corpus, tmp_path) != before


def test_another_corpus_version_or_parameter_runs_everything_again(
    series, corpus, tmp_path, monkeypatch
):
    before = key_of(series, corpus, tmp_path)
    assert key_of(series, corpus, tmp_path, own={"SEED": 1}) != before
    monkeypatch.setattr(run, "versions", lambda: {"torch": "99"})
    changed = key_of(series, corpus, tmp_path)
    assert changed != before
    labels = corpus.root / "fma_genre_spectrograms" / "train_labels.txt"
    labels.write_text(labels.read_text().replace("Rock", "Jazz"))
    assert key_of(series, type(corpus)(corpus.root), tmp_path) != changed


def test_a_changed_record_runs_its_readers_again(series, corpus, tmp_path):
    write(series, "02_second", "# 2", [PARAMETERS], ["load_run('01_first')"])
    record = tmp_path / "records" / "01_first.json"
    record.parent.mkdir(parents=True)
    keys = {"01_first": set(), "02_second": set()}
    for text in ("{}", "[]"):
        record.write_text(text)
        for name, found in keys.items():
            found.add(key_of(series, corpus, tmp_path, name))
    assert (len(keys["01_first"]), len(keys["02_second"])) == (1, 2)


def test_notebooks_are_chosen_by_number_or_name(series):
    known = read_series(series)
    assert choose(known) == ["01_first", "02_second"]
    for key in ("02", "2", "02_second", "02_second.ipynb", ["02_second"]):
        assert choose(known, key) == ["02_second"]
    assert choose(known, start="2") == ["02_second"] and choose(
        {"09a_x": 1, "00_y": 1}, "9a,0"
    ) == ["09a_x", "00_y"]
    with pytest.raises(RunError, match="no notebook '03'; there are 01_first, 02_second"):
        choose(known, "03")
    with pytest.raises(RunError, match="no numbered notebooks"):
        read_series(series.parent)


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("SEED", "3", 3),
        ("SEED", 4, 4),
        ("SEED", "2 ** 4", 16),
        ("RATE", "1", 1),
        ("RATE", "3e-3 / 2", 0.0015),
        ("DEVICE", "0", "0"),
    ],
)
def test_parameters_are_read_as_their_default_is(series, name, text, value):
    assert check_parameters(read_series(series), {name: text}) == {name: value}


@pytest.mark.parametrize(
    "name, text, said",
    [
        (
            "SEDE",
            "3",
            "no chosen notebook has a parameter SEDE; known: DATA, DEVICE, OUT, RATE, SEED",
        ),
        ("SEED", "three", "SEED = 'three' is no int; 01_first has SEED = 0"),
        ("SEED", "0.5", "is no int"),
        ("SEED", "True", "is no int"),
        ("SEED", "-1", "SEED = '-1' is negative; 01_first has SEED = 0"),
        ("RATE", "fast", "is no float"),
        ("DEVICE", 1, "is no str"),
        ("DATA", "x", "-p DATA: say --data x"),
        ("OUT", "x", "-p OUT: say --out x"),
    ],
)
def test_wrong_parameters_are_refused(series, name, text, said):
    with pytest.raises(RunError, match=re.escape(said)):
        check_parameters(read_series(series), {name: text})


@pytest.mark.parametrize("name", ["EPOCHS", "BATCH", "CROP", "PATIENCE"])
def test_nothing_is_counted_in_zeros(tmp_path, name):
    write(tmp_path / "n", "05_x", "#", [f"{name} = 4"])
    for text in ("0", "-3"):
        with pytest.raises(
            RunError, match=f"{name} = '{text}' is too small: 1 or more is needed; 05_x has"
        ):
            check_parameters(read_series(tmp_path / "n"), {name: text})


def test_defaults_may_be_annotated_and_reckoned(tmp_path):
    write(
        tmp_path / "n",
        "05_x",
        "#",
        ["BATCH = 2 ** 4\nLR = 3e-3 / 2\nEPOCHS: int = 5\nSEEDS = (0, -1)\nlater: int"],
    )
    (path,) = read_series(tmp_path / "n").values()
    assert defaults(path) == {"BATCH": 16, "LR": 0.0015, "EPOCHS": 5, "SEEDS": (0, -1)}


@pytest.mark.parametrize(
    "text", ["X = 1\nLR = X * 2", "A = 1\nLR = open('x')", "A = 1\nLR = 1 / 0", "A = 1\nLR = = 2"]
)
def test_other_defaults_are_refused_with_notebook_and_line(tmp_path, text):
    write(tmp_path / "n", "05_x", "#", [text])
    (path,) = read_series(tmp_path / "n").values()
    with pytest.raises(RunError, match="05_x.ipynb, parameters, line 2: "):
        defaults(path)


def test_a_file_that_is_no_notebook_is_refused(tmp_path):
    path = tmp_path / "05_x.ipynb"
    for text in ("", "[]", '{"cells": 1}'):
        path.write_text(text)
        with pytest.raises(RunError, match="05_x.ipynb: not a notebook"):
            notebooks.read_cells(path)


def test_the_line_on_a_running_notebook():
    progress = run.Progress({"05": 60, "06": 100, "07": 200})
    assert progress.line("05", 10) == "05, notebook 1 of 3 · 10 s, about 5 min 50 s left"
    progress.place = "5α LSTM"
    assert (
        progress.line("05", 100)
        == "05, notebook 1 of 3 · 1 min 40 s, about 5 min 0 s left · 5α LSTM"
    )
    progress.skip("06")
    assert progress.line("07", 0).startswith("07, notebook 1 of 2")
    assert run.Progress({"05": None}).line("05", 3) == "05, notebook 1 of 1 · 3 s"


def test_the_line_ticks_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = run.Progress({"05": 9})
    with progress.running("05"):
        time.sleep(1.3)
    said = capsys.readouterr().out
    assert said.count("notebook 1 of 1") >= 2 and "\n" not in said


def test_durations():
    assert [pages.duration(s) for s in (0.4, 59.4, 59.6, 200)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 20 s",
    ]


def test_pieces_of_one_printed_text_become_one():
    piece = lambda name, text: nbformat.v4.new_output("stream", name=name, text=text)  # noqa: E731
    figure = nbformat.v4.new_output("display_data", data={"text/plain": "figure"})
    outputs = [
        piece("stdout", "a\n"),
        piece("stdout", "b\n"),
        piece("stderr", "c"),
        figure,
        piece("stdout", "d"),
    ]
    assert [output.get("text", "figure") for output in merged(outputs)] == [
        "a\nb\n",
        "c",
        "figure",
        "d",
    ]
