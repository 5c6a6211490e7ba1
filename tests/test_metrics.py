"""Metrics against scikit-learn's and SciPy's, intervals, paired comparisons, and the verdict."""

import inspect

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from labhelpers.metrics import (
    Difference,
    Estimate,
    accuracy,
    affect_rows,
    bootstrap,
    classification,
    compare,
    macro_f1,
    mean_rho,
    resamples,
    result_rows,
    rho,
    spearman,
    verdict,
)
from labhelpers.records import RESULT_FIELDS

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 4, 90)
GOOD = np.where(RNG.random(90) < 0.7, Y, RNG.integers(0, 4, 90))
POOR = np.where(RNG.random(90) < 0.3, Y, RNG.integers(0, 4, 90))
CLASSES = ["a", "b", "c", "d"]
AXES = ("valence", "energy", "danceability")


@pytest.fixture
def rng():
    return np.random.default_rng(1)


SPOILT = np.where(Y == 3, 9, Y)


@pytest.mark.parametrize("pred", [GOOD, POOR, Y, (Y + 1) % 4, np.zeros_like(Y), SPOILT])
def test_metrics_are_scikit_learns(pred):
    assert accuracy(Y, pred) == pytest.approx(accuracy_score(Y, pred))
    expected = f1_score(Y, pred, average="macro", labels=np.unique(Y), zero_division=0)
    assert macro_f1(Y, pred) == pytest.approx(expected)


def test_macro_f1_is_of_the_classes_present():
    """As in a resample that lacks a class: neither its absence nor a wrong guess of it has F1 0."""
    y, pred = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    assert macro_f1(y, pred) == pytest.approx((2 / 3 + 1) / 2)


def test_rho_is_scipys(rng):
    for ties in (1000, 5):
        y, pred = rng.integers(0, ties, 60) / ties, rng.integers(0, ties, 60) / ties
        assert rho(y, pred) == pytest.approx(spearmanr(y, pred).statistic)
        assert rho(y, pred**3) == pytest.approx(rho(y, pred))
    assert rho(y, y) == pytest.approx(1) and rho(y, -y) == pytest.approx(-1)
    a, b = rng.random((50, 3)), rng.random((50, 3))
    each = [spearmanr(a[:, i], b[:, i]).statistic for i in range(3)]
    assert mean_rho(a, b) == pytest.approx(np.mean(each))


def test_a_constant_prediction_has_rho_0_and_a_missing_label_none(rng):
    y = rng.random(20)
    assert rho(y, np.full(20, 0.4)) == 0.0
    assert np.isnan(rho(np.full(20, np.nan), y))


# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [accuracy, macro_f1])
def test_bootstrap(metric):
    estimate = bootstrap(metric, Y, GOOD)
    assert estimate.value == metric(Y, GOOD)
    assert (estimate.n, estimate.seeds) == (90, 1) and np.isnan(estimate.deviation)
    assert estimate.low < estimate.value < estimate.high
    same = bootstrap(metric, list(Y), GOOD)
    assert (same.value, same.low, same.high) == (estimate.value, estimate.low, estimate.high)
    other = bootstrap(metric, Y, GOOD, seed=1)
    assert metric is accuracy or (other.low, other.high) != (estimate.low, estimate.high)


def test_bootstrap_of_several_seeds():
    estimate = bootstrap(accuracy, Y, [GOOD, POOR])
    values = [accuracy(Y, GOOD), accuracy(Y, POOR)]
    assert estimate.value == pytest.approx(np.mean(values)) and estimate.seeds == 2
    assert estimate.deviation == pytest.approx(np.std(values, ddof=1))
    assert estimate.low < estimate.value < estimate.high
    # A clip is drawn for both seeds at once: two runs of the same decisions narrow nothing.
    once, twice = bootstrap(accuracy, Y, GOOD), bootstrap(accuracy, Y, [GOOD, GOOD])
    assert (once.low, once.high) == (twice.low, twice.high) and twice.deviation == 0


def test_width_of_the_interval():
    """Of a share p over n clips: near 2 · 1.96 · sqrt(p (1 - p) / n), ± .041 at .45 over 575."""
    hits = np.arange(575) < 0.45 * 575
    estimate = bootstrap(accuracy, np.ones(575, int), hits.astype(int), draws=4000)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(0.041, abs=0.003)


def test_an_estimate_in_words():
    words = str(Estimate(0.45, 0.4, 0.5, float("nan"), 1, 9))
    assert words == "0.450 [0.400, 0.500]"
    words = str(Estimate(0.45, 0.4, 0.5, 0.0123, 3, 9))
    assert words == "0.450 [0.400, 0.500] ± 0.012 over 3 seeds"


def test_groups_are_drawn_together(rng):
    """Clips of a track that are right or wrong together say no more than one: a wider interval."""
    tracks = np.repeat(np.arange(30), 4)
    hits = np.repeat(rng.random(30) < 0.6, 4).astype(int)
    alone = bootstrap(accuracy, np.ones(120, int), hits)
    names = [f"track {track}" for track in tracks]
    grouped = bootstrap(accuracy, np.ones(120, int), hits, groups=names)
    assert grouped.value == alone.value and grouped.n == 120
    assert 1.6 < (grouped.high - grouped.low) / (alone.high - alone.low) < 2.4
    for draw in resamples(120, 20, 0, names):
        counts = np.bincount(draw, minlength=120).reshape(30, 4)
        assert (counts == counts[:, :1]).all()


def test_groups_of_one_change_nothing():
    groups = [f"{i:02d}" for i in range(90)]
    alone, grouped = bootstrap(accuracy, Y, GOOD), bootstrap(accuracy, Y, GOOD, groups=groups)
    assert (alone.low, alone.high) == (grouped.low, grouped.high)


@pytest.mark.parametrize("groups", [None, np.arange(90) // 2])
def test_comparison_is_paired_and_antisymmetric(groups):
    a = compare(Y, GOOD, POOR, macro_f1, groups=groups)
    b = compare(Y, POOR, GOOD, macro_f1, groups=groups)
    assert a.value == pytest.approx(macro_f1(Y, GOOD) - macro_f1(Y, POOR)) and a.n == 90
    assert (a.value, a.low, a.high) == pytest.approx((-b.value, -b.high, -b.low))
    assert a.low > 0 and (a.seeds_ahead, a.seeds_behind, a.seeds) == (1, 0, 1)
    assert (b.seeds_ahead, b.seeds_behind) == (0, 1)
    same = compare(Y, GOOD, GOOD, accuracy, groups=groups)
    assert same.value == same.low == same.high == same.seeds_ahead == same.seeds_behind == 0


def test_pairing_narrows_the_interval():
    nearly = GOOD.copy()
    nearly[:3] = (nearly[:3] + 1) % 4
    paired = compare(Y, GOOD, nearly, accuracy)
    alone = bootstrap(accuracy, Y, GOOD)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_seeds_are_compared_one_to_one_or_with_the_mean():
    pairs = compare(Y, [GOOD, POOR], [POOR, GOOD], accuracy)
    assert (pairs.seeds_ahead, pairs.seeds_behind, pairs.seeds) == (1, 1, 2)
    assert pairs.value == pytest.approx(0)
    mean = compare(Y, [GOOD, Y, POOR], GOOD, accuracy)  # even, ahead, behind
    assert (mean.seeds_ahead, mean.seeds_behind, mean.seeds) == (1, 1, 3)
    expected = np.mean([accuracy(Y, run) for run in (GOOD, Y, POOR)]) - accuracy(Y, GOOD)
    assert mean.value == pytest.approx(expected)


@pytest.mark.parametrize(
    "value, low, high, ahead, behind, word",
    [
        (0.2, 0.1, 0.3, 3, 0, "ahead"),
        (-0.2, -0.3, -0.1, 0, 3, "behind"),
        (0.2, 0.1, 0.3, 2, 1, "not distinguishable"),  # a seed disagrees
        (0.2, 0.1, 0.3, 2, 0, "not distinguishable"),  # a seed is even
        (-0.2, -0.3, -0.1, 0, 2, "not distinguishable"),
        (0.1, -0.05, 0.3, 3, 0, "not distinguishable"),  # the clips do not agree
        (0.1, 0.0, 0.3, 3, 0, "not distinguishable"),  # an interval that touches 0
        (-0.1, -0.3, 0.0, 0, 3, "not distinguishable"),
        (0.0, 0.0, 0.0, 0, 0, "not distinguishable"),  # the same decisions
    ],
)
def test_the_verdict_on_a_difference(value, low, high, ahead, behind, word):
    assert verdict(Difference(value, low, high, ahead, behind, 3, 90)) == word


def test_verdicts_on_predictions(rng):
    y = rng.random((60, 3))
    near, far = y + rng.normal(0, 0.05, y.shape), y + rng.normal(0, 1.0, y.shape)
    constant = np.full_like(y, 0.5)
    assert verdict(compare(y, near, far, mean_rho)) == "ahead"
    assert verdict(compare(y, far, near, mean_rho)) == "behind"
    assert verdict(compare(y, near, constant, mean_rho)) == "ahead"
    assert verdict(compare(y, constant, constant, mean_rho)) == "not distinguishable"
    assert verdict(compare(y, [near, near], [near, near], mean_rho)) == "not distinguishable"


def test_a_comparison_turned_round_is_the_same(rng):
    """One seed against five, of which one is bad: not distinguishable, from either side."""
    y = rng.random((60, 3))
    five = [y + rng.normal(0, 0.3, y.shape) for _ in range(5)]
    one, five[0] = y + rng.normal(0, 0.6, y.shape), rng.random((60, 3))
    there, back = compare(y, five, one, mean_rho), compare(y, one, five, mean_rho)
    assert there.low > 0 and (there.seeds, there.seeds_ahead) == (5, 4)
    assert (back.seeds, back.seeds_behind) == (5, 4)
    assert (back.value, back.low) == pytest.approx((-there.value, -there.high))
    assert verdict(there) == verdict(back) == "not distinguishable"


# --- summaries ------------------------------------------------------------------------------------


def test_classification_is_scikit_learns():
    result = classification(Y, np.eye(4)[GOOD], CLASSES)
    report = result["report"]
    assert list(report.index) == [*CLASSES, "macro average", "micro average"]
    each = precision_recall_fscore_support(Y, GOOD)
    np.testing.assert_allclose(report.iloc[:4].to_numpy(float), np.transpose(each))
    for average in ("macro", "micro"):
        row = precision_recall_fscore_support(Y, GOOD, average=average)[:3]
        expected = [*row, 90]
        np.testing.assert_allclose(report.loc[f"{average} average"].to_numpy(float), expected)
    np.testing.assert_array_equal(result["confusion"], confusion_matrix(Y, GOOD))
    np.testing.assert_array_equal(result["pred"], [GOOD])
    assert result["accuracy"].value == report.loc["micro average", "F1"] == accuracy_score(Y, GOOD)
    assert result["macro_f1"].value == pytest.approx(report.loc["macro average", "F1"])


def test_classification_over_seeds():
    runs = [np.eye(4)[GOOD], np.eye(4)[POOR]]
    both = classification(Y, runs, CLASSES)
    alone = [classification(Y, run, CLASSES) for run in runs]
    mean = (alone[0]["report"].astype(float) + alone[1]["report"]) / 2
    np.testing.assert_allclose(both["report"].to_numpy(float), mean.to_numpy(float))
    confusion = alone[0]["confusion"] + alone[1]["confusion"]
    np.testing.assert_array_equal(both["confusion"], confusion)
    assert both["macro_f1"].value == pytest.approx(mean.loc["macro average", "F1"])
    assert both["accuracy"].seeds == 2 and len(both["pred"]) == 2


def test_classification_by_groups_has_other_intervals():
    groups = np.repeat(np.arange(30), 3)
    alone, grouped = (classification(Y, np.eye(4)[GOOD], CLASSES, groups=g) for g in (None, groups))
    for metric in ("accuracy", "macro_f1"):
        assert alone[metric].low != grouped[metric].low
        assert alone[metric].value == grouped[metric].value


def test_classification_with_a_class_that_the_test_set_lacks():
    few = Y != 3
    result = classification(Y[few], np.eye(4)[GOOD[few]], CLASSES)
    report = result["report"]
    assert report.loc["d"].tolist()[1:] == [0, 0, 0] and result["confusion"].shape == (4, 4)
    assert result["macro_f1"].value == pytest.approx(report.loc["macro average", "F1"])
    assert result["accuracy"].value == pytest.approx(report.loc["micro average", "recall"])


def test_spearman_of_each_axis_and_the_mean(rng):
    y = rng.random((40, 3))
    pred = y + rng.normal(0, [0.05, 0.3, 3], (40, 3))
    result = spearman(y, pred, AXES)
    for i, axis in enumerate(AXES):
        assert result[axis].value == pytest.approx(spearmanr(y[:, i], pred[:, i]).statistic)
        assert result[axis].low <= result[axis].value <= result[axis].high
    each = [result[axis].value for axis in AXES]
    assert result["mean"].value == pytest.approx(np.mean(each))
    groups = np.arange(40) // 4
    grouped = spearman(y, [pred, pred], AXES, groups=groups)
    assert grouped["mean"].value == pytest.approx(result["mean"].value)
    assert grouped["mean"].seeds == 2
    assert all(grouped[axis].low != result[axis].low for axis in (*AXES, "mean"))
    with pytest.raises(ValueError, match=r"labels \(40, 3\) and predictions \(40, 1\)"):
        spearman(y, pred[:, :1], AXES)
    with pytest.raises(ValueError, match="withheld"):
        spearman(np.full((40, 3), np.nan), pred, AXES)


def test_results_for_records():
    estimate = bootstrap(accuracy, Y, [GOOD, POOR])
    row, other = result_rows("LSTM", "genre", "mel", "test", accuracy=estimate, macro_f1=estimate)
    assert row == {
        "model": "LSTM",
        "task": "genre",
        "input": "mel",
        "set": "test",
        "metric": "accuracy",
        "baseline": False,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "deviation": estimate.deviation,
        "seeds": 2,
        "n": 90,
    }
    assert other["metric"] == "macro_f1" and set(row) == RESULT_FIELDS
    (row,) = result_rows("SVM", "genre", "mel", "test", baseline=True, accuracy=estimate)
    assert row["baseline"] is True


def test_results_of_the_affect_axes(rng):
    y = rng.random((30, 3))
    rows = affect_rows("CNN mel", "mel", "held-out", spearman(y, [y, y], AXES))
    assert [(row["task"], row["metric"]) for row in rows] == [
        *((axis, "spearman") for axis in AXES),
        ("affect", "mean_spearman"),
    ]
    assert all(set(row) == RESULT_FIELDS and row["seeds"] == 2 for row in rows)


def test_every_interval_can_be_drawn_by_groups():
    """Whoever gives an interval takes groups: clips of one track are no independent clips."""
    for function in (bootstrap, compare, classification, spearman):
        assert "groups" in inspect.signature(function).parameters
