"""The reference that `make test` holds the series to: committed notebooks, and the results of a run on the sample."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd

from labhelpers.files import project_root, write_text
from labhelpers.records import compare_runs, out_folder

# Two runs with other seeds differ by 1.4 deviations of one run, and by 3.5 times that hardly ever.
DEVIATIONS = 5
README_RESULTS = "<!-- results on the sample, written by make reference -->"


def load_tolerance() -> dict[str, float]:
    """Metric -> how far a result may lie from the reference: DEVIATIONS times the spread that `measure_spread` found.

    Another number of threads or another processor moves a training as another seed does.
    """
    path = reference_file().with_name("spread.json")
    spread = json.loads(path.read_text(encoding="utf-8"))["deviation"]
    return {metric: round(DEVIATIONS * deviation, 3) for metric, deviation in spread.items()}


def measure_spread(seeds: int = 3, say=print) -> Path:
    """Run the series on the sample with several seeds, and keep each metric's deviation, pooled over all results."""
    from labhelpers.corpora.find import find_corpus
    from labhelpers.series.run import read_series

    from .bench import quality

    corpus = find_corpus(project_root() / "data" / "sample")
    trained = [name for name in read_series(project_root() / "notebooks") if name >= "05"]
    quality(corpus, seeds, only=trained, say=say)
    runs = [load_results(out_folder(corpus) / "seeds" / str(seed)) for seed in range(seeds)]
    target = reference_file().with_name("spread.json")
    return write_text(target, json.dumps({"seeds": seeds, "deviation": pooled_deviation(runs)}, indent=1) + "\n")


def pooled_deviation(runs: list[dict[str, dict]]) -> dict[str, float]:
    """Metric -> root mean square, over the results on the set where it is largest, of their deviation between seeds.

    A seed also draws which affect clips are held out: what that does to all models alike is taken off first, and a
    result that no seed moves does not count.
    """
    rows = [row | {"run": i} for i, run in enumerate(runs) for notebook in run.values() for row in notebook["results"]]
    table, alike = pd.DataFrame(rows), ["task", "set", "metric"]
    table = table[table.groupby([*alike, "model"])["value"].transform("std") > 0]
    drawn = table["set"] == "held-out"
    common = table.groupby([*alike, "run"])["value"].transform("mean")
    table = table.assign(value=table["value"] - common.where(drawn, 0.0))
    variance = table.groupby([*alike, "model"])["value"].var().dropna().groupby(["metric", "set"]).mean()
    return variance.groupby("metric").max().pow(0.5).round(4).to_dict()


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
    from labhelpers.series.run import run_series

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
    write_readme(project_root() / "README.md", now)
    return write_text(target, json.dumps(now, indent=1))


def write_readme(path: Path, results: dict[str, dict]) -> None:
    """Put the results between the two marks of a README, and the plot that it shows beside the reference."""
    from labhelpers.series.pages import tasks

    genre = next(task for task in tasks(results) if task["name"] == "genre")
    picture = base64.b64decode(genre["forest"].partition(",")[2])
    write_text(reference_file().with_name("sample-genre.svg"), picture.decode())
    before, _, after = path.read_text(encoding="utf-8").split(README_RESULTS)
    write_text(path, README_RESULTS.join([before, f"\n\n{results_table(results)}\n\n", after]))


def results_table(results: dict[str, dict]) -> str:
    """Markdown tables of the results on clips that chose nothing: a row a model, a column a metric, with intervals."""
    from labhelpers.series.pages import measure, tasks

    tables = []
    for task in tasks(results):
        if task["set"] == "cross-validation":
            continue
        metrics = task["metrics"] if task["name"] == "genre" else [task["headline"]]
        head = [f"{task['name']}, {task['set']} clips", "clips", *map(measure, metrics)]
        lines = [head, ["---"] * len(head)]
        for row in task["rows"]:
            name = f"{row['model']}, {row['input']}" if row["input"] else row["model"]
            cells = [row["cells"].get(metric) for metric in metrics]
            values = [f"{cell.value:.2f} [{cell.low:.2f}, {cell.high:.2f}]" if cell else "" for cell in cells]
            lines.append([name, str(row["n"]), *values])
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def clean_notebook(source: Path, target: Path) -> None:
    """Copy an executed notebook without what differs from run to run: timings, paths, ids."""
    notebook = nbformat.read(source, 4)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags",) if cell.metadata.get(key)})
    write_text(target, nbformat.writes(notebook) + "\n")
