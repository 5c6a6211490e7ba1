"""Predictions to numbers, each with an interval.

Intervals are percentile bootstraps over test clips: they say how far a number would move with other clips of the same
kind, not how far it would move with another seed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

LEVEL = 0.95


def accuracy(y, pred) -> float:
    return float(np.mean(np.asarray(y) == np.asarray(pred)))


def macro_f1(y, pred) -> float:
    """Unweighted mean of the F1 of the classes present in `y`."""
    # Not scikit-learn's, which takes a hundred times as long: a bootstrap calls this a thousand times.
    y, pred = np.asarray(y), np.asarray(pred)
    n = int(max(y.max(), pred.max())) + 1
    clips = np.bincount(y, minlength=n)
    f1 = 2 * np.bincount(y[y == pred], minlength=n) / np.maximum(clips + np.bincount(pred, minlength=n), 1)
    return float(f1[clips > 0].mean())


def rho(y, pred) -> float:
    """Spearman's rho of two vectors; 0 where one of them is constant, NaN where one holds NaN."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (y, pred)]
    norm = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / norm) if norm != 0 else 0.0


def mean_rho(y, pred) -> float:
    """Mean of Spearman's rho over the columns of (N, k)."""
    return float(np.mean([rho(y[:, i], pred[:, i]) for i in range(y.shape[1])]))


METRICS = {"accuracy": accuracy, "macro_f1": macro_f1, "spearman": rho, "mean_spearman": mean_rho}


# --- intervals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over `n` clips."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(metric, y, pred, *, groups=None, draws: int = 1000, seed: int = 0) -> Estimate:
    """`metric(y, pred)` with a percentile interval over resampled clips.

    metric : a function of (y, pred), or a name in METRICS
    y, pred : (N,) or (N, k)
    groups : (N,) labels; clips of one track are drawn together, since they are not independent
    """
    metric, y, pred = METRICS.get(metric, metric), np.asarray(y), np.asarray(pred)
    values = [metric(y[rows], pred[rows]) for rows in _resamples(len(y), draws, seed, groups)]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(metric(y, pred), float(low), float(high), len(y))


def compare(y, a, b, metric, *, groups=None, draws: int = 1000, seed: int = 0) -> dict:
    """Paired comparison of two predictions on the same clips: metric(a) - metric(b).

    metric, y, groups : as for `bootstrap`; a, b : (N,) or (N, k)
    Returns difference, low, high (95 %), the share of resamples in which b is at least as good (`p_not_better`), n.
    """
    metric, y, a, b = METRICS.get(metric, metric), np.asarray(y), np.asarray(a), np.asarray(b)
    resamples = _resamples(len(y), draws, seed, groups)
    differences = np.array([metric(y[rows], a[rows]) - metric(y[rows], b[rows]) for rows in resamples])
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "difference": metric(y, a) - metric(y, b), "low": float(low), "high": float(high),
        "p_not_better": float(np.mean(differences <= 0)), "n": len(y),
    }  # fmt: skip


def _resamples(n: int, draws: int, seed: int, groups):
    """Yield positions drawn with replacement: clips, or whole groups of clips."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    for _ in range(draws):
        yield np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])


# --- summaries ------------------------------------------------------------------------------------------------------


def classification(y, proba, classes: list[str], *, groups=None, seed: int = 0) -> dict:
    """Everything that step 6 asks about one classifier.

    y : (N,) codes; proba : (N, n_classes) probabilities or scores; classes : names in the order of the codes;
    groups : as for `bootstrap`
    Returns accuracy and macro_f1 (Estimates), report (DataFrame: precision, recall, F1, clips of each class, then the
    macro average over the classes present in `y` and the micro average), confusion (n_classes, n_classes; rows true),
    pred (N,).
    """
    y, pred = np.asarray(y), np.asarray(proba).argmax(1)
    codes = np.arange(len(classes))
    each = precision_recall_fscore_support(y, pred, labels=codes, zero_division=0)
    report = pd.DataFrame(np.transpose(each), index=classes, columns=["precision", "recall", "F1", "clips"])
    for average, labels in (("macro", np.unique(y)), ("micro", codes)):
        row = precision_recall_fscore_support(y, pred, labels=labels, average=average, zero_division=0)
        report.loc[f"{average} average"] = [*row[:3], len(y)]
    return {
        "accuracy": bootstrap(accuracy, y, pred, groups=groups, seed=seed),
        "macro_f1": bootstrap(macro_f1, y, pred, groups=groups, seed=seed),
        "report": report.astype({"clips": int}),
        "confusion": confusion_matrix(y, pred, labels=codes), "pred": pred,
    }  # fmt: skip


def spearman(y, pred, axes, *, groups=None, seed: int = 0) -> dict[str, Estimate]:
    """Spearman's rho of each axis over all clips at once, and their mean ("mean"), as Estimates.

    y, pred : (N, k), columns in the order of `axes`
    """
    y, pred = np.asarray(y), np.asarray(pred)
    if y.shape != pred.shape or y.ndim != 2 or y.shape[1] != len(axes):
        raise ValueError(f"labels {y.shape} and predictions {pred.shape}; both should be (N, {len(axes)})")
    if np.isnan(y).any():
        raise ValueError("the labels of these clips are withheld (NaN): judge on a held-out part of the training split")
    result = {axis: bootstrap(rho, y[:, i], pred[:, i], groups=groups, seed=seed) for i, axis in enumerate(axes)}
    return result | {"mean": bootstrap(mean_rho, y, pred, groups=groups, seed=seed)}


def rows_for(model: str, task: str, input: str, test_set: str, **estimates: Estimate) -> list[dict]:
    """Rows for `records`: one a metric, with its interval."""
    where = {"model": model, "task": task, "input": input, "set": test_set}
    return [where | {"metric": metric} | asdict(estimate) for metric, estimate in estimates.items()]


def over_seeds(y, runs: dict[str, list[np.ndarray]], axes) -> pd.DataFrame:
    """One row a model: Spearman's rho of each axis and their mean, averaged over seeds, and the deviation of that mean.

    y : (N, k); runs : model -> one (N, k) prediction a seed. The last column is the mean rho of the seeds' average.
    """
    table = {}
    for name, predictions in runs.items():
        each = np.array([[rho(y[:, i], p[:, i]) for i in range(len(axes))] for p in predictions])  # (seeds, k)
        table[name] = dict(zip(axes, each.mean(0), strict=True)) | {
            "mean": each.mean(), "± over seeds": each.mean(1).std(ddof=1) if len(each) > 1 else np.nan,
            "seeds": len(each), "seeds averaged": mean_rho(y, np.mean(predictions, axis=0)),
        }  # fmt: skip
    return pd.DataFrame(table).T.astype({"seeds": int})
