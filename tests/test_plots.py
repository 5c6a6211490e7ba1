"""Figures: drawn into the axes they are given, labelled, and showing the numbers they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from labhelpers import plots

RNG = np.random.default_rng(0)
MEL, CHROMA = RNG.uniform(-80, 0, (128, 60)), RNG.uniform(0, 1, (12, 60))
COUNTS = pd.Series({"Rock": 12, "Jazz": 5})
ROWS = [
    {"epoch": i + 1, "train_loss": 1 / (i + 1), "val_loss": 1.0, "val_score": 0.1 * i, "lr": 0.1, "seconds": 1.0}
    for i in range(4)
]
FOREST = pd.DataFrame({"label": ["LSTM", "CNN"], "value": [0.5, 0.7], "low": [0.4, 0.6], "high": [0.6, 0.8]})
DRAWN = {
    "mel": lambda ax: plots.plot_spectrogram(MEL, ax, title="clip 11, Rock"),
    "beat mel": lambda ax: plots.plot_spectrogram(MEL, ax, beat_synced=True, title="clip 11, Rock"),
    "chroma": lambda ax: plots.plot_spectrogram(CHROMA, ax, kind="chroma", title="clip 11, Rock"),
    "counts": lambda ax: plots.plot_class_counts(COUNTS, ax, title="clip 11, Rock"),
    "history": lambda ax: plots.plot_history(ROWS, ax, title="clip 11, Rock", best_epoch=2),
    "confusion": lambda ax: plots.plot_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"], ax, title="clip 11, Rock"),
    "forest": lambda ax: plots.plot_forest(FOREST, ax, xlabel="accuracy", title="clip 11, Rock", reference=0.2),
    "scatter": lambda ax: plots.plot_scatter([0.1, 0.9], [0.3, 0.6], ax, axis="valence", title="clip 11, Rock"),
}


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("a plot function called plt.show"))
    yield
    plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_axes_in_axes_out_with_labels(name):
    ax = plt.subplots()[1]
    assert DRAWN[name](ax) is ax and len(plt.get_fignums()) == 1
    ax.figure.canvas.draw()
    assert ax.get_title() == "clip 11, Rock" and ax.get_xlabel()
    assert ax.get_ylabel() or name in ("counts", "forest")  # there the rows' names say what they are
    assert DRAWN[name](None).figure is not ax.figure


@pytest.mark.parametrize("name, x, y, colours", [
    ("mel", "(s)", "Hz", "dB"), ("beat mel", "beat", "Hz", "dB"), ("chroma", "(s)", "pitch class", "")
])  # fmt: skip
def test_units_of_spectrograms(name, x, y, colours):
    ax = DRAWN[name](None)
    bar = ax.figure.axes[-1]
    ax.figure.canvas.draw()
    assert x in ax.get_xlabel() and y in ax.get_ylabel()
    assert bar.get_ylabel() and all(colours in label.get_text() for label in bar.get_yticklabels())


def test_spectrogram_shows_its_values_on_a_fixed_scale():
    for kind, values, limits in (("mel", MEL, (-80, 0)), ("chroma", CHROMA, (0, 1))):
        frozen = values.copy()
        frozen.setflags(write=False)
        ax = plots.plot_spectrogram(frozen, kind=kind, beats=[10, 20])
        mesh = ax.collections[0]
        np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(values.shape), values)
        assert mesh.get_clim() == limits
    seconds = ax.collections[1].get_segments()[1][0][0]
    assert seconds == pytest.approx(20 * 512 / 22050)  # beats are given as frames


def test_pitch_classes_are_named():
    ax = DRAWN["chroma"](None)
    ax.figure.canvas.draw()
    assert {"C", "E", "G"} <= {label.get_text() for label in ax.get_yticklabels()}


def test_counts_stand_top_to_bottom():
    ax = DRAWN["counts"](None)
    ax.figure.canvas.draw()
    assert [bar.get_width() for bar in ax.patches] == [5, 12]  # the first name is drawn last, at the top
    assert [text.get_text() for text in ax.get_yticklabels()] == ["Jazz", "Rock"]


def test_history_without_validation():
    rows = [{key: row[key] for key in ("epoch", "train_loss")} for row in ROWS]
    ax = plots.plot_history(rows)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4])
    assert len(ax.figure.axes) == 1 and len(plots.plot_history(ROWS).figure.axes) == 2


def test_confusion_counts_and_shares():
    ax = DRAWN["confusion"](None)
    assert [text.get_text() for text in ax.texts] == ["3", "1", "0", "0"]
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_array()).ravel(), [0.75, 0.25, 0, 0])  # no 0 / 0
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]


def test_forest_draws_the_intervals():
    ax = DRAWN["forest"](None)
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 0] for segment in segments], [[0.4, 0.6], [0.6, 0.8]])
    assert segments[0][0][1] > segments[1][0][1]  # top to bottom


def test_maps_are_a_grid():
    fig = plots.plot_maps(RNG.random((5, 4, 6)), columns=3, titles=list("abcde"), suptitle="maps")
    shown = [ax for ax in fig.axes if ax.images]
    assert len(fig.axes) == 6 and [ax.get_title() for ax in shown] == list("abcde")
    assert shown[0].images[0].get_array().shape == (4, 6)
