"""The runner.   pytest tests/test_report.py"""

import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from helpers import make_corpus

from labhelpers.corpus import PROJECT, Corpus
from scripts import report
from scripts.report import ReportError, check_parameters, choose, load_state, read_series, value_of

V4 = nbformat.v4
FIRST = """
import os, pathlib
folder = pathlib.Path(os.environ["LABHELPERS_OUT"], "records")
(folder / "01_first").mkdir(exist_ok=True, parents=True)
(folder / "01_first" / "net.pt").write_bytes(bytes(N))
(folder / "01_first.json").write_text(f'{{"N": {N}, "results": {{}}}}')
print(N, os.environ["OMP_NUM_THREADS"], os.getcwd().split("/")[-1])
"""
SECOND = """
import json, os, pathlib
records = pathlib.Path(os.environ["LABHELPERS_OUT"], "records")
print(json.loads((records / ("01_first" + ".json")).read_text())["N"] + 1)
"""


def write_notebook(path, *code, parameters="N = 3"):
    cells = [V4.new_markdown_cell(f"# {path.stem}")]
    cells.append(V4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [V4.new_code_cell(source.strip()) for source in code]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(V4.new_notebook(cells=cells, metadata=kernel), path)


def write_corpus(root):
    """Three genre clips for each split, and no affect labels."""
    make_corpus(root, train=1, test=1, affect=(1, 1))
    for folder in root.glob("multitask*"):
        shutil.rmtree(folder)
    return root


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A checkout with three notebooks; the second reads the first, the third neither."""
    top = tmp_path_factory.mktemp("house")
    write_notebook(top / "notebooks" / "01_first.ipynb", FIRST)
    write_notebook(top / "notebooks" / "02_second.ipynb", SECOND)
    third = top / "notebooks" / "03_third.ipynb"
    write_notebook(third, "print(M, *SIZES)", parameters="M = 0.5\nSIZES = (8, 16)")
    (top / "labhelpers").mkdir()
    (top / "labhelpers" / "audio.py").write_text("RATE = 1\n")
    write_corpus(top / "music")
    return top


def run_of(house, out, monkeypatch, parameters=(), fresh=False, only=""):
    """A Run on the house's notebooks, as the command line makes it."""
    monkeypatch.setattr(report, "PACKAGE", house / "labhelpers")
    series = choose(read_series(house / "notebooks"), only)
    given = check_parameters(series, list(parameters))
    return report.Run(series, given, Corpus(house / "music"), out, load_state(out), fresh)


def outputs(out):
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
        assert run_of(house, out, patch).execute(2) == []
    return out


def stale(run):
    return [name for name in run.notebooks if not run.is_unchanged(name)]


@contextmanager
def changed(path, content):
    """A file with other content, or without one, for a while."""
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    yield
    path.write_bytes(before)


# --- what runs ------------------------------------------------------------------------------------


def test_outputs_are_kept_without_times_and_places(done, house):
    assert list(outputs(done).values()) == ["3 1 notebooks\n", "4\n", "0.5 8 16\n"]
    for entry in load_state(done)["notebooks"].values():
        assert entry["seconds"] > 0 and not entry["problem"] and not entry["warnings"]
    for path in (done / "notebooks").glob("*.ipynb"):
        book, source = nbformat.read(path, 4), nbformat.read(house / "notebooks" / path.name, 4)
        assert [cell.metadata for cell in book.cells] == [cell.metadata for cell in source.cells]
        assert set(book.metadata) == {"kernelspec", "language_info", "seconds"}


def test_only_what_changed_is_run_again(house, done, monkeypatch):
    run = partial(run_of, house, done, monkeypatch)
    assert stale(run()) == []
    assert stale(run(parameters=[("M", "0.25")])) == ["03_third"]
    assert len(stale(run(fresh=True))) == 3
    with changed(house / "labhelpers" / "audio.py", b"RATE = 2\n"):
        assert len(stale(run())) == 3
    array = house / "music" / "fma_genre_spectrograms" / "train" / "11.fused.full.npy"
    with changed(array, array.read_bytes()[:-4] + np.float32(-40).tobytes()):  # of the same size
        assert len(stale(run())) == 3
    network = done / "records" / "01_first" / "net.pt"
    for content in (b"abc", None):
        with changed(network, content):
            assert stale(run()) == ["01_first", "02_second"]
    with changed(done / "notebooks" / "02_second.ipynb", None):
        assert stale(run()) == ["02_second"]


def test_parameters_are_passed_on_and_new_text_needs_no_run(house, tmp_path, monkeypatch, capsys):
    given = {"parameters": [("SIZES", "4,4"), ("M", "1")], "only": "3"}
    run_of(house, tmp_path, monkeypatch, **given).execute(1)
    source = house / "notebooks" / "03_third.ipynb"
    with changed(source, source.read_bytes().replace(b"# 03_third", b"# Another title")):
        assert run_of(house, tmp_path, monkeypatch, **given).execute(1) == []
    assert capsys.readouterr().out.count("unchanged") == 1
    executed = tmp_path / "notebooks" / "03_third.ipynb"
    cells = nbformat.read(executed, 4).cells
    first = [cell.source.splitlines()[0] for cell in cells]
    assert first == ["# Another title", "M = 0.5", "# Parameters", "print(M, *SIZES)"]
    assert outputs(tmp_path) == {"03_third": "1 4 4\n"}
    # What somebody has changed by hand stays.
    mine = executed.read_bytes().replace(b"print(M", b"print(9")
    executed.write_bytes(mine)
    run_of(house, tmp_path, monkeypatch, **given).execute(1)
    assert executed.read_bytes() == mine


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_failure_stops_only_what_depends_on_it(house, tmp_path, monkeypatch, capsys):
    source = house / "notebooks" / "01_first.ipynb"
    with changed(source, source.read_bytes().replace(b"print(N", b"print('so far', lost")):
        failed = run_of(house, tmp_path, monkeypatch).execute(2)
    printed = capsys.readouterr().out
    assert failed == ["01_first", "02_second"]
    assert "cell In [2] failed with NameError: name 'lost' is not defined" in printed
    assert f"{'02_second':28} not run: it needs 01_first" in printed
    assert set(outputs(tmp_path)) == {"01_first", "03_third"}
    assert run_of(house, tmp_path, monkeypatch).execute(2) == []  # mended: both run


@pytest.mark.parametrize("end", ["import sys; sys.exit(0)", "import os; os._exit(0)"])
def test_an_early_end_is_a_failure_and_stderr_is_a_warning(end, house, tmp_path, monkeypatch):
    source = house / "notebooks" / "03_third.ipynb"
    with changed(source, None):
        write_notebook(source, "import sys; print('careful', file=sys.stderr)", end, "x = 1")
        run = run_of(house, tmp_path, monkeypatch, only="03")
        assert run.execute(1) == ["03_third"]
    entry = load_state(tmp_path)["notebooks"]["03_third"]
    assert entry["problem"] and entry["warnings"][0] == "cell In [2] wrote to stderr: careful"


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_stopped_report_leaves_no_kernel(number, status, tmp_path):
    sleep = "import os, time; print(os.getpid(), file=open(OUT + '/pid', 'w'), flush=True)"
    own = f"OUT = {str(tmp_path)!r}"
    write_notebook(tmp_path / "01_a.ipynb", sleep, "time.sleep(99)", parameters=own)
    code = f"""if True:
        import pathlib, sys
        from scripts import report
        report.NOTEBOOKS = pathlib.Path({str(tmp_path)!r})
        sys.exit(report.main(sys.argv[1:]))"""
    arguments = ["--data", write_corpus(tmp_path / "mine"), "--out", tmp_path / "out"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=PROJECT)
    pid = tmp_path / "pid"
    wait_until(lambda: pid.exists() and pid.read_text())
    process.send_signal(number)
    assert process.wait(20) == status
    wait_until(lambda: not is_running(int(pid.read_text())))
    assert not (tmp_path / "out" / "notebooks").exists()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, default, value",
    [
        ("1", 20, 1), ("0", 0, 0), ("0", 0.3, 0), ("1e-5", 1e-3, 1e-5), ("cuda", "auto", "cuda"),
        ("[8, 16]", (16, 32), [8, 16]), ("8,8", (16, 32, 64), (8, 8)), ("5", "05", "5"),
        ("0", 20, None), ("-1", 3, None), ("2.5", 20, None), ("many", 20, None), ("1,2", 3, None),
        ("True", 20, None), ("9**9**9", 20, None), ("-1", 0, None), ("1e999", 1e-3, None),
        ("-0.1", 1e-3, None), ("8,0", (16, 32), None), ("5", (16, 32), None),
        ("'a',1", (2, 2), None), ("2,(2,3)", ((2, 2), (2, 4)), None),
    ],
)  # fmt: skip
def test_a_sound_value_is_taken_and_one_out_of_range_refused(text, default, value):
    assert value_of(text, default) == value


def test_parameters_are_checked_before_anything_runs(house):
    series = read_series(house / "notebooks")
    given = check_parameters(series, [("N", "7")])
    assert given == {"01_first": {"N": 7}, "02_second": {"N": 7}, "03_third": {}}
    for name, value in (("NN", "1"), ("N", "0"), ("DATA", "x"), ("OUT", "x")):
        with pytest.raises(ReportError, match=f"-p {name}\\b"):
            check_parameters(series, [(name, value)])


def test_notebooks_by_number(house):
    series = read_series(house / "notebooks")
    assert list(choose(series, "3, 01")) == ["01_first", "03_third"]
    assert series["02_second"].needs == ["01_first"]
    with pytest.raises(ReportError, match="13.*01_first"):
        choose(series, "13")


@pytest.mark.parametrize("name", ["report.pdf", "index.html", "html/me.html", "my-thesis.zip"])
def test_a_folder_with_such_files_of_somebody_else_is_refused(name, tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "thesis.pdf").write_text("mine")
    assert load_state(tmp_path)["notebooks"] == {}
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ReportError, match=name.split("/")[0]):
        load_state(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"notebooks": 3}', "x"])
def test_a_strange_run_json_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ReportError, match="run.json"):
        load_state(tmp_path)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command on notebooks 07 and 08; returns its status and what the pages were given."""
    books = tmp_path / "notebooks"
    write_notebook(books / "07_cnn.ipynb", "print(6 / SEEDS)", parameters="SEEDS = 3")
    write_notebook(books / "08_affect_regression.ipynb", "raise ValueError")
    monkeypatch.setattr(report, "NOTEBOOKS", books)
    states = []
    pages = SimpleNamespace(write_report=lambda out, state: states.append({**state}))
    monkeypatch.setitem(sys.modules, "scripts.pages", pages)

    def call(*arguments):
        status = report.main([*map(str, arguments), "--out", str(tmp_path / "out")])
        return status, states[-1] if states else {}

    return call


def test_the_command_on_a_corpus_without_affect_labels(command, tmp_path, capsys):
    data = write_corpus(tmp_path / "mine")
    status, state = command("--data", data, "--author", "Ada", "-p", "SEEDS", 2)
    assert status == 0 and outputs(tmp_path / "out") == {"07_cnn": "3.0\n"}
    assert state["note"] in capsys.readouterr().out and "no affect labels" in state["note"]
    assert state["author"] == "Ada" and state["corpus"]["name"] == "mine"
    assert list(state["notebooks"]) == ["07_cnn"]
    # The same folder is not for another corpus.
    assert command("--data", write_corpus(tmp_path / "other" / "mine"))[0] == 1
    assert str(data) in capsys.readouterr().err
    # Pages alone need no corpus.
    shutil.rmtree(data)
    status, state = command("--pages-only", "--course", "Patterns")
    assert (status, state["course"], state["author"]) == (0, "Patterns", "Ada")


def test_a_notebook_that_fails_is_the_command_s_failure(command, tmp_path):
    book = tmp_path / "notebooks" / "07_cnn.ipynb"
    with changed(book, book.read_bytes().replace(b"6 /", b"6 / 0 /")):
        status, state = command("--data", write_corpus(tmp_path / "mine"))
    assert status == 1 and "ZeroDivisionError" in state["notebooks"]["07_cnn"]["problem"]


def test_wrong_arguments_are_refused_at_once(capsys):
    for command in (["--only", "13"], ["--data", "/nowhere"]):
        assert report.main(command) == 1
        assert command[1] in capsys.readouterr().err
    for command in (["--jobs", "0"], ["--onyl", "5"]):
        with pytest.raises(SystemExit):
            report.main(command)
