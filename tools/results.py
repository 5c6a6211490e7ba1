"""The tables of docs/results.md, out of the committed reference results.

python -m tools.results    (make reference and make reference-real do it)
"""

from __future__ import annotations

from labhelpers.metrics import Estimate
from labhelpers.records import PROJECT, reference

PAGE = PROJECT / "docs" / "results.md"
MARK = "<!-- tables -->"
CORPORA = {"emotify": "Emotify", "sample": "sample"}
TABLES = {  # title -> notebooks, measures; the first measure gives the order
    "Genre, test clips": (("06", "07"), ("macro-F1", "accuracy")),
    "Affect, out of fold": (
        ("08", "09", "10"),
        ("rho mean", "rho valence", "rho energy", "rho danceability"),
    ),
}


def page(text: str) -> str:
    """The page with the tables of the reference results between its marks."""
    before, _, after = text.split(MARK)
    tables = [table(title, *about) for title, about in TABLES.items()]
    return before + MARK + "\n" + "\n".join(tables) + MARK + after


def table(title: str, numbers: tuple, measures: tuple) -> str:
    """A Markdown table: a row for each model, a column for each corpus and measure."""
    cells = {}  # (corpus, measure) -> model -> result
    for corpus in CORPORA:
        for name, results in reference(name=corpus).items():
            for measure in measures if name.startswith(numbers) else ():
                column = cells.setdefault((corpus, measure), {})
                column.update(estimates(results, measure))
    cells = {key: column for key, column in cells.items() if column}
    if not cells:
        return ""
    best = next(iter(cells.values()))
    models = sorted(set().union(*cells.values()))
    models.sort(key=lambda model: -best[model].value if model in best else 1)
    heads = [f"{measure.replace('rho', 'ρ')}, {CORPORA[corpus]}" for corpus, measure in cells]
    lines = [
        f"### {title}\n",
        f"| model | {' | '.join(heads)} |",
        "| --- " * (len(cells) + 1) + "|",
    ]
    for model in models:
        row = [str(column.get(model, "")) for column in cells.values()]
        lines.append(f"| {model} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def estimates(results: dict, measure: str) -> dict:
    """Model -> its Estimate of that measure, of the results "model measure"."""
    end = f" {measure}"
    values = {key[: -len(end)]: v for key, v in results.items() if key.endswith(end)}
    return {model: value for model, value in values.items() if isinstance(value, Estimate)}


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
