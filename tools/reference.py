"""The reference that `make test` holds the series to: committed notebooks, and a run on the sample.

    python -m tools.reference               runs the series and accepts what it gives
    python -m tools.reference accept OUT    accepts the results of a run that is there already
    python -m tools.reference spread OUT OUT …  takes how far results move between machines from
                                            reports on the sample (or their sample.json) by several
    python -m tools.reference real DIR      runs the series on real music, for README and reader
    python -m tools.reference accept-real OUT   the same from a run that is there already

A result without a network in it has to be the same to 1e-6. A network's end is a draw even at one
seed: the last bits of a sum depend on the instruction set and on the number of threads, and a
training multiplies them. How far results of one seed move so is measured, not guessed, and kept in
reports/reference/spread.json; results may lie so far from the reference, and no farther. Another
machine can be had on the same one: OMP_NUM_THREADS=2, or ATEN_CPU_CAPABILITY=avx2 and
ONEDNN_MAX_CPU_ISA=AVX2, before `labhelpers report --data data/sample --out OUT --from 05`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd

from labhelpers.corpora.find import find_corpus
from labhelpers.corpora.layout import AFFECT, Corpus
from labhelpers.files import project_root, write_text
from labhelpers.metrics import mean_rho
from labhelpers.series.cli import log_to_stdout
from labhelpers.series.notebooks import faults, read_series
from labhelpers.series.pages import forest, load_state, lone_index, summary_of
from labhelpers.series.results import Table, main_tables, measure, read_records, tables
from labhelpers.series.run import run_series

README_RESULTS = "<!-- results on the sample, written by make reference -->"
README_REAL = "<!-- results on real music, written by make reference-real -->"
EXACT = 1e-6
ROUNDED = 1.001e-3
ROOM = 1.5  # times the largest difference that was measured: few machines were at hand
KEY = ("model", "task", "input", "set", "metric")


def folder() -> Path:
    return project_root() / "reports" / "reference"


def load(name: str):
    """A JSON file of the reference; empty where there is none yet."""
    path = folder() / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# --- comparing ------------------------------------------------------------------------------------


def recorded(out: Path, corpus: Corpus) -> dict[str, dict]:
    """Notebook -> its results and facts, and what its submission reaches on the labels kept aside.

    out : a report folder
    """
    found = {}
    for name, run in read_records(out).items():
        found[name] = {"results": run.results, "facts": run.facts}
    solution = Path(out) / "solution.txt"
    if solution.is_file():
        found["solution.txt"] = read_solution(solution, corpus)
    return found


def read_solution(path: Path, corpus: Corpus) -> dict:
    """Header and clips of a submission, and its mean rho on the labels kept aside."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split(",") for line in lines]
    ids = [row[0].split(".")[0] for row in rows]
    values = pd.DataFrame([row[1:] for row in rows], ids, AFFECT, dtype=float)
    answers = corpus.answers().set_index("id")[list(AFFECT)].loc[ids]
    estimate = {"value": mean_rho(answers.to_numpy(), values.to_numpy()), "n": len(ids)}
    row = {"model": "solution.txt", "task": "affect", "input": "", "set": "kept aside"}
    row |= {"metric": "mean", "baseline": False, "seeds": 1, **estimate}
    return {"results": [row], "facts": {"header": header, "first": ids[0], "last": ids[-1]}}


def compare_runs(reference: dict, run: dict, spread: dict) -> list[str]:
    """What differs between a notebook's reference and its run, a sentence each.

    spread : see `spread_of`; empty asks for the same to 1e-6
    """
    found = []
    before = {tuple(row[name] for name in KEY): row for row in reference["results"]}
    now = {tuple(row[name] for name in KEY): row for row in run["results"]}
    for key in [*before, *(key for key in now if key not in before)]:
        name = " / ".join(filter(None, key))
        if key not in before or key not in now:
            found.append(f"{name}: only in {'the reference' if key in before else 'the run'}")
        else:
            found += [f"{name}: {text}" for text in _apart(before[key], now[key], spread)]
    moving = set(spread.get("facts", []))
    old, new = dict(flat(reference["facts"])), dict(flat(run["facts"]))
    for path in sorted((old.keys() | new.keys()) - moving):
        if not same(old.get(path), new.get(path)):
            found.append(f"fact {path}: {old.get(path)} against {new.get(path)}")
    return found


def _apart(before: dict, now: dict, spread: dict):
    tolerance = EXACT
    if not before["baseline"]:
        tolerance = max(EXACT, spread.get("results", {}).get(before["metric"], 0.0))
    for field in sorted(before.keys() | now.keys()):
        a, b = before.get(field), now.get(field)
        if field in ("value", "low", "high", "deviation") and None not in (a, b):
            if not abs(a - b) <= tolerance:  # a NaN is far from everything
                yield f"{field} {a:.3f} against {b:.3f}, more than {tolerance:.3g} apart"
        elif a != b:
            yield f"{field} {a} against {b}"


def flat(value, path: str = ""):
    """Yield (path, leaf) of nested facts; a list of numbers is one leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def same(a, b) -> bool:
    """Equal, numbers to a thousandth: facts are rounded, and may be so the other way."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) or isinstance(b, float):
        numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
        return numbers and math.isclose(a, b, rel_tol=ROUNDED, abs_tol=ROUNDED)
    return a == b


def beaten(results: list[dict]) -> set[tuple]:
    """(model, task, input, set, metric) of the networks above every baseline of their table."""
    best: dict[tuple, float] = {}
    for row in results:
        if row["baseline"]:
            place = row["task"], row["set"], row["metric"]
            best[place] = max(best.get(place, -math.inf), row["value"])
    found = set()
    for row in results:
        place = row["task"], row["set"], row["metric"]
        if not row["baseline"] and row["value"] > best.get(place, math.inf):
            found.add(tuple(row[name] for name in KEY))
    return found


# --- measuring ------------------------------------------------------------------------------------


def spread_of(runs: list[dict[str, dict]]) -> dict:
    """Metric -> the largest difference of a network's value, bound or deviation, with some room."""
    rows, facts = {}, {}
    for run in runs:
        for name, content in run.items():
            for row in content["results"]:
                if not row["baseline"]:
                    key = name, *(row[field] for field in KEY)
                    rows.setdefault(key, []).append(row)
            for path, value in flat(content["facts"]):
                facts.setdefault((name, path), []).append(value)
    largest: dict[str, float] = {}
    for key, several in rows.items():
        for field in ("value", "low", "high", "deviation"):
            values = [row[field] for row in several if row.get(field) is not None]
            apart = max(values, default=0.0) - min(values, default=0.0)
            largest[key[-1]] = max(largest.get(key[-1], 0.0), apart)
    moving = set()
    for (_, path), values in facts.items():
        if not all(same(values[0], value) for value in values[1:]):
            moving.add(path)
    tolerance = {metric: round(ROOM * apart, 4) for metric, apart in sorted(largest.items())}
    return {"results": tolerance, "facts": sorted(moving)}


# --- accepting ------------------------------------------------------------------------------------


def make_reference() -> Path:
    """Run the series on the sample and accept what it gives: notebooks, results, the report.

    Says which results moved. This is the one way to accept a change; look at it, then commit.
    Raises ValueError where an executed notebook shows what a reader should not meet.
    """
    corpus = find_corpus("sample")
    out = run_series("sample", fresh=True).parent
    for path in sorted((out / "notebooks").glob("*.ipynb")):
        book = nbformat.read(path, 4)
        problems = faults(book)
        if problems:
            raise ValueError(f"{path.stem}: {'; '.join(problems)}")
        write_text(project_root() / "notebooks" / path.name, cleaned(book, path.name))
    shutil.copyfile(out / "report.pdf", folder() / "sample-report.pdf")
    return accept(out, corpus)


def accept(out: Path, corpus: Corpus) -> Path:
    """Take the results of a report folder for the reference; says what moved."""
    before, now = load("sample.json"), recorded(out, corpus)
    for name, run in now.items():
        for sentence in compare_runs(before.get(name, {"results": [], "facts": {}}), run, {}):
            print(f"{name}: {sentence}")
    found = tables(read_records(out))
    genre = next(table for table in found if table.task == "genre")
    write_text(folder() / "sample-genre.svg", forest(genre).decode())
    write_readme(README_RESULTS, results_table(found))
    text = json.dumps(now, indent=1, ensure_ascii=False)
    return write_text(folder() / "sample.json", text + "\n")


def cleaned(book, name: str) -> str:
    """An executed notebook without what differs from run to run, with the parameters it had."""
    source = nbformat.read(project_root() / "notebooks" / name, 4)
    code = []
    for cell in book.cells:
        if "injected-parameters" not in cell.metadata.get("tags", []):
            code.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata = nbformat.from_dict({**source.metadata, "kernelspec": kernel})
    count = 0
    for own, cell in zip(source.cells, code, strict=True):
        cell.id, cell.metadata, cell.source = own.id, own.metadata, own.source
        if cell.cell_type == "code":
            count += bool(cell.source.strip())
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    book.cells = code
    return nbformat.writes(book) + "\n"


def accept_real(out: Path) -> Path:
    """Keep what may be shown of a run on real music, and put its results in README.

    Kept are the short report, the index, the summaries with their figures, and the submission.
    """
    series, state = read_series(project_root() / "notebooks"), load_state(out)
    name = state["corpus"]["name"]
    kept = folder() / name
    write_text(kept / "index.html", lone_index(out, series, state))
    # It comes with jupyterlab, which the environment with Kaggle's versions lacks.
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter(exclude_input=True)
    text, resources = exporter.from_notebook_node(summaries(out))
    # The exporter calls each picture "png": its caption, which follows, says more.
    text = re.sub(r"!\[png\](\(\S+\))\s+\*(.+?)\*", r"![\2]\1\n\n*\2*", text)
    write_text(kept / "summary.md", text)
    for old in kept.glob("*.png"):
        old.unlink()
    for picture, content in resources["outputs"].items():
        (kept / picture).write_bytes(content)
    shutil.copyfile(out / "report.pdf", kept / "report.pdf")
    shutil.copyfile(out / "solution.txt", folder() / f"{name}-solution.txt")
    records = read_records(out)
    pictures = []
    for table in main_tables(records):
        write_text(kept / f"{table.task}.svg", forest(table).decode())
        place = (kept / f"{table.task}.svg").relative_to(project_root()).as_posix()
        what = f"{measure(table.headline)} of each model for {table.task}, with intervals"
        pictures.append(f'<img src="{place}" alt="{what}" width="49%">')
    every = results_table(tables(records))
    details = f"<details><summary>All models</summary>\n\n{every}\n\n</details>"
    parts = [headline_table(main_tables(records)), "\n".join(pictures), details]
    write_readme(README_REAL, "\n\n".join(parts))
    return kept


def summaries(out: Path):
    """What the notebooks of a run say in short, with their key figures, as one notebook."""
    v4 = nbformat.v4
    name = load_state(out)["corpus"]["name"]
    title = f"# What each notebook found on {name}\n\nTheir last words and key figures, of one run."
    cells = [v4.new_markdown_cell(title)]
    for path in sorted((out / "notebooks").glob("*.ipynb")):
        book = nbformat.read(path, 4)
        for cell in book.cells:
            cell.metadata = nbformat.from_dict({"tags": cell.metadata.get("tags", [])})
        for cell in summary_of(book).cells:
            # A step is a section here, and the notebooks lie elsewhere.
            cell.source = re.sub(r"^# ", "## ", cell.source)
            cell.source = re.sub(r"\]\((\w+\.ipynb)", r"](../../../notebooks/\1", cell.source)
            cells.append(cell)
            for output in cell.get("outputs", []):
                if "caption" in output.get("metadata", {}):
                    cells.append(v4.new_markdown_cell(f"*{output.metadata.caption}*"))
    for number, cell in enumerate(cells):
        cell.id = f"summary-{number}"
    return v4.new_notebook(cells=cells)


def headline_table(found: list[Table]) -> str:
    """A Markdown line a task: the best network beside the best and the weakest baseline."""
    lines = [["", "best network", "best baseline", "knowing nothing"], ["---"] * 4]
    for table in found:
        line = [f"{table.task}, {measure(table.headline)} on {table.best.n} {table.where} clips"]
        for row in [table.best, *table.ends]:
            line.append(f"{_cell(row.cells[table.headline])} {row.label}")
        lines.append((line + [""] * 4)[:4])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_readme(mark: str, text: str) -> None:
    """Put a text between two marks of the README."""
    path = project_root() / "README.md"
    before, _, after = path.read_text(encoding="utf-8").split(mark)
    write_text(path, mark.join([before, f"\n\n{text}\n\n", after]))


def results_table(found: list[Table]) -> str:
    """Markdown tables of the results on clips that chose nothing, with intervals."""
    parts = []
    for table in found:
        if table.where == "cross-validation":
            continue
        metrics = table.metrics if table.task == "genre" else [table.headline]
        lines = [[f"{table.task}, {table.where} clips", "clips", *map(measure, metrics)]]
        lines.append(["---"] * len(lines[0]))
        for row in table.rows:
            cells = [row.cells.get(metric) for metric in metrics]
            lines.append([row.label, str(row.n), *map(_cell, cells)])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def _cell(cell: dict | None) -> str:
    return f"{cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]" if cell else ""


def main(arguments: list[str]) -> None:
    log_to_stdout()
    if arguments[:1] == ["spread"]:
        corpus = find_corpus("sample")
        runs = []
        for name in arguments[1:]:
            path = Path(name)
            runs.append(json.loads(path.read_text()) if path.is_file() else recorded(path, corpus))
        spread = spread_of(runs) | {"machines": [Path(name).stem for name in arguments[1:]]}
        write_text(folder() / "spread.json", json.dumps(spread, indent=1) + "\n")
        return
    if arguments[:1] == ["accept"]:
        print(accept(Path(arguments[1]), find_corpus("sample")))
        return
    if arguments[:1] == ["real"]:
        print(accept_real(run_series(arguments[1]).parent))
        return
    if arguments[:1] == ["accept-real"]:
        print(accept_real(Path(arguments[1])))
        return
    print(make_reference())


if __name__ == "__main__":
    main(sys.argv[1:])
