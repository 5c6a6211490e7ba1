"""Numbers equal to scikit-learn's and SciPy's, and intervals that mean what they say."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, classification_report, f1_score

from labhelpers import metrics
from labhelpers.metrics import Difference, accuracy, bootstrap, compare, mean_rho, rho, verdict


@pytest.fixture
def codes():
    rng = np.random.default_rng(0)
    y = rng.choice(4, 200, p=[0.5, 0.3, 0.15, 0.05])
    return y, np.where(rng.random(200) < 0.6, y, rng.integers(0, 4, 200))


def test_classification_is_scikit_learns(codes):
    y, pred = codes
    assert accuracy(y, pred) == accuracy_score(y, pred)
    assert metrics.macro_f1(y, pred) == pytest.approx(f1_score(y, pred, average="macro"))
    report = metrics.class_report(y, pred, list("abcd"))
    theirs = classification_report(y, pred, target_names=list("abcd"), output_dict=True)
    for name in "abcd":
        expected = [theirs[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert report.loc[name].tolist() == pytest.approx(expected)
    macro = theirs["macro avg"]["recall"]
    assert report.loc["macro average", "recall"] == pytest.approx(macro)
    assert report.loc["micro average", "F1"] == pytest.approx(accuracy(y, pred))
    assert metrics.macro_f1([0, 0, 1], [0, 0, 3]) == pytest.approx(0.5)  # of classes that occur


def test_rho_is_scipys_with_ties_and_for_constants():
    rng = np.random.default_rng(0)
    y, pred = rng.integers(0, 9, 50), rng.integers(0, 9, 50)
    assert rho(y, pred) == pytest.approx(spearmanr(y, pred).statistic)
    assert rho(y, 3 * y + 7) == pytest.approx(1) and rho(y, -y) == pytest.approx(-1)
    assert rho(y, np.ones(50)) == 0
    both = np.column_stack([y, -y])
    assert mean_rho(both, np.column_stack([y, y])) == pytest.approx(0)


def test_mean_over_seeds_and_its_deviation(codes):
    y, pred = codes
    other = np.roll(pred, 1)
    estimate = bootstrap(accuracy, y, [pred, other], draws=50)
    values = [accuracy(y, pred), accuracy(y, other)]
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.deviation == pytest.approx(np.std(values, ddof=1))
    assert (estimate.seeds, estimate.n) == (2, 200)
    assert np.isnan(bootstrap(accuracy, y, pred, draws=5).deviation)


def test_interval_covers_what_other_clips_give():
    """Of 95 % intervals on 60 clips about 95 % hold the accuracy of all clips."""
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        right = rng.random(60) < 0.7
        estimate = bootstrap(accuracy, right, np.ones(60, bool), draws=200, seed=trial)
        hits += estimate.low <= 0.7 <= estimate.high
    assert 180 <= hits <= 198


def test_interval_is_wider_when_clips_share_tracks_and_when_seeds_differ(codes):
    y, pred = codes
    y, pred = np.repeat(y, 4), np.repeat(pred, 4)
    plain = bootstrap(accuracy, y, pred)
    grouped = bootstrap(accuracy, y, pred, groups=np.repeat(np.arange(200), 4))
    assert grouped.high - grouped.low > 1.6 * (plain.high - plain.low)
    rng = np.random.default_rng(0)
    good, bad = y, np.where(rng.random(800) < 0.5, y, (y + 1) % 4)
    mixed = bootstrap(accuracy, y, [good, bad])
    assert mixed.high - mixed.low > 0.3  # either seed could have been drawn


def test_compare_is_the_same_from_both_sides_and_for_any_order_of_seeds(codes):
    y, pred = codes
    rng = np.random.default_rng(0)
    a = [np.where(rng.random(200) < share, y, pred) for share in (0.3, 0.1, 0.5)]
    b = [pred, np.roll(pred, 3)]
    one, other = compare(y, a, b, accuracy), compare(y, b, a, accuracy)
    assert one.value == pytest.approx(-other.value) and one.value > 0
    assert verdict(one) == "ahead" and verdict(other) == "behind"
    assert one == compare(y, a[::-1], b[::-1], accuracy)
    assert one.seeds_ahead == 3 and other.seeds_ahead == 0


def test_compare_is_paired(codes):
    """Two methods that differ on four clips only have a narrow interval, however unsure each is."""
    y, pred = codes
    better = pred.copy()
    wrong = np.flatnonzero(y != pred)[:4]
    better[wrong] = y[wrong]
    difference = compare(y, better, pred, accuracy)
    alone = bootstrap(accuracy, y, pred)
    assert difference.value == pytest.approx(0.02)
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    assert verdict(compare(y, pred, pred, accuracy)) == "not distinguishable"


def test_more_comparisons_make_wider_intervals(codes):
    y, pred = codes
    better = np.where(np.random.default_rng(0).random(200) < 0.2, y, pred)
    one, many = (compare(y, better, pred, accuracy, comparisons=n) for n in (1, 12))
    assert many.low < one.low and many.high > one.high and many.comparisons == 12
    edge = Difference(0.05, 0.0, 0.1, 1, 1, 10)
    assert verdict(edge) == "not distinguishable"


def test_false_alarms_are_rare():
    """Two methods that are equally good differ by verdict in about one of twenty test sets."""
    rng = np.random.default_rng(2)
    alarms = 0
    for trial in range(100):
        a, b = rng.random((2, 80)) < 0.7
        found = compare(np.ones(80, bool), a, b, accuracy, draws=300, seed=trial)
        alarms += verdict(found) != "not distinguishable"
    assert alarms <= 12


def test_spearman_of_each_axis_and_withheld_labels():
    rng = np.random.default_rng(0)
    y = rng.random((60, 3))
    pred = y.copy()
    pred[:, 1] = -pred[:, 1]
    estimates = metrics.spearman(y, [pred, pred])
    values = [estimates[key].value for key in ("valence", "energy", "danceability", "mean")]
    assert values == pytest.approx([1, -1, 1, 1 / 3])
    with pytest.raises(ValueError, match="withheld"):
        metrics.spearman(np.full((5, 3), np.nan), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"labels \(5, 3\) and predictions \(5, 1\)"):
        metrics.spearman(np.zeros((5, 3)), np.zeros((5, 1)))


def test_resamples_draw_whole_tracks():
    groups = np.repeat(["a", "b", "c"], [1, 2, 3])
    for clips in metrics.resamples(6, 20, np.random.default_rng(0), groups):
        counts = np.bincount(clips, minlength=6)
        assert counts[1] == counts[2] and counts[3] == counts[4] == counts[5]


def test_two_seeds_are_two_draws(codes):
    y, pred = codes
    for judge in (bootstrap, lambda *given, **o: compare(y, pred, np.roll(pred, 1), accuracy, **o)):
        one, again, other = (judge(accuracy, y, pred, draws=99, seed=seed) for seed in (0, 0, 1))
        assert (one.low, one.high) == (again.low, again.high) != (other.low, other.high)
