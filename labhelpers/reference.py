"""The reference that `make test` holds the series to: committed notebooks, and the results of a run on the sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat

from .corpora import project_root
from .records import compare_runs, write_text

# How far a metric of a trained network may lie from the reference. Another number of threads or another processor moves
# a training as another seed does, and on the sample's 35 test and 14 held-out clips that is a lot: one thread instead
# of two moved a macro-F1 by 0.16 and a single axis by 0.19. Chance lies farther away than this.
TOLERANCE = {"accuracy": 0.25, "macro_f1": 0.25, "spearman": 0.4, "mean_spearman": 0.25}


def reference_file() -> Path:
    return project_root() / "reports" / "reference" / "sample.json"


def load_reference() -> dict[str, dict]:
    """Notebook -> {"results": rows} of the accepted run on the sample; empty before there is one."""
    path = reference_file()
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load_results(out: Path) -> dict[str, dict]:
    """Notebook -> {"results": rows} of the records in a report folder."""
    records = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "records").glob("*.json"))
    }
    return {name: {"results": record["results"]} for name, record in records.items() if record["results"]}


def make_reference(say=print) -> Path:
    """Run the series on the sample and accept what it gives: notebooks with outputs, results, the PDF.

    Says which results moved. This is the one way to accept a change; look at it, then commit.
    """
    from .report import run_series

    sample = project_root() / "data" / "sample"
    out = run_series(fresh=True, say=say).parent
    if out.name != sample.name:
        raise ValueError(
            f"the reference is made on the sample, and this run took {out.name}; move other corpora out of data/"
        )
    for path in sorted((out / "notebooks").glob("*.ipynb")):
        clean_notebook(path, project_root() / "notebooks" / path.name)
    before, now = load_reference(), load_results(out)
    for name in now:
        for sentence in compare_runs(before.get(name, {"results": []}), now[name], {}):
            say(f"{name}: {sentence}")
    target = reference_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "report.pdf", target.with_name("sample-report.pdf"))
    return write_text(target, json.dumps(now, indent=1))


def clean_notebook(source: Path, target: Path) -> None:
    """Copy an executed notebook without what differs from run to run: timings, paths, ids."""
    notebook = nbformat.read(source, 4)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags",) if cell.metadata.get(key)})
    write_text(target, nbformat.writes(notebook) + "\n")
