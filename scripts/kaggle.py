"""The bundle for Kaggle: the package as a data set, and each notebook as a kernel.

    python -m scripts.kaggle bundle DIR --user NAME

DIR/dataset goes to Kaggle as the data set NAME/labhelpers; DIR/kernels holds a folder for each
notebook, and `series`, which runs them all. docs/kaggle.md has the steps, also those by mouse.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat

from .report import PROJECT, ReportError, read_series

LAB_DATA = "geoparslp/patreco3-multitask-affective-music"
REFERENCE = "reports/reference"  # results that the notebooks show beside their own
PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}
SERIES = "from scripts import report\n\nassert report.report(report.parse([])) == 0"


def bundle(out: Path, user: str, data: str = LAB_DATA) -> int:
    """Write the bundle into a new folder; returns the number of kernels.

    user : a Kaggle user name; data : OWNER/SLUG of the data set with the lab's data, or
        competitions/SLUG
    Raises ReportError for a name that is none, and for a folder that is not empty.
    """
    if not re.fullmatch("[a-zA-Z0-9_-]+ [a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+", f"{user} {data}"):
        raise ReportError("--user is a Kaggle user name, --data OWNER/SLUG or competitions/SLUG")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReportError(f"{out} is there already; remove it, or name a new folder")
    series = read_series(PROJECT / "notebooks")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("labhelpers", "scripts"):
        shutil.copytree(PROJECT / folder, out / "dataset" / folder, ignore=ignored)
    (out / "dataset" / REFERENCE).mkdir(parents=True)
    for corpus in ("emotify", "sample"):
        shutil.copy(PROJECT / REFERENCE / f"{corpus}.json", out / "dataset" / REFERENCE)
    shutil.copy(PROJECT / "LICENSE", out / "dataset")
    meta = {"title": "labhelpers", "id": f"{user}/labhelpers", "licenses": [{"name": "other"}]}
    write_json(out / "dataset" / "dataset-metadata.json", meta)
    for name, book in series.items():
        cells = [without_outputs(cell) for cell in book.cells]
        write_notebook(out / "dataset" / "notebooks" / f"{name}.ipynb", cells)
        write_kernel(out / "kernels" / name, user, data, cells, book.needs)
    first = next(iter(series.values())).code[0]
    setup = first[: first.index("\n", first.index("sys.path"))]  # finds the package
    cells = [nbformat.v4.new_code_cell(source) for source in (setup, SERIES)]
    write_kernel(out / "kernels" / "series", user, data, cells, [])
    return len(series) + 1


def without_outputs(cell: dict) -> dict:
    if cell["cell_type"] != "code":
        return cell
    return {**cell, "outputs": [], "execution_count": None}


def write_notebook(path: Path, cells: list[dict]) -> None:
    """A notebook that names the kernel that runs it: Kaggle cannot run another."""
    write_json(path, nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": PYTHON}))


def write_kernel(folder: Path, user: str, data: str, cells: list[dict], needs) -> None:
    """A notebook and what Kaggle's client has to know: a GPU, no internet, the inputs."""
    owner, _, slug = data.partition("/")
    contest = owner == "competitions"
    write_notebook(folder / f"{folder.name}.ipynb", cells)
    meta = {
        "id": f"{user}/{kernel_slug(folder.name)}",
        "title": kernel_slug(folder.name).replace("-", " "),
        "code_file": f"{folder.name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_internet": False,
        "enable_gpu": True,
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": [f"{user}/labhelpers"] + [data] * (not contest),
        "competition_sources": [slug] * contest,
        "kernel_sources": [f"{user}/{kernel_slug(name)}" for name in needs],
    }
    write_json(folder / "kernel-metadata.json", meta)


def kernel_slug(name: str) -> str:
    """As Kaggle makes it of the title: 05_lstm -> labhelpers-05-lstm."""
    return f"labhelpers-{name.replace('_', '-')}"


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.kaggle")
    parser.add_argument("command", choices=["bundle"])
    parser.add_argument("out", type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--user", required=True, metavar="NAME", help="your Kaggle user name")
    parser.add_argument("--data", default=LAB_DATA, metavar="OWNER/SLUG", help="default: the lab's")
    options = parser.parse_args(argv)
    try:
        kernels = bundle(options.out, options.user, options.data)
    except (ReportError, OSError) as error:
        sys.exit(f"kaggle: {error}")
    print(f"{options.out}: a data set and {kernels} kernels; docs/kaggle.md has the next steps")


if __name__ == "__main__":
    main()
