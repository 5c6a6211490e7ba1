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

from .report import PROJECT, Notebook, ReportError, read_series

LAB_DATA = "geoparslp/patreco3-multitask-affective-music"
PARTS = ("labhelpers", "scripts", "notebooks", "LICENSE", "reports/reference/emotify.json")
PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}
SERIES = "from scripts import report\n\nassert report.report(report.parse([])) == 0"
STEPS = """\
{out}: a data set and {kernels} kernels. Once: `kaggle auth login`. Then
  kaggle datasets create -p {out}/dataset --dir-mode zip
  kaggle datasets status {user}/labhelpers            until it says "ready"
  kaggle kernels push -p {out}/kernels/series         all notebooks in one kernel, on a GPU
  kaggle kernels status {user}/labhelpers-series      until it says "complete"
  kaggle kernels output {user}/labhelpers-series -p {out}/output
Read what the client prints: a source that it cannot attach it drops, and goes on.
For a later bundle: kaggle datasets version -p {out}/dataset --dir-mode zip -m "new version"
"""


def bundle(out: Path, user: str, data: str = LAB_DATA) -> int:
    """Write the bundle into a new folder; returns the number of kernels.

    user : a Kaggle user name; data : OWNER/SLUG of the data set with the lab's data, or
        competitions/SLUG
    Raises ReportError for a name that is none, and for a folder that is not empty.
    """
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]*", user):
        raise ReportError(f"--user {user}: not a user name of Kaggle's; see your profile's address")
    if not re.fullmatch(r"[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+", data):
        raise ReportError(f"--data {data}: not of the form OWNER/SLUG or competitions/SLUG")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReportError(f"{out} is there already; remove it, or name a new folder")
    series = read_series(PROJECT / "notebooks")
    for part in PARTS:
        copy(PROJECT / part, out / "dataset" / part)
    meta = {"title": "labhelpers", "id": f"{user}/labhelpers", "licenses": [{"name": "other"}]}
    write_json(out / "dataset" / "dataset-metadata.json", meta)
    for name, notebook in series.items():
        cells = [without_outputs(cell) for cell in notebook.cells]
        write_json(out / "dataset" / "notebooks" / f"{name}.ipynb", as_notebook(cells))
        write_kernel(out / "kernels" / name, user, data, cells, notebook.needs)
    write_kernel(out / "kernels" / "series", user, data, series_cells(series), ())
    return len(series) + 1


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    elif source.is_file():
        shutil.copyfile(source, target)


def series_cells(series: dict[str, Notebook]) -> list[dict]:
    """The line of the notebooks that finds the package, and one cell that runs them all."""
    setup = next(iter(series.values())).code[0]
    end = setup.index("\n", setup.index("sys.path"))
    return [code_cell(setup[:end]), code_cell(SERIES)]


def code_cell(source: str) -> dict:
    empty = {"execution_count": None, "outputs": [], "metadata": {}}
    return {"cell_type": "code", "source": source, **empty}


def without_outputs(cell: dict) -> dict:
    if cell["cell_type"] != "code":
        return cell
    return {**cell, "outputs": [], "execution_count": None}


def as_notebook(cells: list[dict]) -> dict:
    """A notebook that names the kernel that runs it: Kaggle cannot run another."""
    return {"cells": cells, "metadata": {"kernelspec": PYTHON}, "nbformat": 4, "nbformat_minor": 5}


def write_kernel(folder: Path, user: str, data: str, cells: list[dict], needs) -> None:
    """A notebook and what Kaggle's client has to know: a GPU, no internet, the inputs."""
    owner, _, slug = data.partition("/")
    contest = owner == "competitions"
    write_json(folder / f"{folder.name}.ipynb", as_notebook(cells))
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


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.kaggle", description="Write the bundle for Kaggle."
    )
    parser.add_argument("command", choices=["bundle"])
    parser.add_argument("out", type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--user", required=True, metavar="NAME", help="your Kaggle user name")
    parser.add_argument("--data", default=LAB_DATA, metavar="OWNER/SLUG", help="default: the lab's")
    options = parser.parse_args(argv)
    try:
        kernels = bundle(options.out, options.user, options.data)
    except (ReportError, OSError) as error:
        print(f"kaggle: {error}", file=sys.stderr)
        return 1
    print(STEPS.format(out=options.out, user=options.user, kernels=kernels), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
