"""Predictions to numbers, each with its doubt.

An interval is a percentile bootstrap over test clips (whole tracks where clips share one): how far
a number would move with other clips of the same kind. The deviation over seeds stands beside it:
how far it moves with another start of the same training. Neither stands for the other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

LEVEL = 0.95
DRAWS = 1000


def accuracy(y, pred) -> float:
    """Share of clips whose class is right; y, pred : (N,) codes. Notebook: 06."""
    right = np.asarray(y) == np.asarray(pred)
    return float(right.mean())


def macro_f1(y, pred) -> float:
    """Unweighted mean of the F1 of the classes in `y`; y, pred : (N,) codes. Notebook: 06.

    Every class counts alike, however few clips it has: with two clips, one mistake moves its F1 by
    a third or more. In a bootstrap, a class that a resample lacks is left out of that resample's
    mean, which makes intervals a little too narrow where classes are tiny.
    """
    # Not scikit-learn's, which takes a hundred times as long: a bootstrap calls this very often.
    y, pred = np.asarray(y), np.asarray(pred)
    n = int(max(y.max(), pred.max())) + 1
    clips = np.bincount(y, minlength=n)
    guesses = np.bincount(pred, minlength=n)
    right = np.bincount(y[y == pred], minlength=n)
    f1 = 2 * right / np.maximum(clips + guesses, 1)
    return float(f1[clips > 0].mean())


def rho(y, pred) -> float:
    """Spearman's rank correlation of two vectors (N,). Notebook: 08.

    Only the order counts, not the scale: a network may be right about which clip is livelier and
    far off in how lively. 0 where one of them is constant, NaN where one holds NaN. Take it once
    over all clips; a mean over batches is another, larger number.
    """
    # Pearson's correlation of the ranks; not SciPy's, which a bootstrap would wait for.
    a, b = rankdata(y), rankdata(pred)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt(a @ a * (b @ b))
    if norm == 0:
        return 0.0
    return float(a @ b / norm)


def mean_rho(y, pred) -> float:
    """Mean of Spearman's rho over the columns of (N, k): step 8's final measure. Notebook: 08."""
    y, pred = np.asarray(y), np.asarray(pred)
    each = [rho(y[:, i], pred[:, i]) for i in range(y.shape[1])]
    return float(np.mean(each))


# --- doubt ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its 95 % interval over `n` clips, and its deviation over seeds.

    Notebook: 06.
    """

    value: float
    low: float
    high: float
    deviation: float
    seeds: int
    n: int

    def __str__(self) -> str:
        text = f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        if self.seeds == 1:
            return text
        return f"{text} ± {self.deviation:.3f} over {self.seeds} seeds"


@dataclass(frozen=True)
class Difference:
    """A paired difference of two methods, its interval over clips, and how many seeds agree.

    Notebook: 06.
    """

    value: float
    low: float
    high: float
    seeds_ahead: int
    seeds_behind: int
    seeds: int
    n: int


def bootstrap(metric, y, predictions, *, groups=None, draws=DRAWS, seed=0) -> Estimate:
    """`metric(y, prediction)`, mean over seeds, with an interval over clips. Notebook: 06.

    y : (N,) or (N, k); predictions : one like y, or a list with one a seed
    groups : (N,) labels; clips of one track are drawn together, since they are not independent
    """
    runs, y = as_runs(predictions), np.asarray(y)
    values = over_seeds(metric, y, runs)
    means = []
    for clips in resamples(len(y), draws, seed, groups):
        means.append(np.mean(over_seeds(metric, y, runs, clips)))
    low, high = interval(means)
    return Estimate(
        value=float(np.mean(values)),
        low=low,
        high=high,
        deviation=spread(values),
        seeds=len(runs),
        n=len(y),
    )


def compare(y, a, b, metric, *, groups=None, draws=DRAWS, seed=0) -> Difference:
    """metric(a) - metric(b) on the same clips, each the mean over its seeds. Notebook: 06.

    y, groups : as for `bootstrap`; a, b : predictions, one or a list with one a seed
    Seeds are compared one to one where both have as many, else each seed of the side that has more
    with the other side's mean.
    """
    y, a, b = np.asarray(y), as_runs(a), as_runs(b)
    ours = over_seeds(metric, y, a)
    theirs = over_seeds(metric, y, b)
    differences = []
    for clips in resamples(len(y), draws, seed, groups):
        mean_a = np.mean(over_seeds(metric, y, a, clips))
        mean_b = np.mean(over_seeds(metric, y, b, clips))
        differences.append(mean_a - mean_b)
    low, high = interval(differences)
    by_seed = ours.mean() - theirs
    if len(a) == len(b):
        by_seed = ours - theirs
    elif len(a) > len(b):
        by_seed = ours - theirs.mean()
    return Difference(
        value=float(ours.mean() - theirs.mean()),
        low=low,
        high=high,
        seeds_ahead=int(np.sum(by_seed > 0)),
        seeds_behind=int(np.sum(by_seed < 0)),
        seeds=len(by_seed),
        n=len(y),
    )


def verdict(difference: Difference) -> str:
    """The one word on a comparison: "ahead", "behind", "not distinguishable". Notebook: 06.

    Ahead or behind takes both: an interval over clips without 0, and every seed on that side.
    """
    if difference.low > 0 and difference.seeds_ahead == difference.seeds:
        return "ahead"
    if difference.high < 0 and difference.seeds_behind == difference.seeds:
        return "behind"
    return "not distinguishable"


def as_runs(predictions) -> list[np.ndarray]:
    """One array a seed; a single prediction is a list of one. Notebook: 06."""
    if not isinstance(predictions, (list, tuple)):
        predictions = [predictions]
    return [np.asarray(run) for run in predictions]


def over_seeds(metric, y: np.ndarray, runs: list[np.ndarray], clips=slice(None)) -> np.ndarray:
    """The metric of each seed's prediction, on some of the clips: (seeds,). Notebook: 06."""
    return np.array([metric(y[clips], run[clips]) for run in runs])


def spread(values) -> float:
    """Deviation over seeds; NaN for a single one. Notebook: 06."""
    if len(values) == 1:
        return float("nan")
    return float(np.std(values, ddof=1))


def interval(values) -> tuple[float, float]:
    """The middle 95 % of resampled values. Notebook: 06."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resamples(n: int, draws: int, seed: int, groups=None):
    """Yield positions drawn with replacement: clips, or whole groups. Notebooks: 06, 10."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n)
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    ends = np.cumsum(np.bincount(codes))[:-1]
    members = np.split(np.argsort(codes, kind="stable"), ends)
    for _ in range(draws):
        drawn = rng.integers(0, len(members), len(members))
        yield np.concatenate([members[i] for i in drawn])


# --- what the steps ask for -----------------------------------------------------------------------


def classification(y, probabilities, classes: list[str], *, groups=None) -> dict:
    """Everything that step 6 asks about one classifier. Notebook: 06.

    y : (N,) codes; probabilities : (N, n_classes), or a list with one a seed
    classes : names in the order of the codes; groups : as for `bootstrap`
    Returns accuracy and macro_f1 (Estimates); report (precision, recall, F1, clips of each class,
    then the macro average over the classes that occur and the micro average; means over seeds);
    confusion (n_classes, n_classes), rows true, summed over seeds; pred, (N,) codes a seed.
    """
    y = np.asarray(y)
    preds = [run.argmax(1) for run in as_runs(probabilities)]
    codes = np.arange(len(classes))
    reports = [class_report(y, pred, classes) for pred in preds]
    report = (sum(reports) / len(reports)).astype({"clips": int})
    confusions = [confusion_matrix(y, pred, labels=codes) for pred in preds]
    return {
        "accuracy": bootstrap(accuracy, y, preds, groups=groups),
        "macro_f1": bootstrap(macro_f1, y, preds, groups=groups),
        "report": report,
        "confusion": sum(confusions),
        "pred": preds,
    }


def class_report(y, pred, classes: list[str]) -> pd.DataFrame:
    """Precision, recall, F1, clips of each class, macro and micro averages. Notebook: 06."""
    codes = np.arange(len(classes))
    scores = precision_recall_fscore_support(y, pred, labels=codes, zero_division=0)
    names = ["precision", "recall", "F1", "clips"]
    report = pd.DataFrame(np.transpose(scores), index=classes, columns=names)
    for average, labels in {"macro": np.unique(y), "micro": codes}.items():
        row = precision_recall_fscore_support(
            y, pred, labels=labels, average=average, zero_division=0
        )
        report.loc[f"{average} average"] = [*row[:3], len(y)]
    return report


def spearman(y, predictions, axes, *, groups=None) -> dict[str, Estimate]:
    """Spearman's rho of each axis over all clips at once, and their mean ("mean"). Notebook: 08.

    y : (N, k), columns in the order of `axes`; predictions : like y, or a list with one a seed
    Raises ValueError when the labels are withheld, or shapes do not fit.
    """
    y, runs = np.asarray(y), as_runs(predictions)
    for run in runs:
        if y.shape != run.shape or y.ndim != 2 or y.shape[1] != len(axes):
            raise ValueError(
                f"labels {y.shape} and predictions {run.shape}; both should be (N, {len(axes)})"
            )
    if np.isnan(y).any():
        raise ValueError(
            "the labels of these clips are withheld (NaN): judge on a held-out part of the "
            "training split"
        )
    result = {}
    for i, axis in enumerate(axes):
        columns = [run[:, i] for run in runs]
        result[axis] = bootstrap(rho, y[:, i], columns, groups=groups)
    result["mean"] = bootstrap(mean_rho, y, runs, groups=groups)
    return result


def result_rows(
    model: str, task: str, input: str, test_set: str, baseline: bool = False, **estimates: Estimate
) -> list[dict]:
    """Rows for `save_run`, one a metric, with interval and spread. Notebooks: 06 to 10.

    baseline : whether the model has no network in it
    """
    where = {"model": model, "task": task, "input": input, "set": test_set, "baseline": baseline}
    return [where | {"metric": metric} | asdict(estimate) for metric, estimate in estimates.items()]


def affect_rows(
    model: str, input: str, test_set: str, found: dict[str, Estimate], baseline: bool = False
) -> list[dict]:
    """Rows for `save_run` of what `spearman` found: each axis, and their mean as task "affect".

    Notebooks: 08 to 10.
    """
    rows = []
    for axis, estimate in found.items():
        if axis == "mean":
            rows += result_rows(model, "affect", input, test_set, baseline, mean_spearman=estimate)
        else:
            rows += result_rows(model, axis, input, test_set, baseline, spearman=estimate)
    return rows
