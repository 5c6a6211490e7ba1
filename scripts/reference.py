"""Accept a report as the committed reference, or say how far another one moved.

python -m scripts.reference accept reports/sample          results to reports/reference/sample.json,
                                                           executed notebooks to notebooks/
python -m scripts.reference accept reports/emotify --models    and its networks, PDF and submission
python -m scripts.reference compare reports/one reports/other  every result that moved
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from labhelpers import records

SHARED_MODELS = ("07_cnn", "10_kaggle_submission")  # notebooks whose models predict.py uses
FILES = ("report.pdf", "solution.txt")


def accept(report: Path, models: bool) -> None:
    """Write the results of a report to reports/reference, and print which moved."""
    paths = sorted((report / "records").glob("*.json"))
    contents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    first = contents[paths[0].stem]
    name = first["corpus"]["name"]
    print_moved(records.reference(name=name), records.series_results(report))
    results = {notebook: content["results"] for notebook, content in contents.items()}
    reference = {"versions": first["versions"], "notebooks": results}
    text = json.dumps(reference, indent=1, ensure_ascii=False)
    (records.REFERENCE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    folder = records.REFERENCE / name
    folder.mkdir(exist_ok=True)
    if models:
        for notebook in SHARED_MODELS:
            shared = folder / "records" / notebook
            shutil.copytree(report / "records" / notebook, shared, dirs_exist_ok=True)
            shutil.copy(report / "records" / f"{notebook}.json", folder / "records")
    else:
        for path in (report / "notebooks").glob("*.ipynb"):
            shutil.copy(path, records.PROJECT / "notebooks")
    for file in FILES:
        if (report / file).is_file():
            shutil.copy(report / file, folder)


def print_moved(old: dict[str, dict], new: dict[str, dict]) -> None:
    """Print the results that are not the same, largest distance first.

    old, new : notebook -> key -> result
    """
    distances = []
    for notebook in old.keys() | new.keys():
        before, after = old.get(notebook, {}), new.get(notebook, {})
        for key in before.keys() | after.keys():
            distance = distance_of(before.get(key), after.get(key))
            distances.append((distance, f"{notebook}: {key}"))
    for distance, key in sorted(distances, reverse=True):
        if distance > 1e-6:
            print(f"{distance:8.3f}  {key}")


def distance_of(a, b) -> float:
    """How far two results lie apart; infinite for other text, or where one is absent."""
    a, b = getattr(a, "value", a), getattr(b, "value", b)
    if a == b:
        return 0.0
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b)
    return float("inf")


if __name__ == "__main__":
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("action", choices=("accept", "compare"))
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("--models", action="store_true", help="copy its networks, too")
    options = parser.parse_args()
    if options.action == "accept":
        for report in options.reports:
            accept(report, options.models)
    else:
        print_moved(*map(records.series_results, options.reports))
