"""Measure how far a result of the sample may move between machines.

python -m tools.tolerances reports/one reports/other    (runs on two instruction sets)
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from labhelpers import records
from scripts.reference import distance_of

STABLE, LEAST, MOST = 0.002, 0.04, 0.2  # tolerances: of what did not move, of what did, the largest
UNMEASURED = 0.06  # of a result with an interval that only one of the runs has


def tolerances(one: Path, other: Path) -> dict[str, dict[str, float]]:
    """Notebook -> key -> how far the result may move: twice what it moved between two runs.

    Names, and numbers that moved further than MOST, are left out: they say nothing of a machine.
    """
    first, second = records.series_results(one), records.series_results(other)
    known: dict[str, dict[str, float]] = {}
    for notebook, results in first.items():
        known[notebook] = {}
        for key, value in results.items():
            tolerance = tolerance_of(value, second.get(notebook, {}).get(key))
            if tolerance <= MOST:
                known[notebook][key] = tolerance
    return known


def tolerance_of(value, other) -> float:
    if other is None:
        return UNMEASURED if hasattr(value, "low") else math.inf
    distance = distance_of(value, other)
    return STABLE if distance < STABLE / 2 else max(LEAST, round(2 * distance, 3))


if __name__ == "__main__":
    text = json.dumps(tolerances(*map(Path, sys.argv[1:])), indent=1, ensure_ascii=False)
    (records.REFERENCE / "tolerances.json").write_text(text + "\n", encoding="utf-8")
