"""The runner and what it leaves, on two notebooks small enough to run here."""

import json
import re
import shutil
import sys
import zipfile

import nbformat
import pytest

from labhelpers.records import RunError
from labhelpers.series import pages
from labhelpers.series import run as report
from labhelpers.series.run import check_parameters, choose, read_series, run_series

PARAMETERS = 'DATA = None\nOUT = None  # a comment with = in it\nSEED = 0\nRATE = 0.1\nDEVICE = "cpu"'
RECORD = """
import json, pathlib
rows = [dict(model=m, task="genre", input="mel", set="test", metric="accuracy", value=v, low=v - .1, high=v + .1, n=9)
        for m, v in [("majority class", .2), ("LSTM", .4), ("CNN", .5)]]
curve = [dict(epoch=e, train_loss=1 / e, val_loss=1.2 / e, val_score=.5, lr=.001, seconds=1.0) for e in (1, 2, 3)]
record = dict(params=dict(SEED=SEED), versions=dict(python="3"), results=rows, histories={"CNN": curve})
folder = pathlib.Path(OUT) / "records"
(folder / "01_first.json").write_text(json.dumps(record))
"""
SHOW = """
import base64
from IPython.display import HTML, Image, Markdown, display
display(Markdown("It is **%d** of $x^2$" % (6 * 7)))
display(HTML("<table border='1'><tr><th>a</th></tr><tr><td>1</td></tr></table>"))
dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
display(Image(base64.b64decode(dot)), metadata={"image/png": {"alt": "a red dot"}})
print("<plain & text>")
"""


def write(folder, name, *cells):
    """A notebook of markdown (text) and code (text in a list, `parameters` first) cells."""
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    v4 = nbformat.v4
    nb.cells = [v4.new_markdown_cell(cell) if isinstance(cell, str) else v4.new_code_cell(*cell) for cell in cells]
    nb.cells[1].metadata["tags"] = ["parameters"]
    folder.mkdir(exist_ok=True)
    nbformat.write(nb, folder / f"{name}.ipynb")


@pytest.fixture
def series(tmp_path):
    """Folder of two notebooks; the second reads the record of the first."""
    folder = tmp_path / "notebooks"
    prose = (
        "## 1α Ρυθμός\n\nWith $\\rho = \\frac{a}{b}$; [second](02_second.ipynb#2β-two), [a site](https://example.org)."
    )
    write(
        folder,
        "01_first",
        "# 1 The first\n\nNo such page: [gone](03_gone.ipynb#x).",
        [PARAMETERS],
        prose,
        [RECORD],
        [SHOW],
    )
    read = "import pathlib\nprint(len((pathlib.Path(OUT) / 'records' / ('01_first' + '.json')).read_text()))"
    write(folder, "02_second", "# 2 The second", [PARAMETERS], "## 2β Two", [read])
    return folder


class Run:
    """Calls `run_series` on the small series and keeps what it said."""

    def __init__(self, corpus, series, out):
        self.corpus, self.series, self.out = corpus, series, out

    def __call__(self, **options):
        self.said = []
        return run_series(self.corpus.root, self.out, notebooks=self.series, say=self.said.append, **options)

    def ran(self):
        return [line.split(":")[0] for line in self.said if " cells in " in line]


@pytest.fixture
def run(corpus, series, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_package", lambda: "as it is")  # someone may be editing it while the tests run
    (corpus.root / "kept_aside").mkdir()  # what marks a sample
    return Run(corpus, series, tmp_path / "out")


def test_the_series_runs_once_and_leaves_a_report(run, series):
    index = run()
    assert index == run.out / "index.html" and run.ran() == ["01_first", "02_second"]
    assert any("cell 1 of" in line and "The first" in line for line in run.said)

    executed = nbformat.read(run.out / "notebooks" / "01_first.ipynb", 4)
    assert not [part for part in (executed, *executed.cells) if "papermill" in part.metadata]

    html = index.read_text()
    assert "synthesised" in html and "majority class" in html and "1 The first" in html
    best = re.findall(r'class="best"><strong>([\d.]+)', html)
    assert best == ["0.500"]
    page = (run.out / "html" / "01_first.html").read_text()
    assert page.count("<math") == 2 and "$" not in page.replace("{$x", "").split("<details")[0]
    assert 'href="02_second.html#02_second-2β-two"' in page and 'id="02_second-2β-two"' in page_of(run, "02_second")
    assert 'alt="a red dot"' in page and "<strong>42</strong>" in page and "&lt;plain &amp; text&gt;" in page
    assert '<details class="code">' in page and "<details open" not in page
    for file in [index, *sorted((run.out / "html").iterdir())]:
        assert not network_references(file.read_text()), file.name
    assert (run.out / "report.pdf").read_bytes().startswith(b"%PDF")

    # again: nothing runs, nothing is written
    before = {path: path.stat().st_mtime_ns for path in run.out.rglob("*")}
    run()
    assert run.ran() == [] and before == {path: path.stat().st_mtime_ns for path in run.out.rglob("*")}

    # the same bytes for the same content
    contents = {name: (run.out / name).read_bytes() for name in ("report.pdf", "deliverable.zip", "index.html")}
    state = json.loads((run.out / "run.json").read_text())["notebooks"]
    pages.write_report(read_series(series), run.corpus, run.out, state)
    assert contents == {name: (run.out / name).read_bytes() for name in contents}
    names = zipfile.ZipFile(run.out / "deliverable.zip").namelist()
    assert {"report.pdf", "index.html", "notebooks/01_first.ipynb", "code/labhelpers/report.py"} <= set(names)


def page_of(run, name):
    return (run.out / "html" / f"{name}.html").read_text()


def network_references(page):
    """Scripts, styles, fonts, pictures and the like that a browser would fetch; links to click are none."""
    tags = re.findall(r"<(?:script|link|img|iframe|audio|video|source|embed|object)\b[^>]*>", page)
    return [tag for tag in tags if re.search(r"""(?:src|href|data)=["']?(?:https?:)?//""", tag)] + re.findall(
        r"@import[^;]*;|url\(\s*[\"']?https?:[^)]*\)", page
    )


def test_a_long_cell_shows_what_it_prints(run, series, monkeypatch):
    monkeypatch.setattr(report, "LOG_EVERY", 0)
    code = "import time\nfor epoch in (1, 2):\n    print('epoch', epoch)\n    time.sleep(0.5)"
    write(series, "03_long", "# 3 Long", [PARAMETERS], "## 3α Training", [code])
    run(only="03")
    heard = [line for line in run.said if "epoch" in line]
    assert any("cell 5 of 5" in line and line.endswith("3α Training · epoch 1") for line in heard) and len(heard) == 2


def test_only_what_changed_runs_again(run, series):
    run()
    write(series, "02_second", "# 2 The second, reworded", [PARAMETERS], ["print('new')"])
    run()
    assert run.ran() == ["02_second"]
    record = run.out / "records" / "01_first.json"
    record.write_text(record.read_text() + " ")  # written by other than the run that is kept
    run(only="01")
    assert run.ran() == ["01_first"]
    run(parameters={"SEED": "1"}, only=["01"])
    assert run.ran() == ["01_first"] and json.loads(record.read_text())["params"]["SEED"] == 1


def test_a_changed_package_runs_everything_again(series, corpus, tmp_path, monkeypatch):
    (path,) = [path for name, path in read_series(series).items() if name == "02_second"]
    keys = {report._key(path, {}, {}, corpus, tmp_path)}
    monkeypatch.setattr(report, "NOT_USED_BY_NOTEBOOKS", ())  # as if there were more in it
    assert report._key(path, {}, {}, corpus, tmp_path) not in keys


def test_a_changed_record_runs_its_readers_again(run, series):
    record = run.out / "records" / "01_first.json"
    record.parent.mkdir(parents=True)
    changed = []
    known = read_series(series)
    for text in ("{}", "[]"):
        record.write_text(text)
        changed.append({name: report._key(path, known, {}, run.corpus, run.out) for name, path in known.items()})
    assert changed[0]["01_first"] == changed[1]["01_first"] and changed[0]["02_second"] != changed[1]["02_second"]


def test_a_failure_says_where_and_keeps_what_was_done(run, series):
    write(series, "02_second", "# 2 Fails", [PARAMETERS], ["x = 1"], ["raise ValueError('no such thing')"])
    said = r"02_second, cell In \[4\] failed with ValueError: no such thing\n.*02_second.ipynb"
    with pytest.raises(RunError, match=said):
        run()
    html = (run.out / "index.html").read_text()
    assert "failed" in html and "majority class" in html
    write(series, "02_second", "# 2 Stops early", [PARAMETERS], ["import sys; sys.exit(0)"], ["x = 1"])
    with pytest.raises(RunError, match="ended early"):
        run()
    assert run.ran() == []  # the first was kept


def test_without_pandoc_there_is_an_index_and_a_zip(run, series, monkeypatch):
    """As on Kaggle without internet."""
    monkeypatch.setitem(sys.modules, "typst", None)
    known, state = read_series(series), {"01_first": {"state": "done", "seconds": 1, "date": "today", "device": "CPU"}}
    (run.out / "notebooks").mkdir(parents=True)
    shutil.copy(known["01_first"], run.out / "notebooks")
    pages.write_report(known, run.corpus, run.out, state)
    html = (run.out / "index.html").read_text()
    assert 'href="notebooks/01_first.ipynb"' in html and "report.pdf" not in html and "not run" in html
    assert "notebooks/01_first.ipynb" in zipfile.ZipFile(run.out / "deliverable.zip").namelist()
    assert not (run.out / "report.pdf").exists()


# --- no kernel needed from here ---------------------------------------------------------------------------------------


def test_results_become_one_table_a_task_with_the_best_marked():
    def row(model, task, metric, value, where="held-out", source="mel"):
        result = {"model": model, "task": task, "input": source, "set": where, "metric": metric, "value": value}
        return result | {"low": value - 0.1, "high": value + 0.1, "n": 9}

    axes = [row(m, a, "spearman", v) for m, v in (("SVR rows", 0.6), ("CNN", 0.4)) for a in ("valence", "energy")]
    means = [row(m, "affect", "mean_spearman", v) for m, v in (("SVR rows", 0.6), ("CNN", 0.4))]
    genre = [row("CNN mel", "genre", "accuracy", 0.5, "validation"), row("CNN mel", "genre", "accuracy", 0.4, "test")]
    again = [row("CNN mel", "genre", "accuracy", 0.3, "test")]
    records = {"08": {"results": axes + means}, "06": {"results": genre}, "07": {"results": again}}
    affect, validation, test = pages.tasks(records)
    assert affect["metrics"] == ["valence", "energy", "mean_spearman"] and affect["headline"] == "mean_spearman"
    assert [r["model"] for r in affect["rows"] if r["cells"]["valence"].best] == ["SVR rows"]
    assert affect["best"]["model"] == "CNN" and affect["rows"][0]["baseline"]  # the cards compare the two
    for task, where, value in ((validation, "validation", 0.5), (test, "test", 0.3)):
        assert (task["name"], task["set"]) == ("genre", where)
        assert [(r["cells"]["accuracy"].value, r["input"]) for r in task["rows"]] == [(value, "")]
    assert not any(r["cells"]["accuracy"].best for r in test["rows"])  # nothing to be better than


@pytest.mark.parametrize("model, is_one", [("SVR rows", True), ("SVM full", True), ("majority class", True),
                                           ("mean of the labels", True), ("SVR descriptors + CNN multitask", False),
                                           ("SVR + embedding", False), ("LSTM mel", False)])  # fmt: skip
def test_baselines_are_the_models_without_a_network(model, is_one):
    assert bool(pages.BASELINE.search(model)) == is_one


def test_notebooks_are_chosen_by_number_or_name(series):
    known = read_series(series)
    assert choose(known) == ["01_first", "02_second"]
    assert choose(known, "02") == choose(known, ["02_second"]) == choose(known, start="02") == ["02_second"]
    with pytest.raises(RunError, match="no notebook '03'; there are 01_first, 02_second"):
        choose(known, "03")
    with pytest.raises(RunError, match="no numbered notebooks"):
        read_series(series.parent)


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("SEED", "3", 3),
        ("SEED", 4, 4),
        ("RATE", "1", 1),
        ("RATE", "1e-3", 0.001),
        ("DEVICE", "0", "0"),
        ("DATA", "x", "x"),
    ],
)
def test_parameters_are_read_as_their_default_is(series, name, text, value):
    assert check_parameters(read_series(series), {name: text}) == {name: value}


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("SEDE", "3", "no chosen notebook has a parameter SEDE; known: DATA, DEVICE, OUT, RATE, SEED"),
        ("SEED", "three", "SEED = 'three' is no int; 01_first has SEED = 0"),
        ("SEED", "0.5", "is no int"),
        ("SEED", "True", "is no int"),
        ("RATE", "fast", "is no float"),
        ("DEVICE", 1, "is no str"),
    ],
)
def test_wrong_parameters_are_refused(series, name, text, said):
    with pytest.raises(RunError, match=re.escape(said)):
        check_parameters(read_series(series), {name: text})


def test_durations():
    assert [report.duration(s) for s in (0.4, 59.4, 59.6, 200)] == ["0 s", "59 s", "1 min 0 s", "3 min 20 s"]


def test_pieces_of_one_printed_text_become_one():
    piece = lambda name, text: nbformat.v4.new_output("stream", name=name, text=text)  # noqa: E731
    figure = nbformat.v4.new_output("display_data", data={"text/plain": "figure"})
    outputs = [piece("stdout", "a\n"), piece("stdout", "b\n"), piece("stderr", "c"), figure, piece("stdout", "d")]
    assert [output.get("text", "figure") for output in report.merged(outputs)] == ["a\nb\n", "c", "figure", "d"]
