"""Kaggle: the submission and its checks, the bundle as the real client sees it, notebooks as in a session there."""

import functools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from helpers_corpus import make_corpus, real_music

from labhelpers.corpora.layout import CorpusError
from labhelpers.records import RunError
from labhelpers.series import kaggle

CHECKOUT = Path(__file__).resolve().parents[1]
SANDBOX = CHECKOUT / "tools" / "kaggle_sandbox.py"
NAMESPACES = ["unshare", "-r", "-m", "-n"]
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("[0-9]*_*.ipynb"))
LAYOUTS = {
    "2020": ("data/data", "labhelpers"),
    "2022": ("patreco3-multitask-affective-music/data", "labhelpers"),
    "owner": ("datasets/someone/patreco3-multitask-affective-music/data", "datasets/me/labhelpers"),
}


# --- submission -----------------------------------------------------------------------------------------------------


@pytest.fixture
def test_folder(corpus):
    return corpus.folder("affect") / "test"


@pytest.fixture
def ids(corpus):
    return list(corpus.labels("affect", "test")["id"])


@pytest.mark.parametrize(
    "header, first, name", [("full", "Id.fused.full.npy.gz", "27.fused.full.npy.gz"), ("id", "Id", "27")]
)
def test_submission_has_the_contests_form(tmp_path, test_folder, ids, header, first, name):
    values = np.linspace(0, 1, 18).reshape(6, 3).round(3)
    path = kaggle.write_submission(tmp_path / "solution.txt", ids, values, test_folder, header=header)
    lines = path.read_text().split("\n")
    assert lines[0] == f"{first},valence,energy,danceability" and lines[1] == f"{name},0.000,0.059,0.118"
    assert len(lines) == 8 and lines[-1] == ""
    assert os.listdir(tmp_path / "tiny") and list(tmp_path.glob("*.partial")) == []


def test_submission_keeps_different_values_different(tmp_path, test_folder, ids):
    values = np.full((6, 3), 0.5) + np.arange(6)[:, None] * 1e-6
    text = kaggle.write_submission(tmp_path / "s.txt", ids, values, test_folder).read_text()
    assert "0.500005" in text and len({line.split(",")[1] for line in text.splitlines()[1:]}) == 6


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda ids, values: (ids[1:], values[1:]), "not predicted"),
        (lambda ids, values: ([*ids[:-1], ids[0]], values), "predicted twice"),
        (lambda ids, values: ([*ids[:-1], "999"], values), "not predicted|999"),
        (lambda ids, values: (ids, np.where(np.arange(6)[:, None] == 2, np.nan, values)), "clip 29: valence is nan"),
        (lambda ids, values: (ids, values + 0.9), "energy is 1.4|from 0 to 1"),
        (lambda ids, values: (ids, values[:, :2]), "shape"),
    ],
)
def test_a_wrong_submission_is_a_sentence_and_no_file(tmp_path, test_folder, ids, spoil, said):
    ids, values = spoil(ids, np.full((6, 3), 0.5))
    with pytest.raises(CorpusError, match=said):
        kaggle.write_submission(tmp_path / "solution.txt", ids, values, test_folder)
    assert not list(tmp_path.glob("solution*"))


# --- bundle ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bundled(tmp_path_factory):
    if not NOTEBOOKS:
        pytest.skip("no notebooks yet")
    return kaggle.bundle(tmp_path_factory.mktemp("bundle") / "bundle", "me")


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Kaggle's own client, up to the point where it would send; `.sent` keeps what it would have sent."""
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "0" * 32)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    client_module = pytest.importorskip("kaggle.api.kaggle_api_extended", reason="Kaggle's client is not installed")

    class Offline(client_module.KaggleApi):
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
            raise client_module.HTTPError("no such data set")

        def _upload_file(self, name, path, *_):
            self.sent.append(name)
            return client_module.UploadFile()

    api = Offline()
    api.config_values = {"username": "me", "key": "0" * 32}
    api.sent = []
    return api


def test_the_client_takes_every_kernel(bundled, client, capsys):
    for folder in sorted((bundled / "kernels").iterdir()):
        client.kernels_push(str(folder))
        # Kaggle's torch has no code for its other GPU. An older client does not send this.
        assert json.loads((folder / "kernel-metadata.json").read_text())["machine_shape"] == "NvidiaTeslaT4"
    assert capsys.readouterr().out == ""  # it prints when title and slug disagree
    pushed = {request.slug: request for request in client.sent}
    assert len(pushed) == len(NOTEBOOKS) + 1
    for request in pushed.values():
        assert request.enable_gpu and not request.enable_internet and request.is_private
        assert request.dataset_data_sources == ["me/labhelpers", kaggle.LAB_DATA]
        assert set(request.kernel_data_sources) <= set(pushed)
    for path in NOTEBOOKS:
        sources = pushed[f"me/labhelpers-{path.stem.replace('_', '-')}"].kernel_data_sources
        assert ("me/labhelpers-05-lstm" in sources) == (path.stem.startswith("06")) or path.stem > "06"


def test_the_client_takes_the_dataset(bundled, client):
    client.dataset_create_new(str(bundled / "dataset"), dir_mode="zip", quiet=True)
    *files, request = client.sent
    assert sorted(files) == ["labhelpers.zip", "notebooks.zip"]
    assert (request.owner_slug, request.slug, request.is_private) == ("me", "labhelpers", True)


def test_a_bundle_is_written_again_but_never_over_other_files(bundled, tmp_path):
    assert kaggle.bundle(bundled, "me", "competitions/some-contest") == bundled
    meta = json.loads((bundled / "kernels" / "report" / "kernel-metadata.json").read_text())
    assert meta["competition_sources"] == ["some-contest"] and meta["dataset_sources"] == ["me/labhelpers"]
    kaggle.bundle(bundled, "me")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RunError, match="other files"):
        kaggle.bundle(tmp_path, "me")
    with pytest.raises(RunError, match="--user"):
        kaggle.bundle(tmp_path / "new", "not a name")


# --- a session ------------------------------------------------------------------------------------------------------


slow = pytest.mark.skipif(not os.environ.get("RUN_SLOW"), reason="set RUN_SLOW=1 to act more on Kaggle (minutes)")


@functools.cache
def namespaces():
    """Whether Kaggle can be acted in a root and network of its own. KAGGLE_WITHOUT_NAMESPACES=1 tries the other way."""
    if os.environ.get("KAGGLE_WITHOUT_NAMESPACES") or not shutil.which("unshare"):
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0


def act(attached, working, notebook):
    """Run one notebook as Kaggle would; returns the finished process. The inputs must stay as they are."""
    working.mkdir()
    command = [*NAMESPACES, sys.executable, SANDBOX] if namespaces() else [sys.executable, SANDBOX, "--plain"]
    before = state_of(attached)
    done = subprocess.run([*map(str, command), attached, working, notebook], capture_output=True, text=True)
    assert state_of(attached) == before
    return done


def state_of(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    """The sample, or where there is none a corpus of noise in its place."""
    sample = CHECKOUT / "data" / "sample"
    if sample.is_dir():
        return sample
    genres = ("Rock", "Folk", "Metal", "Pop", "Jazz")
    return make_corpus(tmp_path_factory.mktemp("noise") / "noise", genres=genres, train=6, frames=(420, 432)).root


@pytest.fixture(scope="session")
def session(bundled, corpus_folder, tmp_path_factory):
    """A function that builds the input tree of a layout."""

    def build(layout):
        attached = tmp_path_factory.mktemp("session") / "input"
        data, package = LAYOUTS[layout]
        # What Kaggle has: arrays and labels, no audio and no answers.
        own = shutil.ignore_patterns("audio*", "kept_aside", "sample.json")
        shutil.copytree(corpus_folder, attached / data, ignore=own)
        shutil.copytree(bundled / "dataset", attached / package, ignore=shutil.ignore_patterns("*.json"))
        tell(attached / package / "notebooks", attached)
        return attached

    return build


def tell(notebooks, attached):
    """Without namespaces, what the notebooks look for below /kaggle/input is below `attached`."""
    if not namespaces():
        for path in notebooks.iterdir():
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("/kaggle/input", str(attached)), encoding="utf-8")


def ran_through(path):
    """The executed notebook at `path` has no error and every code cell ran."""
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" and cell.source]
    assert all(cell.execution_count for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    return True


@pytest.mark.parametrize("layout, number", [("2020", "00"), ("2022", "01"), ("owner", "00")])
def test_a_notebook_runs_on_kaggle(session, bundled, tmp_path, layout, number):
    found = sorted((bundled / "kernels").glob(f"{number}_*/*.ipynb"))
    if not found:
        pytest.skip(f"notebook {number} is not there yet")
    done = act(session(layout), tmp_path / "working", found[0])
    assert done.returncode == 0, done.stderr[-3000:]
    assert ran_through(tmp_path / "working" / "__notebook__.ipynb")
    assert list((tmp_path / "working").glob(f"reports/*/records/{number}_*.json"))


def test_without_the_package_a_notebook_says_what_to_do(session, bundled, tmp_path):
    (tmp_path / "input").mkdir()
    done = act(tmp_path / "input", tmp_path / "working", next((bundled / "kernels").glob("0*/*.ipynb")))
    assert done.returncode != 0 and "Add Input" in done.stderr and "kaggle bundle" in done.stderr


@slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_music_under_each_mount(bundled, tmp_path, layout):
    tool, attached = real_music().parent / "tools" / "kaggle_mount.py", tmp_path / "input"
    if not tool.is_file():
        pytest.skip(f"no {tool}, which lays real music out as Kaggle does")
    subprocess.run([sys.executable, tool, attached, "--layout", layout], check=True, capture_output=True)
    package = attached / LAYOUTS[layout][1]
    for folder in (attached, *[parent for parent in package.parents if parent.is_relative_to(attached)]):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    shutil.copytree(bundled / "dataset", package)
    tell(package / "notebooks", attached)
    done = act(attached, tmp_path / "working", next((bundled / "kernels").glob("04_*/*.ipynb")))
    assert done.returncode == 0, done.stderr[-3000:]
    assert ran_through(tmp_path / "working" / "__notebook__.ipynb")
    shutil.rmtree(attached)  # 1.7 GB


@slow
def test_the_series_runs_on_kaggle_kernel_by_kernel(session, bundled, tmp_path):
    """Each kernel sees the outputs of those that its metadata attaches, and no others."""
    attached = session("owner")
    for folder in sorted((bundled / "kernels").glob("[0-9]*")):
        meta = json.loads((folder / "kernel-metadata.json").read_text())
        for output in attached.glob("labhelpers-*"):
            shutil.rmtree(output)
        for source in meta["kernel_sources"]:
            shutil.copytree(tmp_path / source.split("/")[1] / "reports", attached / source.split("/")[1] / "reports")
        working = tmp_path / meta["id"].split("/")[1]
        done = act(attached, working, folder / meta["code_file"])
        assert done.returncode == 0, f"{folder.name}: {done.stderr[-3000:]}"
        assert ran_through(working / "__notebook__.ipynb")


@slow
def test_the_report_runs_on_kaggle_in_one_kernel(session, bundled, tmp_path):
    done = act(session("2022"), tmp_path / "working", bundled / "kernels" / "report" / "report.ipynb")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no pages and PDF" in (tmp_path / "working" / "__notebook__.ipynb").read_text()  # Kaggle cannot set them
    (out,) = (tmp_path / "working" / "reports").iterdir()
    assert (out / "index.html").is_file() and not (out / "report.pdf").exists()
    with zipfile.ZipFile(out / "deliverable.zip") as deliverable:
        held = {Path(name).stem for name in deliverable.namelist() if name.endswith(".ipynb")}
    assert held == {path.stem for path in NOTEBOOKS}
