"""The bundle as Kaggle's client takes it, push.sh in each case, and sessions there, acted."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from helpers_corpus import make_corpus, real_music

from labhelpers.corpora.find import LAB_DATA
from labhelpers.records import RunError
from labhelpers.series import kaggle

CHECKOUT = Path(__file__).resolve().parents[1]
SANDBOX = CHECKOUT / "tools" / "kaggle_sandbox.py"
STAND_IN = CHECKOUT / "tests" / "stand_in_kaggle.py"
NAMESPACES = ["unshare", "-r", "-m", "-n"]
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("[0-9]*_*.ipynb"))
SETUP = kaggle.SETUP.rstrip()
NAMES = [path.stem for path in NOTEBOOKS]
LAYOUTS = {
    "2020": ("data/data", "labhelpers"),
    "2022": ("patreco3-multitask-affective-music/data", "labhelpers"),
    "owner": (f"datasets/{LAB_DATA}/data", "datasets/me/labhelpers"),
}
slow = pytest.mark.skipif(
    not os.environ.get("RUN_SLOW"), reason="set RUN_SLOW=1 to act more on Kaggle (minutes)"
)


@pytest.fixture(scope="session")
def bundled(tmp_path_factory):
    return kaggle.bundle(tmp_path_factory.mktemp("bundle") / "bundle", "me")


@pytest.fixture
def own(bundled, tmp_path):
    """A copy of the bundle, to change or to push from."""
    return shutil.copytree(bundled, tmp_path / "bundle")


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


# --- set-up ---------------------------------------------------------------------------------------


def test_the_set_up_is_the_notebooks_word_for_word():
    """That it is the same in all of them, test_notebooks.py holds."""
    assert code_cells(CHECKOUT / "notebooks" / "00_kaggle_kernels.ipynb")[0].source == SETUP
    lines = [line for line in SETUP.splitlines() if line]
    assert len(lines) <= 6 and max(map(len, lines)) <= 100


# --- bundle ---------------------------------------------------------------------------------------


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Kaggle's own client, up to the point where it would send; `.sent` is what it would."""
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "0" * 32)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    extended = pytest.importorskip("kaggle.api.kaggle_api_extended", reason="no client of Kaggle")

    class Offline(extended.KaggleApi):
        sent = []

        def build_kaggle_client(self):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return self

        def __call__(self, request):
            self.sent.append(request)
            return SimpleNamespace(error="")

        def dataset_status(self, ref):
            raise extended.HTTPError("no such data set")

        def _upload_file(self, name, path, *_):
            self.sent.append(name)
            return extended.UploadFile()

    api = Offline()
    api.config_values = {"username": "me", "key": "0" * 32}
    api.sent = []
    return api


def test_the_client_takes_every_kernel(bundled, client, capsys):
    for folder in sorted((bundled / "kernels").iterdir()):
        client.kernels_push(str(folder))
        meta = json.loads((folder / "kernel-metadata.json").read_text())
        assert meta["machine_shape"] == "NvidiaTeslaT4"  # an older client does not send this
    assert capsys.readouterr().out == ""  # it prints when title and slug disagree
    pushed = {request.slug: request for request in client.sent}
    assert len(pushed) == len(NOTEBOOKS) + 1
    for request in pushed.values():
        assert request.enable_gpu and not request.enable_internet and request.is_private
        assert request.dataset_data_sources == ["me/labhelpers", LAB_DATA]
        assert set(request.kernel_data_sources) <= set(pushed)


def test_a_kernel_has_those_attached_whose_runs_it_loads(bundled):
    for path in NOTEBOOKS:
        meta = json.loads((bundled / "kernels" / path.stem / "kernel-metadata.json").read_text())
        code = "\n".join(cell.source for cell in code_cells(path))
        read = [name for name in NAMES if name != path.stem and f'"{name}"' in code]
        wanted = [f"me/labhelpers-{name.replace('_', '-')}" for name in read]
        assert meta["kernel_sources"] == wanted
        assert bool(wanted) == (path.stem >= "06")


def test_the_client_takes_the_dataset(bundled, client):
    client.dataset_create_new(str(bundled / "dataset"), dir_mode="zip", quiet=True)
    *files, request = client.sent
    mark = next((bundled / "dataset").glob("bundle-*.txt")).name
    assert sorted(files) == [mark, "labhelpers.zip", "notebooks.zip"]
    assert (request.owner_slug, request.slug, request.is_private) == ("me", "labhelpers", True)


def test_the_mark_changes_with_the_package_and_with_nothing_else(own, tmp_path, monkeypatch):
    def mark():
        (path,) = (own / "dataset").glob("bundle-*.txt")
        assert path.stem in (own / "push.sh").read_text()
        for kernel in (own / "kernels").glob("*/*.ipynb"):
            assert any(f"{path.stem}.txt" in cell.source for cell in code_cells(kernel))
        return path.stem

    first = mark()
    kaggle.bundle(own, "me", "competitions/some-contest")
    assert mark() == first
    changed = shutil.copytree(kaggle.PACKAGE, tmp_path / "labhelpers")
    (changed / "audio.py").write_text("# changed\n" + (changed / "audio.py").read_text())
    monkeypatch.setattr(kaggle, "PACKAGE", changed)
    kaggle.bundle(own, "me", notebooks=CHECKOUT / "notebooks")
    assert mark() != first


def test_a_bundle_is_written_again_but_never_over_other_files(own, tmp_path):
    assert kaggle.bundle(own, "me", "competitions/some-contest") == own
    meta = json.loads((own / "kernels" / "report" / "kernel-metadata.json").read_text())
    assert meta["competition_sources"] == ["some-contest"]
    assert meta["dataset_sources"] == ["me/labhelpers"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(RunError, match="other files"):
        kaggle.bundle(tmp_path / "other", "me")
    with pytest.raises(RunError, match="--user"):
        kaggle.bundle(tmp_path / "new", "not a name")


@pytest.mark.parametrize("code", [0, 1])
def test_the_wheels_for_pages_come_from_pip(tmp_path, monkeypatch, code):
    asked = []

    def run(command, **options):
        asked.append([str(word) for word in command])
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(kaggle.subprocess, "run", run)
    if code:
        with pytest.raises(RunError, match="pypandoc_binary and typst"):
            kaggle.bundle(tmp_path / "b", "me", with_pages=True)
        return
    kaggle.bundle(tmp_path / "b", "me", with_pages=True)
    (pip,) = asked
    assert pip[-2:] == ["pypandoc_binary", "typst"] and str(tmp_path / "b" / "dataset") in pip
    cells = code_cells(tmp_path / "b" / "kernels" / "report" / "report.ipynb")
    assert "--no-index" in cells[2].source and "run_series" in cells[3].source


# --- push.sh --------------------------------------------------------------------------------------


@pytest.fixture
def push(own, tmp_path):
    """A function that runs push.sh against an acted server; returns (process, its state after)."""
    pytest.importorskip("kagglesdk", reason="no client of Kaggle")
    client, state = tmp_path / "bin" / "kaggle", tmp_path / "state.json"
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    client.chmod(0o755)

    def run(*names, **given):
        if given or not state.is_file():
            state.write_text(json.dumps(given))
        env = {"PATH": f"{client.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        env |= {"STAND_IN": str(state), "PAUSE": "0", "LOOKS": "4"}
        words = ["sh", own / "push.sh", *names]
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
        return done, json.loads(state.read_text())

    run.mark = next((own / "dataset").glob("bundle-*.txt")).name
    return run


OLD = ["bundle-000000000000.txt", "labhelpers.zip"]


def test_the_first_push_creates_waits_and_pushes_the_report(push):
    done, state = push(served=None, pending=2)
    assert done.returncode == 0, done.stderr
    assert "CreateDataset" in state["calls"] and "CreateDatasetVersion" not in state["calls"]
    assert push.mark in state["served"] and state["pushed"] == ["me/labhelpers-report"]
    assert state["calls"].index("SaveKernel") > len(state["calls"]) - 2  # after all the looks
    assert "successfully pushed" in done.stdout and push.mark[:-4] in done.stdout


def test_where_another_package_is_served_a_version_is_made_and_waited_for(push):
    done, state = push(served=OLD, pending=2)
    assert done.returncode == 0, done.stderr
    assert "CreateDatasetVersion" in state["calls"] and "CreateDataset" not in state["calls"]
    assert push.mark in state["served"] and state["pushed"] == ["me/labhelpers-report"]


def test_a_second_push_uploads_nothing_anew(push):
    done, state = push("05_lstm", served=["labhelpers.zip", push.mark])
    assert done.returncode == 0 and "CreateDatasetVersion" not in state["calls"]
    assert state["pushed"] == ["me/labhelpers-05-lstm"]


@pytest.mark.parametrize(
    "said, given",
    [
        ("not served yet", dict(served=OLD, pending=99)),
        ("could not make", dict(served=OLD, pending=1, fails=True)),
        ("Authentication required|401 Client Error", dict(served=OLD, token=False)),
    ],
)
def test_while_the_package_is_not_served_no_kernel_is_pushed(push, said, given):
    done, state = push(**given)
    assert done.returncode == 1 and re.search(said, done.stderr), done.stderr
    assert "Stopped" in done.stderr and "pushed" not in state


@pytest.mark.parametrize(
    "kind, source", [("dataset", LAB_DATA), ("kernel", "me/labhelpers-05-lstm")]
)
def test_a_dropped_source_stops(push, kind, source):
    served = ["labhelpers.zip", push.mark]
    done, state = push("06_evaluation", "08_affect_regression", served=served, invalid=[source])
    assert done.returncode == 1 and f"not valid {kind} sources" in done.stderr
    assert source in done.stderr and state["pushed"] == ["me/labhelpers-06-evaluation"]


def test_a_push_that_is_refused_stops(push):
    served = ["labhelpers.zip", push.mark]
    done, state = push("05_lstm", "06_evaluation", served=served, error="Maximum batch GPU session")
    assert done.returncode == 1 and "Kernel push error: Maximum batch" in done.stderr
    assert state["calls"].count("SaveKernel") == 1


@pytest.mark.parametrize(
    "ends, pushed", [("COMPLETE", 2), ("ERROR", 1), ("CANCEL_ACKNOWLEDGED", 1)]
)
def test_kernels_go_one_after_the_other(push, ends, pushed):
    statuses = ["QUEUED", "RUNNING", ends]
    done, state = push("05_lstm", "06_evaluation", served=[push.mark], statuses=statuses)
    assert done.returncode == (ends != "COMPLETE") and len(state["pushed"]) == pushed
    assert ends == "COMPLETE" or ends in done.stderr


def test_an_unknown_kernel_is_told_before_anything_is_sent(push):
    done, state = push("05", served=None)
    assert done.returncode == 1 and "05_lstm" in done.stderr and "calls" not in state


# --- sessions -------------------------------------------------------------------------------------


@functools.cache
def namespaces():
    """Whether Kaggle can be acted in a root and network of its own.

    KAGGLE_WITHOUT_NAMESPACES=1 tries the other way.
    """
    if os.environ.get("KAGGLE_WITHOUT_NAMESPACES") or not shutil.which("unshare"):
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0


def act(attached, working, notebook, wait=0):
    """Run one notebook as Kaggle would; returns the finished process. The inputs stay as they are.

    wait : seconds that it gives an empty input
    """
    working.mkdir()
    command = [*NAMESPACES, sys.executable, SANDBOX]
    if not namespaces():
        command = [sys.executable, SANDBOX, "--plain"]
    command = [*map(str, command), attached, working, notebook]
    env = os.environ | {"LABHELPERS_MOUNT_WAIT": str(wait)}
    before = state_of(attached)
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert state_of(attached) == before
    return done


def state_of(folder):
    stats = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def attach_package(bundled, folder):
    """The data set of the bundle at `folder`, as Kaggle unpacks it."""
    shutil.copytree(bundled / "dataset", folder, ignore=shutil.ignore_patterns("*.json"))
    return folder


def tell(notebook, attached):
    """Without namespaces what lies below /kaggle/input lies below `attached`."""
    if not namespaces():
        text = notebook.read_text(encoding="utf-8").replace("/kaggle/input", str(attached))
        notebook.write_text(text, encoding="utf-8")


@pytest.fixture
def inputs(bundled, tmp_path):
    """A session's input with the package alone; returns the folder."""
    attach_package(bundled, tmp_path / "input" / "datasets" / "me" / "labhelpers")
    return tmp_path / "input"


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    """The sample, or where there is none a corpus of noise in its place."""
    sample = CHECKOUT / "data" / "sample"
    if sample.is_dir():
        return sample
    genres = ("Rock", "Folk", "Metal", "Pop", "Jazz")
    folder = tmp_path_factory.mktemp("noise") / "noise"
    return make_corpus(folder, genres=genres, train=6, frames=(420, 432)).root


@pytest.fixture(scope="session")
def session(bundled, corpus_folder, tmp_path_factory):
    """A function that builds a layout's input: arrays and labels, no audio, no answers."""

    def build(layout, bundled=bundled):
        attached = tmp_path_factory.mktemp("session") / "input"
        data, package = LAYOUTS[layout]
        beside = shutil.ignore_patterns("audio*", "kept_aside", "sample.json")
        shutil.copytree(corpus_folder, attached / data, ignore=beside)
        attach_package(bundled, attached / package)
        for path in (attached / package / "notebooks").iterdir():
            tell(path, attached)
        return attached

    return build


def ran_through(working):
    """The executed notebook has no error and every code cell ran."""
    cells = [cell for cell in code_cells(working / "__notebook__.ipynb") if cell.source]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    return not any(output.output_type == "error" for output in outputs)


def stopped_early(working):
    """The session's last words, from one of the notebook's first six cells with code."""
    cells = code_cells(working / "__notebook__.ipynb")
    failed = [
        place
        for place, cell in enumerate(cells)
        if any(output.output_type == "error" for output in cell.outputs)
    ]
    assert failed and failed[0] < 6
    return cells[failed[0]].outputs[-1]["evalue"]


def some(*few):
    """All notebooks with RUN_SLOW, else these."""
    return [pytest.param(name, marks=() if name in few else slow) for name in [*NAMES, "report"]]


def kernel(bundled, name):
    return bundled / "kernels" / name / f"{name}.ipynb"


@pytest.mark.parametrize("name", some("00_kaggle_kernels"))
def test_without_the_data_a_notebook_stops(bundled, inputs, tmp_path, name):
    done = act(inputs, tmp_path / "working", kernel(bundled, name))
    said = stopped_early(tmp_path / "working")
    assert done.returncode != 0
    for part in ("train_labels.txt", "labhelpers", "Add Input", LAB_DATA, 'DATA = "sample"'):
        assert part in said
    assert not list((tmp_path / "working").rglob("sample"))
    printed = code_cells(tmp_path / "working" / "__notebook__.ipynb")[1].outputs[0]["text"]
    assert f"Not attached: datasets/{LAB_DATA}" in printed and "the one that was pushed" in printed


@pytest.mark.parametrize("name", some("10_kaggle_submission"))
def test_an_empty_input_is_waited_for_and_named(bundled, inputs, tmp_path, name):
    (inputs / "datasets" / LAB_DATA).mkdir(parents=True)
    done = act(inputs, tmp_path / "working", kernel(bundled, name), wait=1)
    said = stopped_early(tmp_path / "working")
    assert done.returncode != 0 and re.search(rf"Empty after 1 s: \S+/{LAB_DATA}[.]", said)


@pytest.mark.parametrize("name", some("report"))
def test_a_stale_package_stops_before_it_is_used(bundled, inputs, tmp_path, name):
    (mark,) = (inputs / "datasets" / "me" / "labhelpers").glob("bundle-*.txt")
    mark.rename(mark.with_name("bundle-000000000000.txt"))
    done = act(inputs, tmp_path / "working", kernel(bundled, name))
    said = stopped_early(tmp_path / "working")
    assert done.returncode != 0 and mark.stem in said and "push.sh" in said
    printed = code_cells(tmp_path / "working" / "__notebook__.ipynb")[1].outputs[0]["text"]
    assert "bundle-000000000000" in printed


@pytest.mark.parametrize("name", some("07_cnn"))
def test_without_the_package_a_notebook_stops(bundled, tmp_path, name):
    (tmp_path / "input" / "datasets" / "me" / "other").mkdir(parents=True)
    done = act(tmp_path / "input", tmp_path / "working", kernel(bundled, name))
    said = stopped_early(tmp_path / "working")
    assert done.returncode != 0 and "Add Input" in said and "me/other" in said


@pytest.mark.parametrize("name", [name for name in some("06_evaluation") if name.values[0] >= "06"])
def test_a_dropped_kernel_source_is_told(bundled, session, tmp_path, name):
    meta = json.loads((bundled / "kernels" / name / "kernel-metadata.json").read_text())
    if not meta["kernel_sources"]:
        pytest.skip("it loads no other notebook's run")
    done = act(session("owner"), tmp_path / "working", kernel(bundled, name))
    said = stopped_early(tmp_path / "working")
    assert done.returncode != 0
    for part in ("no record of notebook", "Add Input", "Attached: ", "/datasets/me/labhelpers"):
        assert part in said
    printed = code_cells(tmp_path / "working" / "__notebook__.ipynb")[1].outputs[0]["text"]
    for source in meta["kernel_sources"]:
        assert f"Not attached: notebooks/{source}" in printed


LEAVE = """
from labhelpers.corpora.find import find_corpus
from labhelpers.records import load_run, out_folder, save_run

corpus = find_corpus()
out = out_folder(corpus)
"""


@pytest.mark.parametrize("mount", ["notebooks/me/labhelpers-one", "labhelpers-one"])
def test_what_a_kernel_leaves_another_finds(session, tmp_path, mount):
    """Kaggle mounts a kernel's output in either of two places."""

    def write(name, code):
        cells = [nbformat.v4.new_code_cell(text) for text in (kaggle.SETUP, LEAVE + code)]
        python = {"display_name": "Python 3", "language": "python", "name": "python3"}
        book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": python})
        nbformat.write(book, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    attached = session("owner")
    one = write("one", 'save_run("one", corpus, out, facts={"found": 42})')
    done = act(attached, tmp_path / "first", one)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(tmp_path / "first" / "reports", attached / mount / "reports")
    two = write("two", 'print(load_run("one", corpus, out).facts)')
    done = act(attached, tmp_path / "second", two)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'found': 42" in (tmp_path / "second" / "__notebook__.ipynb").read_text()


@pytest.mark.parametrize("layout, number", [("2020", "00"), ("2022", "01"), ("owner", "00")])
def test_a_notebook_runs_on_kaggle(session, bundled, tmp_path, layout, number):
    (path,) = (bundled / "kernels").glob(f"{number}_*/*.ipynb")
    done = act(session(layout), tmp_path / "working", path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ran_through(tmp_path / "working")
    assert list((tmp_path / "working").glob(f"reports/*/records/{number}_*.json"))


@slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_music_under_each_mount(bundled, tmp_path, layout):
    tool = real_music().parent / "tools" / "kaggle_mount.py"
    attached = tmp_path / "input"
    if not tool.is_file():
        pytest.skip(f"no {tool}, which lays real music out as Kaggle does")
    command = [sys.executable, tool, attached, "--layout", layout]
    subprocess.run(command, check=True, capture_output=True)
    package = attached / LAYOUTS[layout][1]
    between = [parent for parent in package.parents if parent.is_relative_to(attached)]
    for folder in (attached, *between):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    attach_package(bundled, package)
    done = act(attached, tmp_path / "working", kernel(bundled, "04_data_set"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert ran_through(tmp_path / "working")
    shutil.rmtree(attached)  # 1.7 GB


@slow
def test_the_series_runs_on_kaggle_kernel_by_kernel(session, bundled, tmp_path):
    """Each kernel sees the outputs that its metadata attaches, at either mount in turn."""
    attached = session("owner")
    for number, name in enumerate(NAMES):
        meta = json.loads((bundled / "kernels" / name / "kernel-metadata.json").read_text())
        shutil.rmtree(attached / "notebooks", ignore_errors=True)
        for output in attached.glob("labhelpers-*"):
            shutil.rmtree(output)
        for source in meta["kernel_sources"]:
            slug = source.split("/")[1]
            place = attached / (slug if number % 2 else f"notebooks/{source}")
            shutil.copytree(tmp_path / slug / "reports", place / "reports")
        working = tmp_path / meta["id"].split("/")[1]
        done = act(attached, working, kernel(bundled, name))
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        assert ran_through(working)


@slow
def test_the_report_runs_on_kaggle_in_one_kernel(session, bundled, tmp_path):
    done = act(session("2022"), tmp_path / "working", kernel(bundled, "report"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no pages and PDF" in (tmp_path / "working" / "__notebook__.ipynb").read_text()
    (out,) = (tmp_path / "working" / "reports").iterdir()
    assert (out / "index.html").is_file() and not (out / "report.pdf").exists()
    with zipfile.ZipFile(out / "deliverable.zip") as deliverable:
        held = {Path(name).stem for name in deliverable.namelist() if name.endswith(".ipynb")}
    assert held == set(NAMES)


@slow
def test_with_the_wheels_the_report_kernel_makes_pages_and_pdf(session, tmp_path):
    """Of the first notebook alone: the test above runs them all."""
    own = kaggle.bundle(tmp_path / "bundle", "me", with_pages=True)  # pip fetches 70 MB
    book = kernel(own, "report")
    text = book.read_text(encoding="utf-8")
    call = 'run_series(notebooks=\\"notebooks\\"'
    assert text.count(call) == 1
    book.write_text(text.replace(call, f'{call}, only=\\"00\\"'), encoding="utf-8")
    done = act(session("owner", own), tmp_path / "working", book)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ran_through(tmp_path / "working")
    (out,) = (tmp_path / "working" / "reports").iterdir()
    assert (out / "report.pdf").is_file() and list(out.glob("html/*.html"))
