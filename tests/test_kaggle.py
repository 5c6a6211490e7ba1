"""The bundle for Kaggle, and a session there: package, data and records under any mount."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_corpus

from scripts import kaggle
from scripts.report import read_series

ROOT = Path(__file__).resolve().parents[1]
SERIES = read_series(ROOT / "notebooks")
LAYOUTS = {  # where Kaggle mounts the data, and where the package: a bundle, or the ZIP as it is
    "of the assignment": ("data/data", "labhelpers"),
    "by slug": ("patreco3-multitask-affective-music/data", "my-zip/labhelpers-main"),
    "by owner": (f"datasets/{kaggle.LAB_DATA}/data", "datasets/me/labhelpers"),
    "a contest": ("competitions/multitask-music/data", "datasets/me/labhelpers/labhelpers-main"),
}


def setup_of(book):
    """The lines of a notebook that find the package."""
    first = book.code[0]
    return first[: first.index("\n", first.index("sys.path"))]


def run(command, working, attached):
    """Run a command as a session does: in /kaggle/working, without settings of this project."""
    own = {"LABHELPERS_KAGGLE_INPUT": str(attached), "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if "LABHELPERS" not in name}
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=working, env=kept | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("kaggle") / "bundle"
    kaggle.main(["bundle", str(out), "--user", "me"])
    return out


def test_the_bundle_holds_every_reference_that_a_notebook_names(bundle):
    code = "".join(source for book in SERIES.values() for source in book.code)
    for name in {"emotify", *re.findall(r'reference\(name="(\w+)"', code)}:
        assert (bundle / "dataset" / "reports" / "reference" / f"{name}.json").is_file()


def test_all_notebooks_find_the_package_in_the_same_way():
    assert len({ast.dump(ast.parse(setup_of(book))) for book in SERIES.values()}) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_package_data_and_records_are_found_under_any_mount(layout, bundle, tmp_path):
    data, package = (tmp_path / "input" / place for place in LAYOUTS[layout])
    make_corpus(data)
    shutil.copytree(bundle / "dataset" / "labhelpers", package / "labhelpers")
    (tmp_path / "working").mkdir()
    lines = [
        next(map(setup_of, SERIES.values())).replace("/kaggle/input", str(tmp_path / "input")),
        "import labhelpers",
        "from labhelpers import corpus, records",
        "found = corpus.find_corpus()",
        "out = records.out_folder(found)",
        "path = records.save_run('05_lstm', found, out, results={'n': 1})",
        f"attached = corpus.kaggle_input() / 'notebooks/me/{kaggle.kernel_slug('05_lstm')}'",
        "(attached / 'records').mkdir(parents=True)",
        "path.rename(attached / 'records' / path.name)",
        "run = records.load_run('05_lstm', found, out)",
        "print(labhelpers.__file__, found.root, out, run.results, sep='|')",
    ]
    said = run(["-c", "\n".join(lines)], tmp_path / "working", tmp_path / "input")
    where, root, out, results = said.splitlines()[-1].split("|")
    assert Path(where).resolve().parents[1] == package.resolve() and Path(root) == data
    assert Path(out).is_relative_to(tmp_path / "working") and results == "{'n': 1}"


def test_a_notebook_runs_in_a_session(bundle, tmp_path):
    """As Kaggle commits it: papermill, no parameters, the kernel that the notebook names."""
    attached, working = tmp_path / "input", tmp_path / "working"
    make_corpus(attached / "datasets" / kaggle.LAB_DATA / "data", train=12, test=4)
    shutil.copytree(bundle / "dataset", attached / "datasets" / "me" / "labhelpers")
    working.mkdir()
    source = bundle / "kernels" / "00_kaggle_kernels" / "00_kaggle_kernels.ipynb"
    text = source.read_text(encoding="utf-8").replace("/kaggle/input", str(attached))
    (working / "own.ipynb").write_text(text, encoding="utf-8")
    run(["-m", "papermill", "own.ipynb", "ran.ipynb"], working, attached)
    (record,) = working.glob("reports/*/records/00_kaggle_kernels.json")
    assert json.loads(record.read_text(encoding="utf-8"))["results"]


def test_each_kernel_says_what_it_needs(bundle):
    for name in [*SERIES, "series"]:
        folder = bundle / "kernels" / name
        meta = json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))
        assert meta["dataset_sources"] == ["me/labhelpers", kaggle.LAB_DATA]
        assert meta["enable_gpu"] and not meta["enable_internet"] and meta["is_private"]
        slug = meta["id"].removeprefix("me/")
        assert meta["title"].replace(" ", "-") == slug and len(slug) >= 5
        needs = SERIES[name].needs if name in SERIES else ()
        assert meta["kernel_sources"] == [f"me/{kaggle.kernel_slug(need)}" for need in needs]
        book = json.loads((folder / meta["code_file"]).read_text(encoding="utf-8"))
        assert book["nbformat"] == 4 and book["metadata"]["kernelspec"]["name"] == "python3"
        assert not any(cell.get("outputs") for cell in book["cells"])
        assert (folder / meta["code_file"]).stat().st_size < 1_000_000


def test_a_contest_is_attached_as_one(tmp_path):
    kaggle.bundle(tmp_path / "b", "me", "competitions/some-contest")
    path = tmp_path / "b" / "kernels" / "05_lstm" / "kernel-metadata.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    assert meta["competition_sources"] == ["some-contest"]
    assert meta["dataset_sources"] == ["me/labhelpers"]


@pytest.mark.parametrize("user, data", [("me;x", "a/b"), ("", "a/b"), ("a/b", "a/b"), ("me", "x")])
def test_a_wrong_name_is_refused_before_anything_is_written(user, data, tmp_path):
    with pytest.raises(SystemExit, match="--user .* --data"):
        kaggle.main(["bundle", str(tmp_path / "b"), "--user", user, "--data", data])
    assert not (tmp_path / "b").exists()


def test_a_folder_with_files_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match=str(tmp_path)):
        kaggle.main(["bundle", str(tmp_path), "--user", "me"])
    assert os.listdir(tmp_path) == ["thesis.txt"]
