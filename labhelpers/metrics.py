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
    return float(np.mean(np.asarray(y) == np.asarray(pred)))


def macro_f1(y, pred) -> float:
    """Unweighted mean of the F1 of the classes in `y`; y, pred : (N,) codes. Notebook: 06.

    Every class counts alike, however few clips it has: with two clips, one mistake moves its F1 by
    a third or more. In a bootstrap, a class that a resample lacks is left out of that resample's
    mean, which makes intervals a little too narrow where classes are tiny.
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

    Only the order counts, not the scale: a network may be right about which clip is livelier and
    far off in how lively. 0 where one of them is constant, NaN where one holds NaN. Take it once
    over all clips; a mean over batches is another, larger number.
    """
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (y, pred)]
    norm = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / norm) if norm != 0 else 0.0


def mean_rho(y, pred) -> float:
    """Mean of Spearman's rho over the columns of (N, k): step 8's final measure. Notebook: 08."""
    columns = zip(np.asarray(y).T, np.asarray(pred).T, strict=True)
    return float(np.mean([rho(*pair) for pair in columns]))


# --- doubt ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its 95 % interval over `n` clips, and its deviation over seeds."""

    value: float
    low: float
    high: float
    deviation: float
    seeds: int
    n: int

    def __str__(self) -> str:
        spread = f" ± {self.deviation:.3f} over {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{spread}"


@dataclass(frozen=True)
class Difference:
    """A paired difference of two methods, its interval over clips, and how many seeds agree."""

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
    values = [metric(y, run) for run in runs]
    means = [
        np.mean([metric(y[clips], run[clips]) for run in runs])
        for clips in resamples(len(y), draws, seed, groups)
    ]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(
        float(np.mean(values)), float(low), float(high), spread(values), len(runs), len(y)
    )


def compare(y, a, b, metric, *, groups=None, draws=DRAWS, seed=0) -> Difference:
    """metric(a) - metric(b) on the same clips, each the mean over its seeds. Notebook: 06.

    y, groups : as for `bootstrap`; a, b : predictions, one or a list with one a seed
    Seeds are compared one to one where both have as many, else each of a's with b's mean.
    """
    y, a, b = np.asarray(y), as_runs(a), as_runs(b)
    ours, theirs = [metric(y, run) for run in a], [metric(y, run) for run in b]
    differences = []
    for clips in resamples(len(y), draws, seed, groups):
        mean_a = np.mean([metric(y[clips], run[clips]) for run in a])
        mean_b = np.mean([metric(y[clips], run[clips]) for run in b])
        differences.append(mean_a - mean_b)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    by_seed = np.array(ours) - (theirs if len(a) == len(b) else np.mean(theirs))
    return Difference(
        float(np.mean(ours) - np.mean(theirs)), float(low), float(high),
        int((by_seed > 0).sum()), int((by_seed < 0).sum()), len(by_seed), len(y),
    )  # fmt: skip


def verdict(difference: Difference) -> str:
    """"ahead", "behind" or "not distinguishable": the one word on a comparison. Notebook: 06.

    Ahead or behind takes both: an interval over clips without 0, and every seed on that side.
    """
    if difference.low > 0 and difference.seeds_ahead == difference.seeds:
        return "ahead"
    if difference.high < 0 and difference.seeds_behind == difference.seeds:
        return "behind"
    return "not distinguishable"


def as_runs(predictions) -> list[np.ndarray]:
    """One array a seed; a single prediction is a list of one."""
    several = isinstance(predictions, (list, tuple))
    return [np.asarray(run) for run in (predictions if several else [predictions])]


def spread(values) -> float:
    """Deviation over seeds; NaN for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def resamples(n: int, draws: int, seed: int, groups=None):
    """Yield positions drawn with replacement: clips, or whole groups of clips. Notebook: 06."""
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
        result[axis] = bootstrap(rho, y[:, i], [run[:, i] for run in runs], groups=groups)
    result["mean"] = bootstrap(mean_rho, y, runs, groups=groups)
    return result


def result_rows(
    model: str, task: str, input: str, test_set: str, baseline: bool = False, **estimates: Estimate
) -> list[dict]:
    """Rows for `save_run`, one a metric, with interval and spread. Notebooks: 06 to 10.

    baseline : whether the model has no network in it
    """
    where = {"model": model, "task": task, "input": input, "set": test_set, "baseline": baseline}
    return [
        where | {"metric": metric} | asdict(estimate) for metric, estimate in estimates.items()
    ]
