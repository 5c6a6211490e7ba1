"""Predictions to numbers, each with its interval.

An interval is a percentile bootstrap over test clips (whole tracks where clips share one) and over
seeds: how far a number would move with other clips of the same kind and another start of the
training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import precision_recall_fscore_support

from .corpus import AFFECT

LEVEL = 0.95
DRAWS = 1000


def accuracy(y, pred) -> float:
    """Share of clips whose class is right; y, pred : (N,) codes. Notebook: 06."""
    return float((np.asarray(y) == np.asarray(pred)).mean())


def macro_f1(y, pred) -> float:
    """Unweighted mean of the F1 of the classes in `y`; y, pred : (N,) codes. Notebook: 06.

    Every class counts alike, however few clips it has. In a bootstrap, a class that a resample
    lacks is left out of that resample's mean.
    """
    # Not scikit-learn's, which takes a hundred times as long: a bootstrap calls this very often.
    y, pred = np.asarray(y), np.asarray(pred)
    n = int(max(y.max(), pred.max())) + 1
    clips, guesses = np.bincount(y, minlength=n), np.bincount(pred, minlength=n)
    right = np.bincount(y[y == pred], minlength=n)
    f1 = 2 * right / np.maximum(clips + guesses, 1)
    return float(f1[clips > 0].mean())


def rho(y, pred) -> float:
    """Spearman's rank correlation of two vectors (N,). Notebook: 08.

    Only the order counts, not the scale. 0 where one of them is constant, NaN where one holds NaN.
    It is taken once over all clips: a mean over batches is another number.
    """
    # Pearson's correlation of the ranks; not SciPy's, which a bootstrap would wait for.
    a, b = rankdata(y), rankdata(pred)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt(a @ a * (b @ b))
    return float(a @ b / norm) if norm != 0 else 0.0


def mean_rho(y, pred) -> float:
    """Mean of Spearman's rho over the columns of (N, k): step 8's final measure. Notebook: 08."""
    y, pred = np.asarray(y), np.asarray(pred)
    return float(np.mean([rho(y[:, i], pred[:, i]) for i in range(y.shape[1])]))


def class_report(y, pred, classes: list[str]) -> pd.DataFrame:
    """Precision, recall, F1, clips of each class, macro and micro averages. Notebook: 06."""
    codes = np.arange(len(classes))
    scores = precision_recall_fscore_support(y, pred, labels=codes, zero_division=0)
    names = ["precision", "recall", "F1", "clips"]
    report = pd.DataFrame(np.transpose(scores), index=classes, columns=names)
    for average, labels in {"macro": np.unique(y), "micro": codes}.items():
        options = {"labels": labels, "average": average, "zero_division": 0}
        row = precision_recall_fscore_support(y, pred, **options)
        report.loc[f"{average} average"] = [*row[:3], len(y)]
    return report.astype({"clips": int})


# --- intervals ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its 95 % interval over n clips and the seeds, its deviation over seeds.

    Notebook: 06.
    """

    value: float
    low: float
    high: float
    deviation: float
    seeds: int
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Difference:
    """A paired difference of two methods and its interval over n clips and the seeds.

    The interval is corrected for so many `comparisons` (Bonferroni). seeds_ahead : how many seeds
    of the first method lie above the mean of the second. Notebook: 06.
    """

    value: float
    low: float
    high: float
    seeds_ahead: int
    seeds: int
    n: int
    comparisons: int = 1

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def verdict(difference: Difference) -> str:
    """The word on a comparison: "ahead", "behind" or "not distinguishable". Notebook: 06.

    Ahead or behind: the corrected interval leaves out 0.
    """
    if difference.low > 0:
        return "ahead"
    return "behind" if difference.high < 0 else "not distinguishable"


def bootstrap(metric, y, runs, *, groups=None, draws=DRAWS, seed=0) -> Estimate:
    """`metric(y, prediction)`, mean over seeds, with its interval. Notebook: 06.

    y : (N,) or (N, k); runs : one prediction like y, or a list with one for each seed
    groups : (N,) labels; clips of one track are drawn together, since they are not independent
    """
    y, runs = np.asarray(y), as_runs(runs)
    values = over_seeds(metric, y, runs)
    rng = np.random.default_rng(seed)
    means = [_draw(metric, y, runs, clips, rng) for clips in resamples(len(y), draws, rng, groups)]
    low, high = interval(means, LEVEL)
    deviation = float(np.std(values, ddof=1)) if len(runs) > 1 else float("nan")
    return Estimate(float(np.mean(values)), low, high, deviation, len(runs), len(y))


def compare(y, a, b, metric, *, groups=None, comparisons=1, draws=2 * DRAWS, seed=0) -> Difference:
    """metric(a) - metric(b) on the same clips, each the mean over its own seeds. Notebook: 06.

    y, groups : as for `bootstrap`; a, b : predictions, one or a list with one for each seed
    comparisons : how many pairs the same table compares. The order of seeds does not matter: the
    starts of two architectures have nothing in common.
    """
    y, a, b = np.asarray(y), as_runs(a), as_runs(b)
    ours, theirs = over_seeds(metric, y, a), over_seeds(metric, y, b)
    rng = np.random.default_rng(seed)
    differences = []
    for clips in resamples(len(y), draws, rng, groups):
        difference = _draw(metric, y, a, clips, rng) - _draw(metric, y, b, clips, rng)
        differences.append(difference)
    low, high = interval(differences, 1 - (1 - LEVEL) / comparisons)
    ahead = int(np.sum(ours > theirs.mean()))
    value = float(ours.mean() - theirs.mean())
    return Difference(value, low, high, ahead, len(a), len(y), comparisons)


def _draw(metric, y, runs, clips, rng):
    """The metric on resampled clips, mean over resampled seeds."""
    values = over_seeds(metric, y[clips], [run[clips] for run in runs])
    return float(values[rng.integers(0, len(values), len(values))].mean())


def as_runs(predictions) -> list[np.ndarray]:
    """One array for each seed; a single prediction is a list of one."""
    if not isinstance(predictions, (list, tuple)):
        predictions = [predictions]
    return [np.asarray(run) for run in predictions]


def over_seeds(metric, y: np.ndarray, runs: list[np.ndarray]) -> np.ndarray:
    """The metric of each seed's prediction (seeds,), in ascending order, so that none counts."""
    return np.sort([metric(y, run) for run in runs])


def interval(values, level: float) -> tuple[float, float]:
    """The middle share `level` of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resamples(n: int, draws: int, rng, groups=None):
    """Yield positions drawn with replacement: clips, or whole groups. Notebooks: 06, 10."""
    codes = np.arange(n)
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    ends = np.cumsum(np.bincount(codes))[:-1]
    members = np.split(np.argsort(codes, kind="stable"), ends)
    for _ in range(draws):
        drawn = rng.integers(0, len(members), len(members))
        yield np.concatenate([members[i] for i in drawn])


def spearman(y, runs, *, groups=None) -> dict[str, Estimate]:
    """Spearman's rho of each affect axis over all clips at once, and their mean. Notebook: 08.

    y : (N, 3); runs : predictions like y, or a list with one for each seed. Keys: the axes, "mean".
    Raises ValueError when the labels are withheld, or shapes do not fit.
    """
    y, runs = np.asarray(y), as_runs(runs)
    for run in runs:
        if y.shape != run.shape or y.ndim != 2 or y.shape[1] != len(AFFECT):
            raise ValueError(f"labels {y.shape} and predictions {run.shape}; both are (N, 3)")
    if np.isnan(y).any():
        raise ValueError("labels of these clips are withheld: judge on labelled ones, in folds")
    result = {}
    for i, axis in enumerate(AFFECT):
        result[axis] = bootstrap(rho, y[:, i], [run[:, i] for run in runs], groups=groups)
    result["mean"] = bootstrap(mean_rho, y, runs, groups=groups)
    return result
