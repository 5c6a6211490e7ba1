"""What the records of a run say: a table for each task and set of clips, and a sentence a task."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..corpora.layout import AFFECT
from ..records import Run, RunError, read_run

log = logging.getLogger("labhelpers")
# A task is judged by the first of these that it has, on the first of the sets that compares models.
HEADLINES = ("macro_f1", "accuracy", "mean", "mean_rho", "mean_spearman")
SETS = ("test", "cross-validation", "held-out", "validation")
LOWER_IS_BETTER = ("mae", "mse", "rmse", "loss")
NAMES = {
    "macro_f1": "macro-F1",
    "mean": "mean ρ",
    "mean_rho": "mean ρ",
    "mean_spearman": "mean ρ",
    "rho": "ρ",
    "spearman": "ρ",
    **{axis: f"ρ {axis}" for axis in AFFECT},
}
MEANING = {
    "macro_f1": "F1 joins precision and recall of a class; macro-F1 is its mean over the classes, "
    "each counted alike however few clips it has.",
    "accuracy": "Accuracy is the share of clips whose class is right.",
    "mean": "Spearman's ρ is 1 where the estimates put the clips in the right order, 0 where they "
    "know nothing of it; the mean is over valence, energy and danceability.",
}
MEANING["mean_rho"] = MEANING["mean_spearman"] = MEANING["mean"]


def measure(metric: str) -> str:
    """A metric as readers know it."""
    return NAMES.get(metric, metric.replace("_", " "))


@dataclass
class Row:
    """One model's results on one set: metric -> result, as records hold them."""

    model: str
    input: str
    baseline: bool
    cells: dict[str, dict]

    @property
    def n(self) -> int:
        return max(cell["n"] for cell in self.cells.values())

    @property
    def seeds(self) -> int:
        return max(cell["seeds"] for cell in self.cells.values())

    @property
    def label(self) -> str:
        """Model and input, the input only where the model's name does not say it."""
        if self.input in ("", "none", "-") or self.input in self.model:
            return self.model
        return f"{self.model}, {self.input}"


@dataclass
class Table:
    """All models on one task and set, best first by the headline metric."""

    task: str
    where: str
    metrics: list[str]
    headline: str
    rows: list[Row]

    @property
    def best(self) -> Row:
        """The best network; where there is none, the best of all."""
        return next((row for row in self.rows if not row.baseline), self.rows[0])

    @property
    def baselines(self) -> list[Row]:
        return [row for row in self.rows if row.baseline and self.headline in row.cells]

    @property
    def ends(self) -> list[Row]:
        """The best baseline and the weakest."""
        return self.baselines[:1] + self.baselines[1:][-1:]

    @property
    def compares(self) -> bool:
        """Whether it sets a network against a baseline."""
        return len({row.baseline for row in self.rows}) == 2

    def is_best(self, row: Row, metric: str) -> bool:
        values = [other.cells[metric]["value"] for other in self.rows if metric in other.cells]
        best = min(values) if metric in LOWER_IS_BETTER else max(values)
        return len(values) > 1 and row.cells[metric]["value"] == best


def read_records(out: Path) -> dict[str, Run]:
    """Name -> record of all notebooks that left one; one that cannot be read is told and left out.

    They may come from elsewhere (Kaggle): the corpus need not be at hand.
    """
    found = {}
    for path in sorted((out / "records").glob("[0-9]*.json")):
        try:
            found[path.stem] = read_run(path)
        except RunError as error:
            log.warning("%s", error)
    return found


def tables(records: dict[str, Run]) -> list[Table]:
    """A table for each task and set; of each task first the one that compares models best."""
    parts: dict[tuple, dict[tuple, Row]] = {}
    for record in records.values():
        for result in record.results:
            task, metric = result["task"], result["metric"]
            if task in AFFECT:  # the axes side by side
                task, metric = "affect", task
            rows = parts.setdefault((task, result["set"]), {})
            place = result["model"], result["input"]
            row = rows.setdefault(place, Row(*place, result["baseline"], {}))
            row.cells[metric] = result  # a later notebook's word on the same result counts
    found = [_table(task, where, list(rows.values())) for (task, where), rows in parts.items()]
    tasks = list(dict.fromkeys(task for task, _ in parts))
    return sorted(found, key=lambda table: (tasks.index(table.task), _rank(table)))


def _table(task: str, where: str, rows: list[Row]) -> Table:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.cells))
    headline = next((metric for metric in HEADLINES if metric in metrics), metrics[0])

    def judged(row):
        return row.cells[headline]["value"] if headline in row.cells else float("-inf")

    if len(rows) > 1 and len({row.input for row in rows}) == 1:
        for row in rows:
            row.input = ""  # what all share tells none from another
    rows.sort(key=judged, reverse=headline not in LOWER_IS_BETTER)
    return Table(task, where, metrics, headline, rows)


def _rank(table: Table) -> tuple:
    known = SETS.index(table.where) if table.where in SETS else len(SETS)
    return not table.compares, known


def main_tables(records: dict[str, Run]) -> list[Table]:
    """The one table of each task that its result is read from."""
    first: dict[str, Table] = {}
    for table in tables(records):
        first.setdefault(table.task, table)
    return list(first.values())


def headlines(records: dict[str, Run]) -> list[str]:
    """A sentence a task: what the best network reaches, and what the baselines do."""
    return [_sentence(table) for table in main_tables(records)]


def _sentence(table: Table) -> str:
    best, clips = table.best, f"{table.best.n} {table.where} clips"
    if "accuracy" in best.cells:
        said = f"{table.task.capitalize()}: {_right(best)} of {clips} right ({best.label}"
        said += f", mean of {best.seeds} seeds)" if best.seeds > 1 else ")"
        others = [f"{row.label} {_right(row)}" for row in table.ends]
    else:
        cell = best.cells[table.headline]
        said = f"{table.task.capitalize()}: {measure(table.headline)} {cell['value']:.2f}"
        said += f" on {clips} ({best.label})"
        others = [f"{row.label} {row.cells[table.headline]['value']:.2f}" for row in table.ends]
    return f"{said}; {', '.join(others)}." if others else f"{said}."


def _right(row: Row) -> str:
    """Clips that are right, as in "27"; the mean where it is over several seeds."""
    return f"{row.cells['accuracy']['value'] * row.n:.0f}"
