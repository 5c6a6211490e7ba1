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
STABLE, LEAST, MOST = 0.002, 0.04, 0.2  # tolerances: of what did not move, of what did, the largest
UNMEASURED = 0.06  # of a result with an interval that only one of the runs has


def accept(report: Path, models: bool) -> Path:
    """Write the results of a report to reports/reference; returns the file."""
    paths = sorted((report / "records").glob("*.json"))
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    name = contents[0]["corpus"]["name"]
    notebooks = {content["notebook"]: content["results"] for content in contents}
    target = records.REFERENCE / f"{name}.json"
    old = records.reference(name=name)
    for key, distance in moved(flat(old), flat(records.series_results(report))):
        print(f"{distance:8.3f}  {key}")
    reference = {"versions": contents[0]["versions"], "notebooks": notebooks}
    text = json.dumps(reference, indent=1, ensure_ascii=False)
    target.write_text(text + "\n", encoding="utf-8")
    folder = records.REFERENCE / name
    if models:
        for notebook in SHARED_MODELS:
            shared = folder / "records" / notebook
            shutil.copytree(report / "records" / notebook, shared, dirs_exist_ok=True)
            shutil.copy(report / "records" / f"{notebook}.json", folder / "records")
    else:
        for path in sorted((report / "notebooks").glob("*.ipynb")):
            shutil.copy(path, records.PROJECT / "notebooks" / path.name)
    folder.mkdir(exist_ok=True)
    for file in FILES:
        if (report / file).is_file():
            shutil.copy(report / file, folder / file)
    return target


def flat(notebooks: dict[str, dict]) -> dict:
    """ "notebook: key" -> result."""
    return {
        f"{name}: {key}": v for name, results in notebooks.items() for key, v in results.items()
    }


def moved(old: dict, new: dict) -> list[tuple[str, float]]:
    """(key, distance) of the results that are not the same, largest distance first."""
    distances = []
    for key in old.keys() | new.keys():
        distance = distance_of(old.get(key), new.get(key))
        if distance > 1e-6:
            distances.append((key, distance))
    return sorted(distances, key=lambda pair: (-pair[1], pair[0]))


def distance_of(a, b) -> float:
    """How far two results lie apart; infinite for other text, or where one is absent."""
    a, b = getattr(a, "value", a), getattr(b, "value", b)
    if a == b:
        return 0.0
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b)
    return float("inf")


def tolerate(one: Path, other: Path) -> Path:
    """Write how far a result of the sample may move: twice what it moved between two runs.

    Names, and numbers that moved further than MOST, are left out: they say nothing of a machine.
    """
    first, second = records.series_results(one), records.series_results(other)
    tolerances = {}
    for notebook, results in first.items():
        tolerances[notebook] = {}
        for key, value in results.items():
            tolerance = _tolerance(value, second.get(notebook, {}).get(key))
            if tolerance <= MOST:
                tolerances[notebook][key] = tolerance
    target = records.REFERENCE / "tolerances.json"
    target.write_text(json.dumps(tolerances, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def _tolerance(value, other) -> float:
    if other is None:
        return UNMEASURED if hasattr(value, "low") else float("inf")
    moved = distance_of(value, other)
    return STABLE if moved < STABLE / 2 else max(LEAST, round(2 * moved, 3))


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("accept", "compare", "tolerate"))
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("--models", action="store_true", help="copy its networks, too")
    options = parser.parse_args(arguments)
    if options.action == "accept":
        for report in options.reports:
            print(accept(report, options.models))
        return
    if options.action == "tolerate":
        print(tolerate(*options.reports))
        return
    one, other = (flat(records.series_results(report)) for report in options.reports)
    for key, distance in moved(one, other):
        print(f"{distance:8.3f}  {key}")


if __name__ == "__main__":
    main()
