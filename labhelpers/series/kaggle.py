"""Kaggle: the submission file of step 10, and the bundle that brings the series there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat

from ..files import write_text
from ..records import RunError

PACKAGE = Path(__file__).parents[1]
LAB_DATA = "geoparslp/patreco3-multitask-affective-music"  # the lab's data set on Kaggle
REPORT = "labhelpers-report"


# --- bundle ---------------------------------------------------------------------------------------------------------


def bundle(out: Path, user: str, data: str | None = None, notebooks: Path | None = None) -> Path:
    """Write what `kaggle datasets create` and `kaggle kernels push` take as it is; returns the folder.

    out : new or empty, or an earlier bundle; user : a Kaggle user name; data : "owner/slug" of the data set with the
        lab's data, or "competitions/slug" (default: LAB_DATA); notebooks : their folder
    In it: dataset/ (the package and the notebooks), kernels/<notebook>/, kernels/report/ (the whole series in one
    kernel) and push.sh, the commands in order. Raises RunError.
    """
    out, data = Path(out), data or LAB_DATA
    sources = sorted(Path(notebooks or PACKAGE.parent / "notebooks").glob("[0-9]*_*.ipynb"))
    for value, form in ((user, r"[\w-]+"), (data, r"[\w-]+/[\w-]+")):
        if not re.fullmatch(form, value):
            raise RunError(f"{value!r} does not read like a name of Kaggle; give --user NAME and --data OWNER/SLUG")
    if not sources:
        raise RunError(f"{PACKAGE.parent / 'notebooks'}: no notebooks to bundle; run from a checkout")
    if out.exists() and any(out.iterdir()) and not (out / "push.sh").is_file():
        raise RunError(f"{out} holds other files; name a new folder")
    for part in ("dataset", "kernels"):
        shutil.rmtree(out / part, ignore_errors=True)
    _write_dataset(out / "dataset", user, sources)
    books = {path.stem: _without_outputs(path) for path in sources}
    for name, book in books.items():
        upstream = [_slug(other) for other in books if other != name and _reads(book, other)]
        _write_kernel(out / "kernels" / name, name, _slug(name), book, user, data, upstream)
    _write_kernel(out / "kernels" / "report", "report", REPORT, _report_notebook(books), user, data, [])
    write_text(out / "push.sh", _commands(books, user))
    return out


def _write_dataset(folder: Path, user: str, sources: list[Path]) -> None:
    shutil.copytree(PACKAGE, folder / "labhelpers", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    for path in sources:
        nbformat.write(_without_outputs(path), folder / "notebooks" / path.name)
    meta = {"title": "labhelpers", "id": f"{user}/labhelpers", "licenses": [{"name": "other"}]}
    write_text(folder / "dataset-metadata.json", json.dumps(meta, indent=1))


def _write_kernel(folder: Path, name: str, slug: str, book, user: str, data: str, upstream: list[str]) -> None:
    owner, source = data.split("/")
    contest = owner == "competitions"
    meta = {
        "id": f"{user}/{slug}", "title": slug.replace("-", " "), "code_file": f"{name}.ipynb",
        "language": "python", "kernel_type": "notebook", "is_private": True,
        # Without a shape a kernel gets a P100, for which Kaggle's torch has no code (Kaggle/kaggle-cli issue 1151).
        "enable_gpu": True, "machine_shape": "NvidiaTeslaT4", "enable_internet": False,
        "dataset_sources": [f"{user}/labhelpers", *([] if contest else [data])],
        "competition_sources": [source] if contest else [],
        "kernel_sources": [f"{user}/{other}" for other in upstream],
    }  # fmt: skip
    folder.mkdir(parents=True)
    nbformat.write(book, folder / meta["code_file"])
    write_text(folder / "kernel-metadata.json", json.dumps(meta, indent=1))


def _slug(name: str) -> str:
    # Kaggle makes the slug of the title: the two have to agree.
    return f"labhelpers-{name.replace('_', '-')}"


def _reads(book, other: str) -> bool:
    """Whether a notebook's code names the other one, as `load_run` does."""
    return any(re.search(f"[\"']{other}[\"']", cell.source) for cell in book.cells if cell.cell_type == "code")


def _without_outputs(path: Path):
    book = nbformat.read(path, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return book


def _report_notebook(books: dict):
    """A notebook that runs the whole series in the kernel's working folder."""
    bootstrap = next(cell for book in books.values() for cell in book.cells if "find_spec" in cell.source)
    run = """import shutil

import labhelpers
from labhelpers.corpora.find import find_corpus
from labhelpers.records import out_folder
from labhelpers.series.run import run_series

# The notebooks lie beside the package. They run in their folder, and the inputs are read-only.
shutil.copytree(Path(labhelpers.__file__).parents[1] / "notebooks", "notebooks", dirs_exist_ok=True)
corpus = find_corpus()
run_series(corpus.root, out_folder(corpus), notebooks="notebooks")"""
    title = "# The whole report\n\nEvery notebook of the series in one run; the report lies in the output folder."
    cells = [nbformat.v4.new_markdown_cell(title), nbformat.v4.new_code_cell(bootstrap.source)]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(run)], metadata=metadata)


def _commands(books: dict, user: str) -> str:
    """A shell script with the uploads in order; a kernel finds the records of those before it once they have run."""
    lines = [
        "#!/bin/sh -e", 'cd "$(dirname "$0")"',
        "# A second time: kaggle datasets version -p dataset --dir-mode zip -m new",
        "kaggle datasets create -p dataset --dir-mode zip",
        "for _ in $(seq 60); do",
        f"  kaggle datasets status {user}/labhelpers | grep -q ready && break || sleep 10",
        "done",
        "# Either the whole report in one kernel (a push also runs it):",
        "kaggle kernels push -p kernels/report",
        "# or one by one, each when those before it are complete (kaggle kernels status):",
    ]  # fmt: skip
    return "\n".join([*lines, *(f"# kaggle kernels push -p kernels/{name}" for name in books), ""])
