"""The bundle for Kaggle: the package as a data set, each notebook a kernel, push.sh to upload."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from ..corpora.find import LAB_DATA
from ..files import write_text
from ..records import RunError

PACKAGE = Path(__file__).parents[1]
SCRIPT = Path(__file__).parent / "templates" / "push.sh"
WHEELS = ("pypandoc_binary", "typst")  # what makes pages and PDF, and Kaggle's image lacks
DOWNLOAD = [
    *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"),
    *("--platform", "manylinux2014_x86_64", "--python-version", "3.12"),  # Kaggle's
]

# The second cell of every notebook, word for word (a test compares them).
SETUP = """\
import sys  # set-up: labhelpers lies beside this folder or, on Kaggle, in an attached data set
from importlib.util import find_spec
from pathlib import Path

inputs = [p for n in (1, 2, 3, 4) for p in sorted(Path("/kaggle/input").glob("*/" * n))]
sys.path[:0] = [str(p) for p in (Path.cwd().parent, *inputs) if any(p.glob("labhelpers/*.py"))]
assert find_spec("labhelpers"), f"Add Input > Your Work > labhelpers (README). So far: {inputs}"
"""

# What a pushed kernel says first. By itself: the package that it meets may be any.
CHECK = """\
# Written by `labhelpers kaggle bundle`: is what this notebook was pushed with attached here?
import labhelpers

package = Path(labhelpers.__file__).parents[1]
print("Package:", [path.stem for path in package.glob("bundle-*.txt")], "in", package)
for source in {sources}:
    if not any(Path("/kaggle/input", place).is_dir() for place in (source, Path(source).name)):
        print(f"Not attached: {{source}}; the push dropped it, or it lies under another name.")
if not (package / "{bundle}.txt").is_file():
    raise RuntimeError(
        "That is not the package that this notebook was pushed with, {bundle}. Run push.sh "
        "again; or here: Input > labhelpers > ... > Check for updates, then Run All."
    )
print("It is the one that was pushed.")
"""

REPORT = """\
import logging
import shutil

from labhelpers.series.run import run_series

logging.getLogger("labhelpers").setLevel(logging.INFO)
logging.getLogger("labhelpers").addHandler(logging.StreamHandler(sys.stdout))
# The notebooks run in their folder, and the inputs are read-only.
shutil.copytree(package / "notebooks", "notebooks", dirs_exist_ok=True)
run_series(notebooks="notebooks")
"""

INSTALL = """\
# Pages and PDF: two packages that Kaggle lacks, from the data set, without a network.
import subprocess
import tempfile

site = tempfile.mkdtemp()
pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", site]
subprocess.run([*pip, *sorted(package.glob("*.whl"))], check=True)
sys.path.append(site)
"""


def bundle(
    out: Path, user: str, data: str | None = None, with_pages: bool = False, notebooks=None
) -> Path:
    """Write what Kaggle's client uploads, and push.sh, which has it do so; returns the folder.

    out : new or empty, or an earlier bundle; user : a Kaggle user name
    data : "owner/slug" of the data set with the lab's data (default: LAB_DATA), or
        "competitions/slug"; with_pages : put in the two wheels that make pages and PDF there
    In it: dataset/, kernels/<notebook>/ and kernels/report/ (the whole series). Raises RunError.
    """
    out, data = Path(out), data or LAB_DATA
    sources = sorted(Path(notebooks or PACKAGE.parent / "notebooks").glob("[0-9]*_*.ipynb"))
    for value, form in ((user, r"[\w-]+"), (data, r"[\w-]+/[\w-]+")):
        if not re.fullmatch(form, value):
            raise RunError(f"{value!r} is no name of Kaggle's; give --user NAME, --data OWNER/SLUG")
    if not sources:
        raise RunError(f"{PACKAGE.parent / 'notebooks'}: no notebooks; run from a checkout")
    if out.exists() and any(out.iterdir()) and not (out / "push.sh").is_file():
        raise RunError(f"{out} holds other files; name a new folder")
    shutil.rmtree(out / "dataset", ignore_errors=True)
    shutil.rmtree(out / "kernels", ignore_errors=True)
    books = {path.stem: _without_outputs(path) for path in sources}
    mark = _write_dataset(out / "dataset", user, books, with_pages)
    for name, book in books.items():
        upstream = [other for other in books if other != name and _reads(book, other)]
        _write_kernel(out / "kernels" / name, user, book, mark, data, upstream)
    cells = [SETUP, *[INSTALL] * with_pages, REPORT]
    report = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    _write_kernel(out / "kernels" / "report", user, report, mark, data, [])
    script = SCRIPT.read_text(encoding="utf-8").replace("OWNER", user).replace("MARK", mark)
    write_text(out / "push.sh", script)
    return out


def _write_dataset(folder: Path, user: str, books: dict, with_pages: bool) -> str:
    """The data set, with a file whose name changes with what is in it; returns that name."""
    shutil.copytree(PACKAGE, folder / "labhelpers", ignore=shutil.ignore_patterns("__pycache__"))
    for name, book in books.items():
        write_text(folder / "notebooks" / f"{name}.ipynb", nbformat.writes(book))
    if with_pages and subprocess.run([*DOWNLOAD, "-d", folder, *WHEELS]).returncode:
        raise RunError(f"pip could not fetch {' and '.join(WHEELS)}; its words are above")
    meta = {"title": "labhelpers", "id": f"{user}/labhelpers", "licenses": [{"name": "other"}]}
    write_text(folder / "dataset-metadata.json", json.dumps(meta, indent=1))
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    mark = f"bundle-{digest.hexdigest()[:12]}"
    return write_text(folder / f"{mark}.txt", f"{mark}\n").stem  # Kaggle takes no empty file


def _write_kernel(folder: Path, user: str, book, mark: str, data: str, upstream: list[str]):
    """The notebook with CHECK in it, naming the kernel that runs it, and its metadata."""
    kind, _, source = data.partition("/")
    contests = [source] if kind == "competitions" else []
    datasets = [f"{user}/labhelpers", *([] if contests else [data])]
    kernels = [f"{user}/{_slug(name)}" for name in upstream]
    attached = [f"competitions/{slug}" for slug in contests]
    attached += [f"datasets/{ref}" for ref in datasets] + [f"notebooks/{ref}" for ref in kernels]
    place = [cell.cell_type for cell in book.cells].index("code") + 1  # after the set-up
    check = CHECK.format(sources=attached, bundle=mark)
    cells = [*book.cells[:place], nbformat.v4.new_code_cell(check), *book.cells[place:]]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    pushed = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": python})
    write_text(folder / f"{folder.name}.ipynb", nbformat.writes(pushed))
    meta = {
        "id": f"{user}/{_slug(folder.name)}",
        "title": _slug(folder.name).replace("-", " "),
        "code_file": f"{folder.name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_internet": False,
        "enable_gpu": True,
        "machine_shape": "NvidiaTeslaT4",  # two of them
        "dataset_sources": datasets,
        "competition_sources": contests,
        "kernel_sources": kernels,
    }
    write_text(folder / "kernel-metadata.json", json.dumps(meta, indent=1))


def _slug(name: str) -> str:
    return f"labhelpers-{name.replace('_', '-')}"  # as Kaggle makes it of the title


def _reads(book, other: str) -> bool:
    """Whether a notebook's code names the other one, as `load_run` does."""
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    return re.search(f"[\"']{other}[\"']", "\n".join(code)) is not None


def _without_outputs(path: Path):
    book = nbformat.read(path, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return book
