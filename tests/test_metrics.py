"""Metrics against scikit-learn's and SciPy's, intervals, paired comparisons, and the baselines."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from labhelpers.baselines import majority_baseline, row_statistics, svm_baseline
from labhelpers.datasets import SpectrogramDataset
from labhelpers.metrics import (
    METRICS,
    accuracy,
    bootstrap,
    classification,
    compare,
    macro_f1,
    mean_rho,
    over_seeds,
    rho,
    rows_for,
    spearman,
)
from labhelpers.models import Classifier, LSTMBackbone, MultitaskRegressor
from labhelpers.training import predict, run_model

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 4, 90)
GOOD = np.where(RNG.random(90) < 0.7, Y, RNG.integers(0, 4, 90))
POOR = np.where(RNG.random(90) < 0.3, Y, RNG.integers(0, 4, 90))
CLASSES = ["a", "b", "c", "d"]


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.mark.parametrize("pred", [GOOD, POOR, Y, (Y + 1) % 4, np.zeros_like(Y), np.where(Y == 3, 9, Y)])
def test_metrics_are_scikit_learns(pred):
    assert accuracy(Y, pred) == pytest.approx(accuracy_score(Y, pred))
    expected = f1_score(Y, pred, average="macro", labels=np.unique(Y), zero_division=0)
    assert macro_f1(Y, pred) == pytest.approx(expected)


def test_macro_f1_is_of_the_classes_present():
    """As in a resample that lacks a class: neither its absence nor a wrong guess of it is a class with F1 = 0."""
    y, pred = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    assert macro_f1(y, pred) == pytest.approx((2 / 3 + 1) / 2)


def test_rho_is_scipys(rng):
    for ties in (1000, 5):
        y, pred = rng.integers(0, ties, 60) / ties, rng.integers(0, ties, 60) / ties
        assert rho(y, pred) == pytest.approx(spearmanr(y, pred).statistic)
        assert rho(y, pred**3) == pytest.approx(rho(y, pred))
    assert rho(y, y) == pytest.approx(1) and rho(y, -y) == pytest.approx(-1)
    a, b = rng.random((50, 3)), rng.random((50, 3))
    assert mean_rho(a, b) == pytest.approx(np.mean([spearmanr(a[:, i], b[:, i]).statistic for i in range(3)]))


def test_a_constant_prediction_has_rho_0_and_a_missing_label_none(rng):
    y = rng.random(20)
    assert rho(y, np.full(20, 0.4)) == 0.0
    assert np.isnan(rho(np.full(20, np.nan), y))


# --- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", accuracy])
def test_bootstrap(metric):
    estimate = bootstrap(metric, Y, GOOD)
    assert estimate.value == METRICS.get(metric, metric)(Y, GOOD) and estimate.n == 90
    assert estimate.low < estimate.value < estimate.high
    assert bootstrap(metric, Y, GOOD) == estimate
    assert metric != "macro_f1" or bootstrap(metric, Y, GOOD, seed=1) != estimate
    assert bootstrap(metric, list(Y), list(GOOD)) == estimate


def test_width_of_the_interval():
    """Of a share p over n clips: near 2 · 1.96 · sqrt(p (1 - p) / n), FACTS' ± .041 at .45 over 575 clips."""
    hits = np.arange(575) < 0.45 * 575
    estimate = bootstrap("accuracy", np.ones(575, int), hits.astype(int), draws=4000)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(0.041, abs=0.003)
    assert str(estimate).startswith("0.450 [0.4")


def test_groups_are_drawn_together(rng):
    """Clips of one track that are right or wrong together say no more than one clip: the interval is wider."""
    tracks = np.repeat(np.arange(30), 4)
    hits = np.repeat(rng.random(30) < 0.6, 4).astype(int)
    alone = bootstrap("accuracy", np.ones(120, int), hits)
    grouped = bootstrap("accuracy", np.ones(120, int), hits, groups=[f"track {t}" for t in tracks])
    assert grouped.value == alone.value and grouped.n == 120
    assert 1.6 < (grouped.high - grouped.low) / (alone.high - alone.low) < 2.4
    single = bootstrap("accuracy", Y, GOOD, groups=np.arange(90))  # groups of one change nothing
    assert single == bootstrap("accuracy", Y, GOOD)


@pytest.mark.parametrize("groups", [None, np.arange(90) // 2])
def test_comparison_is_paired_and_antisymmetric(groups):
    a, b = compare(Y, GOOD, POOR, "macro_f1", groups=groups), compare(Y, POOR, GOOD, "macro_f1", groups=groups)
    assert a["difference"] == pytest.approx(macro_f1(Y, GOOD) - macro_f1(Y, POOR)) and a["n"] == 90
    assert (a["difference"], a["low"], a["high"]) == pytest.approx((-b["difference"], -b["high"], -b["low"]))
    assert a["low"] > 0 and a["p_not_better"] < 0.01 and b["p_not_better"] > 0.99
    same = compare(Y, GOOD, GOOD, "accuracy", groups=groups)
    assert same["difference"] == same["low"] == same["high"] == 0 and same["p_not_better"] == 1


def test_pairing_narrows_the_interval():
    nearly = GOOD.copy()
    nearly[:3] = (nearly[:3] + 1) % 4
    paired = compare(Y, GOOD, nearly, "accuracy")
    alone = bootstrap("accuracy", Y, GOOD)
    assert paired["high"] - paired["low"] < 0.5 * (alone.high - alone.low)


# --- summaries ------------------------------------------------------------------------------------------------------


def test_classification_is_scikit_learns():
    result = classification(Y, np.eye(4)[GOOD], CLASSES)
    report = result["report"]
    assert list(report.index) == [*CLASSES, "macro average", "micro average"]
    each = precision_recall_fscore_support(Y, GOOD)
    np.testing.assert_allclose(report.iloc[:4].to_numpy(float), np.transpose(each))
    for average in ("macro", "micro"):
        row = precision_recall_fscore_support(Y, GOOD, average=average)[:3]
        np.testing.assert_allclose(report.loc[f"{average} average"].to_numpy(float), [*row, 90])
    np.testing.assert_array_equal(result["confusion"], confusion_matrix(Y, GOOD))
    np.testing.assert_array_equal(result["pred"], GOOD)
    assert result["accuracy"].value == report.loc["micro average", "F1"] == accuracy_score(Y, GOOD)
    assert result["macro_f1"].value == pytest.approx(report.loc["macro average", "F1"])


def test_classification_with_a_class_that_the_test_set_lacks():
    few = Y != 3
    result = classification(Y[few], np.eye(4)[GOOD[few]], CLASSES)
    assert result["report"].loc["d"].tolist()[1:] == [0, 0, 0] and result["confusion"].shape == (4, 4)
    assert result["macro_f1"].value == pytest.approx(result["report"].loc["macro average", "F1"])
    assert result["accuracy"].value == pytest.approx(result["report"].loc["micro average", "recall"])


def test_spearman_of_each_axis_and_the_mean(rng):
    y = rng.random((40, 3))
    pred = y + rng.normal(0, [0.05, 0.3, 3], (40, 3))
    result = spearman(y, pred, ("valence", "energy", "danceability"))
    for i, axis in enumerate(("valence", "energy", "danceability")):
        assert result[axis].value == pytest.approx(spearmanr(y[:, i], pred[:, i]).statistic)
        assert result[axis].low <= result[axis].value <= result[axis].high
    assert result["mean"].value == pytest.approx(np.mean([result[axis].value for axis in result if axis != "mean"]))
    with pytest.raises(ValueError, match=r"labels \(40, 3\) and predictions \(40, 1\)"):
        spearman(y, pred[:, :1], ("valence", "energy", "danceability"))
    with pytest.raises(ValueError, match="withheld"):
        spearman(np.full((40, 3), np.nan), pred, ("valence", "energy", "danceability"))


def test_table_over_seeds(rng):
    y = rng.random((30, 2))
    runs = [y + rng.normal(0, 0.5, y.shape) for _ in range(3)]
    table = over_seeds(y, {"CNN": runs, "SVM": runs[:1]}, ["valence", "energy"])
    means = [mean_rho(y, run) for run in runs]
    assert table.loc["CNN", "mean"] == pytest.approx(np.mean(means)) and table.loc["CNN", "seeds"] == 3
    assert table.loc["CNN", "± over seeds"] == pytest.approx(np.std(means, ddof=1))
    assert table.loc["CNN", "seeds averaged"] == pytest.approx(mean_rho(y, np.mean(runs, axis=0)))
    assert table.loc["SVM", "energy"] == pytest.approx(rho(y[:, 1], runs[0][:, 1]))
    assert np.isnan(table.loc["SVM", "± over seeds"])


def test_rows_for_records():
    estimate = bootstrap("accuracy", Y, GOOD)
    (row,) = rows_for("LSTM", "genre", "beat mel", "test", accuracy=estimate)
    assert row == {
        "model": "LSTM", "task": "genre", "input": "beat mel", "set": "test", "metric": "accuracy",
        "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": 90,
    }  # fmt: skip


# --- models and baselines -------------------------------------------------------------------------------------------


@pytest.fixture
def clips(shared_corpus):
    return [SpectrogramDataset(shared_corpus, "genre", split) for split in ("train", "test")]


@pytest.mark.parametrize("crop", [None, 16])
def test_predictions(clips, shared_corpus, crop):
    torch.manual_seed(0)
    model = Classifier(LSTMBackbone(140, 4, 1), clips[0].classes).normalise_from(clips[0]).train()
    proba = predict(model, clips[1], crop=crop)
    assert proba.shape == (16, 4) and isinstance(proba, np.ndarray)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    if crop is None:
        np.testing.assert_allclose(proba, run_model(model, clips[1]).softmax(1), rtol=1e-5)
    affect = SpectrogramDataset(shared_corpus, "affect", "test")
    shared = MultitaskRegressor(model.backbone, genre_classes=clips[0].classes)
    values = predict(shared, affect, crop=crop)
    assert values.shape == (10, 3) and (values > 0).all() and (values < 1).all()


def test_row_statistics(clips):
    part = clips[0].subset([0, 20])
    x = part[1][0].numpy()
    expected = np.concatenate([x.mean(0), x.std(0), np.abs(np.diff(x, axis=0)).mean(0)])
    np.testing.assert_allclose(row_statistics(part)[1], expected, rtol=1e-5)
    assert row_statistics(part.with_rows("chroma")).shape == (2, 36)


def test_baselines(clips, shared_corpus):
    train, test = clips
    assert (svm_baseline(train, test).argmax(1) == test.y.numpy()).mean() > 0.9
    lopsided = train.subset(range(20))  # 16 clips of one genre, 4 of another
    assert (majority_baseline(lopsided, test).argmax(1) == int(lopsided.y[0])).all()
    affect = SpectrogramDataset(shared_corpus, "affect")
    first, rest = affect.subset(range(45)), affect.subset(range(45, 60))
    assert mean_rho(rest.y.numpy(), svm_baseline(first, rest)) > 0.6
    constant = majority_baseline(first, rest)
    np.testing.assert_allclose(constant, np.tile(first.y.mean(0), (15, 1)), rtol=1e-5)
    assert mean_rho(rest.y.numpy(), constant) == 0
